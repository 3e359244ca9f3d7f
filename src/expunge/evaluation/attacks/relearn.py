"""How fast the forgotten comes back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from expunge.data.arrays import batch_count, fixed_order
from expunge.errors import ConfigError
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import SGD, Optim

WATCHED = 256
"""Examples of the forget set whose loss is measured after each step."""


@metrics.register("relearn_time")
@dataclass(frozen=True, kw_only=True)
class RelearnTime(Metric):
    """Optimiser steps on the forget set until its loss is the original's again.

    The smallest ``k ≤ budget`` with ``mean_{i∈D_f} ℓ_i(θ_k) ≤ (1 + margin) · mean_{i∈D_f} ℓ_i(θ_o) +
    tolerance``, ``θ_0`` the model under attack and ``θ_k`` after ``k`` steps on batches of the forget
    set; ``budget``, marked as censored (≥), where it is not reached. The loss is measured before the
    first and after every step. The value is the mean over ``repeats`` orders of the batches, with
    Student's t interval. Fewer steps than the retrained models need is knowledge that was left; the
    model judged is never changed. Every model gets the same budget, the original included.

    Args:
        budget: the largest number of steps.
        margin, tolerance: how near the original's loss counts as relearned; the tolerance is in nats
            and keeps an original with no loss at all reachable.
        repeats: number of runs with other orders.
        batch_size: examples in a step.
        optim: how the step is taken.

    Differs: steps, not epochs; the field's code trains the model under evaluation itself, this trains
        copies. A loss, not an accuracy, since accuracies of small sets jump.
    Cost: up to ``repeats × budget`` steps and as many forward passes over (at most 256 examples of)
        the forget set.
    References: Golatkar et al., CVPR 2020; Chundawat et al., Zero-Shot Machine Unlearning, 2023,
        arXiv:2201.05629 (anamnesis index).
    """

    budget: int = 30
    margin: float = 0.05
    tolerance: float = 0.05
    repeats: int = 3
    batch_size: int = 64
    optim: Optim = SGD(lr=0.01)
    unit = "steps"

    def __post_init__(self) -> None:
        for name in ("budget", "repeats", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "relearn time", "forget", ""

    def measure(self, evidence: Evidence) -> Score:
        goal = float(evidence.original.read("forget").loss.mean()) * (1 + self.margin) + self.tolerance
        if float(evidence.subject.read("forget").loss.mean()) <= goal:
            steps = np.zeros(self.repeats)
        else:
            steps = np.array([self._steps(evidence, goal, r) for r in range(self.repeats)], dtype=float)
        interval = statistics.mean_of_few(steps)
        if interval is not None:
            interval = (max(interval[0], 0.0), min(interval[1], float(self.budget)))
        return Score(
            name="relearn time",
            part="forget",
            value=float(steps.mean()),
            interval=interval,
            n=self.repeats,
            target="retrained",
            unit="steps",
            censored=bool((steps >= self.budget).any()),
        )

    def _steps(self, evidence: Evidence, goal: float, repeat: int) -> int:
        data = evidence.parts["forget"]
        reached = self.budget

        def after(model: nn.Module, index: int) -> bool:
            nonlocal reached
            if _loss(model, evidence) <= goal:
                reached = min(index, self.budget)
                return True
            return index >= self.budget

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
        return reached


def _loss(model: nn.Module, evidence: Evidence) -> float:
    """Mean loss over (at most ``WATCHED`` examples of) the forget set, in evaluation mode."""
    data, engine, task = evidence.parts["forget"], evidence.session.engine, evidence.task
    (batch,) = data.batches(fixed_order(len(data), WATCHED)[:1], device=engine.torch_device)
    batch = task.prepare(batch, None)
    with engine.frozen(model), torch.no_grad(), engine.autocast():
        outputs = task.outputs(model, batch)
    return float(task.loss(outputs.float(), batch).mean())
