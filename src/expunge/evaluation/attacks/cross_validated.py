"""SCRUB's attack: can a classifier tell forget examples from unseen ones by their loss?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge import seeding
from expunge.errors import ConfigError, DataError
from expunge.evaluation import statistics
from expunge.evaluation.attacks import signals
from expunge.evaluation.attacks.signals import Definition
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score

CLIP = 100.0
"""Losses are clipped to this many nats on either side, as published."""


@metrics.register("cross_validated")
@dataclass(frozen=True, kw_only=True)
class CrossValidated(Metric):
    """The cross-validated accuracy of a logistic regression that tells forget from test losses.

    ``P(forget | ℓ) = σ(w ℓ + b)`` is fitted on the losses of the forget set and of an equally large sample
    of test examples of the same classes; every example is judged by the fit that did not see it. The
    value is the fraction of right answers, the mean over the repetitions. Interval: Clopper–Pearson on
    the examples of one repetition; the folds share their fits, so at chance it covers 92 to 93 %.

    Args:
        folds: parts of the cross-validation.
        repeats: repetitions, each with another test sample and other folds; the interclass-confusion test
            takes 20.
        match_classes: without it the test sample is drawn from all classes.
        definition: ``corrected`` draws of each class as many test as forget examples; where a class has
            fewer test examples, as many of both as there are. ``conformance`` draws from all test
            examples of the classes that occur, in their own proportions, and judges ``folds`` random
            tenths instead of folds.

    Ideal: ½ where forget and test examples are exchangeable for the model: of the same classes in the same
        proportions, and drawn alike. Otherwise the retrained model's value.
    Cost: ``folds`` × ``repeats`` logistic regressions on one number; 0.1 seconds for 10,000 examples.
    Differs: the published code matches the set of classes but not their proportions, so a perfect model
        is not at ½ where forget and test are mixed differently; and its five splits are random tenths
        that may overlap, so some examples are judged several times and most never.
    References: Kurmanji et al., Towards Unbounded Machine Unlearning (SCRUB), NeurIPS 2023,
        arXiv:2302.09880; Goel et al., arXiv:2201.06640 (interclass confusion).
    """

    folds: int = 5
    repeats: int = 1
    match_classes: bool = True
    definition: Definition = "corrected"

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ConfigError(f"must be at least 2, got {self.folds}.", "folds")
        if self.repeats < 1:
            raise ConfigError(f"must be at least 1, got {self.repeats}.", "repeats")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words = ["cross-validated-loss"]
        words += [f"{self.folds}-folds"] * (self.folds != 5)
        words += [f"{self.repeats}-times"] * (self.repeats != 1)
        words += ["unmatched"] * (not self.match_classes)
        words += ["conformance"] * (self.definition == "conformance")
        return "membership", "forget", "-".join(words)

    def measure(self, evidence: Evidence) -> Score:
        forget, test = (
            evidence.subject.read(part).loss.double().clamp(-CLIP, CLIP).numpy()
            for part in ("forget", "test")
        )
        groups = self._groups(evidence, len(forget), len(test))
        seeds = [seeding.derive(evidence.session.seed, "cross_validated", i) for i in range(self.repeats)]
        rates, judged = [], 0
        for seed in seeds:
            mine, others = self._sample(*groups, np.random.default_rng(seed))
            right = self._judge(forget[mine], test[others], seed)
            rates.append(float(right.mean()))
            judged = len(right)
        value = float(np.mean(rates))
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=value,
            interval=statistics.rate(round(value * judged), judged),
            n=judged,
            target="retrained",
            unit="fraction",
        )

    def _groups(self, evidence: Evidence, n: int, m: int) -> tuple[Tensor, Tensor]:
        """The class of each forget and of each test example; all the same without matching."""
        if not self.match_classes:
            return torch.zeros(n), torch.zeros(m)
        mine, others = (
            signals.classes(evidence, part, "Set match_classes to false.") for part in ("forget", "test")
        )
        missing = sorted(set(mine.tolist()) - set(others.tolist()))
        if missing:
            raise DataError(
                f"there is no test example of class {missing[0]}, which the forget set holds, so losses "
                "cannot be compared class by class. Give test examples of it, or set match_classes to false."
            )
        if self.definition == "conformance":  # the classes that occur, whatever their proportions
            return torch.zeros(n), torch.isin(others, mine).logical_not().float()
        return mine, others

    def _sample(
        self, mine: Tensor, others: Tensor, draws: np.random.Generator
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows of equally many forget and test examples of each group of the forget set.

        Raises:
            DataError: fewer than there are folds.
        """
        forget, test = [], []
        for label in torch.unique(mine):
            rows = [np.flatnonzero((groups == label).numpy()) for groups in (mine, others)]
            size = min(len(found) for found in rows)
            forget.append(draws.choice(rows[0], size, replace=False))
            test.append(draws.choice(rows[1], size, replace=False))
        found = np.concatenate(forget), np.concatenate(test)
        least = self.folds if self.definition == "corrected" else 10
        if len(found[0]) < least:
            raise DataError(
                f"{least} parts need at least {least} forget examples and as many test examples of their "
                f"classes; there are {len(found[0])}. Forget more, or cross-validate with fewer folds."
            )
        return found

    def _judge(self, forget: statistics.Floats, test: statistics.Floats, seed: int) -> NDArray[np.bool_]:
        """Whether each judged example was put on the right side. ``(2N,)``, other lengths in conformance."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

        losses = np.concatenate([test, forget])[:, None]
        sides = np.repeat([0, 1], [len(test), len(forget)])
        if np.ptp(losses) == 0:
            raise DataError("all forget and test examples have the same loss, so nothing can be told apart.")
        state = seed % 2**32
        if self.definition == "conformance":
            splits = StratifiedShuffleSplit(n_splits=self.folds, random_state=state)
        else:
            splits = StratifiedKFold(n_splits=self.folds, shuffle=True, random_state=state)
        right = []
        for fitted, judged in splits.split(losses, sides):
            model = LogisticRegression(random_state=0).fit(losses[fitted], sides[fitted])
            right.append(model.predict(losses[judged]) == sides[judged])
        return np.concatenate(right)
