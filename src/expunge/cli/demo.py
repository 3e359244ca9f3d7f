"""``expunge demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli import run

EXAMPLE = "expunge demo"


def command(
    directory: Annotated[Path, typer.Option(help="Where the results go.")] = Path("runs/demo"),
) -> None:
    """Shows everything on handwritten digits, in a few minutes and without a download.

    Trains a small network, lets eight methods forget a random set, a class, the hardest and the easiest
    examples, and judges each beside models that were retrained. Open the report.html whose path is printed
    at the end.
    """
    run.command("digits", directory=directory)
