"""Optimisers beside the code of their authors: SophiaG of SOUL, and the gradient estimates of DeepZero."""

from __future__ import annotations

import copy
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from authors_classifiers_setup import Row, apart, borrowed, flat
from torch import Tensor, nn

from expunge.methods.optimisers.sophia import Sophia
from expunge.methods.optimisers.zeroth_order import ZerothOrder

SOUL = ("OPTML-Group/SOUL", "30f7a41")
ZERO = ("OPTML-Group/DeepZero", "5cf30b1")
EXAMPLES, STEPS, WRITTEN = 16, 50, 5120
"""Of the run of Sophia, and the batch size that is written into their code."""
STEP, QUERIES = 5e-3, 2000
"""Of the gradient estimates."""

Weights = dict[str, Tensor]


def rows(checkouts: Path) -> list[Row]:
    zoo = checkouts / ZERO[0] / "algorithm" / "zoo" / "gradient_estimate.py"
    return [sophia(checkouts / SOUL[0] / "src" / "optim" / "sophia.py"), *zeroth_order(zoo)]


def sophia(file: Path) -> Row:
    known = {"torch": torch, "Tensor": Tensor, "Optimizer": torch.optim.Optimizer, **vars(typing)}
    theirs = borrowed(file, "SophiaG", **known).SophiaG
    ours = trained(_ours)
    released = trained(_theirs(theirs, WRITTEN))
    sized, once = trained(_theirs(theirs, EXAMPLES)), trained(_theirs(theirs, EXAMPLES, once=True))
    found = apart(ours, released, network())
    with_size, with_both = (float((flat(ours) - flat(other)).abs().max()) for other in (sized, once))
    if with_both > 3e-7:
        raise SystemExit(f"sophia with one update of the momentum differs by {with_both}.")
    return Row(
        method="sophia",
        source=SOUL,
        run="small MLP, 50 steps, rate 1e-3, squared gradients, interval 1",
        **found,
        within=None,
        explanation=(
            f"The batch size is written into their code as {WRITTEN}; with the true {EXAMPLES} the "
            f"difference is {with_size:.4f}. They add the gradient to the momentum twice a step; with one "
            f"update {with_both:.0e}.".replace("e-0", "e-")
        ),
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))


def trained(steps: Callable[[nn.Module], Callable[[int], Any]]) -> nn.Module:
    """A small regression, trained by what ``steps`` makes of the network: the step at each index."""
    model = network()
    inputs, answers = torch.randn(EXAMPLES, 5), torch.randn(EXAMPLES, 1)
    step = steps(model)
    for index in range(STEPS):
        model.zero_grad()
        nn.functional.mse_loss(model(inputs), answers).backward()
        step(index)
    return model


def _ours(model: nn.Module) -> Callable[[int], Any]:
    config = Sophia(lr=1e-3, hessian="squared", interval=1)
    optimizer = config.optimizer(model.parameters())

    def step(index: int) -> None:
        config.observe(optimizer, index, EXAMPLES, {})
        optimizer.step()

    return step


def _theirs(kind: Any, size: int, *, once: bool = False) -> Callable[[nn.Module], Callable[[int], Any]]:
    """Steps of theirs, with our β, ρ and λ.

    Args:
        once: without the first of their two updates of the momentum.
    """
    like = Sophia()

    def steps(model: nn.Module) -> Callable[[int], Any]:
        named = {"betas": like.betas, "rho": like.rho, "weight_decay": like.weight_decay}
        optimizer = kind(model.parameters(), lr=1e-3, **named)
        if once:
            optimizer.update_exp_avg = lambda: None
        return lambda _: optimizer.step(bs=size)

    return steps


def zeroth_order(file: Path) -> list[Row]:
    theirs = borrowed(file, "rge", "cge", torch=torch, deepcopy=copy.deepcopy)
    torch.manual_seed(0)
    inputs, answers = torch.randn(32, 6), torch.randn(32, 1)
    start = {"w": torch.randn(1, 6), "b": torch.randn(1)}

    def loss(weights: Any) -> Tensor:
        return nn.functional.mse_loss(inputs @ weights["w"].T + weights["b"], answers)

    def number(weights: Weights) -> float:
        return float(loss(weights))

    def mine(optim: ZerothOrder) -> Tensor:
        weights = {name: nn.Parameter(value.clone()) for name, value in start.items()}
        optimizer = optim.optimizer(weights.values())
        with torch.no_grad():
            terms = {"loss": loss(weights)}
        found = optim.estimate(lambda: {"loss": loss(weights)}, terms, weights, optimizer, 0)
        return _flat(found["loss"])

    asked = {name: value.clone().requires_grad_() for name, value in start.items()}
    loss(asked).backward()
    true = torch.cat([value.grad.flatten() for value in asked.values() if value.grad is not None])
    exact = _flat(theirs.cge(number, start, {}, STEP))
    drawn = _flat(theirs.rge(number, start, QUERIES, STEP))
    ours = mine(ZerothOrder(estimator="cge", step=STEP))
    ours_drawn = mine(ZerothOrder(queries=QUERIES, step=STEP))
    return [_cge(ours, exact), _rge(ours_drawn, drawn, true)]


def _cge(ours: Tensor, theirs: Tensor) -> Row:
    return Row(
        method="zeroth_order",
        source=ZERO,
        run="cge, linear model, step 5e-3",
        measure="largest difference of the estimate",
        difference=float((ours - theirs).abs().max()),
        relative=float((ours - theirs).norm() / ours.norm()),
        within=0.0,
        explanation="Identical.",
    )


def _rge(ours: Tensor, theirs: Tensor, true: Tensor) -> Row:
    own, other = float(ours.norm()), float(theirs.norm())
    angles = [float(torch.cosine_similarity(found, true, 0)) for found in (theirs, ours)]
    return Row(
        method="zeroth_order",
        source=ZERO,
        run="rge, linear model, 2,000 queries, step 5e-3",
        measure="difference of the norm of the estimate",
        difference=abs(own - other),
        relative=None,
        within=None,
        explanation=(
            f"Norm: theirs {other:.4f}, ours {own:.3f}, of the true gradient {float(true.norm()):.3f}; "
            f"cosine to it {angles[0]:.2f} and {angles[1]:.3f}. Their directions keep the length of the step "
            "and are normalised for each tensor."
        ),
    )


def _flat(found: Weights) -> Tensor:
    return torch.cat([value.flatten() for value in found.values()])
