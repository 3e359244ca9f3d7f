"""FIUBench's numbers that no other metric has: key facts, and what is left of a profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.errors import DataError, Unsupported
from expunge.evaluation import judges, language, statistics, text, tofu
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.generation import Decoding
from expunge.evaluation.judges import Asked, Definition
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.metrics.leakage import key_words
from expunge.evaluation.score import Score
from expunge.evaluation.statistics import Floats


@metrics.register("key_facts")
@dataclass(frozen=True, kw_only=True)
class KeyFacts(Metric):
    """How many of the words that make an answer the true one the model says (FIUBench's exact match).

    ``mean_i |{w ∈ K_i : w is said}| / |K_i|`` with the key words ``K_i`` of ``leakage``: those of the answer
    that are neither in the question nor in a wrong answer and, where there is one, in the paraphrase too.
    With ``ask="paraphrased_question"`` it is the adversarial score (APE): the same fact asked in words that
    nothing was unlearnt with. With several samples the mean over them. Interval: over questions, or over data
    subjects.

    The privacy attacks of the benchmark are ``text_membership`` (``min_k``, ``min_k_plus_plus``), its forget
    quality is ``forget_quality``, its truth ratio ``truth_ratio``.

    Args:
        part: ``forget``, ``retain``, ``test`` or a probe.
        ask: other questions of the records, or a probe about the same subjects.
        definition: ``conformance`` finds a key word inside other words, "art" in "party".
        decoding: how answers are written.

    Ideal: the retrained model's value: who never saw the profile guesses some of it.
    Cost: writing the answers, once for all metrics that decode alike; for other questions anew.
    Differs: key words are found here, the authors had them written by GPT-4o. The authors ask three
        paraphrases of each question.
    References: Ma et al., Benchmarking Vision Language Model Unlearning via Fictitious Facial Identity
        Dataset, 2024, arXiv:2411.03554; code FIUBench.
    """

    part: str = "forget"
    ask: str = ""
    definition: Definition = "corrected"
    decoding: Decoding = Decoding()

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        probe = self.ask in evidence.parts
        words = [self.ask.replace("_", "-")] * (bool(self.ask) and not probe)
        words += language.decoded(self.decoding)
        words += ["substrings-conformance"] * (self.definition == "conformance")
        return "key facts", self.ask if probe else self.part, "-".join(words)

    def measure(self, evidence: Evidence) -> Score:
        asked = judges.asked(evidence, self.part, self.ask, self.decoding)
        values = said(asked, self.definition)
        name, part, variant = self.labels(evidence)
        if len(values) == len(evidence.parts[part]):
            return language.averaged(self, evidence, values)
        groups = None if asked.subjects is None else asked.subjects.numpy()
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(values.mean()),
            interval=statistics.interval(values, groups),
            n=len(values),
            target=self.target,
            unit="fraction",
        )


def said(asked: Asked, definition: Definition = "corrected") -> Floats:
    """The share of each answer's key words that was said, ``(N,)``, over the samples.

    Raises:
        DataError: an answer without key words.
    """
    found = []
    for number, (record, texts) in enumerate(zip(asked.records, asked.written, strict=True)):
        keys = key_words(record, number)
        found.append(np.mean([_share(keys, one, definition) for one in texts]))
    return np.asarray(found, np.float64)


def _share(keys: set[str], answer: str, definition: Definition) -> float:
    if definition == "conformance":
        return sum(key in answer.lower() for key in keys) / len(keys)
    return len(keys & set(text.words(answer))) / len(keys)


@metrics.register("profile_utility")
@dataclass(frozen=True, kw_only=True)
class ProfileUtility(Metric):
    """What the model still knows of the people to be kept, as one harmonic mean (FIUBench's utility).

    ``U = m / Σ_j 1/x_j`` of the means ``x`` over the questions of a part of: the right answer's share of the
    probability of all answers, ROUGE-L recall, truthfulness ``max(0, 1 − TR)``, and the share of key facts.
    ``details["parts"]`` has all of them and ``details["weakest"]`` the one that pulls ``U`` down most. 0 as
    soon as one is 0. Interval: delta method over questions, or over data subjects.

    Args:
        part: ``retain``, ``test`` or a probe.
        decoding: how answers are written.
        definition: ``conformance`` leaves out the numbers that the data has nothing for (a part without
            wrong answers has only its ROUGE), without a word in the published table; those means do not
            compare. ``details["dropped"]`` names them here.

    Ideal: the retrained model's value.
    Cost: a forward pass for each answer, and writing an answer to every question.
    Differs: the authors' fifth number is a grade by GPT-4o; it is left out.
    References: Ma et al., 2024, arXiv:2411.03554; code FIUBench.
    """

    part: str = "retain"
    decoding: Decoding = Decoding()
    definition: Definition = "corrected"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words = language.decoded(self.decoding)
        words += ["partial-conformance"] * (self.definition == "conformance")
        return "profile utility", self.part, "-".join(words)

    def measure(self, evidence: Evidence) -> Score:
        measures, dropped = self._measures(evidence)
        parts = {name: float(values.mean()) for name, values in measures.items()}
        weakest = min(parts, key=lambda name: parts[name])
        name, part, variant = self.labels(evidence)
        value, interval = 0.0, None
        if parts[weakest] > 0:
            value = len(parts) / sum(1 / mean for mean in parts.values())
            slopes = {name: value**2 / (len(parts) * mean**2) for name, mean in parts.items()}
            moved = value + np.sum([slopes[n] * (v - v.mean()) for n, v in measures.items()], axis=0)
            interval = statistics.interval(moved, evidence.clusters(self.part))
        details: dict[str, Any] = {"parts": parts, "weakest": weakest}
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=value,
            interval=interval,
            n=len(evidence.parts[self.part]),
            target=self.target,
            unit="fraction",
            details=details | ({"dropped": dropped} if dropped else {}),
        )

    def _measures(self, evidence: Evidence) -> tuple[dict[str, Floats], list[str]]:
        data, subject = language.text(evidence, self.part), evidence.subject
        asked = judges.asked(evidence, self.part, "", self.decoding)
        truth = [record.answer for record in asked.records for _ in range(self.decoding.samples)]
        found = {"rouge": language.over_samples(asked.written, text.rouge(asked.texts, truth).recall)}
        try:
            own = language.likelihood(subject, self.part)
            right, wrong = language.likelihoods(subject, self.part, data)
            found["probability"] = tofu.option_probability(own, wrong)
            found["truth"] = tofu.truthfulness(tofu.truth_ratio(right, wrong))
            found["key_facts"] = said(asked)
        except (Unsupported, DataError):
            if self.definition == "corrected":
                raise
        dropped = [name for name in ("probability", "truth", "key_facts") if name not in found]
        return found, dropped
