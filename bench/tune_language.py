"""Learning rates of a language suite, chosen on people or authors whom no report scores.

Every gradient method of the suite runs with the same number of learning rates, its own times each of
``FACTORS``, on forget sets other than the suite's. Chosen is the one with the smallest mean absolute
distance from retraining over four numbers: the normalised probability of the forgotten, the retained and
the control answers, and the truth ratio of the forgotten. A rate at which the method diverges is out. The
suite's file is not changed; everything is kept in ``--runs``, and the same command goes on where it stopped.

    python bench/tune_language.py people-mini --sets 512:576 --control world --runs runs/tuning \
        --output docs/results/tuning-people-mini.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from expunge import config, experiment, runner
from expunge.evaluation.metric import metrics
from expunge.evaluation.table import Row, Table
from expunge.experiment import Experiment
from expunge.methods.base import Method
from expunge.provenance import hardware, versions
from expunge.training.session import Event

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""What each method's learning rate in the suite is multiplied with."""


def variants(name: str, method: Method) -> dict[str, Method]:
    """The method with every learning rate, by its name and rate; nothing of a method without one."""
    optim: Any = getattr(method, "optim", None)
    if optim is None:
        return {}
    rates = [float(f"{optim.lr * factor:.2g}") for factor in FACTORS]
    changed: Any = replace
    return {f"{name} {rate:g}": changed(method, optim=replace(optim, lr=rate)) for rate in rates}


def tuning(suite: Experiment, sets: list[str], control: str, retrained: int) -> Experiment:
    """The experiment that the choice is made by."""
    forget = {}
    for number, span in enumerate(sets, 1):
        first, last = map(int, span.split(":"))
        forget[f"tuning {number}"] = {"kind": "given", "ids": list(range(first, last))}
    tried = {key: m for name, method in suite.methods.items() for key, m in variants(name, method).items()}
    wanted = [{"kind": "answer_probability", "part": part} for part in ("forget", "retain", control)]
    wanted.append({"kind": "truth_ratio", "part": "forget"})
    value = {**config.dump(suite), "forget": forget, "retrained": retrained, "controls": [], "margins": {}}
    value["methods"] = {name: config.dump(method) for name, method in tried.items()}
    value["metrics"] = [config.dump(config.build(metrics, metric)) for metric in wanted]
    return experiment.parse(value)


def distance(row: Row, table: Table) -> float:
    """The mean of the four distances; infinite for a model that diverged."""
    if row.error is not None:
        return math.inf
    found = [abs(score.value - table.anchors[key].retrained) for key, score in row.scores.items()]
    return sum(found) / len(found) if all(map(math.isfinite, found)) else math.inf


def told(event: Event) -> None:
    """One line for each piece that was computed."""
    for name, seconds in (event.values or {}).items():
        if event.kind == "step" and event.what == "run" and seconds > 0:
            clock = time.strftime("%H:%M:%S")
            print(f"{clock} {event.index}/{event.total} {name} {seconds:.1f} s", flush=True)


def chosen(tables: tuple[Table, ...]) -> tuple[dict[str, dict[str, list[float | None]]], dict[str, str]]:
    """Of each method the distances at each rate, set by set, and the rate with the smallest mean."""
    found: dict[str, dict[str, list[float]]] = {}
    for table in tables:
        for row in table.rows:
            if row.role == "unlearned":
                name, rate = row.name.rsplit(" ", 1)
                found.setdefault(name, {}).setdefault(rate, []).append(distance(row, table))
    best = {name: min(rates, key=lambda rate: sum(rates[rate])) for name, rates in found.items()}
    return {
        name: {rate: [plain(value) for value in values] for rate, values in rates.items()}
        for name, rates in found.items()
    }, best


def plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def anchors(table: Table) -> Mapping[str, Any]:
    return {
        key: {"retrained": round(a.retrained, 6), "original": round(a.original, 6)}
        for key, a in table.anchors.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("suite")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--sets", nargs="+", required=True, help="FIRST:LAST ids of each tuning set")
    parser.add_argument("--control", required=True, help="the part that is neither forgotten nor retained")
    parser.add_argument("--retrained", type=int, default=2)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    suite = experiment.read(options.suite, options.overrides)
    setup = tuning(suite, options.sets, options.control, options.retrained)
    options.runs.mkdir(parents=True, exist_ok=True)
    report = runner.execute(setup, options.runs, (told,))
    distances, best = chosen(report.tables)
    for name, rates in distances.items():
        line = "  ".join(f"{rate} {values}" for rate, values in rates.items())
        print(f"{name:16s} {best[name]:8s} {line}")
    result = {
        "suite": options.suite,
        "sets": options.sets,
        "retrained": options.retrained,
        "measure": "mean absolute distance from retraining: probability of forgotten, retained and "
        f"{options.control} answers, truth ratio of forgotten answers",
        "factors": FACTORS,
        "anchors": {table.name: anchors(table) for table in report.tables},
        "distances": distances,
        "chosen": best,
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
