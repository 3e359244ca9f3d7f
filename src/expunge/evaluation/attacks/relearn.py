"""How fast the forgotten comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.data.arrays import batch_count, fixed_order
from expunge.errors import ConfigError, DataError, ExpungeError
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import SGD, Optim

Floats = NDArray[np.float64]

Part = Literal["forget", "retain"]

WATCHED = 256
"""Examples of the forget set whose loss is measured after each step."""


@dataclass(frozen=True)
class Runs:
    """The forget losses of one model while it relearns: ``losses[r][k]`` after ``k`` steps of run ``r``.

    A run ends with the first loss at or below ``goal``, or with the budget.
    """

    losses: tuple[tuple[float, ...], ...]
    goal: float

    @cached_property
    def steps(self) -> Floats:
        """Steps to the goal of each run, whole ones; the budget where it was not reached. ``(R,)``."""
        return np.array([len(run) - 1 for run in self.losses], dtype=np.float64)

    @cached_property
    def crossings(self) -> Floats:
        """The same with the last step cut where the line between its two losses crosses the goal."""
        return np.array([_crossing(run, self.goal) for run in self.losses])

    @property
    def censored(self) -> bool:
        """Whether some run ended with the budget and not with the goal."""
        return any(run[-1] > self.goal for run in self.losses)

    @property
    def curve(self) -> list[list[float]]:
        """``[step, mean loss]``; a run that has ended stays at its last loss."""
        longest = max(len(run) for run in self.losses)
        held = np.array([[*run, *[run[-1]] * (longest - len(run))] for run in self.losses])
        return [[float(k), float(loss)] for k, loss in enumerate(held.mean(0))]


@dataclass(frozen=True, kw_only=True)
class Relearning(Metric):
    """What relearning metrics have in common: the same budget of steps for every model.

    Args:
        budget: the largest number of steps.
        margin, tolerance: how near the original's loss counts as relearned; the tolerance is in units of
            the loss and keeps an original with no loss at all reachable.
        repeats: number of runs with other orders.
        batch_size: examples in a step.
        optim: how the step is taken.
    """

    budget: int = 30
    margin: float = 0.05
    tolerance: float = 0.05
    repeats: int = 3
    batch_size: int = 64
    optim: Optim = SGD(lr=0.01)

    def __post_init__(self) -> None:
        for name in ("budget", "repeats", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        for name in ("margin", "tolerance"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"must not be negative, got {getattr(self, name)}.", name)

    def runs(self, evidence: Evidence, tolerance: float, on: tuple[Part, ...] = ("forget",)) -> Runs:
        """The subject's runs, each made once for all metrics with the same settings.

        Args:
            on: the parts that are trained on, together.

        Raises:
            DataError: the loss does not stay finite.
        """
        original, mine = (
            float(subject.read("forget").loss[:WATCHED].double().mean())
            for subject in (evidence.original, evidence.subject)
        )
        goal = original * (1 + self.margin) + tolerance
        if mine <= goal:
            return Runs(((mine,),) * self.repeats, goal)
        known, found = evidence.subject.kept, []
        for repeat in range(self.repeats):
            key = ("relearn", self.budget, self.batch_size, self.optim, goal, on, repeat)
            if key not in known:
                known[key] = (mine, *self._losses(evidence, goal, on, repeat))
            found.append(known[key])
        if not np.isfinite(np.concatenate(found)).all():
            raise DataError(
                f"the forget loss becomes NaN or infinite while '{evidence.subject.name}' relearns. Choose a "
                "smaller learning rate for this metric."
            )
        return Runs(tuple(found), goal)

    def details(self, evidence: Evidence, runs: Runs, others: Sequence[Runs]) -> dict[str, Any]:
        """The curve, and beside it the retrained models' mean, where there are any."""
        found: dict[str, Any] = {
            "curve": runs.curve,
            "x_label": "optimiser steps",
            "y_label": "forget loss",
            "goal": runs.goal,
        }
        if others:
            together = Runs(tuple(run for other in others for run in other.losses), runs.goal)
            found["retrained_curve"] = together.curve
        return found

    def _losses(self, evidence: Evidence, goal: float, on: tuple[Part, ...], repeat: int) -> list[float]:
        """The loss after each step of one run, on a copy of the model."""
        data = evidence.parts[on[0]]
        for part in on[1:]:
            data = data.joined(evidence.parts[part])
        losses: list[float] = []

        def after(model: nn.Module, index: int) -> bool:
            losses.append(_loss(model, evidence))
            return losses[-1] <= goal or index >= self.budget

        plan = Plan(
            what="relearn",
            objective=lambda step: {"forget": step.forget.loss.mean()},
            parts={"forget": data},
            passes=lambda epoch: (Pass("forget"),),
            epochs=-(-self.budget // batch_count(len(data), self.batch_size)),
            batch_size=self.batch_size,
            optim=self.optim,
            after=after,
        )
        optimise(evidence.subject.model, plan, evidence.task, evidence.session.child("relearn", repeat))
        return losses


@metrics.register("relearn_time")
@dataclass(frozen=True, kw_only=True)
class RelearnTime(Relearning):
    """Optimiser steps on the forget set until its loss is the original's again.

    The smallest ``k ≤ budget`` with ``mean_{i∈D_f} ℓ_i(θ_k) ≤ (1 + margin) · mean_{i∈D_f} ℓ_i(θ_o) +
    tolerance``, ``θ_0`` the model under attack and ``θ_k`` after ``k`` steps on batches of the forget
    set; ``budget``, marked as censored (≥), where it is not reached. The loss is measured before the
    first and after every step, on at most 256 examples. The value is the mean over ``repeats`` orders of
    the batches, with Student's t interval. The model judged is never changed. Every model gets the same
    budget and the same orders, the original included. ``details["curve"]`` is the mean loss after each
    step, ``details["retrained_curve"]`` that of the retrained models; a run that has reached its goal
    stays at its last loss.

    Ideal: the steps of the retrained models. Fewer is knowledge that was left, more is damage.

    Args:
        budget: the largest number of steps.
        margin, tolerance: how near the original's loss counts as relearned; the tolerance is in units of
            the loss and keeps an original with no loss at all reachable.
        repeats: number of runs with other orders.
        batch_size: examples in a step.
        optim: how the step is taken; the number of steps depends on its rate.

    Differs: steps, not epochs; the field's code trains the model under evaluation itself, this trains
        copies. A loss, not an accuracy, since accuracies of small sets jump.
    Cost: up to ``repeats × budget`` steps and as many forward passes over (at most 256 examples of)
        the forget set, for the model and once for each retrained model.
    References: Golatkar et al., CVPR 2020; Chundawat et al., Zero-Shot Machine Unlearning, 2023,
        arXiv:2201.05629 (anamnesis index).
    """

    unit = "steps"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "relearn time", "forget", ""

    def measure(self, evidence: Evidence) -> Score:
        runs = self.runs(evidence, self.tolerance)
        interval = statistics.mean_of_few(runs.steps)
        if interval is not None:
            interval = (max(interval[0], 0.0), min(interval[1], float(self.budget)))
        return Score(
            name="relearn time",
            part="forget",
            value=float(runs.steps.mean()),
            interval=interval,
            n=self.repeats,
            target="retrained",
            unit="steps",
            censored=runs.censored,
            details=self.details(evidence, runs, self._others(evidence)),
        )

    def _others(self, evidence: Evidence) -> list[Runs]:
        """The (other) retrained models' runs, of those that can be trained; the rows of the rest say why."""
        found = []
        for other in evidence.retrained:
            if other is not evidence.subject:
                with contextlib.suppress(ExpungeError):
                    found.append(self.runs(evidence.of(other), self.tolerance))
        return found


@metrics.register("anamnesis")
@dataclass(frozen=True, kw_only=True)
class Anamnesis(Relearning):
    """Anamnesis index (AIN): how long relearning takes, compared with a retrained model.

    ``mean_r k_u / mean k_r``, ``k`` the steps on the forget set until its loss is at most ``(1 + margin) ·
    ℓ_o + tolerance``, of the model ``u`` over ``repeats`` orders of the batches, and of the retrained models
    over the same orders. A step counts in part where the line between the losses before and after it
    crosses the goal. 0: the model stands at the goal already. Below 1 knowledge was left, above 1 the
    model was damaged. Interval: Student's t over the orders, paired. Where some run of the model ends
    with the budget, the index is at least the value (censored).

    Not computed where the retrained models stand at the goal without a step: there is nothing to
    relearn, and the ratio is 0/0 or infinite; nor where they do not reach it, since then the divisor
    is not known.

    Ideal: 1; the retrained models' own values, each against the others, say how far it strays.

    Args:
        budget, margin, tolerance, batch_size, optim: as for ``relearn_time``.
        repeats: number of orders; five, since the ratio of two small numbers is noisy.
        definition: ``conformance`` counts whole steps on batches of forget and retain data together and
            has no tolerance, as the regression code does.

    Differs: the published code counts whole batches, so that models that need 0.2 and 0.9 of a step have
        the same index, divides by zero where retraining needs none, and trains the very models that
        are evaluated afterwards.
    Cost: as ``relearn_time``, whose runs it shares where their settings are the same.
    References: Chundawat et al., Zero-Shot Machine Unlearning, 2023, arXiv:2201.05629; Tarun et al., Deep
        Regression Unlearning, ICML 2023, arXiv:2210.08196.
    """

    repeats: int = 5
    definition: Literal["corrected", "conformance"] = "corrected"
    unit = "index"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        biased = "-conformance" if self.definition == "conformance" else ""
        return "anamnesis index", "forget", f"loss{biased}"

    def measure(self, evidence: Evidence) -> Score:
        mine = self._of(evidence)
        others = [self._of(evidence.of(other)) for other in evidence.references()]
        theirs = np.stack([self._count(other) for other in others]).mean(0)
        if theirs.mean() == 0:
            raise DataError(
                "the retrained models have the original's forget loss without relearning, so the anamnesis "
                "index would divide by 0 steps. Choose a forget set that is harder, or a smaller tolerance."
            )
        if any(other.censored for other in others):
            raise DataError(
                f"the retrained models do not relearn the forget set within {self.budget} steps, so there is "
                "nothing to divide by. Raise the budget or the learning rate."
            )
        steps = self._count(mine)
        value = float(steps.mean() / theirs.mean())
        interval = statistics.mean_of_few((steps - value * theirs) / theirs.mean() + value)
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=value,
            interval=(max(interval[0], 0.0), interval[1]) if interval else None,
            n=self.repeats,
            target="retrained",
            unit="index",
            censored=mine.censored,
            details=self.details(evidence, mine, others),
        )

    def _of(self, evidence: Evidence) -> Runs:
        if self.definition == "conformance":
            return self.runs(evidence, 0.0, ("retain", "forget"))
        return self.runs(evidence, self.tolerance)

    def _count(self, runs: Runs) -> Floats:
        return runs.steps if self.definition == "conformance" else runs.crossings


def _crossing(losses: tuple[float, ...], goal: float) -> float:
    """Where the line between the last two losses crosses the goal, in steps."""
    steps = len(losses) - 1
    if steps == 0 or losses[-1] > goal:
        return float(steps)
    return steps - (goal - losses[-1]) / (losses[-2] - losses[-1])


def _loss(model: nn.Module, evidence: Evidence) -> float:
    """Mean loss over (at most ``WATCHED`` examples of) the forget set, in evaluation mode."""
    data, engine, task = evidence.parts["forget"], evidence.session.engine, evidence.task
    (batch,) = data.batches(fixed_order(len(data), WATCHED)[:1], device=engine.torch_device)
    batch = task.prepare(batch, None)
    with engine.frozen(model), torch.no_grad(), engine.autocast():
        outputs = task.outputs(model, batch)
    return float(task.loss(outputs.float(), batch).mean())
