"""Membership in a language model's training data, told from the probabilities of a text's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.data.text import Record, TextData
from expunge.errors import ConfigError, DataError
from expunge.evaluation import comparisons, language, statistics, token_membership
from expunge.evaluation.attacks.separation import roc
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score
from expunge.evaluation.statistics import Floats
from expunge.evaluation.subject import Subject
from expunge.evaluation.token_membership import FEWEST, Bools, Definition

Groups = NDArray[np.int64] | None
Interval = tuple[float, float] | None
Alone = Literal["loss", "zlib", "min_k", "min_k_plus_plus"]
"""Scores that need one model only."""


@dataclass(frozen=True, kw_only=True)
class _Texts(Metric):
    """Members against non-members, each text with a score that higher makes a surer member."""

    part: str = "forget"
    against: str = "test"
    k: float = 0.2
    definition: Definition = "corrected"

    def __post_init__(self) -> None:
        if not 0 < self.k <= 1:
            raise ConfigError(f"is a share of a text's tokens, above 0 and at most 1, got {self.k}.", "k")
        if self.part == self.against:
            raise ConfigError(f"members and non-members are both '{self.part}'. Name two parts.", "against")

    def named(self, score: str, read: str) -> str:
        words = ["text", score.replace("_", "-")] + [f"{self.k:g}"] * score.startswith("min_k")
        words += [read] * bool(read) + [self.against] * (self.against != "test")
        return "-".join(words + ["conformance"] * (self.definition == "conformance"))

    def checked(self, evidence: Evidence, score: str) -> None:
        """Refuses before any model is asked."""
        for part in (self.part, self.against):
            (language.text if score == "zlib" else language.tokens)(evidence, part)

    def scores(self, evidence: Evidence, subject: Subject, score: Alone) -> tuple[Floats, Floats]:
        """Of members ``(N,)`` and of non-members ``(M,)``."""
        members, others = (self._scores(evidence, subject, part, score) for part in (self.part, self.against))
        return members, others

    def groups(self, evidence: Evidence) -> tuple[Groups, Groups]:
        """The data subject of each member and of each non-member, where there are some."""
        found = [evidence.clusters(part) for part in (self.part, self.against)]
        members, others = (None if value is None else value.numpy().astype(np.int64) for value in found)
        return members, others

    def counted(self, counted: Bools) -> Bools:
        """The places that count: all labels; open-unlearning leaves the last one out."""
        if self.definition == "corrected":
            return counted
        return np.asarray(counted & (counted.cumsum(1) < counted.sum(1, keepdims=True)))

    def note(self, evidence: Evidence) -> str:
        """What the texts alone give away; empty where nothing is seen."""
        sides = [evidence.parts[part] for part in (self.part, self.against)]
        known = [data for data in sides if isinstance(data, TextData)]
        if len(known) < 2:
            return "Whether members and non-members differ as texts is not known: the data holds tokens only."
        members, others = (tuple(_whole(data)) for data in known)
        subjects = tuple(None if ids is None else tuple(ids.tolist()) for ids in self.groups(evidence))
        return _shift(members, others, *subjects)

    def _scores(self, evidence: Evidence, subject: Subject, part: str, score: Alone) -> Floats:
        values, labels = language.token_values(subject, part)
        counted = self.counted(labels)
        logs = values["log_probs"]
        if score == "zlib":
            texts = language.scored(language.text(evidence, part))
            return token_membership.zlib(logs, counted, texts, self.definition)
        if score == "min_k":
            return token_membership.min_k(logs, counted, self.k)
        if score == "min_k_plus_plus":
            moments = values["mean"], values["deviation"]
            return token_membership.min_k_plus_plus(logs, counted, *moments, self.k)
        return token_membership.loss(logs, counted)


@metrics.register("text_membership")
@dataclass(frozen=True, kw_only=True)
class TextMembership(_Texts):
    """How well the probabilities of a text's tokens tell what was trained on from what never was.

    The value is the area under the ROC curve, or the true positive rate, of one score of each text:

    - ``loss``: the mean log-probability of its tokens;
    - ``zlib``: that over the bytes of the compressed text, so that easy texts are no surprise;
    - ``min_k``: the mean over the share ``k`` of tokens that are least likely;
    - ``min_k_plus_plus``: the same of ``(log p_t − μ_t)/σ_t``, a token among all that could stand there;
    - ``reference``: the mean log-probability less the retrained models', which no outside attacker has: an
      upper bound on attacks that compare with a model of one's own.

    Of an answer its own tokens count, of a document all but the first, the end of text among them. Where the
    data has subjects, the AUC's variance is that of placement values summed within subjects (Obuchowski) and
    the rate's interval is over subjects. ``details["note"]`` warns where members and non-members can be told
    apart without any model: then the value is no evidence of membership, and only its distance from the
    retrained models' may mean something.

    Args:
        part: the members.
        against: the non-members, from the same distribution: ``test``, ``holdout``, or a probe.
        score: which score.
        k: of ``min_k`` and ``min_k_plus_plus``; the papers take 0.2, MUSE and open-unlearning 0.4.
        read: ``auc``, or ``tpr``: the true positive rate at the false positive rate ``fpr``.
        fpr: for ``tpr``.
        definition: ``conformance`` leaves the last label out and keeps the 8 bytes that zlib adds to every
            text, as open-unlearning does.

    Ideal: the retrained model's value; an AUC of ½, and a true positive rate equal to the false one, only
        where both sides come from one distribution.
    Cost: nothing beyond the forward passes; ``zlib`` compresses each text, and the look for a shift takes a
        second for a thousand texts, once for all models.
    References: Yeom et al., CSF 2018, arXiv:1709.01604 (loss); Carlini et al., USENIX Security 2021,
        arXiv:2012.07805 (zlib, reference); Shi et al., ICLR 2024, arXiv:2310.16789 (Min-K); Zhang et al.,
        ICLR 2025, arXiv:2404.02936 (Min-K++); Obuchowski, Biometrics 53, 1997 (clusters).
    """

    score: Literal["loss", "zlib", "min_k", "min_k_plus_plus", "reference"] = "loss"
    read: Literal["auc", "tpr"] = "auc"
    fpr: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fpr < 1:
            raise ConfigError(f"is a rate between 0 and 1, got {self.fpr}.", "fpr")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        read = f"tpr@{self.fpr:g}" if self.read == "tpr" else "auc"
        return "membership", self.part, self.named(self.score, read)

    def measure(self, evidence: Evidence) -> Score:
        self.checked(evidence, self.score)
        if self.score == "reference":
            members, others = self._beside_references(evidence)
        else:
            members, others = self.scores(evidence, evidence.subject, self.score)
        groups, chance = self.groups(evidence), None
        if self.read == "auc":
            value, interval = auc(members, others, groups)
        else:
            value, interval = _tpr(members, others, self.fpr, groups[0])
            chance = (int(self.fpr * len(others) + 1e-9) + 1) / (len(others) + 1)
        details: dict[str, Any] = {"roc": roc(torch.from_numpy(members), torch.from_numpy(others))}
        note = self.note(evidence)
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=value,
            interval=interval,
            n=len(members),
            target="retrained",
            unit="fraction",
            perfect=chance,
            details=details | ({"note": note} if note else {}),
        )

    def _beside_references(self, evidence: Evidence) -> tuple[Floats, Floats]:
        references = evidence.references()
        mine = self.scores(evidence, evidence.subject, "loss")
        theirs = [self.scores(evidence, other, "loss") for other in references]
        members, others = (mine[side] - np.mean([one[side] for one in theirs], axis=0) for side in (0, 1))
        return members, others


@metrics.register("privleak")
@dataclass(frozen=True, kw_only=True)
class PrivLeak(_Texts):
    """MUSE's privacy leak: by how much an attack's AUC differs from that on retrained models.

    ``(A − A_r)/A_r`` with ``A = P(a non-member scores higher than a member)`` of the subject and ``A_r`` its
    mean over the retrained models: below 0 where members are still known, above 0 where they were made
    unlikelier than texts that no model saw. At least −1, at most ``1/A_r − 1``: the sides do not compare, and
    a collapsed model can have 0. Interval: delta method over texts, or over data subjects, on which all
    models are compared, and ``s²/K`` for the ``K`` retrained models' own spread; with one of them over texts
    alone.
    ``details["noise"]`` is the standard deviation of the retrained models' own values, each against the
    others: with 100 texts on either side it is easily above the ±0.05 that are called good.

    Args:
        part: the members; for MUSE the probe ``members``.
        against: the non-members: ``test``, ``holdout``, or a probe.
        score: which score, as ``text_membership`` has it.
        k: of ``min_k`` and ``min_k_plus_plus``.
        definition: ``conformance`` leaves the last label out and keeps zlib's 8 bytes (open-unlearning).

    Ideal: 0, with the spread of the retrained models.
    Cost: nothing beyond the forward passes of the subject and of the retrained models.
    Differs: published tables are × 100. MUSE divides by AUCs that are written into its code (0.4772 and
        0.5393), which hold for one model and tokenizer; open-unlearning falls back on ½.
    References: Shi et al., MUSE, 2024, arXiv:2407.06460.
    """

    score: Alone = "min_k"
    k: float = 0.4
    unit = "index"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "PrivLeak", self.part, self.named(self.score, "")

    def measure(self, evidence: Evidence) -> Score:
        self.checked(evidence, self.score)
        references, groups = evidence.references(), self.groups(evidence)
        mine = _above(*self.scores(evidence, evidence.subject, self.score))
        theirs = [_above(*self.scores(evidence, other, self.score)) for other in references]
        areas = np.array([float(side[0].mean()) for side in theirs])
        area, retrained = float(mine[0].mean()), float(areas.mean())
        if retrained == 0:
            raise DataError(
                "every member scores higher than every non-member in the retrained models too, so there is "
                "nothing to divide by. Draw members and non-members from one set at random."
            )
        influence = [
            own / retrained - area / retrained**2 * np.mean([other[side] for other in theirs], axis=0)
            for side, own in enumerate(mine)
        ]
        errors = [_error(values, group) for values, group in zip(influence, groups, strict=True)]
        if len(areas) > 1:
            spread = (area / retrained**2) ** 2 * float(areas.var(ddof=1)) / len(areas)
            errors.append((spread, len(areas) - 1.0))
        value = (area - retrained) / retrained
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=value,
            interval=_around(value, errors),
            n=len(mine[0]),
            target="retrained",
            unit="index",
            details=self._details(evidence, area, areas),
        )

    def _details(self, evidence: Evidence, area: float, areas: Floats) -> dict[str, Any]:
        noise = _noise(areas)
        said = (
            "The noise of retraining is not known from one retrained model."
            if noise is None
            else f"Honest retraining alone moves it by {noise:.2g} (one standard deviation)."
        )
        return {
            "auc": 1 - area,
            "retrained_auc": [float(1 - other) for other in areas],
            "noise": noise,
            "note": f"{said} {self.note(evidence)}".strip(),
        }


def _noise(areas: Floats) -> float | None:
    """Standard deviation of each model's value against the mean of the others; None for one model."""
    if len(areas) < 2:
        return None
    others = (areas.sum() - areas) / (len(areas) - 1)
    return float(np.std(areas / others - 1, ddof=1)) if bool((others > 0).all()) else None


def auc(members: Floats, others: Floats, groups: tuple[Groups, Groups]) -> tuple[float, Interval]:
    """Area under the ROC curve and its 95 % interval on the logit scale, with whole subjects as the unit.

    The variance is that of the placement values of either side, summed within subjects; without subjects it
    is ``statistics.auc``. Where they do not vary (perfect separation, equal scores) the interval is that of
    the subjects' mean scores.

    References: Obuchowski, Biometrics 53, 1997.
    """
    from scipy.special import stdtrit

    if groups[0] is None and groups[1] is None:
        return statistics.auc(members, others)
    inside = _above(members, others)
    value = 1 - float(inside[0].mean())
    errors = [_error(values, group) for values, group in zip(inside, groups, strict=True)]
    error = float(np.sqrt(sum(variance for variance, _ in errors)))
    if not np.isfinite(error):
        return value, None
    if not 0 < value < 1 or error == 0:
        found, interval = statistics.auc(_means(members, groups[0]), _means(others, groups[1]))
        return value, interval if found == value else None
    quantile = float(stdtrit(comparisons.pooled_df(*errors), (1 + statistics.LEVEL) / 2))
    centre, half = np.log(value / (1 - value)), quantile * error / (value * (1 - value))
    low, high = 1 / (1 + np.exp(-(centre + np.array([-half, half]))))
    return value, (float(low), float(high))


def _above(members: Floats, others: Floats) -> tuple[Floats, Floats]:
    """How often a non-member scores higher, ties by half, for each member ``(N,)`` and other ``(M,)``."""

    def share(values: Floats, among: Floats) -> Floats:
        """The share of ``among`` below each value."""
        ordered = np.sort(among)
        below, equal = np.searchsorted(ordered, values), np.searchsorted(ordered, values, side="right")
        return np.asarray((below + equal) / (2 * len(among)), np.float64)

    return 1 - share(members, others), share(others, members)


def _error(values: Floats, group: Groups) -> tuple[float, float]:
    """The squared standard error of a mean and its degrees of freedom."""
    df = len(values) - 1.0 if group is None else statistics.degrees_of_freedom(group)
    return statistics.standard_error(values, group) ** 2, df


def _means(values: Floats, group: Groups) -> Floats:
    if group is None:
        return values
    place = np.unique(group, return_inverse=True)[1]
    return np.asarray(np.bincount(place, weights=values) / np.bincount(place), np.float64)


def _around(value: float, errors: Sequence[tuple[float, float]]) -> Interval:
    from scipy.special import stdtrit

    error = float(np.sqrt(sum(variance for variance, _ in errors)))
    if not np.isfinite(error):
        return None
    half = float(stdtrit(comparisons.pooled_df(*errors), (1 + statistics.LEVEL) / 2)) * error
    return value - half, value + half


def _tpr(members: Floats, others: Floats, fpr: float, group: Groups) -> tuple[float, Interval]:
    value, interval = statistics.tpr_at(members, others, fpr)
    if group is None:
        return value, interval
    threshold = np.sort(others)[-int(fpr * len(others) + 1e-9) - 1]
    return value, statistics.interval((members > threshold).astype(np.float64), group)


def _whole(data: TextData) -> list[str]:
    """Question and answer of each example, or its piece of a document."""
    return [
        _asked(record, spoken)
        for record, spoken in zip(language.records(data), language.scored(data), strict=True)
    ]


def _asked(record: Record, spoken: str) -> str:
    return spoken if record.question is None else f"{record.question} {spoken}"


@lru_cache(maxsize=8)
def _shift(
    members: tuple[str, ...],
    others: tuple[str, ...],
    subjects: tuple[int, ...] | None,
    other_subjects: tuple[int, ...] | None,
) -> str:
    clusters = None if subjects is None or other_subjects is None else (subjects, other_subjects)
    try:
        return token_membership.shift(members, others, clusters) or ""
    except DataError:
        return (
            f"Whether members and non-members differ as texts is not known: that takes {FEWEST} texts or "
            "subjects of either side."
        )
