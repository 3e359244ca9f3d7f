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
    output: Annotated[Path, typer.Option(help="Where the ids go: a .txt file, one id a line.")],
    search: Annotated[str, typer.Option(help="Name of a search (see: expunge list searches).")] = "bilevel",
    fields: Fields = None,
) -> None:
    """Chooses what to forget: by default the examples that are hardest to forget.

    The ids are written one a line, after comments that say how they were chosen. Give the file to
    `expunge unlearn --forget`.
    """
    from expunge import api, config
    from expunge.cli.inputs import load, narrowed, writable
    from expunge.cli.progress import Progress
    from expunge.report.files import write_whole
    from expunge.searches.base import searches

    chosen = config.build(searches, config.override({"kind": search}, fields or ()), "search")
    writable(output)
    setup = narrowed(experiment, model, chosen)
    with Progress() as progress:
        found = api.search(
            load(setup, model),
            setup.sourced.train,
            setup.task,
            method=chosen,
            seed=setup.seed,
            engine=setup.engine,
            callbacks=(progress,),
        )
    ids = found.ids.tolist()
    comments = [
        f"# {found.description}",
        f"# experiment {experiment}, model {model}, seed {setup.seed}",
        f"# {config.dump(chosen)}",
    ]
    write_whole(output, "\n".join([*comments, *map(str, ids)]) + "\n")
    print(f"Found {found.description}.")
    print(f"Ids: {output}")
