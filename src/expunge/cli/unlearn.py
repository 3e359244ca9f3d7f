"""``expunge unlearn``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli.arguments import Fields
from expunge.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from expunge.methods.base import Method

EXAMPLE = (
    "expunge unlearn --model my-model --forget forget.jsonl --retain retain.jsonl --method npo --scope lora "
    "--output forgotten"
)

LANGUAGE = "Language models"


def command(
    model: Annotated[
        Path,
        typer.Option(
            metavar="MODEL", help="The trained model: a .safetensors file, a folder, or an id of the Hub."
        ),
    ],
    forget: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="What to forget: ids (.txt with one a line, .npy, .json, a search's index file); for a "
            "language model records (.jsonl).",
        ),
    ],
    method: Annotated[str, typer.Option(help="Name of a method (see: expunge list methods).")],
    output: Annotated[
        Path,
        typer.Option("--output", "--out", help="Where the new model goes: a .safetensors file, or a folder."),
    ],
    experiment: Annotated[
        str | None,
        typer.Argument(
            metavar="[EXPERIMENT]", help="The YAML file or suite that the .safetensors file is of."
        ),
    ] = None,
    fields: Fields = None,
    retain: Annotated[
        Path | None, typer.Option(metavar="FILE", rich_help_panel=LANGUAGE, help="Records to keep (.jsonl).")
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=LANGUAGE, help="What may move: lora, '{kind: last_layers, count: 2}', …"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(rich_help_panel=LANGUAGE, help="Of everything that is drawn.")] = 0,
    dtype: Annotated[
        str | None,
        typer.Option("--engine.dtype", rich_help_panel=LANGUAGE, help="float32 or bfloat16."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--engine.device", rich_help_panel=LANGUAGE, help="auto, cpu, cuda, …")
    ] = None,
) -> None:
    """Makes a trained model forget and writes the new one; the model that is read is never changed.

    With the folder of a language model (as save_pretrained writes it, with its tokenizer), --forget and
    --retain are files of records: one JSON object a line with question and answer, messages, or text. The
    result is a folder for from_pretrained, with a model card.

    With an experiment file, data, network and task are the experiment's, and --forget are ids of its
    training examples.

    Whether the model has forgotten is for `expunge evaluate` to say.
    """
    from expunge.data.hub import is_id

    given = list(fields or ())
    if experiment is not None and "=" in experiment:
        given.insert(0, experiment)
        experiment = None
    if model.is_dir() or is_id(model):
        if experiment is not None:
            raise ConfigError(
                f"'{model}' is a folder, a language model, which needs no experiment. Leave "
                f"'{experiment}' out."
            )
        engine = {key: value for key, value in (("dtype", dtype), ("device", device)) if value}
        _language(model, forget, retain, _built(method, scope, given), output, seed, engine)
        return
    if experiment is None:
        raise ConfigError(
            f"'{model}' is no folder of a language model, so it needs the experiment that it is of. Name the "
            "YAML file or suite first, or give the folder."
        )
    _weights(experiment, model, forget, method, _built(method, scope, given), output)


def _built(method: str, scope: str | None, given: Sequence[str]) -> Method:
    from expunge import config
    from expunge.cli.inputs import inline
    from expunge.methods.base import methods

    value: dict[str, Any] = {"kind": method}
    if scope is not None:
        value["scope"] = inline("scope", scope)
    return config.build(methods, config.override(value, given), "method")


def _weights(experiment: str, model: Path, forget: Path, method: str, chosen: Method, output: Path) -> None:
    """A file of weights of an experiment's network."""
    from expunge import api
    from expunge.cli.inputs import load, narrowed, writable
    from expunge.cli.progress import Progress
    from expunge.data.split import read_ids
    from expunge.searches.given import Given
    from expunge.training.checkpoint import save_weights

    ids = read_ids(forget)
    writable(output)
    setup = narrowed(experiment, model, Given(path=forget), {method: chosen})
    split = setup.split(ids)
    before = output.with_stem(f"{output.stem}-before-it-diverged")
    with _keeping(chosen, before, save_weights), Progress() as progress:
        result = api.unlearn(
            load(setup, model),
            split,
            chosen,
            task=setup.task,
            recipe=setup.recipe,
            seed=setup.seed,
            engine=setup.engine,
            callbacks=(progress,),
        )
    save_weights(result.model, output)
    print(
        f"{method} forgot {len(split.forget):,} of {len(setup.sourced.train):,} examples "
        f"in {result.cost['seconds']:.1f} s."
    )
    print(f"Weights: {output}")


@contextmanager
def _keeping(method: Method, place: Path, write: Callable[[nn.Module, Path], None]) -> Iterator[None]:
    """Where a method diverges, writes the model as it was before the step that did, and says where.

    Only where it is the method's own run that diverged, and not the training of something that it uses.
    """
    from expunge.errors import Diverged
    from expunge.methods.base import GradientMethod, methods

    try:
        yield
    except Diverged as error:
        own = isinstance(method, GradientMethod) and error.what == methods.name_of(method)
        if not own or error.model is None:
            raise
        write(error.model, place)
        said = f"{error} The model as it was before that step is in '{place}'; it is no result."
        raise Diverged(said, what=error.what, model=error.model) from None


def _language(
    model: Path,
    forget: Path,
    retain: Path | None,
    method: Method,
    output: Path,
    seed: int,
    engine: dict[str, str],
) -> None:
    """The folder of a language model and files of records."""
    from expunge import language
    from expunge.cli.inputs import writable
    from expunge.cli.progress import Progress
    from expunge.config import parse
    from expunge.methods.base import methods
    from expunge.saved import save
    from expunge.training.engine import Engine

    chosen = parse(Engine, engine, "engine")
    asked = language.request(model, forget, retain)
    writable(output / language.CARD)
    data = asked.forget
    print(f"One of {len(data):,} records to forget, as the model sees it:")
    print("  " + data.shown(int(data.ids[0])).replace("\n", "\n  "))
    for pair in asked.near[:3]:
        print(
            f"Nearly the same ({pair.similarity:.0%}): record {pair.forget} to forget and record "
            f"{pair.retain} to keep."
        )
    if asked.refusals and "idk" in str(method):
        print(f"{asked.refusals:,} records have no 'idk' answer and were given refusals of ours.")
    before = output.with_name(f"{output.name}-before-it-diverged")
    with (
        _keeping(method, before, lambda found, place: save(found, place, asked.tokenizer)),
        Progress() as progress,
    ):
        result = language.forget(asked, method, seed=seed, engine=chosen, callbacks=(progress,))
    language.write(result, asked, output)
    print(f"{methods.name_of(method)} forgot {len(data):,} records in {result.cost['seconds']:.1f} s.")
    print(f"Model, tokenizer and card: {output}")
