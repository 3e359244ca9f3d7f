"""Unlearnable examples: training inputs changed so that a model learns the change instead of the content.

They carry their true labels, and a model trained on them alone fails on clean data. As a set to forget they
are a stressor: the model owes them a shortcut, and retraining without them is clearly another model.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.data.poison import Examples, Manipulation, _check_count, _drawn, manipulations
from expunge.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Protection(Manipulation):
    """A change of inputs that leaves the labels.

    Args:
        classes: only examples of these classes are changed; by default of all.
        count: changed examples, drawn at random; by default all of them.
    """

    classes: tuple[int, ...] = ()
    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None:
            _check_count(self.count)
        if len(set(self.classes)) < len(self.classes):
            raise ConfigError(f"holds a class twice: {list(self.classes)}.", "classes")

    def apply(self, clean: Examples, draw: torch.Generator) -> tuple[Examples, Tensor]:
        absent = sorted(set(self.classes) - set(clean.targets.tolist()))
        if absent:
            raise DataError(f"there is no example of class {absent[0]}: labels are 0..{clean.classes - 1}.")
        rows = self.affected(clean.targets).nonzero()[:, 0]
        if self.count is not None:
            whose = f"of the classes {list(self.classes)}" if self.classes else "at all"
            rows = _drawn(rows, self.count, whose, draw).sort().values
        inputs = clean.inputs.clone()
        inputs[rows] = _like(self.change(_floats(clean.inputs), clean, rows, draw), inputs)
        return Examples(inputs, clean.targets.clone(), clean.classes), rows

    def affected(self, targets: Tensor) -> Tensor:
        """The test examples of the classes whose training examples are changed."""
        return (
            torch.isin(targets, torch.tensor(self.classes)) if self.classes else torch.ones_like(targets) > 0
        )

    @abstractmethod
    def change(self, inputs: Tensor, clean: Examples, rows: Tensor, draw: torch.Generator) -> Tensor:
        """The changed inputs of these rows, ``(n, …)``.

        Args:
            inputs: of all examples, float32; those of byte images are in [0, 1].
        """


@manipulations.register("cuda")
@dataclass(frozen=True, kw_only=True)
class CUDA(Protection):
    """Every class is blurred by a filter of its own, which is easier to learn than what the pictures show.

    ``x ← s · (k_y ∗ x)`` with one kernel ``k_c`` a class, the same for all channels, of entries
    ``U(0, blur)`` and one random entry 1. ``s`` is one constant for all: the largest value stays the largest.

    Args:
        blur: ``p_b``, the largest of the other entries.
        size: ``size`` × ``size`` pixels of the kernels, an odd number.
        scale: ``constant``, or ``image``: each picture by its own maximum, as the authors do.

    Shapes: images ``(N, C, H, W)``.
    Cost: one convolution of each picture.
    Differs: the authors divide each picture by its own maximum, which takes its brightness away and so
        changes the data by more than the filter (``scale=image``). The key is a torch seed, not
        a numpy one. Rounded to bytes, not cut off.
    References: Sadasivan et al., CUDA: Convolution-based Unlearnable Datasets, CVPR 2023,
        arXiv:2303.04278; ``p_b`` 0.3 for CIFAR.
    """

    blur: float = 0.3
    size: int = 3
    scale: Literal["constant", "image"] = "constant"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blur > 0:
            raise ConfigError(f"must be above 0, got {self.blur}.", "blur")
        if self.size < 1 or self.size % 2 == 0:
            raise ConfigError(f"is an odd number of pixels, got {self.size}.", "size")

    def kernels(self, classes: int, draw: torch.Generator) -> Tensor:
        """``(classes, size, size)``."""
        kernels = self.blur * torch.rand(classes, self.size**2, generator=draw)
        ones = torch.randint(self.size**2, (classes, 1), generator=draw)
        return kernels.scatter(1, ones, 1.0).view(classes, self.size, self.size)

    def change(self, inputs: Tensor, clean: Examples, rows: Tensor, draw: torch.Generator) -> Tensor:
        if inputs.ndim != 4:
            raise DataError(f"filters need images of shape (N, C, H, W), got {tuple(inputs.shape)}.")
        kernels = self.kernels(clean.classes, draw)
        changed, channels = inputs[rows], inputs.shape[1]
        for label in range(clean.classes):
            own = clean.targets[rows] == label
            weight = kernels[label].expand(channels, 1, -1, -1)
            changed[own] = F.conv2d(changed[own], weight, padding=self.size // 2, groups=channels)
        if self.scale == "image":
            return changed / changed.flatten(1).amax(1).clamp(min=1e-12).view(-1, 1, 1, 1)
        return changed * (inputs.abs().max() / changed.abs().max().clamp(min=1e-12))


@dataclass(frozen=True, kw_only=True)
class Perturbation(Protection):
    """A change of at most ``epsilon`` in every number of an input.

    Args:
        epsilon: as a fraction of the range of the inputs, which it does not leave.
        steps: of the optimisation.
    """

    epsilon: float = 8 / 255
    steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epsilon > 0:
            raise ConfigError(f"must be above 0, got {self.epsilon}.", "epsilon")
        if self.steps < 1:
            raise ConfigError(f"must be at least 1, got {self.steps}.", "steps")

    def change(self, inputs: Tensor, clean: Examples, rows: Tensor, draw: torch.Generator) -> Tensor:
        low, high = float(inputs.min()), float(inputs.max())
        bound = self.epsilon * (high - low)
        change = self.perturbation(inputs.flatten(1), bound, clean.targets, rows, draw).view_as(inputs[rows])
        return (inputs[rows] + change).clamp(low, high)

    @abstractmethod
    def perturbation(
        self, inputs: Tensor, bound: float, targets: Tensor, rows: Tensor, draw: torch.Generator
    ) -> Tensor:
        """What is added to these rows of ``inputs (N, D)``, ``(n, D)``, no number of it above ``bound``."""


@manipulations.register("clusters")
@dataclass(frozen=True, kw_only=True)
class Clusters(Perturbation):
    """Each cluster of inputs gets one perturbation that moves any input to another cluster; no labels needed.

    k-means on surrogate features ``φ`` gives centres ``c_k``. For each cluster
    ``min_δ mean_i KL(softmax(c_{(k+offset) mod K}) ‖ softmax(φ(x_i + δ)))`` over all inputs ``i`` under
    ``‖δ‖_∞ ≤ ε``, by signed gradient steps; ``x ← x + δ_{k(x)}``.

    Args:
        clusters: ``K``.
        offset: which centre a cluster is sent to.
        components: number of features.
        sharpness: what the features, of unit variance, are multiplied with in the softmax.

    Shapes: inputs of any shape ``(N, …)``.
    Cost: ``clusters · steps`` passes through the linear surrogate over all inputs.
    Differs: the surrogate is linear (leading principal components of the inputs, scaled to unit variance),
        where the authors take a trained ResNet or CLIP; and ``δ_k`` is optimised itself where
        they train a generator. What it does to a network is therefore less than published.
    References: Zhang et al., Unlearnable Clusters, CVPR 2023, arXiv:2301.01217.
    """

    clusters: int = 10
    offset: int = 5
    components: int = 16
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clusters < 2:
            raise ConfigError(f"must be at least 2, got {self.clusters}.", "clusters")
        if self.offset % self.clusters == 0:
            raise ConfigError(f"{self.offset} sends every one of {self.clusters} to itself.", "offset")
        if self.components < 1:
            raise ConfigError(f"must be at least 1, got {self.components}.", "components")
        if not self.sharpness > 0:
            raise ConfigError(f"must be above 0, got {self.sharpness}.", "sharpness")

    def perturbation(
        self, inputs: Tensor, bound: float, targets: Tensor, rows: Tensor, draw: torch.Generator
    ) -> Tensor:
        from sklearn.cluster import KMeans

        if len(inputs) < self.clusters:
            raise DataError(f"{len(inputs)} examples do not fall into {self.clusters} clusters.")
        project = principal(inputs, self.components) * self.sharpness  # (D, P)
        features = (inputs - inputs.mean(0)) @ project
        seed = int(torch.randint(2**31, (), generator=draw))
        found = KMeans(self.clusters, n_init=4, random_state=seed).fit(features.numpy())
        centres = torch.as_tensor(found.cluster_centers_, dtype=torch.float32)
        aims = centres.roll(-self.offset, 0).softmax(-1)  # (K, P): row k is centre (k + offset) mod K
        start = bound * (2 * torch.rand(self.clusters, inputs.shape[1], generator=draw) - 1)
        changes = torch.stack(
            [
                self._towards(aim, features, project, bound, delta)
                for aim, delta in zip(aims, start, strict=True)
            ]
        )
        return changes[torch.as_tensor(found.labels_).long()[rows]]

    def _towards(self, aim: Tensor, features: Tensor, project: Tensor, bound: float, delta: Tensor) -> Tensor:
        """The bounded change under which features look most like ``aim``; the best of all steps."""
        best, least = delta, float("inf")
        for step in range(self.steps + 1):
            said = (features + delta @ project).log_softmax(-1)
            loss = -float((said @ aim).mean())  # KL up to a constant
            if loss < least:
                best, least = delta, loss
            gradient = project @ (said.exp().mean(0) - aim)
            rate = 2.5 * bound / self.steps * (1 - step / (self.steps + 1))
            delta = (delta - rate * gradient.sign()).clamp(-bound, bound)
        return best


@manipulations.register("bayes_error")
@dataclass(frozen=True, kw_only=True)
class BayesError(Perturbation):
    """Moves inputs so that the classes overlap: the error of the best possible classifier rises.

    ``max_δ E(X + δ)`` under ``‖δ‖_∞ ≤ ε`` with ``E`` the kernel estimate ``bayes_error``. The steps, on all
    changed inputs at once, follow the signs of the gradient of the mean log-odds of an error,
    ``log Σ_{y_j≠y_i} k_ij − log Σ_{y_j=y_i} k_ij``, as that of ``E`` is 0 wherever all neighbours are of one
    class; the best ``δ`` by ``E`` of all steps is taken.

    Args:
        bandwidth: of the kernel, in units of the mean distance to the ``neighbours``-th nearest input.
        neighbours: how many others an input's posterior is averaged over.

    Shapes: inputs of any shape ``(N, …)``.
    Cost: ``steps`` times all distances among ``N`` inputs, ``N² D`` each, with their gradient: meant for some
        thousands of small inputs. The published method trains a network for 20 epochs in each of 200
        steps, and is not attempted.
    Differs: distances are between the inputs and not between features of a network trained anew in each
        step, so that this shows the estimator at work and is no strong protection of images. Signed steps
        on the log-odds instead of AdamW on the error.
    References: Towards Effective Unlearnable Examples by Bayes-Error Optimisation, 2025,
        arXiv:2511.08191; 10 neighbours. No code of the authors is known; σ is 0.3 in a script that matches
        the paper, in features of unknown scale, so that the relative bandwidth is our choice.
    """

    bandwidth: float = 1.0
    neighbours: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bandwidth > 0:
            raise ConfigError(f"must be above 0, got {self.bandwidth}.", "bandwidth")
        if self.neighbours < 1:
            raise ConfigError(f"must be at least 1, got {self.neighbours}.", "neighbours")

    def perturbation(
        self, inputs: Tensor, bound: float, targets: Tensor, rows: Tensor, draw: torch.Generator
    ) -> Tensor:
        if len(inputs) <= self.neighbours:
            raise DataError(f"{len(inputs)} examples have no {self.neighbours} neighbours each.")
        reach = torch.cdist(inputs, inputs).kthvalue(self.neighbours + 1, dim=1).values.mean()
        width = float(self.bandwidth * reach)
        change = bound * (2 * torch.rand(len(rows), inputs.shape[1], generator=draw) - 1)
        best, most = change, -1.0
        for step in range(self.steps + 1):
            moved = inputs.index_add(0, rows, change)
            error = float(bayes_error(moved, targets, width, self.neighbours))
            if error > most:
                best, most = change, error
            gradient = _odds_gradient(moved, targets, width)[rows]
            rate = 2.5 * bound / self.steps * (1 - step / (self.steps + 1))
            change = (change + rate * gradient.sign()).clamp(-bound, bound)
        return best


def _odds_gradient(inputs: Tensor, targets: Tensor, width: float) -> Tensor:
    """``∇ Σ_i (log Σ_{y_j ≠ y_i} k_ij − log Σ_{j ≠ i, y_j = y_i} k_ij)`` in the inputs, ``(N, D)``."""
    inputs = inputs.detach().requires_grad_(True)
    closeness = -_squares(inputs) / (2 * width**2)
    same = targets[:, None] == targets
    odds = closeness.masked_fill(same, -torch.inf).logsumexp(1) - closeness.masked_fill(
        ~same, -torch.inf
    ).logsumexp(1)
    (gradient,) = torch.autograd.grad(odds[odds.isfinite()].sum(), inputs)
    return gradient


def bayes_error(inputs: Tensor, targets: Tensor, width: float, neighbours: int) -> Tensor:
    """``mean_i (1 − max_c η_c(x_i))``, the error of the best classifier for an estimated posterior; a scalar.

    ``η_c(x_i) = Σ_j k_ij 1[y_j = c] / Σ_j k_ij`` over the nearest ``neighbours`` others, with
    ``k_ij = exp(−‖x_i − x_j‖² / 2σ²)``. Differentiable in the inputs.

    Shapes: ``inputs (N, D)``, integer ``targets (N,)``.
    """
    nearest, places = _squares(inputs).topk(neighbours, largest=False)  # (N, neighbours)
    weights = torch.softmax(-nearest / (2 * width**2), dim=1)
    posterior = torch.zeros(len(inputs), int(targets.max()) + 1).scatter_add(1, targets[places], weights)
    return (1 - posterior.amax(1)).mean()


def _squares(inputs: Tensor) -> Tensor:
    """Squared distances ``(N, N)``, infinite to oneself."""
    norms = inputs.square().sum(1)
    distances = (norms[:, None] + norms - 2 * inputs @ inputs.T).clamp(min=0)
    return distances.masked_fill(torch.eye(len(inputs), dtype=torch.bool), torch.inf)


def principal(inputs: Tensor, components: int) -> Tensor:
    """Directions ``(D, P)`` along which centred inputs ``(N, D)`` vary most, scaled to unit variance."""
    wanted = min(components, *inputs.shape)
    _, values, vectors = torch.linalg.svd(inputs - inputs.mean(0), full_matrices=False)
    scaled: Tensor = vectors[:wanted].T * (len(inputs) ** 0.5 / values[:wanted].clamp(min=1e-12))
    return scaled


def _floats(inputs: Tensor) -> Tensor:
    if inputs.dtype == torch.uint8:
        return inputs.float() / 255
    if not inputs.is_floating_point():
        raise DataError(f"protection changes real-valued inputs or byte images, got {inputs.dtype}.")
    return inputs.float()


def _like(changed: Tensor, inputs: Tensor) -> Tensor:
    """Changed inputs as they are stored: bytes are rounded."""
    if inputs.dtype == torch.uint8:
        return (changed * 255).round().clamp(0, 255).to(torch.uint8)
    return changed.to(inputs.dtype)
