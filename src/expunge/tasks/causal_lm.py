"""Next-token prediction."""

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

IGNORED = -100


@tasks.register("causal_lm")
@dataclass(frozen=True)
class CausalLM(Task):
    """A causal language model over ``vocabulary`` tokens.

    Batches hold ``input_ids`` ``(N, T)`` and ``labels`` ``(N, T)``, equal to the inputs where a token
    is to be predicted and ``−100`` elsewhere (prompt, padding), and may hold ``attention_mask``.
    With ``A`` the labelled positions ``t ≥ 1`` of an example,
    ``log p(y | x) = Σ_{t∈A} log p(y_t | y_<t)`` and ``ℓ = −log p(y | x) / |A|``.
    """

    vocabulary: int

    score_name: ClassVar[str] = "token accuracy"
    relabel_changes_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.vocabulary < 2:
            raise ConfigError(f"a vocabulary needs at least 2 tokens, got {self.vocabulary}.", "vocabulary")

    def check(self, data: Data, part: str) -> None:
        for name in ("input_ids", "labels"):
            tokens = data.column(name)
            bad = (tokens < 0) | (tokens >= self.vocabulary)
            if name == "labels":
                bad &= tokens != IGNORED
            if bad.any():
                row, position = bad.nonzero()[0].tolist()
                raise DataError(
                    f"{part} {name} of example {int(data.ids[row])} holds token "
                    f"{int(tokens[row, position])}, outside 0..{self.vocabulary - 1}."
                )
        if not (data.column("labels")[:, 1:] != IGNORED).any(1).all():
            raise DataError(f"{part} has an example without a single labelled token to predict.")

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        mask = batch.get("attention_mask")
        ids = batch["input_ids"]
        return model_output(model(ids) if mask is None else model(ids, attention_mask=mask))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return -self.log_likelihood(outputs, batch) / _labelled(batch).sum(-1)

    def log_likelihood(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The sum over the labelled tokens, not their mean: NPO's and DPO's definition."""
        labels = batch["labels"][:, 1:]
        logits = outputs[:, :-1].float()
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return -losses.sum(-1)

    def divergence(
        self, reference: Tensor, outputs: Tensor, batch: Batch, temperature: float = 1.0
    ) -> Tensor:
        """The mean of the next-token divergences over the labelled positions."""
        return _mean(divergences.kl(reference[:, :-1], outputs[:, :-1], temperature), batch)

    def jensen_shannon(self, first: Tensor, second: Tensor, batch: Batch) -> Tensor:
        return _mean(divergences.jensen_shannon(first[:, :-1], second[:, :-1]), batch)

    def relabel(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Every labelled token drawn uniformly from the vocabulary, in the inputs as in the labels."""
        labels = batch["labels"]
        drawn = torch.randint(self.vocabulary, labels.shape, generator=generator).to(labels.device)
        replace = labels != IGNORED
        return {
            **batch,
            "input_ids": torch.where(replace, drawn, batch["input_ids"]),
            "labels": torch.where(replace, drawn, labels),
        }

    def sample(self, outputs: Tensor, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Every labelled token drawn from the model's distribution after the true tokens before it."""
        labels = batch["labels"].clone()
        drawn = divergences.drawn(outputs[:, :-1], generator).to(labels.device)
        labels[:, 1:] = torch.where(_labelled(batch), drawn, labels[:, 1:])
        return {**batch, "labels": labels}

    def label_counts(self, batch: Batch) -> Tensor:
        """The number of labelled tokens."""
        return _labelled(batch).sum(-1).float()

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        right = outputs[:, :-1].argmax(-1) == batch["labels"][:, 1:]
        return _mean(right.float(), batch)


def _labelled(batch: Batch) -> Tensor:
    return batch["labels"][:, 1:] != IGNORED


def _mean(values: Tensor, batch: Batch) -> Tensor:
    mask = _labelled(batch)
    return (values * mask).sum(-1) / mask.sum(-1)
