"""The simulation of ``bench/calibration.py`` at small size.

``n`` simulations find a rate ``p`` up to a standard error of ``√(p(1−p)/n)``: for coverage, 0.022 with
100 and 0.004 with the 3,000 of all scenarios of one kind together. ``SLACK`` = 3 of them are allowed around
the promise, of each scenario (against one that is far off) and of the kind (against one that is slightly
off everywhere: with 1.6 for 1.96 intervals cover 89 %). The seeds are fixed.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from expunge.data import ArrayData, Split
from expunge.evaluation.evaluate import Candidate, evaluate
from expunge.evaluation.metrics.utility import Accuracy, Loss
from expunge.evaluation.table import Row, Table
from expunge.tasks import Classification
from expunge.training.session import Session

SLACK = 3.0


def _bench() -> ModuleType:
    path = Path(__file__).parents[2] / "bench" / "calibration.py"
    spec = importlib.util.spec_from_file_location("calibration", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bench = _bench()


def _check(simulate: Callable, n_sim: int) -> None:
    """What is promised is kept up to Monte-Carlo error: by each scenario, and by those of a kind together."""
    kinds: dict[tuple, list[tuple[str, float, int]]] = {}
    for item in simulate(n_sim, np.random.default_rng(1)):
        if item.expected is not None:
            found = kinds.setdefault((item.group, item.expected), [])
            found.append((item.scenario, item.value, item.n_sim))
    assert kinds
    for (group, (low, high)), found in kinds.items():
        together = sum(value * n for _, value, n in found) / sum(n for *_, n in found)
        for scenario, value, n in [*found, ("together", together, sum(n for *_, n in found))]:
            error = SLACK * np.sqrt(0.05 * 0.95 / n)
            assert low - error <= value <= high + error, f"{group}, {scenario}: {value:.3f}"


@pytest.mark.parametrize(
    ("name", "n_sim"), [("rates", 100), ("means", 100), ("clustered", 150), ("separations", 100)]
)
def test_intervals_cover_what_they_promise(name: str, n_sim: int) -> None:
    _check(bench.SIMULATIONS[name][0], n_sim)


@pytest.mark.parametrize(("name", "n_sim"), [("equivalence", 150), ("holm", 500)])
def test_false_equivalence_and_false_rejections_are_at_most_the_level(name: str, n_sim: int) -> None:
    _check(bench.SIMULATIONS[name][0], n_sim)


@pytest.mark.parametrize(
    ("noise", "pairs"), [("examples and models", 100), ("models", 100), ("clusters", 40)]
)
def test_honest_retrains_are_not_called_different(noise: str, pairs: int) -> None:
    draws, different, seen = np.random.default_rng(2), 0, 0
    for _ in range(pairs):
        table = bench.simulated(noise, 3, draws)
        different += any(v.kind == "different" for v in table.verdicts(table.rows[0]).values())
        seen += any(v.kind == "different" for v in table.verdicts(table.rows[1]).values())
    assert different <= 0.05 * pairs + SLACK * np.sqrt(0.05 * 0.95 * pairs)
    assert seen >= 0.95 * pairs  # the same tables show that the original is different


@pytest.fixture(scope="module")
def rows() -> tuple[Row, list[Row]]:
    """The rows of an original that has memorised its forget set and of 30 honest retrains of it."""
    x, y = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(x[:900] / 16, dtype=torch.float32), torch.tensor(y[:900])
    # the forget set has wrong labels: only a model that has seen them gives them
    targets = torch.cat([(targets[:100] + 1) % 10, targets[100:]])
    test = ArrayData({"inputs": inputs[400:], "targets": targets[400:]})
    split = Split.from_ids(
        ArrayData({"inputs": inputs[:400], "targets": targets[:400]}), range(100), test=test
    )
    models = _networks(inputs[:400], targets[:400], 31)
    candidates = [Candidate("original", "original", models[0])]
    candidates += [Candidate(f"retrained {i}", "retrained", model) for i, model in enumerate(models[1:])]
    chosen = [Accuracy(part=part) for part in ("forget", "retain", "test")]
    chosen += [Loss(part=part) for part in ("forget", "retain", "test")]
    found = evaluate(candidates, split, Classification(10), Session(seed=0), chosen)
    return found[0], found[1:]


def _networks(inputs: torch.Tensor, targets: torch.Tensor, count: int) -> list[torch.nn.Module]:
    """Small networks, each with its own start and order; all but the first never saw the first 100."""
    models: list[torch.nn.Module] = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        parameters = list(model.parameters())
        with torch.no_grad():
            for parameter in parameters:
                parameter.normal_(0, 0.15, generator=generator)
        first, steps = (0, 300) if seed == 0 else (100, 50)
        for _ in range(steps):
            chosen = first + torch.randperm(len(inputs) - first, generator=generator)[:150]
            loss = torch.nn.functional.cross_entropy(model(inputs[chosen]), targets[chosen])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= 0.5 * gradient
        models.append(model)
    return models


def test_real_retrains_are_equivalent_or_inconclusive_and_the_original_is_different(
    rows: tuple[Row, list[Row]],
) -> None:
    """120 draws of one network to judge and three to judge it by, from 30 trained ones."""
    original, retrained = rows
    draws, different, kinds = np.random.default_rng(0), 0, []
    for _ in range(120):
        mine, *others = (retrained[i] for i in draws.choice(len(retrained), 4, replace=False))
        subject = Row("honest", "unlearned", mine.scores)
        table = Table("digits", "", 100, 400, (original, *others, subject))
        found = [verdict.kind for verdict in table.verdicts(subject).values()]
        different += "different" in found
        kinds += found
        assert table.verdicts(original)["accuracy.forget"].kind == "different"
    assert different <= 0.05 * 120 + SLACK * np.sqrt(0.05 * 0.95 * 120)
    assert kinds.count("equivalent") > 0.2 * len(kinds)
