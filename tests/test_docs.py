"""What README and documentation say runs, and what they name exists."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import expunge
from expunge import config
from expunge.cli.main import COMMANDS, app
from expunge.data.poison import manipulations
from expunge.data.source import sources
from expunge.data.split import Split
from expunge.errors import Unsupported
from expunge.evaluation.metric import metrics
from expunge.evaluation.shadows import ShadowPlan
from expunge.experiment import Experiment, suites
from expunge.methods import Method, methods
from expunge.report import guide
from expunge.searches import searches
from expunge.tasks import tasks
from expunge.training.engine import Engine
from expunge.training.models import models
from expunge.training.modifier import modifiers
from expunge.training.optim import optimisers
from expunge.training.scope import scopes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
REGISTRIES = (
    methods,
    modifiers,
    scopes,
    optimisers,
    searches,
    metrics,
    tasks,
    models,
    sources,
    manipulations,
)
TAUGHT = {"capped_ascent", "agreement", "certain", "typical", "moons"}
"""Names that add_a_method.md registers itself."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """The inline code outside of fenced blocks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose)


def run(*arguments: str, source: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def taught_method() -> str:
    """The file that add_a_method.md tells to write."""
    cells = blocks(TEXTS["add_a_method.md"], "{code-cell} ipython3")
    (found,) = (cell for cell in cells if '@methods.register("capped_ascent")' in cell)
    return found


def copied_source(folder: Path) -> Path:
    import shutil

    source = folder / "src"
    package = Path(expunge.__file__).parent
    shutil.copytree(package, source / "expunge", ignore=shutil.ignore_patterns("__pycache__"))
    return source


def test_the_taught_method_passes_the_contract_with_no_other_change(tmp_path):
    source = copied_source(tmp_path)
    (source / "expunge/methods/gradient/capped_ascent.py").write_text(taught_method(), encoding="utf-8")
    contract = "tests/methods/test_contract.py"
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "capped_ascent")
    done = run("-m", "pytest", contract, *options, source=source, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 30


def test_the_taught_method_is_found_in_another_package_by_its_entry_point(tmp_path):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/__init__.py").touch()
    (tmp_path / "my_package/unlearning.py").write_text(taught_method(), encoding="utf-8")
    (entry,) = (block for block in blocks(TEXTS["add_a_method.md"], "toml") if "entry-points" in block)
    ((group, points),) = tomllib.loads(entry)["project"]["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (tmp_path / "my_package-1.dist-info").mkdir()
    (tmp_path / "my_package-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: my-package\n")
    (tmp_path / "my_package-1.dist-info/entry_points.txt").write_text("\n".join(lines))
    package = Path(expunge.__file__).parents[1]
    path = Path(f"{package}{os.pathsep}{tmp_path}")
    done = run("-m", "expunge.cli.main", "list", "methods", source=path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "capped_ascent" in done.stdout


def test_the_first_screen_of_the_readme_runs_as_it_stands(tmp_path):
    (code,) = blocks(TEXTS["README.md"], "python")
    (tmp_path / "first_screen.py").write_text(code, encoding="utf-8")
    done = run("first_screen.py", source=Path(expunge.__file__).parents[1], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "salun" in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 10_000


def table_names(text: str) -> dict[str, set[str]]:
    """The first cell of each row of a Markdown table, and the code of its second cell."""
    rows = (line.strip("|").split("|") for line in text.splitlines() if line.startswith("| "))
    return {row[0].strip(): set(re.findall(r"`([a-z0-9_]+)`", row[1])) for row in rows}


def test_the_readme_names_every_built_in_and_nothing_else():
    rows = table_names(TEXTS["README.md"])
    assert {name.strip("`") for name in rows if name.startswith("`")} == set(methods.names())
    for row, registry in (
        ("Modifiers", modifiers),
        ("Scopes", scopes),
        ("Optimisers", optimisers),
        ("Searches for a forget set", searches),
        ("Metrics", metrics),
        ("Manipulations of data", manipulations),
    ):
        assert rows[row] == set(registry.names()), row
    assert rows["Data"] <= set(sources.names())
    assert rows["Models"] <= set(models.names())
    (listed,) = (line for line in TEXTS["README.md"].splitlines() if line.startswith("| Suites "))
    assert set(re.findall(r"`([\w-]+)`", listed)) == suites().keys()


COLUMNS = {"classification": 2, "regression": 3, "causal_lm": 4, "diffusion": 5}
"""Where the README's table of methods has the task of a setting."""

CELL = re.compile(r"–|yes|with bounds|with conditions|(classes)?(?:, )?(?:with `(\w+)`)?")
NEEDED = {"smoothing": -0.1, "bound": 3.0}
"""Values of the fields that a cell names."""

SHORT = {
    "epochs": 1, "batch_size": 4, "proxy_epochs": 1, "fit_epochs": 1, "noise_steps": 2, "iterations": 2,
    "shards": 2, "slices": 1, "models": 4, "oracles": 2, "retrain": "auto",
}  # fmt: skip


def runs(method: Method, setting: Any, split: Split) -> bool:
    try:
        method.unlearn(setting.original, split, setting.task, setting.session)
    except Unsupported:
        return False
    return True


@pytest.mark.parametrize("name", methods.names())
def test_the_readme_says_on_which_kinds_of_model_a_method_runs(name, setting):
    if name.startswith("gs_lora"):
        pytest.importorskip("peft")
    (row,) = (line for line in TEXTS["README.md"].splitlines() if line.startswith(f"| `{name}` |"))
    cells = row.strip("|").split("|")
    if len(cells) == 3:  # for models of transformers or diffusers alone
        assert not runs(methods.get(name)(), setting, setting.split)
        return
    cell = cells[COLUMNS[setting.name]].strip()
    if cell == "without BatchNorm":  # which the setting's model has
        assert not runs(methods.get(name)(), setting, setting.split)
        return
    classes, field = CELL.fullmatch(cell).groups()
    known = {item.name for item in dataclasses.fields(methods.get(name))}
    short = {"kind": name, **{key: value for key, value in SHORT.items() if key in known}}
    split, train = setting.split, setting.split.train()
    if methods.get(name).forgets == "classes" and setting.name in ("classification", "diffusion"):
        assert not runs(config.build(methods, short), setting, split)
        labels = setting.task.groups(train)
        split = Split.from_ids(train, train.ids[labels == labels[0]])
    assert bool(classes) == (methods.get(name).forgets == "classes" and cell != "–")
    assert runs(config.build(methods, short), setting, split) == (cell != "–" and field is None)
    if field is not None:
        assert runs(config.build(methods, {**short, field: NEEDED[field]}), setting, split)


def test_the_pages_on_architecture_and_metrics_name_every_built_in():
    choices = table_names(TEXTS["architecture.md"])
    for row, registry in (("modifiers", modifiers), ("scope", scopes), ("optimiser", optimisers)):
        assert {name for cells in _second(TEXTS["architecture.md"], row) for name in cells} == set(
            registry.names()
        )
    assert choices
    cells = [name for name in table_names(TEXTS["evaluation.md"]) if name.startswith("`")]
    named = {name for cell in cells for name in re.findall(r"`([a-z0-9_]+)`", cell)}
    assert named == set(metrics.names())


@pytest.mark.parametrize(
    ("row", "value"),
    [("guarantee", "exact certified"), ("forgets", "classes"), ("needs_recipe", True), ("prepared_by", True)],
)
def test_the_page_on_architecture_names_the_methods_that_declare_something(row, value):
    (named,) = _second(TEXTS["architecture.md"], f"`{row}`")
    values = {name: getattr(methods.get(name), row) for name in methods.names()}
    if isinstance(value, str):
        declared = {name for name, said in values.items() if said in value.split()}
    else:
        declared = {name for name, said in values.items() if said}
    assert set(named) == declared


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.noun)
def test_the_line_that_expunge_list_prints_is_one_sentence_and_no_wider_than_its_code(registry):
    for name, line in registry.describe().items():
        assert line.endswith("."), f"{name}: {line}"
        assert len(line) <= 106, f"{name}: {line}"


@pytest.mark.parametrize("name", metrics.names())
def test_every_metric_says_what_it_is_what_a_perfect_unlearner_scores_and_what_it_costs(name):
    entry = guide.entry(name)
    assert entry.idea.endswith("."), entry.idea
    assert entry.sections.get("Ideal", "").endswith("."), "its docstring has no section 'Ideal: …'"
    assert entry.sections.get("Cost", "").endswith("."), "its docstring has no section 'Cost: …'"


def _second(text: str, row: str) -> list[list[str]]:
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith(f"| {row} ")]
    return [re.findall(r"`([a-z0-9_]+)`", cells[2]) for cells in lines]


def test_the_readme_says_how_often_the_evaluation_retrains():
    (times,) = re.findall(r"# retrains (\w+) times", TEXTS["README.md"])
    retrained = inspect.signature(expunge.evaluate).parameters["retrained"].default
    assert {"two": 2, "three": 3, "five": 5}[times] == retrained


def test_the_page_on_the_interface_has_every_public_name():
    named = set(re.findall(r"auto(?:function|class):: [\w.]+\.(\w+)$", TEXTS["api.md"], re.MULTILINE))
    assert set(expunge.__all__) - {"data", "methods", "tasks"} <= named


@pytest.mark.parametrize("cls", [Experiment, ShadowPlan, Engine])
def test_every_field_of_an_experiment_is_explained_where_its_page_reads_it(cls):
    section = inspect.getdoc(cls).partition("Args:\n")[2].partition("\n\n")[0]
    explained = {
        name
        for names in re.findall(r"^    (\w[\w, ]*): ", section, re.MULTILINE)
        for name in names.split(", ")
    }
    assert explained == {item.name for item in dataclasses.fields(cls)}


@every_page
def test_every_kind_that_a_page_names_is_registered(page):
    known = {name for registry in REGISTRIES for name in registry.names()} | TAUGHT
    text = TEXTS[page.name]
    named = set(re.findall(r"kind\"?: \"?([a-z]\w*)", text)) | set(re.findall(r"method=\"([a-z]\w*)\"", text))
    assert named - {"sallun", "my_name"} <= known


@every_page
def test_every_command_that_a_page_names_exists(page):
    text = TEXTS[page.name]
    code = "\n".join([*spans(text), *blocks(text, "sh")])
    named = set(re.findall(r"^expunge ([a-z]+)", code, re.MULTILINE))
    assert named <= COMMANDS.keys()
    targets = set(re.findall(r"^make (\w+)", code, re.MULTILINE))
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@every_page
def test_the_arguments_of_every_command_are_accepted(page):
    commands = typer.main.get_command(app).commands
    for line in "\n".join(blocks(TEXTS[page.name], "sh")).splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["expunge"]:
            commands[words[1]].make_context(words[1], words[2:])


@every_page
def test_every_name_in_code_type_occurs_in_the_code(page):
    text = TEXTS[page.name]
    files = [
        *ROOT.glob("src/expunge/**/*.py"),
        *ROOT.glob("src/expunge/suites/*.yaml"),
        ROOT / "pyproject.toml",
        ROOT / "Makefile",
    ]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    own = "\n".join(re.findall(r"^```.*?^```$", text, re.DOTALL | re.MULTILINE))
    words = set(re.findall(r"\w+", source + own)) | COMMANDS.keys() | suites().keys()
    absent = {span for span in spans(text) if re.fullmatch(r"[A-Za-z_]\w*", span)} - words - {"my_name"}
    assert not absent


@every_page
def test_every_file_that_a_page_links_or_names_is_there(page):
    text = TEXTS[page.name]
    links = re.findall(r"\]\(([^)#:\s]+)\)", text)
    assert not [link for link in links if not (page.parent / link).exists()]
    paths = re.findall(r"`((?:src|tests|docs|bench)/(?!_build)[\w./-]+)`", text)
    taught = {f"{name}.py" for name in TAUGHT}
    assert not [path for path in paths if not (ROOT / path).exists() and Path(path).name not in taught]


@every_page
def test_every_extra_that_a_page_names_is_declared(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(re.findall(r"\.\[(\w+)\]", TEXTS[page.name])) <= project["optional-dependencies"].keys()


def test_the_suites_of_the_start_page_are_the_packaged_ones():
    (sentence,) = re.findall(r"the name of a packaged suite, ([^.]+)\.", TEXTS["start.md"])
    assert set(re.findall(r"`([\w-]+)`", sentence)) == suites().keys()


def test_the_yaml_that_a_written_run_keeps_can_be_read_again(tmp_path):
    from expunge.experiment import read

    experiment = read("digits")
    config.write_yaml(experiment, tmp_path / "experiment.yaml")
    assert read(tmp_path / "experiment.yaml") == experiment
    assert yaml.safe_load((tmp_path / "experiment.yaml").read_text())["name"] == "digits"
