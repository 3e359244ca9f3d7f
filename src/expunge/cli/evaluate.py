"""``expunge evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.evaluation.report import Report

EXAMPLE = (
    "expunge evaluate --data digits --model small_cnn --original trained.safetensors "
    "--unlearned forgotten.safetensors --retrained honest.safetensors --forget ids.txt"
)

ALONE = "Without an experiment file"

LANGUAGE = "Language models"

ANYWHERE = ("metrics", "controls", "margins", "engine.device", "engine.dtype", "seed")
"""Options that folders of language models are judged with too."""

NO_RETRAINED = (
    "No retrained model was given, so there are values but no verdicts. Give --retrained MODEL (3 or more), "
    "or --train '{epochs: 30}' with --model to train them here."
)

NONE_FOR_RECORDS = (
    "No retrained model was given, so there are values but no verdicts. Give --retrained FOLDER (3 or more): "
    "models trained without the records to be forgotten."
)

Data = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        rich_help_panel=ALONE,
        help="Training and test data: a data set (see: expunge list data), an .npz file, a folder of images, "
        "or module:function that returns (train, test).",
    ),
]
Network = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        rich_help_panel=ALONE,
        help="The network of files of weights, and of --train: a name (see: expunge list models), "
        "'{kind: small_cnn, width: 8}', or module:function.",
    ),
]
Purpose = Annotated[
    str | None,
    typer.Option(
        metavar="TASK",
        rich_help_panel=ALONE,
        help="What the models are for, for example regression or '{kind: classification, classes: 10}'.",
        show_default="classification, the classes counted in the training labels",
    ),
]
Train = Annotated[
    str | None,
    typer.Option(
        metavar="FIELDS",
        rich_help_panel=ALONE,
        help="Train retrained models here: '{epochs: 30, batch_size: 64, optim: {kind: sgd, lr: 0.1}}'.",
    ),
]
Trainings = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=ALONE, help="How many --train trains.", show_default="3")
]
References = Annotated[
    int | None,
    typer.Option(
        "--shadows",
        min=2,
        metavar="N",
        rich_help_panel=ALONE,
        help="Reference models for lira and rmia, trained by --train on random halves of all data.",
    ),
]
Controls = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        rich_help_panel=ALONE,
        help="Models that must never win, in the table beside the others: collapsed,constant,never_trained.",
    ),
]
Margins = Annotated[
    str | None,
    typer.Option(
        metavar="FIELDS",
        rich_help_panel=ALONE,
        help="Differences from retraining that are negligible: '{accuracy.test: 0.01}'.",
    ),
]
Device = Annotated[
    str | None, typer.Option("--engine.device", rich_help_panel=ALONE, help="auto, cpu, cuda, cuda:1, …")
]
Dtype = Annotated[
    str | None, typer.Option("--engine.dtype", rich_help_panel=ALONE, help="float32 or bfloat16.")
]
Seed = Annotated[
    int | None,
    typer.Option(rich_help_panel=ALONE, help="Of everything that is drawn.", show_default="0"),
]
Forget = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="What was to be forgotten: ids (.txt with one a line, .npy, .json, a search's index file); for "
        "language models records (.jsonl).",
    ),
]
Retain = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=LANGUAGE, help="Records that were to be kept (.jsonl)."),
]
Test = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=LANGUAGE,
        help="Records of the same kind that no model was trained on: for membership and the ranking.",
    ),
]
Original = Annotated[str, typer.Option(metavar="MODEL", help="The model before unlearning.")]
Unlearned = Annotated[list[str], typer.Option(metavar="MODEL", help="After it; repeat for more.")]
Retrained = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODEL", help="Trained without what was to be forgotten; repeat, 3 or more allow verdicts."
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Separated by commas (see: expunge list metrics); fields as in '{kind: accuracy, part: test}'.",
    ),
]


def command(
    original: Original,
    unlearned: Unlearned,
    forget: Forget,
    experiment: Annotated[
        str | None,
        typer.Argument(
            metavar="EXPERIMENT",
            help="A YAML file or packaged suite; not needed with --data or records.",
        ),
    ] = None,
    retrained: Retrained = None,
    retain: Retain = None,
    test: Test = None,
    metrics: Metrics = None,
    directory: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("runs/evaluation"),
    data: Data = None,
    model: Network = None,
    task: Purpose = None,
    train: Train = None,
    trainings: Trainings = None,
    shadows: References = None,
    controls: Controls = None,
    margins: Margins = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = None,
) -> None:
    """Judges unlearned models against the original and against retrained ones, wherever they were made.

    A MODEL is the folder of a Hugging Face checkpoint, a .safetensors or .pt file of weights (which needs
    --model), or module:function or file.py:function, a function that returns the trained model. Models get
    their inputs as the data has them, images as float32 in 0..1; a function can wrap a model that wants them
    normalised.

    With records (--forget forget.jsonl --retain retain.jsonl) the models are folders of language models with
    their tokenizer, guarded ones included, and the report shows what they answer before and after.

    The models to compare with are given by --retrained or trained here, by --train or by the experiment file.
    Without any of them there are values but no verdicts. With an experiment file its data, network, task,
    training, metrics, controls and margins are used. Writes a report and its data.
    """
    from expunge import foreign, language
    from expunge.cli.inputs import listed, writable
    from expunge.cli.output import show
    from expunge.cli.progress import Progress
    from expunge.runner import save

    alone = {
        "data": data, "model": model, "task": task, "train": train, "trainings": trainings,
        "shadows": shadows, "controls": controls, "margins": margins,
        "engine.device": device, "engine.dtype": dtype, "seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in alone.items() if value is not None}
    settings: dict[str, Any] = {} if metrics is None else {"metrics": listed("metrics", metrics)}
    records = forget.name.removesuffix(".gz").endswith(".jsonl")
    judge: Callable[..., Report]
    if records:
        judge, settings = language.judge, _records(experiment, given, forget, retain, test) | settings
    else:
        judge = foreign.audit
        settings = _examples(experiment, given, forget, bool(retrained), retain or test) | settings
        settings["cache"] = directory / "store"
    writable(directory / "result.json")
    with Progress() as progress:
        report = judge(original, unlearned, retrained=retrained or (), callbacks=(progress,), **settings)
    save(report, directory)
    show(report, directory)
    if not report.tables[0].by_role("retrained"):
        print(NONE_FOR_RECORDS if records else NO_RETRAINED)


def _records(
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
    return {"forget": forget, "retain": retain, "test": test} | _common(given)


def _common(given: Mapping[str, Any]) -> dict[str, Any]:
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


def _examples(
    experiment: str | None, given: Mapping[str, Any], forget: Path, retrained: bool, records: Path | None
) -> dict[str, Any]:
    """What an audit of models of examples with ids needs."""
    from expunge.data.split import read_ids

    if records is not None:
        raise ConfigError(f"'{records}' goes with --forget FILE.jsonl, and '{forget}' holds ids.")
    ids = read_ids(forget)
    return _alone(given, ids) if experiment is None else _of(experiment, given, forget, ids, retrained)


def _alone(given: Mapping[str, Any], ids: Tensor) -> dict[str, Any]:
    """What an audit needs, from the options alone."""
    from expunge import foreign
    from expunge.cli.inputs import inline
    from expunge.data.split import Split
    from expunge.evaluation.shadows import ShadowPlan

    common = _common(given)
    if "data" not in given:
        raise ConfigError("give --data, or an experiment file as the first argument.", "data")
    if "trainings" in given and "train" not in given:
        raise ConfigError("says how many models --train trains, and there is no --train.", "trainings")
    if "train" in given and "model" not in given:
        raise ConfigError("needs --model, the network to train.", "train")
    if "shadows" in given and "train" not in given:
        raise ConfigError("needs --train, which says how they are trained.", "shadows")
    values = {name: inline(name, given[name]) for name in ("data", "model", "task", "train") if name in given}
    sourced = foreign.read_data(values["data"])
    task = foreign.read_task(values.get("task"), sourced.train)
    if "task" not in given:
        classes = getattr(task, "classes", "?")
        print(f"Task: classification, {classes} classes counted in the training labels; else give --task.")
    return common | {
        "split": Split.from_ids(sourced.train, ids, test=sourced.test),
        "task": values.get("task"),
        "model": values.get("model"),
        "train": values.get("train"),
        "trainings": given.get("trainings", 3),
        "shadows": ShadowPlan(count=given["shadows"]) if "shadows" in given else None,
    }


def _of(
    experiment: str, given: Mapping[str, Any], forget: Path, ids: Tensor, retrained: bool
) -> dict[str, Any]:
    """What an audit needs, from an experiment file."""
    from expunge.cli.inputs import narrowed
    from expunge.searches.given import Given

    if given:
        raise ConfigError(f"the experiment file decides it. Change it in '{experiment}'.", next(iter(given)))
    setup = narrowed(experiment, None, Given(path=forget))
    return {
        "split": setup.split(ids),
        "task": setup.task,
        "model": setup.model,
        "train": setup.train,
        "trainings": 0 if retrained else setup.retrained,
        "metrics": setup.metrics,
        "controls": setup.controls,
        "shadows": setup.shadows,
        "margins": setup.margins,
        "seed": setup.seed,
        "engine": setup.engine,
        "name": setup.name,
    }
