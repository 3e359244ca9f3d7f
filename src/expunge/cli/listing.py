"""``expunge list``."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from expunge.registry import Registry

EXAMPLE = "expunge list methods"

KINDS = [
    "methods", "searches", "metrics", "tasks", "models",
    "data", "manipulations", "modifiers", "scopes", "optimisers", "suites",
]  # fmt: skip


def command(
    kind: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(KINDS)}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every field.")] = False,
) -> None:
    """Lists everything that an experiment can name, each with a description.

    Without an argument all kinds are listed. A name stands for itself where all its fields have defaults,
    such as svc; else it is the kind of a mapping, such as {kind: accuracy, part: test}. With --json each
    entry also has its fields: their names, types, defaults, and which of them are required.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"unknown kind '{kind}'.{did_you_mean(kind, KINDS)}")
    entries = {name: _entries(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        print(json.dumps(entries, indent=2, ensure_ascii=False))
    else:
        _show(entries)


def _show(entries: dict[str, list[dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for index, (kind, found) in enumerate(entries.items()):
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        for entry in found:
            table.add_row(Text(f"  {entry['name']}", style="bold"), Text(entry["description"]))
        if index:
            console.print()
        console.print(Text(kind, style="bold underline"))
        console.print(table)


def _entries(kind: str) -> list[dict[str, Any]]:
    if kind == "suites":
        return _suites()
    registry = _registry(kind)
    return [
        {"name": name, "description": description.replace("``", "`"), "fields": _fields(registry.get(name))}
        for name, description in registry.describe().items()
    ]


def _suites() -> list[dict[str, Any]]:
    from expunge.experiment import suites

    return [
        {
            "name": name,
            "description": path.read_text(encoding="utf-8").splitlines()[0].lstrip("# "),
            "fields": [],
        }
        for name, path in suites().items()
    ]


def _registry(kind: str) -> Registry[Any]:
    from expunge.data.poison import manipulations
    from expunge.data.source import sources
    from expunge.evaluation.metric import metrics
    from expunge.methods.base import methods
    from expunge.searches.base import searches
    from expunge.tasks.base import tasks
    from expunge.training.models import models
    from expunge.training.modifier import modifiers
    from expunge.training.optim import optimisers
    from expunge.training.scope import scopes

    found: dict[str, Registry[Any]] = {
        "methods": methods,
        "searches": searches,
        "metrics": metrics,
        "tasks": tasks,
        "models": models,
        "data": sources,
        "manipulations": manipulations,
        "modifiers": modifiers,
        "scopes": scopes,
        "optimisers": optimisers,
    }
    return found[kind]


def _fields(cls: type) -> list[dict[str, Any]]:
    return [_field(item) for item in dataclasses.fields(cls) if item.init]


def _field(item: dataclasses.Field[Any]) -> dict[str, Any]:
    from expunge import config

    required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    return {
        "name": item.name,
        "type": item.type if isinstance(item.type, str) else str(item.type),
        "default": None if required else config.dump(default),
        "required": required,
    }
