"""Calibration by simulation: do the intervals, tests and verdicts keep what they promise?

Known truths are simulated many times. Counted is how often a 95 % interval holds the truth, a test of
equivalence says yes to a difference as large as its margin, Holm's method rejects a true hypothesis,
and a verdict calls one more honest retrain different. Each count has its own Monte-Carlo interval.

What is expected where: Wilson, means, AUC and clustered means cover 93–97 %. Clopper–Pearson covers at
least 95 % and more for few examples or rates near 0 and 1. Balanced accuracy covers 93–99 % of what a
threshold learnt from half of the examples reaches. False equivalence, Holm and false ``different`` are at
most 5 %. Scenarios called ``hard`` (a handful of examples, extreme skew or imbalance) are reported without
a promise.

    python bench/calibration.py [--quick] [--seed 0] [--output docs/results/calibration.json]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.random import Generator
from rich.console import Console
from rich.progress import track

from expunge.evaluation import comparisons, statistics
from expunge.evaluation.score import Score
from expunge.evaluation.statistics import Floats
from expunge.evaluation.table import Row, Table
from expunge.evaluation.verdict import ALPHA, MARGIN, Comparison
from expunge.provenance import hardware, versions

COVERAGE = (0.93, 0.97)
LEVEL = (0.0, ALPHA)
TRUE_MARGIN = 3.0
"""What ``verdict.MARGIN`` stands for, in units of the true noise."""

METRICS = 10
"""Metrics of a simulated row."""

Noise = Literal["examples", "examples and models", "models", "correlated examples", "clusters"]
NOISES: tuple[Noise, ...] = ("examples", "examples and models", "models", "correlated examples", "clusters")


@dataclass(frozen=True)
class Found:
    """How often something happened in one scenario; ``holds`` unless its interval misses ``expected``."""

    group: str
    scenario: str
    value: float
    interval: tuple[float, float]
    n_sim: int
    expected: tuple[float, float] | None
    holds: bool | None


def found(group: str, scenario: str, hits: int, n: int, expected: tuple[float, float] | None) -> Found:
    low, high = statistics.rate(hits, n)
    holds = None if expected is None else bool(low <= expected[1] and high >= expected[0])
    return Found(group, scenario, hits / n, (low, high), n, expected, holds)


def inside(interval: tuple[float, float] | None, truth: float) -> bool:
    return interval is not None and interval[0] <= truth <= interval[1]


def rates(n_sim: int, draws: Generator) -> Iterator[Found]:
    """Rates of binomial counts; the intervals of all counts are found once."""
    for n in (20, 50, 200, 1000):
        for p in (0.05, 0.2, 0.5, 0.9):
            counts = np.bincount(draws.binomial(n, p, size=10 * n_sim), minlength=n + 1)
            methods = {"wilson": statistics.wilson, "clopper_pearson": statistics.rate}
            for name, method in methods.items():
                hits = sum(int(c) for k, c in enumerate(counts) if c and inside(method(k, n), p))
                hard = min(n * p, n * (1 - p)) < 5
                expected = (0.95, 1.0) if name == "clopper_pearson" else None if hard else COVERAGE
                label = f"p = {p}, n = {n}" + (" (hard)" if hard and name == "wilson" else "")
                yield found(f"rate: {name}", label, hits, 10 * n_sim, expected)


def means(n_sim: int, draws: Generator) -> Iterator[Found]:
    """BCa intervals of means."""
    kinds: dict[str, tuple[Callable[[int], Floats], float, int]] = {
        "normal": (lambda n: draws.normal(size=n), 0.0, 20),
        "exponential (skewness 2)": (lambda n: draws.exponential(size=n), 1.0, 50),
        "binary, p = 0.3": (lambda n: (draws.random(n) < 0.3).astype(np.float64), 0.3, 200),
        "lognormal (skewness 6)": (lambda n: draws.lognormal(size=n), math.exp(0.5), 1000),
    }
    for name, (draw, truth, enough) in kinds.items():
        for n in (10, 20, 50, 200, 1000, 3000):
            hits = sum(inside(statistics.mean(draw(n), seed=i % 4), truth) for i in range(n_sim))
            hard = n < enough
            label = f"{name}, n = {n}" + (" (hard)" if hard else "")
            yield found("mean: BCa", label, hits, n_sim, None if hard else COVERAGE)


def clustered(n_sim: int, draws: Generator) -> Iterator[Found]:
    """Means of subjects of unequal size, whose examples are alike to the degree ρ."""
    for count in (10, 30):
        shapes = {
            "equal": np.full(count, 10),
            "1 to G": np.arange(1, count + 1),
            "one subject with a third of the examples": np.append(np.full(count - 1, 4), 2 * count),
        }
        for shape, sizes in shapes.items():
            ids = np.repeat(np.arange(count), sizes)
            for rho in (0.0, 0.3, 0.9):
                hits = 0
                for _ in range(n_sim):
                    own, shared = draws.normal(size=len(ids)), draws.normal(size=count)[ids]
                    values = math.sqrt(1 - rho) * own + math.sqrt(rho) * shared
                    hits += inside(statistics.mean(values, clusters=ids), 0.0)
                hard = shape.startswith("one")
                label = f"{count} subjects, {shape}, ρ = {rho}" + (" (hard)" if hard else "")
                yield found("mean: clustered", label, hits, n_sim, None if hard else COVERAGE)


def separations(n_sim: int, draws: Generator) -> Iterator[Found]:
    """AUC and balanced accuracy of two normal samples."""
    from scipy.special import ndtr, ndtri

    for truth in (0.5, 0.6, 0.8, 0.95):
        apart = float(ndtri(truth)) * math.sqrt(2)
        for n, m in ((50, 50), (50, 500), (200, 200), (500, 500)):
            hits = 0
            for _ in range(n_sim):
                _, interval = statistics.auc(draws.normal(apart, size=n), draws.normal(size=m))
                hits += inside(interval, truth)
            hard = truth > 0.9 and n < m
            label = f"AUC = {truth}, n = {n} + {m}" + (" (hard)" if hard else "")
            yield found("AUC: DeLong, logit", label, hits, n_sim, None if hard else COVERAGE)
        pairs = [(draws.normal(apart, size=100), draws.normal(size=100)) for _ in range(n_sim)]
        judged = [statistics.balanced_accuracy(*pair) for pair in pairs]
        best, learnt = float(ndtr(apart / 2)), float(np.mean([value for value, _ in judged]))
        for name, target, expected in (
            ("learnt", learnt, (0.93, 0.99)),
            ("best possible (hard)", best, None),
        ):
            hits = sum(inside(interval, target) for _, interval in judged)
            label = f"{name}, AUC = {truth}, n = 100 + 100"
            yield found("balanced accuracy", label, hits, n_sim, expected)


def equivalence(n_sim: int, draws: Generator) -> Iterator[Found]:
    """TOST with the truth exactly at the margin. The error over examples of one model is 1."""
    for k in (3, 5, 10):
        for between in (0.0, 1.0, 3.0, 30.0):  # sd between models, beside that over examples
            for relative in (False, True):
                hits = 0
                true_noise = math.hypot(1.0, between)
                for _ in range(n_sim):
                    values = math.hypot(1.0, between) * draws.normal(size=k)
                    noise = max(float(values.std(ddof=1)), 1.0)
                    truth = TRUE_MARGIN * true_noise
                    item = Comparison(
                        value=truth + draws.normal(),
                        retrained=list(values),
                        error=math.sqrt(1 + 1 / k),
                        df=499,
                        n=500,
                        margin=MARGIN * noise if relative else truth,
                        relative=relative,
                    )
                    hits += item.p_equivalent() < ALPHA
                margin = "noise-derived" if relative else "stated"
                label = f"{margin} margin, K = {k}, models/examples {between:g}"
                yield found("TOST: false equivalence", label, hits, n_sim, LEVEL)


def holm(n_sim: int, draws: Generator) -> Iterator[Found]:
    """Any rejection among 14 true hypotheses, for test statistics correlated to the degree ρ."""
    from scipy.special import ndtr

    for rho in (0.0, 0.5, 0.95):
        hits = 0
        for _ in range(n_sim):
            z = math.sqrt(rho) * draws.normal() + math.sqrt(1 - rho) * draws.normal(size=14)
            hits += min(comparisons.holm(list(2 * ndtr(-np.abs(z))))) < ALPHA
        yield found("Holm: any false rejection", f"14 tests, ρ = {rho}", hits, n_sim, LEVEL)


def simulated(noise: Noise, k: int, draws: Generator, margins: dict[str, float] | None = None) -> Table:
    """A table of one more honest retrain, ``k`` retrained models and an original far from them.

    Every metric is a mean over 60 examples, and the examples differ more than the models do.
    """
    n, models = 60, k + 2
    groups = np.repeat(np.arange(12), 5)
    easy = 2 * draws.normal(size=(METRICS, 1, n))
    values = np.zeros((METRICS, models, n)) + easy
    if noise != "models":
        values += draws.normal(size=(METRICS, models, n))
    if noise in ("examples and models", "models"):
        values += 0.3 * draws.normal(size=(METRICS, models, 1))
    if noise in ("correlated examples", "clusters"):
        values += draws.normal(size=(METRICS, models, 12))[:, :, groups]
    values[:, 1] += 12.0
    known = groups if noise == "clusters" else None
    roles: list[tuple[str, Literal["unlearned", "original", "retrained"]]] = [
        ("honest", "unlearned"),
        ("original", "original"),
        *((f"retrained {i}", "retrained") for i in range(k)),
    ]
    rows = tuple(Row(name, role, _scores(values, j, known)) for j, (name, role) in enumerate(roles))
    return Table("simulated", "", n, 10 * n, rows, margins=margins or {})


def _scores(values: Floats, model: int, groups: Floats | None) -> dict[str, Score]:
    scores = {}
    for j, of_metric in enumerate(values):
        mine = of_metric[model]
        differences = mine - of_metric[2:].mean(0)
        score = Score(
            name=f"metric{j}",
            value=float(mine.mean()),
            interval=statistics.mean_of_few(mine),
            n=len(mine),
            target="retrained",
            unit="nats",
            error=statistics.standard_error(differences, groups) if model < 2 else None,
            df=float(len(mine) - 1 if groups is None else len(np.unique(groups)) - 1),
        )
        scores[score.id] = score
    return scores


def verdicts(n_sim: int, draws: Generator) -> Iterator[Found]:
    """Rows of one more honest retrain with any ``different``, and what the others are called."""
    cells = [(noise, k) for noise in NOISES for k in (3,)] + [("examples and models", k) for k in (2, 5, 10)]
    for noise, k in cells:
        counts = dict.fromkeys(("different", "equivalent", "seen"), 0)
        for _ in range(n_sim):
            table = simulated(noise, k, draws)
            kinds = [verdict.kind for verdict in table.verdicts(table.rows[0]).values()]
            counts["different"] += "different" in kinds
            counts["equivalent"] += kinds.count("equivalent")
            counts["seen"] += "different" in [v.kind for v in table.verdicts(table.rows[1]).values()]
        label = f"{noise}, K = {k}, {METRICS} metrics"
        yield found("verdict: honest retrain different", label, counts["different"], n_sim, LEVEL)
        yield found("verdict: honest metric equivalent", label, counts["equivalent"], n_sim * METRICS, None)
        yield found("verdict: original different", label, counts["seen"], n_sim, None)


SIMULATIONS: dict[str, tuple[Callable[[int, Generator], Iterator[Found]], int]] = {
    "rates": (rates, 2000),
    "means": (means, 2000),
    "clustered": (clustered, 2000),
    "separations": (separations, 2000),
    "equivalence": (equivalence, 4000),
    "holm": (holm, 10_000),
    "verdicts": (verdicts, 1000),
}
"""What is simulated, and how often."""


def calibrate(seed: int, share: float = 1.0) -> list[Found]:
    """All simulations, each with draws of its own."""
    results: list[Found] = []
    for index, name in enumerate(track(SIMULATIONS, "Simulating", console=Console(stderr=True))):
        simulate, n_sim = SIMULATIONS[name]
        results += simulate(max(100, int(share * n_sim)), np.random.default_rng([seed, index]))
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the JSON; the exit status is 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tenth of the simulations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/results/calibration.json"))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = time.perf_counter()
    results = calibrate(chosen.seed, 0.1 if chosen.quick else 1.0)
    broken = [item for item in results if item.holds is False]
    record = {
        "about": "How often in n_sim simulations, with the 95 % Clopper-Pearson interval of that. Wilson, "
        "means, AUC and clustered means are expected to cover 93-97 %, Clopper-Pearson at least 95 %, false "
        "rejections and false equivalence at most 5 %; 'holds' is false where the interval misses that, and "
        "null where nothing is promised ('hard' scenarios, power).",
        "seed": chosen.seed,
        "quick": chosen.quick,
        "seconds": round(time.perf_counter() - start, 1),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "all_hold": not broken,
        "scenarios": [asdict(item) for item in results],
    }
    chosen.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    console = Console(soft_wrap=True)
    for item in results:
        mark = {True: "holds", False: "DOES NOT HOLD", None: ""}[item.holds]
        console.print(f"{item.group:36} {item.scenario:64} {item.value:6.1%}  {mark}", highlight=False)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
