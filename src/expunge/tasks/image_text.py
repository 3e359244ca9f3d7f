"""Images and captions that belong together, as CLIP matches them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from expunge.data.arrays import Batch
from expunge.errors import Unsupported
from expunge.tasks.base import Task, tasks


@tasks.register("image_text")
@dataclass(frozen=True)
class ImageText(Task):
    """Finding the caption of an image among those of its batch, and the image of a caption.

    ``ℓ_i = ½ CE(S_i·, i) + ½ CE(S_·i, i)`` (Radford et al., 2021) with ``S_ij`` how well image ``i`` and
    caption ``j`` of the batch match. Numbers of an example depend on the others of its batch.

    Batches hold ``inputs`` ``(N, C, H, W)`` and ``input_ids`` ``(N, T)``; the model is called with both and
    answers ``S`` ``(N, N)``. The outputs are ``(N, 2, N)``: the rows of ``S`` and of its transpose.
    """

    score_name: ClassVar[str] = "recall@1 in its batch"

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        found = model(batch["inputs"], batch["input_ids"])
        count = len(batch["ids"])
        if not isinstance(found, Tensor) or found.shape != (count, count):
            raise Unsupported(
                "the model does not say how well each image matches each caption. Give a ClipPair of "
                "training.clip_models."
            )
        return torch.stack([found, found.T], 1)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        rows = torch.arange(len(outputs), device=outputs.device)
        each = [cross_entropy(outputs[:, way].float(), rows, reduction="none") for way in (0, 1)]
        return (each[0] + each[1]) / 2

    def divergence(
        self, reference: Tensor, outputs: Tensor, batch: Batch, temperature: float = 1.0
    ) -> Tensor:
        """The mean of both ways' KL divergence over the batch's captions and images."""
        p = log_softmax(reference.float() / temperature, -1)
        q = log_softmax(outputs.float() / temperature, -1)
        return (p.exp() * (p - q)).sum(-1).clamp(min=0).mean(-1)

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Of its two searches the share that finds it."""
        rows = torch.arange(len(outputs), device=outputs.device)
        return (outputs.argmax(-1) == rows[:, None]).float().mean(-1)
