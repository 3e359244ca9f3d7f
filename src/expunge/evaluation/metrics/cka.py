"""How alike two models' representations are, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from expunge.errors import ConfigError, DataError
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score
from expunge.evaluation.subject import Subject
from expunge.training import features

Floats = NDArray[np.float64]

GROUPS = 10
"""Groups of examples that the jackknife leaves out in turn."""


@metrics.register("cka")
@dataclass(frozen=True, kw_only=True)
class CKA(Metric):
    """Similarity of the model's hidden representation to the retrained models', or to the original's.

    ``CKA(X, Y) = HSIC(XXᵀ, YYᵀ) / √(HSIC(XXᵀ, XXᵀ) HSIC(YYᵀ, YYᵀ))`` of the activations ``X`` ``(n, C)``
    of the model and ``Y`` of the other one on the same examples, with the unbiased HSIC: for kernels
    ``K``, ``L`` with their diagonals set to 0, ``[tr KL + 1ᵀK1 · 1ᵀL1 / ((n−1)(n−2)) − 2/(n−2) · 1ᵀKL1] /
    (n(n−3))``. It is 1 for equal representations, up to rotation and scale, and about 0 for
    unrelated ones; averaged over the models compared with. The value is that of the deepest layer, by
    default the penultimate representation; ``details["layers"]`` has every layer's. Feature maps and
    sequences are averaged over pixels or positions first. Interval: jackknife over ten groups of
    examples, of whole subjects where there are subjects.

    Against ``original`` it says how far the representation has moved at all: a model that only edits its
    last layer has exactly 1 in every layer, where retraining has less. Against ``retrained`` such a
    model often cannot be told from a retrained one, since two retrained models differ as much.

    Ideal: the value of the retrained models, each against the others (or against the original).

    Args:
        part: the examples.
        against: which models it is compared with.
        modules: names of the modules whose inputs are compared, shallow to deep; by default four,
            chosen by ``features.depths``.
        limit: at most so many examples, a seeded choice.
        definition: ``conformance`` is the biased HSIC ``tr(HKHL)``, ``H = I − 11ᵀ/n``, of the field's code.

    Differs: the field's code uses the biased estimator, which is far above 0 for unrelated
        representations with more units than examples, and averages it over mini-batches.
    Cost: one forward pass over ``limit`` examples for each model, and ``n C²`` operations a layer.
    References: Kornblith et al., ICML 2019, arXiv:1905.00414; Song et al., JMLR 13, 2012 (unbiased HSIC);
        Are We Truly Forgetting?, arXiv:2503.06991.
    """

    part: Literal["forget", "retain", "test"] = "forget"
    against: Literal["retrained", "original"] = "retrained"
    modules: tuple[str, ...] = ()
    limit: int = 1000
    definition: Literal["corrected", "conformance"] = "corrected"

    def __post_init__(self) -> None:
        if self.limit < 4:
            raise ConfigError(f"must be at least 4, got {self.limit}.", "limit")

    unit = "index"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        biased = "-conformance" if self.definition == "conformance" else ""
        return "CKA", self.part, f"linear-{self.against}{biased}"

    def measure(self, evidence: Evidence) -> Score:
        others = (evidence.original,) if self.against == "original" else evidence.references()
        names = self.modules or features.depths(evidence.original.model)
        mine = self._layers(evidence.subject, names)
        n = len(mine[names[-1]])
        if n < 4:
            raise DataError(f"the unbiased CKA needs at least 4 {self.part} examples; there are {n}.")
        theirs = [self._layers(other, names) for other in others]
        layers = {
            layer: float(np.mean([self._value(mine[layer], other[layer]) for other in theirs]))
            for layer in names
        }
        last = names[-1]
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=layers[last],
            interval=self._interval(evidence, mine[last], [other[last] for other in theirs], layers[last]),
            n=n,
            target="retrained",
            unit="index",
            details={"layers": layers},
        )

    def _layers(self, subject: Subject, names: tuple[str, ...]) -> dict[str, Floats]:
        found = subject.layers(self.part, names, self.limit)
        return {name: values.double().numpy() for name, values in found.items()}

    def _value(self, x: Floats, y: Floats) -> float:
        return cka(x, y, unbiased=self.definition == "corrected")

    def _interval(
        self, evidence: Evidence, mine: Floats, theirs: list[Floats], value: float
    ) -> tuple[float, float] | None:
        """Jackknife: the values without each group of examples, spread to the whole by ``G − 1``."""
        clusters = evidence.clusters(self.part)
        n = len(mine)
        if clusters is None:
            groups = np.random.default_rng(0).permutation(n) % GROUPS
        else:
            chosen = clusters[features.sampled(len(clusters), self.limit)].numpy()
            groups = np.unique(chosen, return_inverse=True)[1] % GROUPS
        present = np.unique(groups)
        if len(present) < 2 or n - np.bincount(groups).max() < 4:
            return None
        without = [
            np.mean([self._value(mine[groups != g], other[groups != g]) for other in theirs]) for g in present
        ]
        pseudo = len(present) * value - (len(present) - 1) * np.array(without)
        low, high = statistics.mean_of_few(pseudo + value - pseudo.mean()) or (value, value)
        return low, min(high, 1.0)


def cka(x: Floats, y: Floats, unbiased: bool = True) -> float:
    """Linear CKA of two representations ``(n, C)`` and ``(n, D)`` of the same ``n`` examples.

    Raises:
        DataError: a representation is the same for all examples, or (unbiased) all are equally far
            from each other.
    """
    x, y = (_scaled(values) for values in (x, y))
    if not (x.any() and y.any()):
        raise DataError("a layer's activations are the same for all examples, so CKA is not defined.")
    own = [hsic(values, values, unbiased) for values in (x, y)]
    whole = [hsic(values, values, unbiased=False) / len(x) ** 2 for values in (x, y)]
    if not all(value > 1e-9 * scale for value, scale in zip(own, whole, strict=True)):
        raise DataError(
            f"in a layer all {len(x)} examples are equally far from each other, so the unbiased CKA is not "
            "defined. Give more examples."
        )
    return float(hsic(x, y, unbiased) / np.sqrt(own[0] * own[1]))


def hsic(x: Floats, y: Floats, unbiased: bool = True) -> float:
    """Hilbert–Schmidt independence criterion of linear kernels, of centred ``x`` ``(n, C)`` and ``y``.

    From the features where they have fewer columns than rows, else from the ``n × n`` kernels.
    """
    n = len(x)
    if max(x.shape[1], y.shape[1]) < n:
        trace = float(np.square(x.T @ y).sum())
    else:
        trace = float(((x @ x.T) * (y @ y.T)).sum())
    if not unbiased:
        return trace
    k, m = (np.square(values).sum(1) for values in (x, y))  # the diagonals; a centred kernel's rows sum to 0
    trace -= float(k @ m)
    ends = float(k.sum() * m.sum()) / ((n - 1) * (n - 2))
    return (trace + ends - 2 / (n - 2) * float(k @ m)) / (n * (n - 3))


def _scaled(values: Floats) -> Floats:
    """Centred and of mean square 1, which changes no CKA and keeps the products in range."""
    centred = values - values.mean(0)
    scale = np.sqrt(np.square(centred).mean())
    magnitude = np.abs(values).max(initial=0.0)
    return np.asarray(centred / scale if scale > 1e-9 * magnitude else np.zeros_like(centred))
