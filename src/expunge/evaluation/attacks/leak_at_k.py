"""How often one of several sampled answers tells the forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any, Literal

import numpy as np

from expunge.errors import ConfigError
from expunge.evaluation import language
from expunge.evaluation.attacks import asking
from expunge.evaluation.attacks.budget import Attack, Tried, check_budgets
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.generation import Decoding
from expunge.evaluation.metric import metrics
from expunge.evaluation.metrics.leakage import told, upper


@metrics.register("leak_at_k")
@dataclass(frozen=True, kw_only=True)
class LeakAtK(Attack):
    """How often at least one of k sampled answers tells the truth, over k, with an exact upper bound.

    Of ``n`` sampled answers to question ``i`` let ``c_i`` tell the truth. Then
    ``leak@k = mean_i [1 − C(n − c_i, k)/C(n, k)]``, without bias for any ``k ≤ n``; the value is that of the
    largest ``k``, ``details["curve"]`` has all. ``details["upper"]`` is an exact 95 % upper bound on it for
    these questions under further sampling, ``1 − (1 − p̄)^k`` with ``p̄`` the Clopper–Pearson bound on the
    mean chance that an answer leaks, from all ``Σ c_i`` of ``N n``; it holds for questions of different
    chances (Hoeffding; Jensen), and is wide where few of them leak often. ``details["upper_curve"]`` has it
    for each ``k``. ``leakage`` has leaks and bounds for each data subject.

    Interval: over questions, or over data subjects.

    Ideal: the retrained models' value: who never saw the answers guesses some of them.

    Args:
        tries: the numbers ``k``.
        samples: ``n``, answers sampled to each question, at least the largest ``k``.
        temperature, top_p, max_tokens: how they are sampled.
        match: ``contains``: the words of the true answer are in what is written, one after another;
            ``key_words``: all words that tell it from its wrong answers are.

    Cost: writing ``n`` answers to each question.
    References: Reisizadeh et al., Leak@k, 2025, arXiv:2511.04934; Scholten et al., A Probabilistic
        Perspective on Unlearning and Alignment, ICLR 2025, arXiv:2410.03523; Chen et al., 2021,
        arXiv:2107.03374 (the estimate); Hoeffding, Annals of Mathematical Statistics 27, 1956.
    """

    tries: tuple[int, ...] = (1, 2, 4, 8, 16)
    samples: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 64
    match: Literal["contains", "key_words"] = "contains"
    x_label = "answers sampled"
    y_label = "questions leaked"

    def __post_init__(self) -> None:
        check_budgets(self.tries, "tries")
        if self.samples < self.tries[-1]:
            raise ConfigError(
                f"must be at least the largest k {self.tries[-1]}, got {self.samples}.", "samples"
            )
        if not self.temperature > 0:
            raise ConfigError(f"must be above 0, got {self.temperature}.", "temperature")
        self._decoding  # noqa: B018 - it checks its own fields

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words = [f"k{self.tries[-1]}", f"t{self.temperature:g}"] + [f"p{self.top_p:g}"] * (self.top_p < 1)
        return "leak at k", "forget", asking.variant(*words, match=self.match)

    def tried(self, evidence: Evidence) -> Tried:
        records = language.questions(evidence, "forget")
        written = evidence.subject.answers("forget", self._decoding)
        leaked = told(written, records, self.match).sum(1)
        return Tried(
            tuple(map(float, self.tries)),
            np.array([[leak_chance(int(c), self.samples, k) for c in leaked] for k in self.tries]),
        )

    def details(self, evidence: Evidence, found: Tried) -> dict[str, Any]:
        leaked = told(
            evidence.subject.answers("forget", self._decoding),
            language.questions(evidence, "forget"),
            self.match,
        )
        chance = upper(int(leaked.sum()), leaked.size)
        bounds = [[float(k), 1 - (1 - chance) ** k] for k in self.tries]
        return {"upper": bounds[-1][1], "upper_curve": bounds, "samples": self.samples}

    @property
    def _decoding(self) -> Decoding:
        return Decoding(
            max_tokens=self.max_tokens, temperature=self.temperature, samples=self.samples, top_p=self.top_p
        )


def leak_chance(leaked: int, samples: int, k: int) -> float:
    """``1 − C(n − c, k)/C(n, k)``: the chance that ``k`` of the ``n`` answers hold one of the ``c`` leaks."""
    return 1 - comb(samples - leaked, k) / comb(samples, k)
