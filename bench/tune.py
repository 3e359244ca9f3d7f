"""Learning rates by grid on random forget sets that no report scores.

For each method of a suite and each value of its grid: the average gap to retraining, averaged over
several random draws of the forget set other than the suite's own. Prints the table and writes JSON;
the suite's file is not changed.

    python bench/tune.py digits --draws 4 --output docs/results/tuning-digits.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from expunge import experiment
from expunge.errors import Diverged
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.metric import metrics
from expunge.methods.base import Method
from expunge.provenance import versions
from expunge.searches.base import searches

FIRST_DRAW = 1000
"""Seeds of the tuning draws begin here; suites use small seeds."""

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""What each method's default learning rate (for SSD: alpha) is multiplied with."""


def variants(method: Method) -> dict[str, Method]:
    """The grid of one method, by its value."""
    if hasattr(method, "optim"):
        rates = [float(f"{method.optim.lr * factor:.3g}") for factor in FACTORS]
        return {f"lr={rate}": replace(method, optim=replace(method.optim, lr=rate)) for rate in rates}
    return {f"alpha={a}": replace(method, alpha=a) for a in (1.0, 3.0, 10.0, 30.0, 100.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("suite")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--size", type=float, default=0.1)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    suite = experiment.read(options.suite, options.overrides)
    train, task, recipe = suite.sourced.train, suite.task, suite.recipe
    original = recipe.train(train, suite.session().child("original"))
    gaps: dict[str, dict[str, list[float | None]]] = {}
    for draw in range(options.draws):
        session = replace(suite, seed=FIRST_DRAW + draw).session()
        found = searches.get("random_set")(size=options.size).search(original, train, task, session)
        split = suite.split(found.ids)
        candidates = [Candidate("original", "original", original)]
        for k in range(suite.retrained):
            model = recipe.train(split.retain, session.child("retrained", k))
            candidates.append(Candidate(f"retrained {k}", "retrained", model))
        for name, method in {"original": None, **suite.methods}.items():
            if method is None:
                continue
            for value, variant in variants(method).items():
                try:
                    model = variant.unlearn(original, split, task, session.child(name))
                    candidates.append(Candidate(f"{name} {value}", "unlearned", model))
                except Diverged:
                    gaps.setdefault(name, {}).setdefault(value, []).append(None)
        gap = metrics.get("average_gap")(membership=metrics.get("svc")())
        for row in Evaluation(candidates, split, task, session).rows([gap]):
            name, _, value = row.name.partition(" ")
            gaps.setdefault(name, {}).setdefault(value, []).append(row.scores["average gap.svc"].value)
        print(f"draw {draw + 1} of {options.draws}", flush=True)
    for name, values in gaps.items():
        means = {v: sum(g) / len(g) for v, g in values.items() if None not in g}  # type: ignore[arg-type]
        print(f"{name:14s}", "  ".join(f"{value} {100 * mean:.2f}" for value, mean in means.items()))
    report = {
        "suite": options.suite,
        "draws": [FIRST_DRAW + draw for draw in range(options.draws)],
        "size": options.size,
        "measure": "average gap (fraction) on random forget sets",
        "versions": versions(),
        "gaps": gaps,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
