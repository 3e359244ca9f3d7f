"""Next-token prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data
from expunge.data.text import IGNORED
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.tasks import divergences
from expunge.tasks.base import BATCH_SIZE, Task, model_output, tasks
from expunge.tasks.token_states import TokenStates, from_logits, states

__all__ = ["IGNORED", "CausalLM", "labelled"]

LOGITS = 2**24
"""Logits in a forward pass of an evaluation."""


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
        if getattr(model, "reads_logits", False):  # a guard must know where the prompt ends
            beside = self.beside(batch)
            return self._of_vocabulary(model(ids, attention_mask=mask, labels=batch["labels"], **beside))
        masked = {} if mask is None else {"attention_mask": mask}
        return self._of_vocabulary(model(ids, **masked, **self.beside(batch)))

    def _of_vocabulary(self, answer: object) -> Tensor:
        logits = model_output(answer)
        if logits.shape[-1] != self.vocabulary:
            raise ConfigError(
                f"the model answers with {logits.shape[-1]:,} logits and the task has {self.vocabulary:,} "
                f"tokens. Set the task's vocabulary to {logits.shape[-1]}."
            )
        return logits

    def beside(self, batch: Batch) -> dict[str, Tensor]:
        """What a model is given beside tokens and their mask, by name."""
        return {}

    def said(self, model: nn.Module, batch: Batch) -> Tensor | TokenStates:
        """Hidden states before the labels, of a transformers model; the logits of any other."""
        found = states(model, batch, labelled(batch), self.vocabulary, self.beside(batch))
        return self.outputs(model, batch) if found is None else found

    def spelled_out(self, said: Tensor | TokenStates, batch: Batch) -> Tensor:
        """The logits ``(N, T, V)``; zeros where nothing is to be predicted and they were not computed."""
        return said if isinstance(said, Tensor) else said.logits()

    def instead(self, batch: Batch, name: str) -> Batch:
        if f"{name}.input_ids" not in batch:
            have = sorted(key.removesuffix(".input_ids") for key in batch if key.endswith(".input_ids"))
            raise Unsupported(
                f"the data has no '{name}' answers; it has: {', '.join(have) or 'none'}. Give every record "
                f"one in answers={{'{name}': …}}, or choose a method that needs none."
            )
        lacking = (batch[f"{name}.attention_mask"].sum(1) == 0).nonzero()
        if len(lacking):
            raise DataError(
                f"example {int(batch['ids'][lacking[0, 0]])} has no '{name}' answer. Give it one."
            )
        columns = ("input_ids", "labels", "attention_mask")
        return {**batch, **{column: batch[f"{name}.{column}"] for column in columns}}

    def loss(self, outputs: Tensor | TokenStates, batch: Batch) -> Tensor:
        """The mean over the labelled tokens."""
        return -self.log_likelihood(outputs, batch) / labelled(batch).sum(-1)

    def log_likelihood(self, outputs: Tensor | TokenStates, batch: Batch) -> Tensor:
        """The sum over the labelled tokens, not their mean: NPO's and DPO's definition."""
        if isinstance(outputs, TokenStates):
            return outputs.summed(outputs.log_probs())
        return self.token_log_probs(outputs, batch)[0].sum(-1)

    def token_log_probs(self, outputs: Tensor | TokenStates, batch: Batch) -> tuple[Tensor, Tensor]:
        """``log p(y_t | y_<t)`` of each labelled token, 0 elsewhere, and where those are: ``(N, T − 1)``."""
        mask = labelled(batch)
        if isinstance(outputs, TokenStates):
            return outputs.spread(outputs.log_probs()), mask
        logits = outputs[:, :-1].float().transpose(1, 2)
        losses = F.cross_entropy(logits, batch["labels"][:, 1:], ignore_index=IGNORED, reduction="none")
        return -losses, mask

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
        labels[:, 1:] = torch.where(labelled(batch), drawn, labels[:, 1:])
        return {**batch, "labels": labels}

    def label_counts(self, batch: Batch) -> Tensor:
        """The number of labelled tokens."""
        return labelled(batch).sum(-1).float()

    def score(self, outputs: Tensor | TokenStates, batch: Batch) -> Tensor:
        """The fraction of the labelled tokens that are the likeliest ones."""
        if isinstance(outputs, TokenStates):
            right = outputs.spread(outputs.details["right"])
        else:
            right = (outputs[:, :-1].argmax(-1) == batch["labels"][:, 1:]).float()
        return _mean(right, batch)

    def batch_size(self, data: Data) -> int:
        """As many examples as have at most 2²⁴ logits together."""
        return max(1, min(BATCH_SIZE, LOGITS // (data.column("input_ids").shape[1] * self.vocabulary)))

    def output_count(self, said: Tensor | TokenStates) -> int:
        return said.numel() if isinstance(said, Tensor) else said.shape[0] * said.shape[1] * self.vocabulary

    def tokens(self, said: Tensor | TokenStates, batch: Batch) -> dict[str, Tensor]:
        """Of every label: ``log_probs``, ``mean`` and ``deviation`` of the log-probability under the model's
        own distribution, and whether it is the likeliest (``right``); ``(N, T − 1)``, NaN elsewhere."""
        mask = labelled(batch)
        if isinstance(said, Tensor):
            said = from_logits(said, batch, mask)
        found = {name: said.spread(values) for name, values in said.details.items()}
        return {name: values.masked_fill(~mask, torch.nan) for name, values in found.items()}


def labelled(batch: Batch) -> Tensor:
    """Where a token is to be predicted from those before it, ``(N, T − 1)``."""
    return batch["labels"][:, 1:] != IGNORED


def _mean(values: Tensor, batch: Batch) -> Tensor:
    mask = labelled(batch)
    return (values * mask).sum(-1) / mask.sum(-1)
