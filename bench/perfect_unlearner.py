"""What a perfect unlearner scores on KLoM and on the NeurIPS 2023 score, by simulation.

The margins of every example are drawn from one normal distribution for the unlearned and for the retrained
models, so that nothing is left to find; then with the unlearned models' moved by some standard deviations,
for what a value means. Each value is the mean over repetitions, with Student's t interval. Writes JSON.

    python bench/perfect_unlearner.py [--repetitions 8] [--output docs/results/perfect-unlearner.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation import statistics
from expunge.evaluation.metrics import competition, klom
from expunge.provenance import versions

Floats = NDArray[np.float64]

DEFINITIONS: tuple[klom.Definition, ...] = ("corrected", "conformance")
KLOM_MODELS = (10, 30, 100, 1000)
COMPETITION_MODELS = (64, 128, 256, 512)
SHIFTS = (0.0, 0.25, 0.5, 1.0, 2.0)
SPREADS = (0.25, 1.0, 4.0)


def simulated(
    measure: Callable[[Floats, Floats], dict[str, float]],
    models: int,
    examples: int,
    repetitions: int,
    shift: float = 0.0,
    spread: float = 1.0,
) -> dict[str, dict[str, Any]]:
    """Each quantity's mean over repetitions and its interval; the repetition is the seed."""
    found: list[dict[str, float]] = []
    for seed in range(repetitions):
        generator = np.random.default_rng(seed)
        unlearned = spread * (generator.standard_normal((models, examples)) + shift)
        retrained = spread * generator.standard_normal((models, examples))
        found.append(measure(unlearned, retrained))
    rows = {}
    for name in found[0]:
        values = np.array([row[name] for row in found])
        interval = statistics.mean_of_few(values)
        rows[name] = {"value": float(values.mean()), "interval": list(interval) if interval else None}
    return rows


def klom_of(definition: klom.Definition) -> Callable[[Floats, Floats], dict[str, float]]:
    def measure(unlearned: Floats, retrained: Floats) -> dict[str, float]:
        values = klom.klom(unlearned, retrained, definition=definition)
        return {"mean": float(values.mean()), "p95": float(np.quantile(values, 0.95))}

    return measure


def competition_of(definition: competition.Definition) -> Callable[[Floats, Floats], dict[str, float]]:
    def measure(unlearned: Floats, retrained: Floats) -> dict[str, float]:
        found = competition.epsilons(unlearned, retrained, definition)
        score = competition.points(found, len(unlearned)).mean()
        return {"score": float(score), "epsilon": float(found.mean())}

    return measure


def simulate(examples: int, repetitions: int) -> dict[str, Any]:
    """All tables: lists of rows, each with its settings and its values."""
    result: dict[str, list[dict[str, Any]]] = {"klom": [], "competition": [], "shifts": [], "spreads": []}
    for definition in DEFINITIONS:
        binned, bucketed = klom_of(definition), competition_of(definition)
        for models in KLOM_MODELS:
            row = simulated(binned, models, examples, repetitions)
            result["klom"].append({"models": models, "definition": definition, **row})
        for models in COMPETITION_MODELS:
            row = simulated(bucketed, models, examples, repetitions)
            result["competition"].append({"models": models, "definition": definition, **row})
            print(definition, models, row, flush=True)
        for shift in SHIFTS:
            row = {
                **{f"klom {k}": v for k, v in simulated(binned, 100, examples, repetitions, shift).items()},
                **simulated(bucketed, 512, examples, repetitions, shift),
            }
            result["shifts"].append({"shift": shift, "definition": definition, **row})
        for spread in SPREADS:
            row = simulated(bucketed, 512, examples, repetitions, spread=spread)
            result["spreads"].append({"spread": spread, "definition": definition, **row})
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("docs/results/perfect-unlearner.json"))
    options = parser.parse_args()
    result = {
        "examples": options.examples,
        "repetitions": options.repetitions,
        "bins": 20,
        "versions": versions(),
        **simulate(options.examples, options.repetitions),
    }
    options.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
