"""A whole experiment in a directory: resumable, and the same in the end however often it was killed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from expunge import config, provenance
from expunge.errors import ConfigError, RunError
from expunge.evaluation.report import Report
from expunge.experiment import Experiment, check, read
from expunge.pieces import STORE, Pieces
from expunge.run_log import RunLog
from expunge.store import Store, write_text
from expunge.training.session import Callback, Event
from expunge.workers import Tell, Work, spread

RESULT, CONFIG = "result.json", "experiment.yaml"

TIMINGS = ("cost.seconds", "cost.ratio", "cost.memory")
"""Scores that differ between two runs of the same experiment, because they measure the machine."""


def execute(
    experiment: Experiment, directory: Path, callbacks: Sequence[Callback] = (), jobs: int = 1
) -> Report:
    """Runs an experiment, or continues one that was interrupted, and writes its report.

    The directory receives ``experiment.yaml``, ``events.jsonl``, ``result.json``, ``report.html``,
    ``table.csv`` and ``store/`` with every finished piece: models, forget sets, rows. Pieces are
    found again by what they depend on, so a changed experiment recomputes only what it must.

    Args:
        jobs: processes that work at once: on searches, then on models, then on tables. They share the
            threads, and the times that rows say are those of a busy machine. Another number of threads
            rounds otherwise; with one thread each (``OMP_NUM_THREADS=1``) results do not depend on it.

    Raises:
        ExpungeError: a mistake in the experiment, found before anything is trained where it can be; a
            directory that cannot be written.
    """
    if jobs < 1:
        raise ConfigError(f"must be at least 1, got {jobs}.", "jobs")
    with RunLog(directory) as log:
        check(experiment)
        start = time.perf_counter()
        Store(directory / STORE).tidy()
        config.write_yaml(experiment, directory / CONFIG)
        pieces = Pieces(experiment, directory, (*callbacks, log))
        pieces.session.emit(Event("started", "run", 0, pieces.total))
        if jobs > 1:
            _ahead(pieces, directory, jobs)
        tables = tuple(pieces.table(name) for name in experiment.forget)
        report = Report(experiment.name, tables, provenance.collect(experiment, time.perf_counter() - start))
        save(report, directory)
        pieces.session.emit(Event("finished", "run", pieces.total, pieces.total))
        return report


def save(report: Report, directory: Path) -> None:
    """Writes ``result.json``, ``report.html``, ``table.csv`` and ``card.md``.

    Raises:
        RunError: the directory cannot be written.
    """
    try:
        write_text(directory / RESULT, json.dumps(report.to_json(), indent=1))
    except OSError as error:
        raise RunError(f"cannot write '{directory / RESULT}': {error.strerror}.") from None
    report.to_html(directory / "report.html")
    report.to_csv(directory / "table.csv")
    report.to_card(directory / "card.md")


def _ahead(pieces: Pieces, directory: Path, jobs: int) -> None:
    """Has all pieces made by several processes, after those that many others share."""

    def heard(event: Event) -> None:
        if event.what == "run":
            pieces.done += 1
            event = replace(event, index=pieces.done, total=pieces.total)
        pieces.session.emit(event)

    pieces.shared()
    experiment, sets = pieces.experiment, list(pieces.experiment.forget)
    searches = [("forgotten", name) for name in sets]
    models = [*range(experiment.retrained), *experiment.methods]
    made = [("model", name, model) for name in sets for model in models]
    tables = [("table", name) for name in sets]
    spread(partial(_worker, directory), (searches, made, tables), jobs, heard)
    pieces.done = 0


def _worker(directory: Path, tell: Tell) -> Work:
    """The pieces of a directory in another process, which tells what it has made."""

    def pass_on(event: Event) -> None:
        if event.what != "run":
            news = event.kind != "step"
        else:
            news = any(event.values.values())  # the seconds; what was found is not news
        if news:
            tell(event)

    pieces = Pieces(read(directory / CONFIG), directory, (pass_on,))
    return lambda task: getattr(pieces, task[0])(*task[1:])


def without_timings(result: dict[str, Any]) -> dict[str, Any]:
    """What two runs of the same experiment have in common: all but what measures the machine."""
    tables = []
    for table in result["tables"]:
        rows = [
            {**row, "scores": [s for s in row["scores"] if _id(s) not in TIMINGS]} for row in table["rows"]
        ]
        tables.append({**table, "rows": rows})
    kept = {k: v for k, v in result["provenance"].items() if k not in ("seconds", "finished")}
    return {**result, "tables": tables, "provenance": kept}


def _id(score: dict[str, Any]) -> str:
    return ".".join(part for part in (score["name"], score["part"], score["variant"]) if part)
