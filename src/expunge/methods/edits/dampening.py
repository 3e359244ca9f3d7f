"""What the two dampening edits share: which weights shrink, and by how much."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.base import Edit
from expunge.tasks.base import Task
from expunge.training.session import Session


@dataclass(frozen=True, kw_only=True)
class Dampening(Edit):
    """Where ``I_j(D_f) > α I_j(D)``: ``θ_j ← θ_j · min(1, λ I_j(D) / I_j(D_f))``.

    Args:
        alpha: ``α``, how much more important a weight must be for the forget set.
        dampening: ``λ``.
        batch_size: the size of the batches that the importances are made of.
    """

    alpha: float = 10.0
    dampening: float = 1.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("alpha", "dampening"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"must be above 0, got {getattr(self, name)}.", name)
        if self.batch_size < 1:
            raise ConfigError(f"must be at least 1, got {self.batch_size}.", "batch_size")

    @abstractmethod
    def importance(
        self, model: nn.Module, names: list[str], data: Data, task: Task, session: Session
    ) -> dict[str, Tensor]:
        """``I_j`` of the named parameters, at least 0."""

    def edit(self, model: nn.Module, names: list[str], split: Split, task: Task, session: Session) -> None:
        for_forget = self.importance(model, names, split.forget, task, session)
        for_all = self.importance(model, names, split.train(), task, session)
        weights = dict(model.named_parameters())
        for name in names:
            selected = for_forget[name] > self.alpha * for_all[name]
            factor = (self.dampening * for_all[name] / for_forget[name]).clamp(max=1.0)
            with torch.no_grad():
                weights[name].mul_(torch.where(selected, factor, 1.0))
