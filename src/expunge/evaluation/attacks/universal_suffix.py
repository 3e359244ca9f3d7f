"""Whether one string of tokens behind every question unlocks the forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.data.arrays import Batch, Data
from expunge.data.text import TextData
from expunge.errors import ConfigError
from expunge.evaluation.attacks.inserted import ends
from expunge.evaluation.attacks.trained_prompt import Fitting, Piece, TrainedPrompt
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics


@metrics.register("universal_suffix")
@dataclass(frozen=True, kw_only=True)
class UniversalSuffix(TrainedPrompt):
    """How likely forgotten answers become with one suffix, found by greedy coordinate gradient (GCG).

    ``length`` tokens stand behind every question, before what the template puts there for all of them. They
    are chosen for the mean loss of half of every subject's facts: the gradient with respect to the
    embeddings, times each token's embedding, ranks the exchanges of one token; of the ``top`` best at every
    place ``candidates`` are drawn and tried on the batch, and the best one is taken if it lowers the loss.
    The success is the mean ``p^(1/|a|)`` of the other half, then the halves change places.
    ``details["curve"]`` is over steps and begins without a suffix.

    Interval: over examples, or over data subjects; the chance of the training itself is not in it.

    Ideal: the retrained models' value.

    Args:
        length: number of tokens.
        steps: after how many steps the held-out facts are asked for. Published attacks take hundreds.
        candidates: exchanges tried in a step.
        top: tokens at each place among which they are drawn.
        batch_size: facts in a step.

    Differs: tokens are put in as they are; written down and tokenised again they may be others. The
        published attack on unlearning is fitted to some of the questions that it is judged by.
    Cost: in each of ``2 × steps`` steps a backward pass and ``candidates + 1`` forward passes over a batch.
    References: Zou et al., Universal and Transferable Adversarial Attacks on Aligned Language Models, 2023,
        arXiv:2307.15043; Łucki et al., An Adversarial Perspective on Machine Unlearning, 2024,
        arXiv:2409.18025.
    """

    length: int = 8
    steps: tuple[int, ...] = (5, 10, 20)
    candidates: int = 32
    top: int = 32
    batch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("candidates", "top"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "universal suffix", "forget", f"{self.length}-tokens-{self.steps[-1]}-steps"

    def before(self, data: Data) -> int | None:
        return ends(data)

    def fitted(self, fitting: Fitting) -> Iterator[Piece]:
        allowed = _allowed(fitting)
        drawn = torch.randint(len(allowed), (self.length,), generator=fitting.generator)
        tokens = allowed[drawn]
        for batch in fitting.batches(self.batch_size):
            gradient, loss = self._gradient(fitting, tokens, batch)
            best = self._exchanges(fitting, tokens, gradient, allowed)
            losses = [float(fitting.losses(Piece(tried), batch).mean()) for tried in best]
            lowest = min(range(len(losses)), key=losses.__getitem__)
            if losses[lowest] < loss:
                tokens = best[lowest]
            yield Piece(tokens)

    def _gradient(self, fitting: Fitting, tokens: Tensor, batch: Batch) -> tuple[Tensor, float]:
        """``(K, D)`` of the mean loss by the embeddings of the suffix, and that loss."""
        table = fitting.layer.weight.detach()
        vectors = table[tokens.to(table.device)].clone().requires_grad_()
        with torch.enable_grad():
            loss = fitting.losses(Piece(tokens, vectors), batch).mean()
            (gradient,) = torch.autograd.grad(loss, [vectors])
        return gradient, float(loss)

    def _exchanges(self, fitting: Fitting, tokens: Tensor, gradient: Tensor, allowed: Tensor) -> list[Tensor]:
        """Suffixes with one token exchanged, drawn among those that the gradient likes best."""
        table = fitting.layer.weight.detach()[allowed.to(gradient.device)]
        gain = -(gradient.float() @ table.float().T).cpu()  # (K, allowed)
        liked = allowed[gain.topk(min(self.top, len(allowed)), dim=1).indices]
        found = []
        for _ in range(self.candidates):
            place = int(torch.randint(self.length, (), generator=fitting.generator))
            choice = int(torch.randint(liked.shape[1], (), generator=fitting.generator))
            tried = tokens.clone()
            tried[place] = liked[place, choice]
            found.append(tried)
        return found


def _allowed(fitting: Fitting) -> Tensor:
    """The tokens that may stand in a suffix: no special ones, ``(A,)``."""
    tokens = torch.arange(getattr(fitting.task, "vocabulary", fitting.layer.num_embeddings))
    if isinstance(fitting.known, TextData):
        tokenizer = fitting.known.tokenizer
        tokens = tokens[: len(tokenizer)]
        tokens = tokens[~torch.isin(tokens, torch.tensor(tokenizer.all_special_ids))]
    return tokens
