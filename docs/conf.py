"""How the documentation is built: MyST pages whose code cells are executed; an error fails the build."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import expunge
from expunge.registry import _REGISTRIES

# The kernels that execute the pages import the same package as this process.
os.environ["PYTHONPATH"] = str(Path(expunge.__file__).parents[1])
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TQDM_DISABLE"] = "1"  # a page shows what a cell found, no bars of other libraries
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"

project = "expunge"
copyright = "The expunge authors"
version = release = expunge.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "results"]
html_theme = "furo"
html_title = f"expunge {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
myst_links_external_new_tab = True
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_render_markdown_format = "myst"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

_SECTION = re.compile(r"^(Shapes|Ideal|Cost|Guarantee|Differs|References): (.*)")

REGISTRIES = {
    "methods": "expunge.methods.base",
    "modifiers": "expunge.training.modifier",
    "scopes": "expunge.training.scope",
    "optimisers": "expunge.training.optim",
    "searches": "expunge.searches.base",
    "metrics": "expunge.evaluation.metric",
    "tasks": "expunge.tasks.base",
    "models": "expunge.training.models",
    "sources": "expunge.data.source",
    "manipulations": "expunge.data.poison",
}
"""Where each registry lives."""


class Registered(SphinxDirective):
    """``registered:: methods``: the documentation of every class of a registry, from its docstring."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        registry = getattr(importlib.import_module(REGISTRIES[name]), name)
        classes = [registry.get(key) for key in registry.names()]
        lines = [f".. autoclass:: {cls.__module__}.{cls.__qualname__}" for cls in classes]
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))


class MetricsGuide(SphinxDirective):
    """``metrics-guide``: what each metric means, one section for each, from the metrics' docstrings."""

    def run(self) -> list[nodes.Node]:
        from expunge.report import guide

        return self.parse_text_to_nodes(guide.to_markdown(), allow_section_headings=True)


def sections(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turns ``Cost: …`` and its like, which the docstrings of methods and metrics have, into a field list."""
    found, before = [], False
    for line in lines:
        match = _SECTION.match(line)
        if match and not before and found and found[-1].strip():
            found.append("")
        before = bool(match) or (before and line.startswith(" "))
        found.append(f":{match[1]}: {match[2]}" if match else line)
    lines[:] = found


def short(app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str, result: str) -> Any:
    """Leaves out the signatures of registered classes: experiments.md lists their fields with defaults."""
    if what == "class" and any(issubclass(thing, base) and thing is not base for base in _REGISTRIES):
        return "", None
    return None


def setup(app: Sphinx) -> None:
    app.add_directive("registered", Registered)
    app.add_directive("metrics-guide", MetricsGuide)
    app.connect("autodoc-process-signature", short)
    app.connect("autodoc-process-docstring", sections, priority=400)
