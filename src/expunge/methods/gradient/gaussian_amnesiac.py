"""Gaussian amnesiac: targets drawn from the training targets' normal distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from expunge.data.replaced import Replaced
from expunge.data.split import Split
from expunge.errors import DataError, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.tasks.regression import Regression
from expunge.training.loop import Pass
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.step import Step


@methods.register("gaussian_amnesiac")
@dataclass(frozen=True, kw_only=True)
class GaussianAmnesiac(GradientMethod):
    """Fine-tunes a regressor on all data, with the forget targets drawn from a normal distribution.

    ``min_θ mean_{i∈D} ℓ(f_θ(x_i), y'_i)`` over batches that mix both sets, with ``y'_i = y_i`` on ``D_r``
    and ``y'_i ~ N(mean(y_D), sd(y_D)²)`` on ``D_f``, drawn once; each output has a mean and a standard
    deviation (with ``n − 1``) of its own.

    Shapes: as the task's. Regression alone.
    Cost: ``epochs`` forward and backward passes over all data; no copy of the model.
    Guarantee: empirical.
    Differs: the loss is the task's (half the squared error); the authors' AgeDB code trains, fine-tunes and
        unlearns by the absolute error, their STS-B code by the squared one.
    References: Tarun et al., Deep Regression Unlearning, ICML 2023, arXiv:2210.08196.
    """

    epochs: int = 1
    batch_size: int = 256
    optim: Optim = AdamW(lr=1e-3, weight_decay=0.0)

    def check(self, split: Split, task: Task) -> None:
        if not isinstance(task, Regression):
            raise Unsupported(
                f"gaussian_amnesiac draws real-valued targets, and task '{type(task).__name__}' has none. "
                "Use amnesiac."
            )

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("retain"),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Tensor:
        return split.forget.ids.to(session.engine.torch_device)

    def objective(self, step: Step) -> dict[str, Tensor]:
        loss, forget = step.retain.loss, torch.isin(step.retain.batch["ids"], step.state)
        return {"forget": (loss * forget).mean(), "retain": (loss * ~forget).mean()}

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        train = split.train()
        known = train.column("targets")
        if len(known) < 2:
            raise DataError(f"{len(known)} training target has no standard deviation. Give more examples.")
        noise = torch.randn(
            (len(split.forget), *known.shape[1:]), generator=session.generator("gaussian_amnesiac")
        )
        drawn = known.mean(0) + known.std(0) * noise.to(known)
        mixed = Replaced(train, split.forget.ids, {"targets": drawn})
        return super().unlearn(model, replace(split, retain=mixed), task, session)
