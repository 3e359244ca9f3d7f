"""One label per example out of a fixed number of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data
from expunge.errors import ConfigError, DataError
from expunge.tasks import divergences
from expunge.tasks.base import Task, model_output, tasks


@tasks.register("classification")
@dataclass(frozen=True)
class Classification(Task):
    """Classification into ``classes`` classes; the loss is the cross-entropy.

    ``ℓ(x, y) = −log softmax(f(x))_y``. Batches hold ``inputs`` ``(N, …)`` and integer ``targets``
    ``(N,)``; the model maps inputs to logits ``(N, classes)``.
    """

    classes: int

    score_name: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ConfigError(f"a classifier needs at least 2 classes, got {self.classes}.", "classes")

    def check(self, data: Data, part: str) -> None:
        targets = data.column("targets")
        if targets.is_floating_point() or targets.ndim != 1:
            raise DataError(
                f"{part} targets must be integer labels of shape (N,), got {targets.dtype} "
                f"of shape {tuple(targets.shape)}."
            )
        bad = (targets < 0) | (targets >= self.classes)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise DataError(
                f"{part} label {int(targets[row])} of example {int(data.ids[row])} is outside "
                f"0..{self.classes - 1}. Correct the label or the number of classes."
            )

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model_output(model(batch["inputs"]))
        if logits.ndim != 2 or logits.shape[1] != self.classes:
            raise DataError(
                f"the model returned outputs of shape {tuple(logits.shape)}; a classifier of "
                f"{self.classes} classes needs ({len(logits)}, {self.classes})."
            )
        return logits

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs.float(), batch["targets"], reduction="none")

    def divergence(
        self, reference: Tensor, outputs: Tensor, batch: Batch, temperature: float = 1.0
    ) -> Tensor:
        return divergences.kl(reference, outputs, temperature)

    def jensen_shannon(self, first: Tensor, second: Tensor, batch: Batch) -> Tensor:
        return divergences.jensen_shannon(first, second)

    def margin(self, outputs: Tensor, batch: Batch) -> Tensor:
        """``f_y − log Σ_{k≠y} exp f_k``: the same, without the rounding of a ``p`` next to 1."""
        own = batch["targets"].unsqueeze(-1)
        others = outputs.float().scatter(-1, own, -torch.inf).logsumexp(-1)
        return outputs.float().gather(-1, own).squeeze(-1) - others

    def relabel(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Labels drawn uniformly from all classes; the true one included, as in the field's code."""
        targets = batch["targets"]
        drawn = torch.randint(self.classes, targets.shape, generator=generator)
        return {**batch, "targets": drawn.to(targets.device)}

    def sample(self, outputs: Tensor, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Labels drawn from the softmax of the logits."""
        drawn = divergences.drawn(outputs, generator)
        return {**batch, "targets": drawn.to(batch["targets"].device)}

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs.argmax(-1) == batch["targets"]).float()

    def groups(self, data: Data) -> Tensor:
        return data.column("targets").long()
