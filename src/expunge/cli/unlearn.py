"""``expunge unlearn``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.arguments import Fields, Forget, Source, Weights

EXAMPLE = (
    "expunge unlearn my_experiment.yaml epochs=3 --model trained.safetensors --forget ids.txt "
    "--method salun --output forgotten.safetensors"
)


def command(
    experiment: Source,
    model: Weights,
    forget: Forget,
    method: Annotated[str, typer.Option(help="Name of a method (see: expunge list methods).")],
    output: Annotated[Path, typer.Option(help="Where the new weights go: a .safetensors file.")],
    fields: Fields = None,
) -> None:
    """Makes a trained model forget examples and writes the new weights.

    Data, model and task are those of the experiment file; the weights that are read are never changed.
    Whether the model has forgotten is for `expunge evaluate` to say.
    """
    from expunge import api, config
    from expunge.cli.inputs import load, narrowed, writable
    from expunge.cli.progress import Progress
    from expunge.data.split import read_ids
    from expunge.methods.base import methods
    from expunge.searches.given import Given
    from expunge.training.checkpoint import save_weights

    chosen = config.build(methods, config.override({"kind": method}, fields or ()), "method")
    ids = read_ids(forget)
    writable(output)
    setup = narrowed(experiment, model, Given(path=forget), {method: chosen})
    split = setup.split(ids)
    with Progress() as progress:
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
