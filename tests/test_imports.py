"""Imports go one way, a method never imports another, and heavy libraries wait until they are needed."""

import ast
import graphlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import expunge
from expunge.methods import methods

ROOT = Path(expunge.__file__).parent
LAYERS = (
    {"errors", "seeding"},
    {"registry", "config"},
    {"data"},
    {"tasks"},
    {"training"},
    {"methods"},
    {"evaluation"},
    {"searches"},
    {
        "api",
        "drawing",
        "experiment",
        "foreign",
        "judging",
        "language",
        "pieces",
        "pipelines",
        "provenance",
        "reference_models",
        "run_log",
        "runner",
        "saved",
        "store",
        "workers",
    },
    {"report", "bench"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
UPWARD = {("expunge.evaluation.report", "report")}
"""A report is printed and plotted on demand: this module imports that package inside its functions."""

HEAVY = ("transformers", "diffusers", "peft", "torchvision", "timm", "ray", "matplotlib", "sklearn")


@dataclass(frozen=True)
class Import:
    importer: str
    target: str
    when: str  # "module", "function" or "typing"


def _modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(_modules())


def _targets(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, "imports are absolute"
    names = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else str(node.module) for name in names]


def _imports(module):
    found = []

    def visit(node, when):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                found.extend(Import(module, target, when) for target in _targets(child))
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                visit(child, "function")
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                visit(child, "typing")
            else:
                visit(child, when)

    visit(ast.parse(MODULES[module].read_text(encoding="utf-8")), "module")
    return found


IMPORTS = [found for module in MODULES for found in _imports(module)]
OURS = [found for found in IMPORTS if found.target.startswith("expunge.")]


def _part(module):
    return module.split(".")[1]


def test_every_top_level_module_has_its_place_in_the_order():
    assert {_part(module) for module in MODULES if module != "expunge"} <= LEVEL.keys()


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"expunge"}))
def test_a_module_imports_only_from_its_own_layer_and_those_below(module):
    upward = {
        (found.target, found.when)
        for found in OURS
        if found.importer == module
        and LEVEL[_part(found.target)] > LEVEL[_part(module)]
        and not ((module, _part(found.target)) in UPWARD and found.when == "function")
    }
    assert not upward


def test_the_exceptions_are_still_needed():
    used = {(found.importer, _part(found.target)) for found in OURS if found.when == "function"}
    assert used >= UPWARD


def test_no_two_modules_wait_for_each_other():
    graph = {}
    for found in OURS:
        if found.when == "module" and found.importer != "expunge":
            graph.setdefault(found.importer, set()).add(found.target)
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("expunge.errors") < order.index("expunge.training.loop")


def test_a_method_never_imports_another_method():
    known = {methods.get(name).__module__ for name in methods.names()}
    assert known
    assert not [f for f in OURS if f.importer in known and f.target in known]


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_package_nowhere_needs(library):
    assert not [found for found in IMPORTS if found.target.split(".")[0] == library]


def test_importing_the_package_loads_no_heavy_library():
    code = f"import sys, expunge; print([name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_importing_every_layer_up_to_the_methods_loads_no_heavy_library():
    code = (
        "import sys; from expunge.methods import methods; from expunge.training.scope import scopes; "
        "methods.names(), scopes.names(); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
