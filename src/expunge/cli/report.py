"""``expunge report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "expunge report runs/demo"


def command(
    directory: Annotated[
        Path, typer.Argument(metavar="RUN_DIRECTORY", help="What `expunge run` wrote into.")
    ],
) -> None:
    """Prints the tables of a finished run and writes its report anew.

    Nothing is computed: report.html, table.csv and card.md are made from the result.json in the directory.
    """
    from expunge.cli.output import show
    from expunge.evaluation.report import Report

    report = Report.read(directory / "result.json")
    report.to_html(directory / "report.html")
    report.to_csv(directory / "table.csv")
    report.to_card(directory / "card.md")
    show(report, directory)
