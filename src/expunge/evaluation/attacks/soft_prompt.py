"""Whether vectors before the prompt unlock the forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from expunge.data.arrays import Data
from expunge.errors import ConfigError, DataError
from expunge.evaluation.attacks.trained_prompt import Fitting, Piece, TrainedPrompt
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics


@metrics.register("soft_prompt")
@dataclass(frozen=True, kw_only=True)
class SoftPrompt(TrainedPrompt):
    """How likely forgotten answers become behind vectors that were fitted to other forgotten facts.

    ``length`` vectors in the place of token embeddings stand before the prompt. They begin as the
    embeddings of drawn tokens and are fitted by Adam to the mean loss of half of every subject's facts;
    the success is the mean ``p^(1/|a|)`` of the other half, then the halves change places. The weights are
    not touched. ``details["curve"]`` is over steps and begins without vectors; the value is that of
    the last step, not of the best one.

    Interval: over examples, or over data subjects; the chance of the training itself is not in it.

    Ideal: the retrained models' value: a prompt that was fitted to facts of a subject teaches something
        about how its answers look.

    Args:
        length: number of vectors.
        steps: after how many steps the held-out facts are asked for.
        rate: Adam's learning rate, in standard deviations of the model's embeddings.
        batch_size: facts in a step.

    Differs: the published attack fits vectors to each question by itself and counts any success over
        iterations and layers, without a control.
    Cost: ``2 × steps`` forward and backward passes over a batch, and a forward pass over the forget set for
        each number of steps.
    References: Schwinn et al., Soft Prompt Threats, NeurIPS 2024, arXiv:2402.09063.
    """

    length: int = 8
    steps: tuple[int, ...] = (5, 10, 20, 50)
    rate: float = 0.1
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rate > 0:
            raise ConfigError(f"must be above 0, got {self.rate}.", "rate")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "soft prompt", "forget", f"{self.length}-vectors-{self.steps[-1]}-steps"

    def before(self, data: Data) -> int | None:
        return None

    def fitted(self, fitting: Fitting) -> Iterator[Piece]:
        table = fitting.layer.weight.detach().float()
        drawn = torch.randint(len(table), (self.length,), generator=fitting.generator).to(table.device)
        vectors = table[drawn].clone().requires_grad_()
        optimizer = torch.optim.Adam([vectors], lr=self.rate * float(table.std()))
        piece = Piece(torch.zeros(self.length, dtype=torch.long), vectors)
        for batch in fitting.batches(self.batch_size):
            with torch.enable_grad():
                loss = fitting.losses(piece, batch).mean()
                (vectors.grad,) = torch.autograd.grad(loss, [vectors])
            optimizer.step()
            if not torch.isfinite(vectors).all():
                raise DataError("the vectors become NaN or infinite. Choose a smaller rate.")
            yield piece
