"""``expunge evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

PICTURES = "Text-to-image pipelines"

NO_RETRAINED = (
    "No retrained model was given, so there are values but no verdicts. Give --retrained MODEL (3 or more), "
    "or --train '{epochs: 30}' with --model to train them here."
)

NONE_FOR_RECORDS = (
    "No retrained model was given, so there are values but no verdicts. Give --retrained FOLDER (3 or more): "
    "models trained without the records to be forgotten."
)

NONE_FOR_CONCEPTS = (
    "No retrained pipeline was given, so there are values but no verdicts. Give --retrained FOLDER (3 or "
    "more): pipelines trained without the concept."
)

Data = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        rich_help_panel=ALONE,
        help="Training and test data: a data set (see: expunge list data), an .npz file, a folder of images, "
        "or module:function that returns (train, test). For pipelines images of all concepts, with captions.",
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
    Path | None,
    typer.Option(
        metavar="FILE",
        help="What was to be forgotten: ids (.txt with one a line, .npy, .json, a search's index file), or "
        "the name of a set that the experiment's data brings, as forget10 of tofu; for language models "
        "records (.jsonl).",
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
Concept = Annotated[
    str | None,
    typer.Option(
        metavar="WORDS", rich_help_panel=PICTURES, help="What was to be forgotten: 'mosaic style', 'star'."
    ),
]
Judges = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="FUNCTION",
        rich_help_panel=PICTURES,
        help="module:function that makes your classifier of a domain.",
        show_default="trained on the data's images",
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(min=1, rich_help_panel=PICTURES, help="Images of each prompt.", show_default="5"),
]
Steps = Annotated[
    int | None, typer.Option(rich_help_panel=PICTURES, help="Of the sampler.", show_default="50")
]
Guidance = Annotated[
    float | None,
    typer.Option(rich_help_panel=PICTURES, help="Above 0; 1 is none.", show_default="7.5"),
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
    forget: Forget = None,
    experiment: Annotated[
        str | None,
        typer.Argument(
            metavar="EXPERIMENT",
            help="A YAML file or packaged suite; not needed with --data or records.",
        ),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Values of EXPERIMENT to change: model.path=DIR."),
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
    concept: Concept = None,
    judge: Judges = None,
    seeds: Seeds = None,
    steps: Steps = None,
    guidance: Guidance = None,
) -> None:
    """Judges unlearned models against the original and against retrained ones, wherever they were made.

    A MODEL is the folder of a Hugging Face checkpoint, a .safetensors or .pt file of weights (which needs
    --model), or module:function or file.py:function, a function that returns the trained model. Models get
    their inputs as the data has them, images as float32 in 0..1; a function can wrap a model that wants them
    normalised.

    With records (--forget forget.jsonl --retain retain.jsonl) the models are folders of language models with
    their tokenizer, guarded ones included, and the report shows what they answer before and after.

    With --concept the models are folders of text-to-image pipelines, guarded ones included; --data has real
    images of all concepts, on which the judges are trained: a folder with a metadata.jsonl, a folder of
    folders style/object, or canvas. The report shows what the pipelines draw from the same noise.

    The models to compare with are given by --retrained or trained here, by --train or by the experiment file.
    Without any of them there are values but no verdicts. With an experiment file its data, network, task,
    training, metrics, controls and margins are used, changed by KEY=VALUE. Writes a report and its data.
    """
    from expunge import foreign, judging, language
    from expunge.cli import judged
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
    if experiment is not None and "=" in experiment:
        raise ConfigError(f"'{experiment}' changes an experiment. Name that one first, or leave this out.")
    drawing = {"judge": judge, "seeds": seeds, "steps": steps, "guidance": guidance}
    drawing = {name: value for name, value in drawing.items() if value is not None}
    settings: dict[str, Any] = {} if metrics is None else {"metrics": listed("metrics", metrics)}
    report_on: Callable[..., Report]
    none = NO_RETRAINED
    if concept is not None or judging.is_pipeline(original):
        report_on, none = judging.judge, NONE_FOR_CONCEPTS
        files = {"forget": forget, "retain": retain, "test": test}
        settings |= judged.pictures(experiment, given, files, concept, drawing)
        settings["cache"] = directory / "store"
    elif forget is None:
        raise ConfigError("say what was to be forgotten; of pipelines give --concept.", "forget")
    elif drawing:
        raise ConfigError("goes with folders of pipelines and --concept. Leave it out.", next(iter(drawing)))
    elif forget.name.removesuffix(".gz").endswith(".jsonl"):
        report_on, none = language.judge, NONE_FOR_RECORDS
        settings = judged.records(experiment, given, forget, retain, test) | settings
    else:
        report_on = foreign.audit
        known = bool(retrained)
        settings = _examples(experiment, fields or (), given, forget, known, retain or test) | settings
        settings["cache"] = directory / "store"
    writable(directory / "result.json")
    with Progress() as progress:
        report = report_on(original, unlearned, retrained=retrained or (), callbacks=(progress,), **settings)
    save(report, directory)
    show(report, directory)
    if not report.tables[0].by_role("retrained"):
        print(none)


def _examples(
    experiment: str | None,
    fields: Sequence[str],
    given: Mapping[str, Any],
    forget: Path,
    retrained: bool,
    records: Path | None,
) -> dict[str, Any]:
    """What an audit of models of examples with ids needs."""
    from expunge.data.split import read_ids

    if records is not None:
        raise ConfigError(f"'{records}' goes with --forget FILE.jsonl, and '{forget}' is no such file.")
    if experiment is None:
        return _alone(given, read_ids(forget))
    return _of(experiment, fields, given, forget, retrained)


def _alone(given: Mapping[str, Any], ids: Tensor) -> dict[str, Any]:
    """What an audit needs, from the options alone."""
    from expunge import foreign
    from expunge.cli import judged
    from expunge.cli.inputs import inline
    from expunge.data.split import Split
    from expunge.evaluation.shadows import ShadowPlan

    common = judged.common(given)
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
    experiment: str, fields: Sequence[str], given: Mapping[str, Any], forget: Path, retrained: bool
) -> dict[str, Any]:
    """What an audit needs, from an experiment file."""
    from expunge.cli.inputs import forgotten, narrowed, split

    if given:
        raise ConfigError(f"the experiment file decides it. Change it in '{experiment}'.", next(iter(given)))
    setup = narrowed(experiment, None, forgotten(forget), overrides=fields)
    return {
        "split": split(setup),
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
