"""From the options of ``expunge evaluate`` to what judging folders needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.errors import ConfigError

ANYWHERE = ("metrics", "controls", "margins", "engine.device", "engine.dtype", "seed")
"""Options that folders of language models are judged with too; and those of pipelines, beside --data."""


def common(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that mean the same for all kinds of models."""
    from expunge import config
    from expunge.cli.inputs import inline, listed
    from expunge.training.engine import Engine

    margins = inline("margins", given.get("margins")) or {}
    if not isinstance(margins, dict):
        raise ConfigError("write a mapping, for example '{accuracy.test: 0.01}'.", "margins")
    engine = {name.removeprefix("engine."): given[name] for name in given if name.startswith("engine.")}
    return {
        "controls": listed("controls", given["controls"]) if "controls" in given else (),
        "margins": margins,
        "seed": given.get("seed", 0),
        "engine": config.parse(Engine, engine, "engine"),
        "name": "evaluation",
    }


def records(
    experiment: str | None, given: Mapping[str, Any], forget: Path, retain: Path | None, test: Path | None
) -> dict[str, Any]:
    """What judging language models needs."""
    if experiment is not None:
        raise ConfigError(f"records need no experiment. Leave '{experiment}' out, or give a file of ids.")
    strange = [name for name in given if name not in ANYWHERE]
    if strange:
        raise ConfigError("does not go with records, which bring data and task. Leave it out.", strange[0])
    if retain is None:
        raise ConfigError(
            "records to forget need records that were to be kept. Give a .jsonl file.", "retain"
        )
    return {"forget": forget, "retain": retain, "test": test} | common(given)


def pictures(
    experiment: str | None,
    given: Mapping[str, Any],
    files: Mapping[str, Path | None],
    concept: str | None,
    drawing: Mapping[str, Any],
) -> dict[str, Any]:
    """What judging pipelines needs."""
    from dataclasses import replace

    from expunge import judging
    from expunge.cli.inputs import inline
    from expunge.evaluation.picture_judges import Judge

    if experiment is not None:
        raise ConfigError(f"pipelines need no experiment. Leave '{experiment}' out.")
    strange = [name for name in given if name not in (*ANYWHERE, "data")]
    strange += [name for name, file in files.items() if file is not None]
    if strange:
        raise ConfigError(
            "does not go with pipelines, which bring task and network. Leave it out.", strange[0]
        )
    if concept is None or not concept.strip():
        raise ConfigError("say what the pipelines were to forget, for example 'mosaic style'.", "concept")
    if "data" not in given:
        raise ConfigError("give images of all concepts: a folder of them, or canvas.", "data")
    how = {name: value for name, value in drawing.items() if name in ("steps", "guidance")}
    if "seeds" in drawing:
        how["seeds"] = tuple(range(drawing["seeds"]))
    return common(given) | {
        "data": inline("data", given["data"]),
        "concept": concept,
        "gallery": replace(judging.GALLERY, **how),
        "judge": Judge(load=drawing.get("judge", "")),
    }
