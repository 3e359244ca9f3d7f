"""Bare passes of gradients and products with the Hessian, of the one-shot edits: see bare_loops.py."""

from __future__ import annotations

import copy
from typing import Any

import torch
from bare_loops import Given, frozen
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

Rows = Tensor


def ssd(g: Given, size: bool = False) -> nn.Module:
    """A pass of gradients over all data and one over the forget set."""

    def length(model: nn.Module, rows: Rows) -> Tensor:
        return model(g.x[rows]).square().sum(1).mean()

    model = copy.deepcopy(g.model)
    totals = []
    for rows in (g.all, g.forget):
        total = [torch.zeros_like(p) for p in model.parameters()]
        batches = list(g.over(rows, 1))
        for _, grads in g.gradients(model, iter(batches), length if size else None):
            for value, gradient in zip(total, grads, strict=True):
                value += (gradient.abs() if size else gradient.square()) / len(batches)
        totals.append(total)
    with torch.no_grad():
        for p, whole, part in zip(model.parameters(), *totals, strict=True):
            factor = (g.method.dampening * whole / part).clamp(max=1)
            p.mul_(torch.where(part > g.method.alpha * whole, factor, 1.0))
    return model


def lfssd(g: Given) -> nn.Module:
    return ssd(g, size=True)


def difference(g: Given, model: nn.Module) -> list[Tensor]:
    """Mean gradient of the forget set less that of the retain set: one pass over all data."""
    means = []
    for rows in (g.forget, g.retain):
        total = [torch.zeros_like(p) for p in model.parameters()]
        for count, grads in g.gradients(model, g.over(rows, 1)):
            for value, gradient in zip(total, grads, strict=True):
                value += gradient * (count / len(rows))
        means.append(total)
    return [a - b for a, b in zip(*means, strict=True)]


def iau(g: Given) -> nn.Module:
    model = copy.deepcopy(g.model)
    steps = difference(g, model)
    with torch.no_grad():
        for p, step in zip(model.parameters(), steps, strict=True):
            p.add_(step / (step.abs() + 1e-8), alpha=g.method.lr)
    return model


def influence(g: Given) -> nn.Module:
    """The pass for the right side, then products with the Hessian in conjugate gradients."""
    m, model = g.method, copy.deepcopy(g.model)
    b = torch.cat([value.flatten() for value in difference(g, model)]) * (len(g.forget) / len(g.x))
    sample = g.retain[torch.randperm(len(g.retain))[: m.samples]]
    solve = woodfisher if m.solver == "woodfisher" else conjugate_gradients
    step = solve(g, model, sample, b)
    with torch.no_grad():
        for p, part in zip(
            model.parameters(), step.split([p.numel() for p in model.parameters()]), strict=True
        ):
            p.add_(part.view_as(p), alpha=m.scale)
    return model


def conjugate_gradients(g: Given, model: nn.Module, sample: Rows, b: Tensor) -> Tensor:
    x, residual, direction, square = torch.zeros_like(b), b.clone(), b.clone(), b @ b
    multiply = hessian if g.method.curvature == "hessian" else gauss_newton
    for _ in range(g.method.iterations):
        image = g.method.diagonal * direction
        for (rows,) in g.over(sample, 1):
            image = image + multiply(g, model, rows, direction) * (len(rows) / len(sample))
        length = square / (direction @ image)
        x, residual = x + length * direction, residual - length * image
        before, square = square, residual @ residual
        direction = residual + square / before * direction
    return x


def flat(values: Any) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values])


def hessian(g: Given, model: nn.Module, rows: Rows, v: Tensor) -> Tensor:
    weights = list(model.parameters())
    first = torch.autograd.grad(g.loss(model, rows), weights, create_graph=True)
    return flat(torch.autograd.grad(flat(first) @ v, weights))


def gauss_newton(g: Given, model: nn.Module, rows: Rows, v: Tensor) -> Tensor:
    """``Jᵀ (diag(p) − p pᵀ) J v / n``: ``J v`` by differentiating a backward pass."""
    weights = list(model.parameters())
    outputs = model(g.x[rows])
    dual = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, weights, dual, create_graph=True)
    (pushed,) = torch.autograd.grad(flat(pulled) @ v, dual, retain_graph=True)
    p = outputs.detach().softmax(1)
    bent = p * (pushed - (p * pushed).sum(1, keepdim=True)) / len(rows)
    return flat(torch.autograd.grad(outputs, weights, bent))


def woodfisher(g: Given, model: nn.Module, sample: Rows, b: Tensor) -> Tensor:
    """Single examples' gradients, and the inverse by rank-one updates."""
    kept, x, n = b.new_empty(len(sample), len(b)), b / g.method.diagonal, len(sample)
    for k, (_, grads) in enumerate(g.gradients(model, g.over(sample, 1, 1))):
        gradient = flat(grads)
        image = gradient / g.method.diagonal - kept[:k].T @ (kept[:k] @ gradient)
        scale = n + gradient @ image
        x = x - image * ((gradient @ x) / scale)
        kept[k] = image / scale.sqrt()
    return x


def fisher(g: Given) -> nn.Module:
    """For each example one forward and ten backward passes, sixteen examples at once; then the noise."""
    model = frozen(g.model)
    weights = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in weights.items()}

    def information(x: Tensor) -> dict[str, Tensor]:
        log_p, pull = vjp(lambda w: functional_call(model, w, x[None]).log_softmax(1)[0], weights)[:2]
        found = {name: torch.zeros_like(p) for name, p in weights.items()}
        for chance, label in zip(log_p.exp(), torch.eye(10), strict=True):
            for name, gradient in pull(label)[0].items():
                found[name] = found[name] + chance * gradient.square()
        return found

    for (rows,) in g.over(g.retain, 1):
        for name, value in vmap(information)(g.x[rows]).items():
            total[name] += value.sum(0) / len(g.retain)
    with torch.no_grad():
        for name, p in weights.items():
            variance = g.method.alpha * (1 / (total[name] + 1e-8)).clamp(max=1e3)
            if p.ndim > 1:
                variance = variance.mean(1, keepdim=True).expand_as(p)
            p.add_(variance.sqrt() * torch.randn(p.shape))
    return model
