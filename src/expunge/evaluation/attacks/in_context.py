"""Whether facts in the prompt bring forgotten knowledge back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from expunge import seeding
from expunge.data.text import Record, TextData
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.evaluation import language, text
from expunge.evaluation.attacks import asking
from expunge.evaluation.attacks.asking import Match
from expunge.evaluation.attacks.budget import Attack, Tried, check_budgets
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics
from expunge.evaluation.metrics.leakage import key_words


@metrics.register("in_context")
@dataclass(frozen=True, kw_only=True)
class InContext(Attack):
    """How often a forgotten answer comes out when facts about the subject stand before the question.

    Knowledge that was taken out of the weights can be put back into the prompt ("ununlearning").
    Before each question stand up to ``facts[-1]`` records of the same subject, question and answer, in a
    seeded order that is the same for all models.

    - ``others``: facts that do not hold the answer. What they bring back was still in the weights.
    - ``answer``: the asked fact itself is among them. A model that then does not answer has been taught to be
      silent or to misread: any reader can.

    ``details["curve"]`` is over the number of facts, from none. Questions whose subject has no other fact
    are left out; where it has fewer than asked for, all of them are given.

    Interval: over questions, or over data subjects.

    Ideal: the retrained models' value, for ``answer`` far above 0.

    Args:
        context: which facts stand before the question.
        facts: how many of them.
        match: ``contains``: the words of the true answer are in what is written, one after another;
            ``key_words``: all words that tell it from its wrong answers are; ``probability``: of the answer.
        max_tokens: where an answer ends at the latest.

    Cost: writing one answer to each question (or a forward pass) for each number of facts.
    References: Shumailov et al., UnUnlearning, 2024, arXiv:2407.00106.
    """

    context: Literal["others", "answer"] = "others"
    facts: tuple[int, ...] = (1, 2, 4)
    match: Match = "contains"
    max_tokens: int = 64
    x_label = "facts before the question"

    def __post_init__(self) -> None:
        check_budgets(self.facts, "facts")
        if self.max_tokens < 1:
            raise ConfigError(f"must be at least 1, got {self.max_tokens}.", "max_tokens")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        variant = asking.variant(self.context, f"{self.facts[-1]}-facts", match=self.match)
        return "in-context recall", "forget", variant

    def tried(self, evidence: Evidence) -> Tried:
        data, records = language.text(evidence, "forget"), language.questions(evidence, "forget")
        if not data.subjects:
            raise Unsupported(
                "facts about the same subject stand before the question, and the forget data names no "
                "subjects. Give every record its subject."
            )
        given = [self._given(data, int(id_)) for id_ in data.ids]
        there = np.array([len(facts) > 0 for facts in given])
        budgets = (0, *self.facts)
        success = np.full((len(budgets), len(records)), np.nan)
        rows = np.flatnonzero(there).tolist()
        for place, count in enumerate(budgets if rows else ()):
            asked = [_behind(given[row][:count], records[row]) for row in rows]
            truth = [records[row] for row in rows]
            few = data.subset(data.ids[rows])
            success[place, rows] = asking.asked(evidence, few, asked, truth, self.match, self.max_tokens)
        return Tried(tuple(map(float, budgets)), success)

    def details(self, evidence: Evidence, found: Tried) -> dict[str, Any]:
        return {"before": float(np.nanmean(found.success[0])), "y_label": asking.y_label(self.match)}

    def _given(self, data: TextData, id_: int) -> list[Record]:
        """The facts that may stand before a question, in order."""
        mine = data.record(id_)
        told = [other for other in data.records if other.subject == mine.subject and not _holds(other, mine)]
        draws = np.random.default_rng(seeding.derive(0, "in_context", id_))
        found = [told[i] for i in draws.permutation(len(told))]
        return [mine, *found] if self.context == "answer" else found


def _holds(fact: Record, asked: Record) -> bool:
    """Whether a fact gives the asked answer away: it is that answer, has its words, or its key words.

    Where the answer has no key words, its words alone count.
    """
    said = f"{fact.question or ''} {fact.answer}"
    if fact is asked or bool(text.contains([said], [asked.answer])[0]):
        return True
    if not any(name.startswith("perturbed_") for name in asked.answers):
        return False
    try:
        return key_words(asked) <= set(text.words(said))
    except DataError:
        return False


def _behind(facts: Sequence[Record], record: Record) -> Record:
    """The record with facts before its question."""
    told = [f"{fact.question} {fact.answer}" if fact.question else fact.answer for fact in facts]
    return replace(record, question=" ".join([*told, record.question or ""]))
