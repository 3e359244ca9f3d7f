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

PICTURES = "Text-to-image pipelines"


def command(
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
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="The trained model: a .safetensors file, a folder, or an id of the Hub."
        ),
    ] = None,
    forget: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What to forget: ids (.txt with one a line, .npy, .json, a search's index file) or the name "
            "of a set of the data; for a language model records (.jsonl), for a pipeline a folder of "
            "captioned images.",
        ),
    ] = None,
    retain: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For a language model records to keep (.jsonl); for a pipeline prompts (.txt, one a "
            "line) or a folder of captioned images.",
        ),
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="What may move: lora, '{kind: last_layers, count: 2}', …")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    dtype: Annotated[str | None, typer.Option("--engine.dtype", help="float32 or bfloat16.")] = None,
    device: Annotated[str | None, typer.Option("--engine.device", help="auto, cpu, cuda, …")] = None,
    pipeline: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", rich_help_panel=PICTURES, help="A pipeline of diffusers like Stable Diffusion."
        ),
    ] = None,
    concept: Annotated[
        str, typer.Option(rich_help_panel=PICTURES, help="What to forget: 'van_gogh style', 'dog'.")
    ] = "",
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=PICTURES,
            help="A prompt with {} in the place of a concept; repeat for more.",
            show_default="the concept by itself, 'an image of {}', 'a picture of {}'; of a style 'in'",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=PICTURES, help="A concept to keep; repeat for more."),
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=PICTURES,
            help="What the concept turns into: words, 'prompt: …', empty, or of the concepts to keep next, "
            "random or nearest.",
            show_default="next, or empty without --keep",
        ),
    ] = None,
    examples: Annotated[
        int,
        typer.Option(rich_help_panel=PICTURES, help="Prompts to forget and to keep, each with own noise."),
    ] = 200,
    draw: Annotated[
        bool,
        typer.Option(
            "--draw",
            rich_help_panel=PICTURES,
            help="Let the pipeline draw the images that the method looks at.",
        ),
    ] = False,
    steps: Annotated[
        int, typer.Option(rich_help_panel=PICTURES, help="Of the sampler that draws them.")
    ] = 50,
    guidance: Annotated[
        float, typer.Option(rich_help_panel=PICTURES, help="Of the sampler that draws them.")
    ] = 7.5,
) -> None:
    """Makes a trained model forget and writes the new one; the model that is read is never changed.

    With the folder of a language model (as save_pretrained writes it, with its tokenizer), --forget and
    --retain are files of records: one JSON object a line with question and answer, messages, or text. The
    result is a folder for from_pretrained, with a model card.

    With a pipeline of diffusers, --concept says what to forget. Methods that look at no images (uce, esd, ca,
    sa, seot and others) need nothing else; for the others give folders of images with a metadata.jsonl as
    --forget and --retain, or --draw. The result is a folder for StableDiffusionPipeline.from_pretrained.

    With an experiment file, data, network and task are the experiment's, and --forget are ids of its
    training examples.

    Settings of the engine stand beside the method's fields, as in engine.accumulate=4.

    Whether the model has forgotten is for `expunge evaluate` to say.
    """
    from expunge import config
    from expunge.data.hub import is_id

    given = list(fields or ())
    if experiment is not None and "=" in experiment:
        given.insert(0, experiment)
        experiment = None
    named = {key: value for key, value in (("dtype", dtype), ("device", device)) if value}
    of_engine = [item for item in given if item.startswith("engine.")]
    given = [item for item in given if item not in of_engine]
    engine: dict[str, Any] = config.override({"engine": named}, of_engine)["engine"]
    if pipeline is not None:
        if model is not None or experiment is not None:
            raise ConfigError("a pipeline needs no model or experiment beside it. Leave it out.", "pipeline")
        what = {
            "concept": concept, "prompts": prompt or (), "keep": keep or (), "forget": forget,
            "retain": retain, "examples": examples,
        }  # fmt: skip
        how = {"steps": steps, "guidance": guidance}
        _pipeline(pipeline, what, _built(method, scope, given, anchor, keep), output, how, draw, seed, engine)
        return
    if concept or keep or prompt or anchor or draw:
        raise ConfigError("what pictures show goes with --pipeline FOLDER. Give it, or leave --concept out.")
    if model is None or forget is None:
        missing = "--model" if model is None else "--forget"
        raise ConfigError(f"give {missing}, or --pipeline FOLDER with --concept.")
    if model.is_dir() or is_id(model):
        if experiment is not None:
            raise ConfigError(
                f"'{model}' is a folder, a language model, which needs no experiment. Leave "
                f"'{experiment}' out."
            )
        if (model / "model_index.json").exists():
            raise ConfigError(f"'{model}' is a pipeline of diffusers. Give it as --pipeline {model}.")
        _language(model, forget, retain, _built(method, scope, given), output, seed, engine)
        return
    if experiment is None:
        raise ConfigError(
            f"'{model}' is no folder of a language model, so it needs the experiment that it is of. Name the "
            "YAML file or suite first, or give the folder."
        )
    _weights(experiment, model, forget, method, _built(method, scope, given), output, engine)


def _built(
    method: str,
    scope: str | None,
    given: Sequence[str],
    anchor: str | None = None,
    keep: Sequence[str] | None = None,
) -> Method:
    from expunge import config
    from expunge.cli.inputs import inline
    from expunge.methods.anchors import KINDS
    from expunge.methods.base import methods

    value: dict[str, Any] = {"kind": method}
    if anchor in KINDS and not keep:
        raise ConfigError(
            f"'{anchor}' is one of the concepts to keep. Name them with --keep, or give words.", "anchor"
        )
    if anchor is not None:
        value["anchor"] = anchor
    if scope is not None:
        value["scope"] = inline("scope", scope)
    return config.build(methods, config.override(value, given), "method")


def _weights(
    experiment: str,
    model: Path,
    forget: Path,
    method: str,
    chosen: Method,
    output: Path,
    engine: dict[str, Any],
) -> None:
    """A file of weights of an experiment's network."""
    from expunge import api, config
    from expunge.cli.inputs import forgotten, load, narrowed, split, writable
    from expunge.cli.progress import Progress
    from expunge.training.checkpoint import save_weights
    from expunge.training.engine import Engine

    writable(output)
    setup = narrowed(experiment, model, forgotten(forget), {method: chosen})
    asked = split(setup)
    before = output.with_stem(f"{output.stem}-before-it-diverged")
    with _keeping(chosen, before, save_weights), Progress() as progress:
        result = api.unlearn(
            load(setup, model),
            asked,
            chosen,
            task=setup.task,
            recipe=setup.recipe,
            seed=setup.seed,
            engine=config.parse(Engine, {**config.dump(setup.engine), **engine}, "engine"),
            callbacks=(progress,),
        )
    save_weights(result.model, output)
    print(
        f"{method} forgot {len(asked.forget):,} of {len(setup.sourced.train):,} examples "
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
    engine: dict[str, Any],
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


def _pipeline(
    folder: Path,
    what: dict[str, Any],
    method: Method,
    output: Path,
    how: dict[str, Any],
    draw: bool,
    seed: int,
    engine: dict[str, Any],
) -> None:
    """The folder of a pipeline and a concept."""
    from expunge import config, pipelines
    from expunge.cli.inputs import writable
    from expunge.cli.progress import Progress
    from expunge.methods.base import methods
    from expunge.methods.guarded import GUARD
    from expunge.saved import save
    from expunge.training.engine import Engine

    chosen, name = config.parse(Engine, engine, "engine"), methods.name_of(method)
    drawing = pipelines.Drawing(**how)
    asked = pipelines.request(folder, **what, engine=chosen)
    writable(output / pipelines.CARD)
    data, drawn = asked.forget, drawing if draw else None
    print(f"One of {len(data):,} prompts to forget, as the model sees it:")
    print("  " + data.shown(int(data.ids[0])).replace("\n", "\n  "))
    anchor = getattr(pipelines.told(asked, method), "anchor", None)
    if anchor is not None:
        into = {"empty": "the empty prompt", "next": f"'{asked.keep[0]}'" if asked.keep else ""}
        print(f"'{asked.concept}' turns into: {into.get(str(anchor), anchor)}")
    before = output.with_name(f"{output.name}-before-it-diverged")
    with _keeping(method, before, save), Progress() as progress:
        result = pipelines.forget(
            asked, method, drawing=drawn, seed=seed, engine=chosen, callbacks=(progress,)
        )
    changed = pipelines.write(result, asked, output, drawn)
    print(f"{name} forgot '{asked.concept}' in {result.cost['seconds']:.1f} s.")
    if hasattr(result.model, GUARD):
        print(
            "It is a guard: the weights are the original's, and plain diffusers draws the concept as before. "
            "`expunge sample` and expunge.load draw under it."
        )
    else:
        print(f"Changed: {', '.join(changed) or 'nothing'}; all other files are the original's.")
    print(f"Pipeline and card: {output}")
