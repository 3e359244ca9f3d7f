"""Whether some forgotten facts bring back the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from expunge.data.arrays import Data, batch_count
from expunge.errors import ConfigError
from expunge.evaluation.attacks.budget import Attack, Tried, check_budgets, confidence, halves
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics
from expunge.evaluation.statistics import Floats
from expunge.evaluation.subject import Subject
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import AdamW, Optim


@metrics.register("relearn_facts")
@dataclass(frozen=True, kw_only=True)
class RelearnFacts(Attack):
    """How likely forgotten answers become when the model is trained on other facts, never on these.

    ``facts``: a copy is trained on half of every subject's forgotten facts and asked for the other half, then
    the halves change places; what comes back was not taught, if the facts are independent of each other.
    ``benign``: a copy is trained on the retained data alone and asked for all of the forget set. The success
    on an example is ``exp(−ℓ)``, of an answer its length-normalised probability, after each number of steps;
    the value is the mean at the last. ``details["curve"]`` begins with no step at all, and
    ``details["retrained_curve"]`` is that of the retrained models, which relearn nothing they had known.
    The model judged is never changed.

    Interval: over examples, or over data subjects; the chance of the training itself is not in it.

    Ideal: the value of the retrained models: it holds what a format or a style teaches.

    Args:
        arm: on what is trained.
        steps: after how many steps the model is asked.
        batch_size: examples in a step.
        optim: how the step is taken.

    Differs: the published attack (RTT) trains for epochs and keeps the best of several learning rates, chosen
        on the facts it is judged by.
    Cost: ``2 × steps`` steps (once for ``benign``), and a forward pass over the forget set for each number.
    References: Deeb and Roger, Do Unlearning Methods Remove Information from Language Model Weights?, 2024,
        arXiv:2410.08827; Hu et al., Jogging the Memory of Unlearned LLMs, ICLR 2025, arXiv:2406.13356.
    """

    arm: Literal["facts", "benign"] = "facts"
    steps: tuple[int, ...] = (1, 2, 5, 10, 20)
    batch_size: int = 16
    optim: Optim = AdamW(lr=1e-4, weight_decay=0.0)
    x_label = "optimiser steps"

    def __post_init__(self) -> None:
        check_budgets(self.steps, "steps")
        if self.batch_size < 1:
            raise ConfigError(f"must be at least 1, got {self.batch_size}.", "batch_size")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "relearnt facts", "forget", f"{self.arm}-{self.steps[-1]}-steps"

    def tried(self, evidence: Evidence) -> Tried:
        forget = evidence.parts["forget"]
        success = np.zeros((len(self.steps) + 1, len(forget)))
        success[0] = confidence(evidence)
        if self.arm == "benign":
            success[1:] = self._run(evidence, evidence.parts["retain"], forget, 0)
        else:
            first = halves(evidence)
            for number, held in enumerate((first, ~first)):
                known, asked = (forget.subset(forget.ids[torch.from_numpy(rows)]) for rows in (~held, held))
                success[1:, held] = self._run(evidence, known, asked, number)
        return Tried((0.0, *map(float, self.steps)), success)

    def details(self, evidence: Evidence, found: Tried) -> dict[str, Any]:
        return {"before": float(found.success[0].mean())}

    def _run(self, evidence: Evidence, known: Data, asked: Data, number: int) -> Floats:
        """The success on ``asked`` after each number of steps on ``known``, ``(steps, N)``."""
        session = evidence.session.child("relearn_facts", self.arm, number)
        rows: list[Floats] = []

        def after(model: nn.Module, index: int) -> bool:
            if index in self.steps:
                now = Subject(evidence.subject.name, model, {"asked": asked}, evidence.task, session)
                rows.append(now.read("asked").confidence.double().numpy())
            return index >= self.steps[-1]

        plan = Plan(
            what="relearn_facts",
            objective=lambda step: {"known": step.forget.loss.mean()},
            parts={"forget": known},
            passes=lambda epoch: (Pass("forget"),),
            epochs=-(-self.steps[-1] // batch_count(len(known), self.batch_size)),
            batch_size=self.batch_size,
            optim=self.optim,
            after=after,
        )
        optimise(evidence.subject.model, plan, evidence.task, session)
        return np.stack(rows)
