"""Whether the forgotten comes out when it is asked for in another way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.data.text import TextData
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.evaluation import language
from expunge.evaluation.attacks import asking
from expunge.evaluation.attacks.asking import Match
from expunge.evaluation.attacks.budget import Attack, Tried
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics


@metrics.register("reworded")
@dataclass(frozen=True, kw_only=True)
class Reworded(Attack):
    """How often a forgotten answer comes out when other questions lead to it.

    ``ask`` names the questions: other ones that the forget set brings for its own answers
    (``paraphrased_question``), or a probe, of which those are asked whose subject is in the forget set
    (``reversed``, ``multi_hop``). The value is the fraction of answers that tell the truth, or their mean
    length-normalised probability, as ``match`` has it.

    Interval: over questions, or over data subjects.

    Ideal: the retrained models' value. Well above it, the method has hidden the wording and not the fact.

    Args:
        ask: the name of the questions or of the probe.
        match: ``contains``: the words of the true answer are in what is written, one after another;
            ``key_words``: all words that tell it from its wrong answers are; ``probability``: of the answer.
        max_tokens: where an answer ends at the latest.

    Cost: writing one answer to each question, or a forward pass.
    References: Jin et al., RWKU, 2024, arXiv:2406.10890; Lynch et al., 2024, arXiv:2402.16835.
    """

    ask: str = "paraphrased_question"
    match: Match = "contains"
    max_tokens: int = 64
    x_label = ""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"must be at least 1, got {self.max_tokens}.", "max_tokens")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        if self.ask in evidence.parts:
            return "reworded", self.ask, asking.variant(match=self.match)
        return "reworded", "forget", asking.variant(self.ask, match=self.match)

    def tried(self, evidence: Evidence) -> Tried:
        data = self._data(evidence)
        truth = questions = language.records(data)
        if self.ask not in evidence.parts:
            questions = [replace(record, question=record.questions[self.ask]) for record in truth]
        found = asking.asked(evidence, data, questions, truth, self.match, self.max_tokens)
        return Tried((1.0,), found[None])

    def details(self, evidence: Evidence, found: Tried) -> dict[str, Any]:
        return {"asked": found.success.shape[1]}

    def units(self, evidence: Evidence) -> NDArray[np.int64] | None:
        data = self._data(evidence)
        return data.column("subjects").long().numpy() if data.subjects else None

    def _data(self, evidence: Evidence) -> TextData:
        """The examples whose answers are asked for."""
        forget = language.text(evidence, "forget")
        if self.ask not in evidence.parts:
            language.questions(evidence, "forget")
            lacking = [record for record in language.records(forget) if self.ask not in record.questions]
            if lacking:
                raise Unsupported(
                    f"there is no probe '{self.ask}', and {len(lacking)} of {len(forget)} forget records "
                    f"have no question of that name. Give them questions={{'{self.ask}': …}}, or the split "
                    "a probe."
                )
            return forget
        language.questions(evidence, self.ask)
        data = language.text(evidence, self.ask)
        about = {record.subject for record in language.records(forget)} - {None}
        ids = [int(i) for i in data.ids if data.record(int(i)).subject in about]
        if not ids:
            raise DataError(
                f"no question of '{self.ask}' is about a subject of the forget set. Give both "
                "the same subjects."
            )
        return data.subset(ids)
