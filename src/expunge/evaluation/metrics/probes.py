"""Whether the frozen representation still tells the forgotten classes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from expunge import seeding
from expunge.errors import ConfigError, DataError
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score
from expunge.training import features

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """One choice of labelled examples and of forget examples to be asked, as rows.

    ``fit`` counts the forget examples first and the retain examples after them; ``held`` counts the
    forget examples alone.
    """

    fit: Integers
    held: Integers


@dataclass(frozen=True, kw_only=True)
class Probe(Metric):
    """What all probes have in common: labels for some examples, and others to recognise.

    The forget examples are dealt into ``folds``. For each fold a classifier is fitted on the frozen
    activations of the other folds and of the retain set, and asked for the classes of the fold. Where
    the data has subjects whole subjects are dealt, and retain examples of a subject in the fold are not
    used. The choices are the same for all models.
    """

    modules: tuple[str, ...] = ()
    limit: int = 2000

    def __post_init__(self) -> None:
        if self.limit < 4:
            raise ConfigError(f"must be at least 4, got {self.limit}.", "limit")

    @abstractmethod
    def draws(self, labels: Integers, subjects: Integers, forget: int) -> list[Draw]:
        """The choices; every forget example is held out equally often.

        Args:
            labels, subjects: of the forget examples and the retain examples after them, ``(N,)``.
            forget: the number of forget examples.
        """

    @abstractmethod
    def predict(self, known: Floats, labels: Integers, asked: Floats) -> Integers:
        """Classes of ``asked`` ``(M, C)`` by a classifier fitted on ``known`` ``(N, C)``."""

    def measure(self, evidence: Evidence) -> Score:
        labels, subjects, forget = self._examples(evidence)
        draws = self.draws(labels, subjects, forget)
        names = self.modules or features.depths(evidence.original.model)
        layers = [evidence.subject.layers(part, names, self.limit) for part in ("forget", "retain")]
        each = {
            layer: self._values(
                torch.cat([found[layer] for found in layers]).double().numpy(), labels, draws, forget
            )
            for layer in names
        }
        values = each[names[-1]]
        independent = len(np.unique(subjects[:forget]))
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(values.mean()),
            interval=statistics.rate(round(float(values.mean()) * independent), independent),
            n=forget,
            target="retrained",
            unit="fraction",
            details={"layers": {layer: float(found.mean()) for layer, found in each.items()}},
            per_example=torch.from_numpy(values) if forget == len(evidence.parts["forget"]) else None,
        )

    def _values(self, rows: Floats, labels: Integers, draws: list[Draw], forget: int) -> Floats:
        """How often each forget example is recognised when it is held out, ``(N_f,)``."""
        rows = (rows - rows.mean(0)) / (rows.std(0) + 1e-8)
        right, asked = np.zeros(forget), np.zeros(forget)
        for draw in draws:
            found = self.predict(rows[draw.fit], labels[draw.fit], rows[draw.held])
            right[draw.held] += found == labels[draw.held]
            asked[draw.held] += 1
        return right / asked

    def _examples(self, evidence: Evidence) -> tuple[Integers, Integers, int]:
        """Labels and subjects of the forget and then the retain examples, and how many are forget ones."""
        labels, subjects, forget = [], [], 0
        for part in ("forget", "retain"):
            data = evidence.parts[part]
            rows = features.sampled(len(data), self.limit)
            labels.append(evidence.task.groups(data)[rows].numpy())
            known = evidence.clusters(part)
            # without subjects every example is one of its own
            subjects.append(-1 - forget - rows.numpy() if known is None else known[rows].numpy())
            forget = forget or len(rows)
        return np.concatenate(labels), np.concatenate(subjects), forget


def deal(subjects: Integers, forget: int, folds: int, seed: int) -> list[tuple[Integers, Integers]]:
    """Rows that may be fitted on and rows held out, for each fold of the forget examples.

    Raises:
        DataError: there are fewer forget examples, or subjects of them, than folds.
    """
    who = np.unique(subjects[:forget])
    if len(who) < folds:
        raise DataError(
            f"a probe needs at least {folds} forget examples (or data subjects) to hold some out; there "
            f"{'is' if len(who) == 1 else 'are'} {len(who)}."
        )
    shuffled = np.random.default_rng(seed).permutation(who)
    dealt = []
    for fold in range(folds):
        inside = np.isin(subjects, shuffled[fold::folds])
        dealt.append((np.flatnonzero(~inside), np.flatnonzero(inside[:forget])))
    return dealt


@metrics.register("linear_probe")
@dataclass(frozen=True, kw_only=True)
class LinearProbe(Probe):
    """How well a linear classifier on the frozen representation recognises forget examples.

    Ridge regression onto class indicators, ``W = argmin ‖ZW − Y‖² + ‖W‖²`` with ``Z`` the standardised
    activations of a few labelled examples, ``ŷ = argmax zᵀW``. ``shots`` examples of each class are
    labelled, of forgotten classes from one half of the forget set; the other half is asked, then the
    halves change places, ``repeats`` times. The value is the fraction recognised from the penultimate
    representation, ``details["layers"]`` has every layer's. Interval: Clopper–Pearson over the forget
    examples (or their subjects), wider than needed since each is asked several times.

    With one label a class it asks what the representation makes easy, not what it contains: a model that
    has never seen a class keeps much of what tells it apart, and with many labels its probe is nearly
    as good as the original's. A model whose last layer alone was edited has the original's value.

    Ideal: the value of the retrained models. That of the never-trained control is what the architecture
        gives away.

    Args:
        shots: labelled examples of each class; 0 labels all of them that are not held out.
        repeats: number of choices of labelled examples, the same for all models.
        modules: names of the modules whose inputs are read; by default four, chosen by
            ``features.depths``.
        limit: at most so many forget and so many retain examples, a seeded choice.

    Cost: one forward pass over ``2 × limit`` examples, and ``2 × repeats`` small linear systems a layer.
    References: Alain and Bengio, arXiv:1610.01644; Are We Truly Forgetting?, arXiv:2503.06991.
    """

    shots: int = 1
    repeats: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots < 0:
            raise ConfigError(f"must not be negative, got {self.shots}.", "shots")
        if self.repeats < 1:
            raise ConfigError(f"must be at least 1, got {self.repeats}.", "repeats")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "linear probe", "forget", f"{self.shots}-shot" if self.shots else "all-labels"

    def draws(self, labels: Integers, subjects: Integers, forget: int) -> list[Draw]:
        found = []
        for repeat in range(self.repeats):
            seed = seeding.derive(0, "linear_probe", repeat)
            for fold, (known, held) in enumerate(deal(subjects, forget, 2, seed)):
                fit = np.random.default_rng([seed, fold]).permutation(known)
                if self.shots:
                    classes = np.unique(labels[fit])
                    fit = np.concatenate([fit[labels[fit] == label][: self.shots] for label in classes])
                found.append(Draw(fit, held))
        return found

    def predict(self, known: Floats, labels: Integers, asked: Floats) -> Integers:
        classes, index = np.unique(labels, return_inverse=True)
        targets = np.eye(len(classes))[index]
        middle, share = known.mean(0), targets.mean(0)
        z = known - middle
        if len(z) > z.shape[1]:
            weights = np.linalg.solve(z.T @ z + np.eye(z.shape[1]), z.T @ (targets - share))
        else:
            weights = z.T @ np.linalg.solve(z @ z.T + np.eye(len(z)), targets - share)
        return np.asarray(classes[((asked - middle) @ weights + share).argmax(1)])


@metrics.register("knn")
@dataclass(frozen=True, kw_only=True)
class KNN(Probe):
    """How many forget examples their nearest neighbours in the representation recognise.

    The majority class of the ``k`` nearest labelled examples by cosine distance between standardised
    activations. Four fifths of the forget examples and all retain examples are labelled, the last fifth
    is asked; every forget example is asked once. The value is that of the penultimate representation,
    ``details["layers"]`` has every layer's. Interval: Clopper–Pearson over the forget examples (or
    their subjects).

    Ideal: the value of the retrained models.

    Args:
        k: number of neighbours.
        modules, limit: as for the linear probe.

    Differs: the published protocol splits each set at random into 80 % and 20 % once, and classifies the
        forgotten classes among themselves; here five folds, among all classes, and by subject where
        there are subjects. Activations are standardised, which a cosine needs after ReLU.
    Cost: one forward pass over ``2 × limit`` examples, and all distances between them, a layer.
    References: Are We Truly Forgetting?, arXiv:2503.06991.
    """

    k: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ConfigError(f"must be at least 1, got {self.k}.", "k")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "nearest neighbours", "forget", f"{self.k}-cosine"

    def draws(self, labels: Integers, subjects: Integers, forget: int) -> list[Draw]:
        folds = min(5, len(np.unique(subjects[:forget])))
        dealt = deal(subjects, forget, max(folds, 2), seeding.derive(0, "knn"))
        return [Draw(known, held) for known, held in dealt]

    def predict(self, known: Floats, labels: Integers, asked: Floats) -> Integers:
        from sklearn.neighbors import KNeighborsClassifier

        if len(known) < self.k:
            raise DataError(f"{self.k} neighbours need as many labelled examples; there are {len(known)}.")
        machine = KNeighborsClassifier(self.k, metric="cosine").fit(known, labels)
        return np.asarray(machine.predict(asked))
