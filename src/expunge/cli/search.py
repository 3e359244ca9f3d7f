"""``expunge search``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.arguments import Fields, Source, Weights

EXAMPLE = "expunge search my_experiment.yaml size=0.05 --model trained.safetensors --output hardest.txt"


def command(
    experiment: Source,
    model: Weights,
    output: Annotated[
        Path, typer.Option(help="Where the ids go: a .txt file, one id a line, or a .json index file.")
    ],
    search: Annotated[str, typer.Option(help="Name of a search (see: expunge list searches).")] = "bilevel",
    fields: Fields = None,
    draw: Annotated[
        Path | None, typer.Option(help="Where a picture of the examples goes: a .png file.")
    ] = None,
) -> None:
    """Chooses what to forget: by default the examples that are hardest to forget.

    The ids are written one a line, after comments that say how they were chosen. An index file has the
    same as JSON, with the fingerprint of the data, to be published. `expunge unlearn --forget` takes both.
    """
    from expunge import api, config
    from expunge.cli.inputs import load, narrowed, writable
    from expunge.cli.progress import Progress
    from expunge.data.pictures import pictures
    from expunge.errors import DataError
    from expunge.report.files import write_whole
    from expunge.searches.base import searches

    chosen = config.build(searches, config.override({"kind": search}, fields or ()), "search")
    for path in (output, *([draw] if draw else [])):
        writable(path)
    setup = narrowed(experiment, model, chosen)
    train = setup.sourced.train
    if draw is not None and not pictures(train.subset(train.ids[:1])):
        raise DataError("these examples are no images of shape (C, H, W); leave --draw out.")
    with Progress() as progress:
        found = api.search(
            load(setup, model),
            train,
            setup.task,
            method=chosen,
            recipe=setup.recipe,
            seed=setup.seed,
            engine=setup.engine,
            callbacks=(progress,),
        )
    if output.suffix == ".json":
        found.save(output)
    else:
        comments = [
            f"# {found.description}",
            f"# experiment {experiment}, model {model}, seed {setup.seed}",
            f"# {config.dump(chosen)}",
        ]
        write_whole(output, "\n".join([*comments, *map(str, found.ids.tolist())]) + "\n")
    if draw is not None:
        found.draw(train, draw, setup.sourced.class_names)
    print(f"Found {found.description}.")
    print(f"Ids: {output}")
