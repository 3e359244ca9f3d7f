"""Reports on the terminal and in a directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expunge.evaluation.report import Report
    from expunge.training.engine import Engine


def warn(engine: Engine) -> None:
    """Says on stderr, in one line, what will go slowly."""
    if engine.caution:
        print(f"warning: {engine.caution}", file=sys.stderr)


def show(report: Report, directory: Path) -> None:
    """Prints the tables, in colour on a terminal, and where the files are."""
    from rich.console import Console

    from expunge.report.tables import print_report

    console = Console(highlight=False)
    if console.is_terminal:
        print_report(report, console)
    else:
        print(report)
    print(f"\nReport: {directory / 'report.html'}")
    print(f"Table:  {directory / 'table.csv'}")
    print(f"Card:   {directory / 'card.md'}")
    print(f"Result: {directory / 'result.json'}")
