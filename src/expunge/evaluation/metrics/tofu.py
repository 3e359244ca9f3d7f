"""TOFU's metrics, and what should be read in their place: right answers beside wrong ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from expunge.errors import ConfigError, DataError
from expunge.evaluation import language, text, tofu
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.generation import Decoding
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score, Unit
from expunge.evaluation.statistics import Floats
from expunge.evaluation.subject import Subject
from expunge.evaluation.tofu import Ability, Definition, Ratio


def log_ratios(subject: Subject, evidence: Evidence, part: str, kind: Ratio) -> Floats:
    """The log truth ratio of each question, ``(N,)``."""
    data = language.text(evidence, part)
    return tofu.log_truth_ratio(*language.likelihoods(subject, part, data), kind)


def _conforming(words: Sequence[str], definition: Definition) -> str:
    return "-".join([*words, *["conformance"] * (definition == "conformance")])


@metrics.register("truth_ratio")
@dataclass(frozen=True, kw_only=True)
class TruthRatio(Metric):
    """How likely wrong answers are beside a paraphrase of the right one: TOFU's truth ratio.

    Of length-normalised probabilities ``p`` and the wrong answers ``w``, all that records bring under a name
    that begins with ``perturbed_``:

    - ``geometric`` (both code bases): ``TR = exp((1/W) Σ_w log p_w) / p``;
    - ``arithmetic`` (the paper): ``TR = (1/W) Σ_w p_w / p``;
    - ``extent`` (extent of knowledge): ``p / (p + exp((1/W) Σ_w log p_w))``, high where the truth is known.

    ``p`` is that of the answer ``paraphrased``, or, in parts that have none (TOFU's real authors and world
    facts), of the answer itself. Interval: over examples, or over data subjects.

    Args:
        part: ``forget``, ``retain``, ``test`` or a probe with wrong answers.
        ratio: which one. Values of different kinds do not compare.
        read: ``closeness``, ``mean min(TR, 1/TR)``, as TOFU has it on the forget set; ``truthfulness``,
            ``mean max(0, 1 − TR)``, on all other sets; ``log``, ``mean log TR`` in nats, which hides
            nothing. For ``extent`` there is only its mean.
        definition: ``conformance`` adds 1e-10 to denominators, so that a model for which all answers are
            unlikely scores 0.

    Ideal: the retrained model's value (0.67 closeness for TOFU and a Llama-2-7B), not 1.
    Cost: a forward pass for each answer, shared by all metrics of wrong answers.
    References: Maini et al., TOFU, COLM 2024, arXiv:2401.06121; code tofu and open-unlearning.
    """

    part: str = "forget"
    ratio: Literal["geometric", "arithmetic", "extent"] = "geometric"
    read: Literal["closeness", "truthfulness", "log"] = "closeness"
    definition: Definition = "corrected"

    def __post_init__(self) -> None:
        if self.ratio == "extent" and self.read != "closeness":
            raise ConfigError("the extent of knowledge is averaged as it is. Leave read out.", "read")
        if self.read == "log" and self.definition == "conformance":
            raise ConfigError(
                "no published code averages logarithms. Use definition=corrected.", "definition"
            )

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words = [self.ratio, *[self.read] * (self.ratio != "extent")]
        return "truth ratio", self.part, _conforming(words, self.definition)

    def counts(self) -> Unit:
        return "nats" if self.read == "log" else "fraction"

    def measure(self, evidence: Evidence) -> Score:
        data = language.text(evidence, self.part)
        right, wrong = language.likelihoods(evidence.subject, self.part, data)
        details = {
            "right": language.right_answer(data) or "the answer itself",
            "wrong": wrong.total.shape[1],
        }
        return language.averaged(self, evidence, self._values(right, wrong), details)

    def _values(self, right: tofu.Likelihood, wrong: tofu.Likelihood) -> Floats:
        if self.ratio == "extent":
            return tofu.extent_of_knowledge(right, wrong, self.definition)
        if self.read == "log":
            return tofu.log_truth_ratio(right, wrong, self.ratio)
        ratio = tofu.truth_ratio(right, wrong, self.ratio, self.definition)
        return (
            tofu.closeness(ratio, self.definition) if self.read == "closeness" else tofu.truthfulness(ratio)
        )


@metrics.register("forget_quality")
@dataclass(frozen=True, kw_only=True)
class ForgetQuality(Metric):
    """TOFU's forget quality: the p-value of a Kolmogorov–Smirnov test of truth ratios against retraining.

    The mean over the retrained models of the p-value of "the subject's truth ratios and theirs come from one
    distribution"; ``details`` has every distance and p-value. For comparison with published tables only: the
    test takes the answers of two models to the same questions for independent samples, p is first of all a
    function of the number of questions, and a high p is no proof of likeness. ``truth_ratio_shift`` says
    what this should have said. No interval: a p-value estimates nothing.

    Args:
        part: the forget set, or a probe with its wrong answers.
        ratio: ``geometric`` or ``arithmetic`` truth ratio.
        definition: ``conformance`` adds 1e-10 to the ratio's denominator, which sends a collapsed model's
            ratios to 0 and p to the smallest value there is.

    Ideal: that of the retrained models, each against the others: anything above about 0.7.
    Cost: a forward pass for each answer, of the subject and of the retrained models.
    Differs: one retrained model is usual; with several their p-values are averaged.
    References: Maini et al., TOFU, COLM 2024, arXiv:2401.06121.
    """

    part: str = "forget"
    ratio: Ratio = "geometric"
    definition: Definition = "corrected"
    unit = "index"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "forget quality", self.part, _conforming([self.ratio], self.definition)

    def measure(self, evidence: Evidence) -> Score:
        language.wrong_answers(language.text(evidence, self.part), self.part)
        others = evidence.references()
        mine = self._ratios(evidence, evidence.subject)
        found = [tofu.forget_quality(mine, self._ratios(evidence, other)) for other in others]
        name, part, variant = self.labels(evidence)
        first = found[0]
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(np.mean([test.p for test in found])),
            n=first.n,
            target="retrained",
            unit="index",
            details={
                "p": {other.name: test.p for other, test in zip(others, found, strict=True)},
                "distance": {other.name: test.statistic for other, test in zip(others, found, strict=True)},
                "critical": first.critical if math.isfinite(first.critical) else None,
                "note": f"For comparison with published tables. Of {first.n} questions p cannot fall below "
                f"10^{first.smallest:.0f}; values of other numbers of questions do not compare. Read "
                "truth_ratio_shift instead.",
            },
        )

    def _ratios(self, evidence: Evidence, subject: Subject) -> Floats:
        """The ratios, or their logarithms, which the test does not tell apart but which do not round to 0."""
        if self.definition == "corrected":
            return log_ratios(subject, evidence, self.part, self.ratio)
        data = language.text(evidence, self.part)
        right, wrong = language.likelihoods(subject, self.part, data)
        return tofu.truth_ratio(right, wrong, self.ratio, "conformance")


@metrics.register("truth_ratio_shift")
@dataclass(frozen=True, kw_only=True)
class TruthRatioShift(Metric):
    """How far truth ratios lie from those of retrained models, question by question.

    ``mean_i (log TR_i − mean_r log TR_ri)`` in nats: below 0 where the truth is still known better than after
    retraining, above 0 where it was made unlikely. The interval and the test are those of paired differences
    with data subjects as the unit; beside it stands the test of equivalence, of ``|mean| ≥ margin`` (TOST),
    and how much single questions moved, which a model that swaps its answers cannot hide.
    ``details["verdict"]`` is ``equivalent``, ``different`` or ``inconclusive``, about these retrained models;
    the table's own verdict also asks how much retrained models differ.

    Args:
        part: the forget set, or a probe with its wrong answers.
        ratio: ``geometric`` or ``arithmetic`` truth ratio.
        margin: differences below it are negligible, in nats.

    Ideal: 0. Two published retrainings differ by 0.004, the full and the retrained model by 0.5.
    Cost: a forward pass for each answer, of the subject and of the retrained models.
    Differs: TOFU compares the two distributions and forgets which answer is whose, see ``forget_quality``.
    References: Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987 (equivalence).
    """

    part: str = "forget"
    ratio: Ratio = "geometric"
    margin: float = tofu.MARGIN
    unit = "nats"

    def __post_init__(self) -> None:
        if not 0 < self.margin < math.inf:
            raise ConfigError(f"must be above 0, got {self.margin}.", "margin")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "truth ratio shift", self.part, self.ratio

    def measure(self, evidence: Evidence) -> Score:
        language.wrong_answers(language.text(evidence, self.part), self.part)
        others, clusters = evidence.references(), evidence.clusters(self.part)
        if len(evidence.parts[self.part] if clusters is None else clusters.unique()) < 2:
            raise DataError(
                f"the {self.part} data is about one subject, which leaves no spread to test by. Name a part "
                "about two or more."
            )
        mine = log_ratios(evidence.subject, evidence, self.part, self.ratio)
        theirs = np.mean([log_ratios(other, evidence, self.part, self.ratio) for other in others], axis=0)
        found = tofu.paired(mine, theirs, clusters, self.margin)
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=found.contrast.difference,
            interval=found.contrast.interval,
            n=len(mine),
            target="retrained",
            unit="nats",
            details=_details(found),
            per_example=torch.from_numpy(mine - theirs),
        )


def _details(found: tofu.Paired) -> dict[str, Any]:
    effect = found.contrast.effect
    return {
        "verdict": found.kind,
        "p": found.contrast.p,
        "p_equivalent": found.p_equivalent,
        "margin": found.margin,
        "effect": {found.contrast.effect_name: effect if math.isfinite(effect) else None},
        "wasserstein": found.wasserstein,
        "moved": found.moved,
        "note": f"{found.kind} at a margin of {found.margin:g} nats (equivalence p = "
        f"{found.p_equivalent:.2g}, difference p = {found.contrast.p:.2g}).",
    }


@metrics.register("model_utility")
@dataclass(frozen=True, kw_only=True)
class ModelUtility(Metric):
    """TOFU's model utility: what the model still can, as one harmonic mean of three numbers for each set.

    ``U = m / Σ_j 1/x_j`` over probability, ROUGE-L recall and truthfulness ``mean max(0, 1 − TR)`` of each
    set; ``details["parts"]`` has all of them and ``details["weakest"]`` the one that pulls ``U`` down most.
    0 as soon as one of them is 0. Interval: delta method over questions, or over data subjects.

    Args:
        retain: the part of which the probability of the answer counts; with TOFU's 200 authors
            ``retain_perturbed``, which brings wrong answers.
        facts: the parts of which the right answer's share among all answers counts; for invented people
            ``[world]``.
        ratio: of the truth ratio.
        decoding: how answers are written.
        definition: ``conformance`` adds 1e-10 to denominators.

    Ideal: the retrained model's value, about 0.6 and not 1. Differences below 0.03 are within the
        sampling noise of one model.
    Cost: a forward pass for each answer of every part, and writing an answer to every question.
    References: Maini et al., TOFU, COLM 2024, arXiv:2401.06121.
    """

    retain: str = "retain"
    facts: tuple[str, ...] = ("real_authors", "world_facts")
    ratio: Ratio = "geometric"
    decoding: Decoding = Decoding()
    definition: Definition = "corrected"

    def __post_init__(self) -> None:
        if len({self.retain, *self.facts}) <= len(self.facts):
            raise ConfigError("names a part twice. Name each part once.", "facts")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words = [] if (self.retain, self.facts) == _TOFU else [self.retain, *self.facts]
        words += [self.ratio, *language.decoded(self.decoding)]
        return "model utility", "", _conforming(words, self.definition)

    def measure(self, evidence: Evidence) -> Score:
        parts = (self.retain, *self.facts)
        for part in parts:
            language.questions(evidence, part)
            language.wrong_answers(language.text(evidence, part), part)
        found = tofu.model_utility({part: self._ability(evidence, part) for part in parts})
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=found.value,
            interval=found.interval,
            n=sum(len(evidence.parts[part]) for part in parts),
            target="retrained",
            unit="fraction",
            details={"parts": dict(found.parts), "weakest": found.weakest},
        )

    def _ability(self, evidence: Evidence, part: str) -> Ability:
        data, subject, clusters = language.text(evidence, part), evidence.subject, evidence.clusters(part)
        right, wrong = language.likelihoods(subject, part, data)
        if part == self.retain:
            probability = tofu.probability(language.likelihood(subject, part))
        else:
            probability = tofu.option_probability(right, wrong, self.definition)
        written = subject.answers(part, self.decoding)
        truth = [record.answer for record in language.records(data)]
        said = [answer for samples in written for answer in samples]
        repeated = [truth[i] for i, samples in enumerate(written) for _ in samples]
        return Ability(
            probability=probability,
            rouge=language.over_samples(written, text.rouge(said, repeated).recall),
            truth=tofu.truthfulness(tofu.truth_ratio(right, wrong, self.ratio, self.definition)),
            clusters=None if clusters is None else clusters.numpy(),
        )


_TOFU = ("retain", ("real_authors", "world_facts"))


@metrics.register("multiple_choice")
@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Metric):
    """Whether the model prefers the right answer to wrong ones, each answer weighed by itself.

    Of length-normalised probabilities: ``share``, the mean of ``p / (p + Σ_w p_w)``, or ``accuracy``, how
    often the right answer is the likeliest (equal ones share the point). The options are the right answer
    (``paraphrased`` where the part has it, so that all options are worded alike) and all answers that begin
    with ``perturbed_``. The prompt does not list them: no option has a place or a letter, so there is no
    order to permute and no letter to be biased to. Values of benchmarks that list them do not compare.
    Interval: over examples, or over data subjects.

    Args:
        part: ``forget``, ``retain``, ``test`` or a probe with wrong answers.
        read: ``share`` or ``accuracy``.
        definition: of the share; ``conformance`` adds 1e-10 to its denominator.

    Ideal: the retrained model's value. ``details["chance"]`` is ``1/(W + 1)``; a value well below it is a
        trace of unlearning, too.
    Cost: a forward pass for each answer, shared by all metrics of wrong answers.
    References: Maini et al., TOFU, COLM 2024, arXiv:2401.06121 (the share).
    """

    part: str = "forget"
    read: Literal["share", "accuracy"] = "share"
    definition: Definition = "corrected"

    def __post_init__(self) -> None:
        if self.read == "accuracy" and self.definition == "conformance":
            raise ConfigError("the accuracy has one definition. Use definition=corrected.", "definition")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "multiple choice", self.part, _conforming([self.read], self.definition)

    def measure(self, evidence: Evidence) -> Score:
        data = language.text(evidence, self.part)
        right, wrong = language.likelihoods(evidence.subject, self.part, data)
        if self.read == "share":
            values = tofu.option_probability(right, wrong, self.definition)
        else:
            options = np.concatenate([right.mean[:, None], wrong.mean], 1)
            best = options == options.max(1, keepdims=True)
            values = best[:, 0] / best.sum(1)
        return language.averaged(self, evidence, values, {"chance": 1 / (wrong.total.shape[1] + 1)})
