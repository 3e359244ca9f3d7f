"""Whether the right fact is known again once a wrong one was forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from expunge.data.text import Record
from expunge.errors import Unsupported
from expunge.evaluation import language, tofu
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.generation import Decoding
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.metrics.leakage import Match, told
from expunge.evaluation.score import Score
from expunge.evaluation.statistics import Floats
from expunge.evaluation.subject import Subject
from expunge.evaluation.tofu import Likelihood

WORDS = {"share": "", "choice": "choice", "written": "written"}


@metrics.register("recovery")
@dataclass(frozen=True, kw_only=True)
class Recovery(Metric):
    """Whether the right facts are known again after wrong ones were forgotten (RESTOR).

    The part holds what was learnt wrong, and every record brings the truth under the name ``correct``. With
    ``p`` the length-normalised probability of an answer,

    - ``share``: ``mean_i p_correct / (p_correct + p_wrong)``;
    - ``choice``: how often the right answer is the likeliest among the right one, the wrong one that was
      learnt, and other wrong ones whose names begin with ``perturbed_`` (equal ones share the point);
    - ``written``: how often what the model writes holds the right answer.

    Forgetting the wrong fact is not knowing the right one: a model that knows neither has a share of ½.
    ``details`` has how often the answer was right, wrong (as it was learnt) and neither (not for ``share``),
    and ``recovered``, the share of the way back from the original to the retrained models,
    ``(v − v_original)/(v_retrained − v_original)``. Interval: over examples, or over data subjects.

    Args:
        part: what was learnt wrong: ``forget``, or a probe.
        answer: the name of the right answer.
        read: which of the three.
        match: of ``written``: ``contains``, the words of the right answer one after another; ``key_words``,
            all of its words that are in neither the question nor a wrong answer.
        decoding: how answers are written.

    Ideal: the retrained model's value: of a model that learnt the right facts and never the wrong ones.
    Cost: a forward pass for each answer, or writing an answer to every question.
    Differs: published code tunes the unlearned models on instructions first, which can bring knowledge
        back by itself, draws three answers and has another language model grade them; here the words decide.
    References: Rezaei et al., RESTOR, 2024, arXiv:2411.00204.
    """

    part: str = "forget"
    answer: str = "correct"
    read: Literal["share", "choice", "written"] = "share"
    match: Match = "contains"
    decoding: Decoding = Decoding()

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words = [WORDS[self.read]] * bool(WORDS[self.read])
        words += [self.answer] * (self.answer != "correct") + ["key-words"] * (self.match == "key_words")
        words += language.decoded(self.decoding) if self.read == "written" else []
        return "recovery", self.part, "-".join(words)

    def measure(self, evidence: Evidence) -> Score:
        records = language.questions(evidence, self.part)
        lacking = sum(self.answer not in record.answers for record in records)
        if lacking:
            raise Unsupported(
                f"{lacking} of {len(records)} {self.part} records do not say what is right. Give each "
                f"the truth in answers={{'{self.answer}': …}} beside the wrong answer that was learnt."
            )
        right, wrong = self._found(evidence, evidence.subject, records)
        details: dict[str, Any] = {} if self.read == "share" else _outcomes(right, wrong)
        return language.averaged(self, evidence, right, details | self._way_back(evidence, records, right))

    def _way_back(self, evidence: Evidence, records: Sequence[Record], values: Floats) -> dict[str, Any]:
        """How far the model came from the original to the retrained ones; empty without these."""
        others = [other for other in evidence.retrained if other is not evidence.subject]
        if evidence.subject is evidence.original or not others:
            return {}
        before = float(self._found(evidence, evidence.original, records)[0].mean())
        after = float(np.mean([self._found(evidence, other, records)[0].mean() for other in others]))
        way = after - before
        return {"recovered": (float(values.mean()) - before) / way if way else None}

    def _found(
        self, evidence: Evidence, subject: Subject, records: Sequence[Record]
    ) -> tuple[Floats, Floats]:
        """How far each answer is right and how far it is the wrong one that was learnt, ``(N,)`` each."""
        if self.read == "written":
            written = subject.answers(self.part, self.decoding)
            turned = [_turned(record, self.answer) for record in records]
            tries = told(written, turned, self.match), told(written, records, "contains")
            right, wrong = (found.mean(1) for found in tries)
            return np.asarray(right, np.float64), np.asarray(wrong, np.float64)
        names = ["", *self._random(evidence)] if self.read == "choice" else [""]
        truth = language.likelihood(subject, self.part, self.answer)
        others = [language.likelihood(subject, self.part, name) for name in names]
        stacked = Likelihood(
            np.stack([one.total for one in others], 1), np.stack([one.tokens for one in others], 1)
        )
        if self.read == "share":
            share = tofu.option_probability(truth, stacked)
            return share, 1 - share
        options = np.concatenate([truth.mean[:, None], stacked.mean], 1)
        best = options == options.max(1, keepdims=True)
        points = best / best.sum(1, keepdims=True)
        return points[:, 0], points[:, 1]

    def _random(self, evidence: Evidence) -> list[str]:
        names = language.text(evidence, self.part).names
        return [name for name in names if name.startswith("perturbed_")]


def _outcomes(right: Floats, wrong: Floats) -> dict[str, float]:
    found = {"right": float(right.mean()), "wrong": float(wrong.mean())}
    return found | {"neither": float(np.maximum(1 - right - wrong, 0.0).mean())}


def _turned(record: Record, name: str) -> Record:
    """The record with the truth as its answer, and what was learnt among the wrong ones."""
    others = {key: text for key, text in record.answers.items() if key.startswith("perturbed_")}
    return replace(record, answer=record.answers[name], answers={"perturbed_learnt": record.answer, **others})
