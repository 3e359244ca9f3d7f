"""``expunge run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.arguments import Settings, Source

EXAMPLE = "expunge run digits methods.salun.epochs=3 --directory runs/short"


def command(
    experiment: Source,
    settings: Settings = None,
    directory: Annotated[
        Path | None, typer.Option(help="Where the results go.", show_default="runs/NAME")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at once, which share the cores.")] = 1,
) -> None:
    """Runs an experiment: trains, unlearns and compares every method with retraining.

    Finished pieces are kept in the directory, so the same command continues a run that was interrupted, and
    a changed experiment computes only what has changed.

    Small models leave cores idle. With --jobs 2 two of their models are made at a time, and two forget sets
    judged; each process holds a model and the data of its own.
    """
    from expunge.cli.output import show, warn
    from expunge.cli.progress import Progress
    from expunge.experiment import read
    from expunge.runner import execute

    parsed = read(experiment, settings or ())
    place = directory or Path("runs") / parsed.name
    warn(parsed.engine)
    with Progress() as progress:
        report = execute(parsed, place, (progress,), jobs)
    show(report, place)
