"""``expunge combine``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = (
    "expunge combine --model no-cats.safetensors --model no-dogs.safetensors --output neither.safetensors"
)

METHOD = "forget_vector"


def command(
    experiment: Annotated[
        str | None,
        typer.Argument(
            metavar="[EXPERIMENT]",
            help="A YAML file or packaged suite whose network and data the models are of, to learn weights.",
            show_default=False,
        ),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields of forget_vector: epochs=10 norm=0.1."),
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="WEIGHTS", help="What forget_vector wrote for one model; repeat for each vector."
        ),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Of each vector in turn; repeat.", show_default="1 for each"),
    ] = None,
    forget: Annotated[
        Path | None,
        typer.Option(metavar="IDS", help="Learn the weights instead, for this other forget set of ids."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "--out", metavar="WEIGHTS", help="Where the new model goes.")
    ] = Path("combined.safetensors"),
) -> None:
    """Adds forget vectors: a model that forgets what several vectors forget, without another training.

    Each WEIGHTS is what `expunge unlearn --method forget_vector` wrote for the same network, whose weights
    stay as they are; the new file has the vectors' weighted sum. A negative weight takes a vector away.

    With an EXPERIMENT and --forget the weights are learned for a forget set that has no vector of its own,
    say some examples of both classes; that is quick, as there is one number for each vector.

    Vectors of single classes need not add up to one that forgets both: `expunge evaluate` says so.
    """
    from expunge.cli.inputs import writable
    from expunge.methods.guards.forget_vector import added
    from expunge.training.checkpoint import read_weights, write_weights

    files = list(model or ())
    given = list(fields or ())
    if experiment is not None and "=" in experiment:
        given.insert(0, experiment)
        experiment = None
    if len(files) < 2:
        raise ConfigError("give at least two files that forget_vector wrote: --model A --model B.", "model")
    if (experiment is None) != (forget is None) or (given and forget is None):
        raise ConfigError(
            "learning weights takes both an EXPERIMENT and --forget IDS. Give both, or neither."
        )
    if weight and forget is not None:
        raise ConfigError("are learned for --forget. Leave one of the two out.", "weight")
    if weight and len(weight) != len(files):
        raise ConfigError(f"got {len(weight)} for {len(files)} files. Give one for each, or none.", "weight")
    if not all(map(math.isfinite, weight or ())):
        raise ConfigError(f"must be finite numbers, got {weight}.", "weight")
    writable(output)
    states = [read_weights(file) for file in files]
    weights = weight or [1.0] * len(files)
    made = added(states, weights)  # before anything is learned: it says what does not fit
    if experiment is not None and forget is not None:
        weights = _learned(experiment, states, files[0], forget, given)
        made = added(states, weights)
    write_weights(made, output)
    for file, found in zip(files, weights, strict=True):
        print(f"{found:8.3g} × {file}")
    print(f"Weights: {output}")


def _learned(
    experiment: str, states: Sequence[dict[str, Tensor]], file: Path, forget: Path, given: Sequence[str]
) -> list[float]:
    """The weights of the vectors for another forget set."""
    from expunge import config
    from expunge.cli.inputs import forgotten, narrowed, split
    from expunge.cli.progress import Progress
    from expunge.methods.base import methods
    from expunge.methods.guards.forget_vector import VECTOR, ForgetVector
    from expunge.training.checkpoint import fill

    method = config.build(methods, config.override({"kind": METHOD}, given), "method")
    assert isinstance(method, ForgetVector)
    setup = narrowed(experiment, None, forgotten(forget), {METHOD: method})
    frozen = {name: value for name, value in states[0].items() if name != VECTOR}
    with Progress() as progress:
        session = setup.session((progress,))
        network = setup.recipe.initial(session)
        fill(network, frozen, file)
        vectors = [state[VECTOR] for state in states]
        _, weights = method.combine(network.eval(), vectors, split(setup), setup.task, session)
    return [float(value) for value in weights]
