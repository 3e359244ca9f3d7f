"""Task arithmetic: the opposite of what fine-tuning on the forget set does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.base import GradientMethod, check_floating, methods
from expunge.tasks.base import Task
from expunge.training.loop import Pass
from expunge.training.optim import AdamW, Optim
from expunge.training.parameters import check_finite
from expunge.training.session import Session
from expunge.training.step import Step


@methods.register("task_vector")
@dataclass(frozen=True, kw_only=True)
class TaskVector(GradientMethod):
    """Fine-tunes a copy on the forget set and takes the change of its weights, negated.

    ``θ_ft = argmin_θ mean_{i∈D_f} ℓ_i(θ)`` from ``θ_o``, then ``θ = θ_o − α (θ_ft − θ_o)``.

    Args:
        alpha: ``α``; 0 is the original, bit for bit, above 1 goes further than training went. 1 and 5 in
            MUSE's scripts.

    Shapes: every parameter of the scope; under ``lora`` the merged adapters are the change. Works for every
        task.
    Cost: ``epochs`` passes over the forget set; two copies of the parameters at the end. No cost at
        inference.
    Guarantee: empirical.
    Differs: the arithmetic is in float32 whatever the weights are kept in, and rounds once. Each parameter
        counts once, however many modules share it; buffers, such as BatchNorm's statistics, stay as they
        were. No weight decay, which would be part of the change; MUSE's rate of 1e-5 is for 7 billion
        parameters, the default here for a few millions.
    References: Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, arXiv:2212.04089; Shi et
        al., MUSE, 2024, arXiv:2407.06460.
    """

    epochs: int = 10
    optim: Optim = AdamW(lr=1e-4, weight_decay=0.0, schedule="cosine")
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise ConfigError(f"must not be negative, got {self.alpha}; that would train.", "alpha")

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget"),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        return {"forget": step.forget.loss.mean()}

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        check_floating(model, methods.name_of(self))
        tuned = dict(super().unlearn(model, split, task, session).named_parameters())
        result = session.engine.copy(model)
        with torch.no_grad():
            for name, weight in result.named_parameters():
                change = tuned[name].float() - weight.float()
                weight.copy_(weight.float() - self.alpha * change)
        check_finite(result, methods.name_of(self))
        return result.eval()
