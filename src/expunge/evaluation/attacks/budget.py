"""What attacks with a budget have in common: how well each example gives in, at each size of the budget."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from expunge import seeding
from expunge.errors import ConfigError, DataError, ExpungeError, MissingEvidence
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric
from expunge.evaluation.score import Score
from expunge.evaluation.statistics import Floats

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tried:
    """The adversary's success: ``success[b, i]`` on example ``i`` with the budget ``budgets[b]``.

    Shapes: ``budgets`` ``(B,)``, ``success`` ``(B, N)``; NaN where an example says nothing.
    """

    budgets: tuple[float, ...]
    success: Floats

    @property
    def curve(self) -> list[list[float]]:
        """``[budget, mean success]``."""
        return [[b, float(np.nanmean(row))] for b, row in zip(self.budgets, self.success, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Attack(Metric):
    """An attack with the same budget on every model; what it gets from retrained ones is no knowledge left.

    Subclasses say how each example fares at each budget; the curve, its interval and the retrained models'
    curve beside it are made here. Nothing changes the model judged.
    """

    x_label: ClassVar[str]
    y_label: ClassVar[str] = "answer probability"

    @abstractmethod
    def tried(self, evidence: Evidence) -> Tried:
        """The attack on the subject.

        Raises:
            ExpungeError: it cannot be made; the message says why.
        """

    def chosen(self, evidence: Evidence, found: Tried) -> Floats:
        """The success on each example that counts, ``(N,)``: that of the whole budget."""
        return np.asarray(found.success[-1], np.float64)

    def details(self, evidence: Evidence, found: Tried) -> dict[str, Any]:
        """What else the score shows."""
        return {}

    def measure(self, evidence: Evidence) -> Score:
        found = self.found(evidence)
        values = self.chosen(evidence, found)
        counted = ~np.isnan(values)
        if not counted.any():
            raise DataError("no example of the forget set says anything of this. Give a larger forget set.")
        units = self.units(evidence)
        interval = statistics.interval(values[counted], None if units is None else units[counted])
        name, part, variant = self.labels(evidence)
        everyone = counted.all() and len(values) == len(evidence.parts[part])
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(values[counted].mean()),
            interval=_within(interval) if self.counts() == "fraction" else interval,
            n=int(counted.sum()),
            target=self.target,
            unit=self.counts(),
            details=self.curves(evidence, found) | self.details(evidence, found),
            per_example=torch.from_numpy(values) if everyone else None,
        )

    def units(self, evidence: Evidence) -> NDArray[np.int64] | None:
        """The data subject of each example, ``(N,)``; None where the data has none."""
        clusters = evidence.clusters("forget")
        return None if clusters is None else clusters.numpy()

    def found(self, evidence: Evidence) -> Tried:
        """The attack on the subject, made once however many rows ask."""
        kept = evidence.subject.kept
        keys = (self, evidence.session.seed, "budgets"), (self, evidence.session.seed, "success")
        if keys[1] not in kept:
            made = self.tried(evidence)
            kept[keys[0]], kept[keys[1]] = made.budgets, tuple(made.success.reshape(-1).tolist())
        budgets = kept[keys[0]]
        return Tried(budgets, np.array(kept[keys[1]]).reshape(len(budgets), -1))

    def curves(self, evidence: Evidence, found: Tried) -> dict[str, Any]:
        """The curve over the budget, and beside it the mean of the retrained models that can be attacked.

        The rows of the others say why they cannot.
        """
        if len(found.budgets) < 2:
            return {}
        shown: dict[str, Any] = {"curve": found.curve, "x_label": self.x_label, "y_label": self.y_label}
        others = []
        for other in evidence.retrained:
            if other is not evidence.subject:
                with contextlib.suppress(ExpungeError):
                    others.append(np.nanmean(self.found(evidence.of(other)).success, 1))
        if others and all(len(other) == len(found.budgets) for other in others):
            means = np.mean(others, 0)
            shown["retrained_curve"] = [[b, float(y)] for b, y in zip(found.budgets, means, strict=True)]
        return shown


def check_budgets(values: Sequence[int], name: str, least: int = 1) -> None:
    """Refuses budgets that do not grow from ``least``.

    Raises:
        ConfigError: none, one below ``least``, or out of order.
    """
    if not values or values[0] < least or list(values) != sorted(set(values)):
        raise ConfigError(f"must be whole numbers from {least} up that grow, got {tuple(values)}.", name)


def confidence(evidence: Evidence, part: str = "forget", answer: str = "") -> Floats:
    """``exp(−loss)`` of each example, of an answer its length-normalised probability. ``(N,)``."""
    if part not in evidence.parts:
        raise MissingEvidence(f"there is no {part} data. Give the split {part}=….")
    return np.asarray(evidence.subject.read(part, answer).confidence.double().numpy(), np.float64)


def halves(evidence: Evidence, part: str = "forget") -> Bools:
    """Which examples are in the first half, ``(N,)``: of every subject half of its facts.

    The same for all models. Facts are dealt in turn, subject by subject, so that the halves of each differ by
    one at most; without subjects all examples are one subject's.

    Raises:
        DataError: fewer than two examples.
    """
    count = len(evidence.parts[part])
    if count < 2:
        raise DataError(f"the {part} set has {count} example, so that there is no half to hold out.")
    draws = np.random.default_rng(seeding.derive(0, "halves"))
    clusters = evidence.clusters(part)
    who = np.zeros(count, dtype=np.int64) if clusters is None else clusters.numpy()
    shuffled = draws.permutation(count)
    order = shuffled[np.argsort(draws.permutation(who.max() + 1)[who[shuffled]], kind="stable")]
    first = np.zeros(count, dtype=bool)
    first[order[::2]] = True
    return first


def crossed(success: Floats, first: Bools) -> Floats:
    """Each half's success at the budget that is best for the *other* half, ``(N,)``.

    So the choice is not made on the examples that it is judged by.

    Shapes: success ``(B, N)``, halves ``(N,)``.
    """
    values = np.empty(success.shape[1])
    for half in (first, ~first):
        best = int(np.nanmean(success[:, ~half], axis=1).argmax())
        values[half] = success[best, half]
    return values


def _within(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """The interval of a fraction, in [0, 1]."""
    return None if interval is None else (max(interval[0], 0.0), min(interval[1], 1.0))
