"""GUARD: answers are generated without the phrases of the forget answer that a prompt asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.data.text import IGNORED
from expunge.errors import ConfigError
from expunge.methods import prompts
from expunge.methods.base import methods
from expunge.methods.guarded import LanguageGuard, Watch
from expunge.methods.prompts import Features
from expunge.tasks.base import Task
from expunge.training.session import Session


class Restricted(Watch):
    """Decides about a prompt when ``generate`` begins, and forbids tokens at every step of it."""

    scores = (
        "guard restricts decoding: it acts inside generate alone, and the probability of a given answer "
        "is undefined. Use metrics of generated answers, or a guard that scores: eco, uld, key_space."
    )

    def settings(self, model: nn.Module, settings: dict[str, Any], ids: Tensor | None) -> dict[str, Any]:
        """Adds the beams, and a processor of the logits that knows which phrases to forbid in which row."""
        if ids is None:
            return settings
        forbidden = self.forbidden(model, ids, settings.get("attention_mask"))

        def restrict(said: Tensor, scores: Tensor) -> Tensor:
            copies = len(said) // len(forbidden)
            rows = said[:, ids.shape[1] :].tolist()
            scores = scores.clone()
            for row, answer in enumerate(rows):
                blocked = next_tokens(answer, forbidden[row // copies], cast(GUARD, self.method).ratio)
                scores[row, list(blocked)] = -torch.inf
            return scores

        from transformers import LogitsProcessorList

        own = LogitsProcessorList([*(settings.get("logits_processor") or []), restrict])
        beams = {} if settings.get("do_sample") else {"num_beams": cast(GUARD, self.method).beams}
        return {**beams, **settings, "logits_processor": own}

    def forbidden(self, model: nn.Module, ids: Tensor, mask: Tensor | None) -> list[list[list[int]]]:
        """The phrases for each prompt ``(N, T)``, none where it is not about the forget set."""
        method, learned = cast(GUARD, self.method), self.learned()
        attended = torch.ones_like(ids) if mask is None else mask
        x = prompts.pooled(model, ids, attended != 0, method.features)
        taken = prompts.probability(learned, x) > method.threshold
        nearest = (nn.functional.normalize(x - learned["mean"], dim=-1) @ learned["index"].float().T).argmax(
            -1
        )
        return [
            phrases(learned["answers"][i].tolist(), learned["common"]) if take else []
            for i, take in zip(nearest.tolist(), taken.tolist(), strict=True)
        ]


@methods.register("guard")
@dataclass(frozen=True, kw_only=True)
class GUARD(LanguageGuard):
    """Recognises prompts about the forget set, looks up the nearest forget answer and forbids its phrases.

    A logistic regression on the mean of the frozen model's states over the prompt says whether it is about
    the forget set; the forget prompt with the largest cosine gives the answer. Its phrases are the runs of
    tokens that are in less than ``common`` of the retained answers. While ``generate`` runs a beam search, a
    token is forbidden if with it the last tokens said are the first ``m`` of a phrase's ``n`` and ``m / n ≥
    ratio``. The guard keeps the forget answers' tokens: the data stays where it is used.

    Args:
        threshold: of the classifier.
        ratio: how much of a phrase may not be said; 1 forbids its last token only.
        common: share of the retained answers from which on a token is no secret.
        beams: of ``generate`` where it does not draw; unless it is told another number.
        features, ridge: as for ``eco``.

    Shapes: a causal language model of transformers; a forget set whose prompts differ from the retained.
    Cost: a forward pass over all prompts, no gradient. At inference one more over each prompt, and ``beams``
        times the decoding.
    Guarantee: empirical; about generated answers alone. Probabilities of given answers are undefined, and
        asking for them is an error.
    Differs: there is no official code. The paper's classifier is a perceptron of 256 neurons, its retrieval
        and soft match use sentence embeddings, its phrases come from an extractor, its matches are penalties
        of weight 1; here a regression, the model's own states, uncommon tokens and a hard limit, all choices
        of ours, without a soft match. The ratio is that of matched tokens to the phrase, where the
        implementation of others is always 1.
    References: Deng et al., GUARD: Generation-time LLM Unlearning via Adaptive Restriction and Detection,
        2025, arXiv:2505.13312.
    """

    threshold: float = 0.5
    ratio: float = 0.5
    common: float = 0.05
    beams: int = 7
    features: Features = "hidden"
    ridge: float = 1.0

    watch: ClassVar[type[Watch]] = Restricted

    def __post_init__(self) -> None:
        for name in ("threshold", "common"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"must be in [0, 1], got {getattr(self, name)}.", name)
        if not 0 < self.ratio <= 1:
            raise ConfigError(f"must be in (0, 1], got {self.ratio}.", "ratio")
        if self.beams < 1:
            raise ConfigError(f"must be at least 1, got {self.beams}.", "beams")
        if not self.ridge > 0:
            raise ConfigError(f"must be above 0, got {self.ridge}.", "ridge")

    def learn(self, model: nn.Module, split: Split, task: Task, session: Session) -> dict[str, Tensor]:
        forget, retain = (
            prompts.features(model, data, task, session, self.features)
            for data in (split.forget, split.retain)
        )
        learned = prompts.logistic(forget, retain, self.ridge)
        mean = forget.mean(0)
        learned["mean"] = mean
        learned["index"] = nn.functional.normalize(forget - mean, dim=-1)
        learned["answers"] = answers(split.forget)
        learned["common"] = common(answers(split.retain), self.common)
        return learned


def answers(data: Data) -> Tensor:
    """The labelled tokens of each example, −1 after them, ``(n, L)``."""
    labels = data.column("labels")
    rows = [row[row != IGNORED] for row in labels]
    padded: Tensor = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    return padded


def common(rows: Tensor, share: float) -> Tensor:
    """The tokens that are in at least ``share`` of the rows, and in one at all."""
    tokens, counts = torch.cat([row[row >= 0].unique() for row in rows]).unique(return_counts=True)
    often: Tensor = tokens[counts >= share * len(rows)]
    return often


def phrases(answer: Sequence[int], known: Tensor) -> list[list[int]]:
    """The runs of tokens of an answer that are not common."""
    taken, found = set(known.tolist()), [list[int]()]
    for token in answer:
        if token < 0 or token in taken:
            found.append([])
        else:
            found[-1].append(token)
    return [run for run in found if run]


def next_tokens(said: Sequence[int], forbidden: Sequence[Sequence[int]], ratio: float) -> set[int]:
    """The tokens that would bring a phrase to its ``ratio`` after what was said."""
    found = set()
    for phrase in forbidden:
        for done in range(len(phrase)):
            begun = list(said[len(said) - done :]) == list(phrase[:done]) if done else True
            if begun and done <= len(said) and (done + 1) / len(phrase) >= ratio:
                found.add(phrase[done])
    return found
