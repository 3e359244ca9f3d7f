"""Zeroth-order optimisation: gradients estimated from the values of forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.errors import ConfigError
from expunge.training.loop import PROBE
from expunge.training.optim import ForwardOnly, optimisers
from expunge.training.parameters import largest

Terms = Mapping[str, Tensor]
Gradients = dict[str, Tensor]
Parameters = Mapping[str, nn.Parameter]


@optimisers.register("zeroth_order")
@dataclass(frozen=True, kw_only=True)
class ZerothOrder(ForwardOnly):
    """Momentum SGD whose gradients are finite differences: the model is only ever asked, never derived.

    With ``D_v = (ℓ(θ + μ v) − ℓ(θ)) / μ``, or ``(ℓ(θ + μ v) − ℓ(θ − μ v)) / 2μ`` where ``two_sided``:

    - ``rge``: ``ĝ = (1/q) Σ_u D_u u`` over ``q`` directions ``u ~ N(0, I)``; its mean is the gradient for
      ``μ → 0``, its variance about ``(d / q) ‖∇ℓ‖²`` for ``d`` weights;
    - ``cge``: ``ĝ_j = D_{e_j}`` for each weight ``j``: the gradient, up to ``μ/2 ∂²ℓ/∂θ_j²`` on one side.

    With ``density < 1`` ``cge`` is DeepZero's sparse form: of each weight matrix only a random part is
    estimated, drawn anew every ``interval`` steps; the rest has gradient 0 in that step. How much of each
    matrix follows ZO-GraSP on the first batch: a fraction ``density`` of all weights is kept, those with
    the lowest score ``−θ ⊙ Hg``, which would lower the gradient's norm most if they were removed.
    Vectors (biases, norms) are always estimated whole.

    Args:
        estimator: of the gradient.
        queries: ``q``, directions of ``rge``, and of the scores.
        step: ``μ``. Of the size of float32's rounding of the loss over the gradient it becomes noise.
        two_sided: central differences, at twice the price; exact for quadratic functions with ``cge``.
        momentum: of the SGD that takes the step.
        density: fraction of the weights that ``cge`` goes over.
        interval: steps between two draws of them.

    Cost: a step has ``q + 1`` forward passes with ``rge`` and ``density · d + 1`` with ``cge`` (``2q + 1``
        and ``2 d · density + 1`` where two-sided), no backward pass, no stored activations; two copies of
        the parameters and the momentum. The scores take ``2q + 1`` once. About 10⁴ weights are what
        ``cge`` can do on a CPU; choose a scope (``last_layers``, ``lora``) for larger models.
    Differs: all forward passes of a step see one batch and one draw of its noise, and BatchNorm and
        dropout are refused in training mode. ``rge`` here is the gradient's size: the authors multiply
        the derivative by directions that still have the length ``μ`` (and are normalised for each
        tensor), which is smaller by ``μ`` and wrong as a step. Their ZO-GraSP, built on it, goes
        a way of order ``μ²`` along the gradient, near rounding, and ranks absolute scores; here it goes
        ``μ`` along the normalised gradient, with the same directions at both ends, and ranks signed ones.
        Features are not reused between forward passes and nothing is distributed.
        As with the authors, weight decay and momentum also move weights outside the mask.
    References: Chen et al., DeepZero, ICLR 2024, arXiv:2310.02025; Nesterov and Spokoiny, Random
        Gradient-Free Minimization of Convex Functions, 2017 (Gaussian directions).
    """

    estimator: Literal["rge", "cge"] = "rge"
    queries: int = 20
    step: float = 1e-3
    two_sided: bool = False
    momentum: float = 0.9
    density: float = 1.0
    interval: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("queries", "interval"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if not self.step > 0:
            raise ConfigError(f"must be above 0, got {self.step}.", "step")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"must be in [0, 1), got {self.momentum}.", "momentum")
        if not 0 < self.density <= 1:
            raise ConfigError(f"is a fraction in (0, 1], got {self.density}.", "density")
        if self.density < 1 and self.estimator != "cge":
            raise ConfigError("below 1 needs estimator=cge: it is the part of the coordinates.", "density")

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    @torch.no_grad()
    def estimate(
        self,
        evaluate: Callable[[], dict[str, Tensor]],
        terms: Terms,
        parameters: Parameters,
        optimizer: torch.optim.Optimizer,
        index: int,
    ) -> dict[str, Gradients]:
        state = optimizer.state[next(iter(parameters.values()))]
        if "seed" not in state:  # drawn from the run's seed, so that the run can be repeated
            state["seed"] = int(torch.randint(2**62, ()))
        seed = seeding.derive(state["seed"], index)
        if self.estimator == "rge":
            return self._random(evaluate, terms, parameters, seed)
        if self.density == 1:
            return self._coordinates(evaluate, terms, parameters, {})
        if "densities" not in state:
            scores = self.scores(evaluate, terms, parameters, seed)
            kept = largest({name: -score for name, score in scores.items()}, self.density) if scores else {}
            state["densities"] = {name: float(mask.float().mean()) for name, mask in kept.items()}
        if state.get("drawn") != index // self.interval:
            state["drawn"] = index // self.interval
            state["places"] = dict(_places(parameters, state["densities"], seed))
        return self._coordinates(evaluate, terms, parameters, state["places"])

    def scores(
        self, evaluate: Callable[[], Terms], terms: Terms, parameters: Parameters, seed: int
    ) -> Gradients:
        """ZO-GraSP: ``−θ ⊙ (ĝ(θ + μ ĝ/‖ĝ‖) − ĝ(θ)) ‖ĝ‖/μ`` of the weight matrices, both ``ĝ`` by ``rge``.

        Removing a weight changes the gradient's squared norm by about twice its score.
        """
        start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        here = _total(self._random(evaluate, terms, parameters, seed))
        norm = torch.stack([gradient.square().sum() for gradient in here.values()]).sum().sqrt()
        if norm == 0:
            return {name: torch.zeros_like(value) for name, value in start.items() if value.ndim > 1}
        for name, parameter in parameters.items():
            parameter.add_(here[name], alpha=self.step / float(norm))
        there = _total(self._random(evaluate, evaluate(), parameters, seed))
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
        length = float(norm) / self.step
        return {
            name: -value * (there[name] - here[name]) * length
            for name, value in start.items()
            if value.ndim > 1
        }

    def _random(
        self, evaluate: Callable[[], Terms], terms: Terms, parameters: Parameters, seed: int
    ) -> dict[str, Gradients]:
        """The mean of ``D_u u`` over directions that depend on the seed alone."""
        found = {term: {n: torch.zeros_like(p) for n, p in parameters.items()} for term in terms}
        start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for query in range(self.queries):
            direction = _direction(parameters, seeding.derive(seed, query))

            def at(length: float, direction: Gradients = direction) -> Terms:
                for name, parameter in parameters.items():
                    torch.add(start[name], direction[name], alpha=length, out=parameter)
                return evaluate()

            for term, slope in self._slopes(at, terms).items():
                for name, gradient in found[term].items():
                    gradient.add_(direction[name] * slope, alpha=1 / self.queries)
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
        return found

    def _coordinates(
        self, evaluate: Callable[[], Terms], terms: Terms, parameters: Parameters, places: Gradients
    ) -> dict[str, Gradients]:
        """``D_{e_j}`` at the places of each parameter, all where it has none; 0 elsewhere."""
        found = {term: {n: torch.zeros_like(p) for n, p in parameters.items()} for term in terms}
        for name, parameter in parameters.items():
            every = torch.arange(parameter.numel())
            for place in places.get(name, every).tolist():
                where = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), parameter.shape))
                start = parameter[where].clone()

                def at(
                    length: float,
                    weight: nn.Parameter = parameter,
                    where: tuple[int, ...] = where,
                    start: Tensor = start,
                ) -> Terms:
                    weight[where] = start + length
                    return evaluate()

                for term, slope in self._slopes(at, terms).items():
                    found[term][name][where] = slope
                parameter[where] = start
        return found

    def _slopes(self, at: Callable[[float], Terms], terms: Terms) -> dict[str, Tensor]:
        """The derivative of each term along a line, of whose points ``at`` gives the terms."""
        ahead = at(self.step)
        if not self.two_sided:
            return {name: (ahead[name] - value) / self.step for name, value in terms.items()}
        behind = at(-self.step)
        return {name: (ahead[name] - behind[name]) / (2 * self.step) for name in terms}


def _direction(parameters: Parameters, seed: int) -> Gradients:
    """Standard normal numbers for every weight, a function of the seed alone."""
    device = next(iter(parameters.values())).device
    draws = torch.Generator(device=device).manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=draws, device=device, dtype=p.dtype)
        for name, p in parameters.items()
    }


def _total(found: Mapping[str, Gradients]) -> Gradients:
    """The gradient of the sum of all terms that are stepped along."""
    first, *others = (gradients for term, gradients in found.items() if term != PROBE)
    return {name: sum((other[name] for other in others), value) for name, value in first.items()}


def _places(
    parameters: Parameters, densities: Mapping[str, float], seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Random places in each weight matrix, at least one and as many as its density says."""
    for name, density in densities.items():
        size = parameters[name].numel()
        draws = seeding.generator(seed, "places", name)
        yield name, torch.randperm(size, generator=draws)[: max(1, round(density * size))].sort().values
