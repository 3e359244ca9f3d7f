"""What each method has to compute, as a loop that anybody would write: the other side of method_speed.py.

Every function does the forwards, backwards and optimiser steps that the ``Cost`` of its method names, on
batches of the same sizes, and nothing else: no seeds, no checks, no log, no scopes or modifiers. ``Given``
holds the data as plain tensors, and the method only as the numbers that it is set to.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rows = Tensor
Loss = Callable[..., Any]


@dataclass(frozen=True)
class Given:
    """The original, inputs ``(N, 3, 32, 32)`` and targets, the rows of each part, the method's settings."""

    model: nn.Module
    x: Tensor
    y: Tensor
    forget: Rows
    retain: Rows
    method: Any

    @property
    def all(self) -> Rows:
        return torch.arange(len(self.x))

    def over(self, rows: Rows, epochs: int | None = None, size: int | None = None) -> Iterator[tuple[Rows]]:
        """The batches of some epochs."""
        for _ in range(epochs or self.method.epochs):
            for batch in rows[torch.randperm(len(rows))].split(size or self.method.batch_size):
                yield (batch,)

    def beside(self, rows: Rows, others: Rows, ratio: int = 1) -> Iterator[tuple[Rows, Rows]]:
        """The same with a batch of ``others``, which start again when they are used up."""
        endless = self.over(others, epochs=10**9, size=ratio * self.method.batch_size)
        for (batch,) in self.over(rows):
            yield batch, next(endless)[0]

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        return F.cross_entropy(model(self.x[rows]), self.y[rows])

    def train(
        self,
        model: nn.Module,
        steps: Iterator[Any],
        loss: Loss,
        optim: Any = None,
        *,
        mode: bool = True,
        before: Callable[[], object] = lambda: None,
        after: Callable[[], object] = lambda: None,
    ) -> nn.Module:
        """The bare loop: forward, backward, step; in it what a mask needs before and after the step."""
        model.train(mode)
        optimizer = (optim or self.method.optim).optimizer([p for p in model.parameters() if p.requires_grad])
        for rows in steps:
            optimizer.zero_grad()
            loss(model, *rows).backward()
            before()
            optimizer.step()
            after()
        return model

    def gradients(
        self, model: nn.Module, batches: Iterator[tuple[Rows]], loss: Loss | None = None
    ) -> Iterator[tuple[int, Sequence[Tensor]]]:
        """The bare pass of gradients: one forward and one backward pass over the batches."""
        model.eval()
        parameters = list(model.parameters())
        for (rows,) in batches:
            yield len(rows), torch.autograd.grad((loss or self.loss)(model, rows), parameters)


def frozen(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def says(model: nn.Module, x: Tensor) -> Tensor:
    outputs: Tensor = model(x)
    return outputs


def kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    p, q = (F.log_softmax(logits / temperature, 1) for logits in (teacher, student))
    return F.kl_div(q, p, log_target=True, reduction="batchmean")


def features(model: nn.Module, head: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the input of the last linear layer."""
    found: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0]))
    outputs = model(x)
    handle.remove()
    return outputs, found[0]


def finetune(g: Given) -> nn.Module:
    return g.train(copy.deepcopy(g.model), g.over(g.retain), g.loss)


def grad_ascent(g: Given) -> nn.Module:
    return g.train(copy.deepcopy(g.model), g.over(g.forget), lambda model, rows: -g.loss(model, rows))


def grad_diff(g: Given) -> nn.Module:
    b = g.method.retain_weight

    def loss(model: nn.Module, retain: Rows, forget: Rows) -> Tensor:
        return b * g.loss(model, retain) - (1 - b) * g.loss(model, forget)

    return g.train(copy.deepcopy(g.model), g.beside(g.retain, g.forget), loss)


def l1_sparse(g: Given) -> nn.Module:
    def steps() -> Iterator[tuple[Rows, float]]:
        for epoch in range(g.method.epochs):
            weight = g.method.alpha * (1 - epoch / g.method.epochs)
            yield from ((rows, weight) for (rows,) in g.over(g.retain, 1))

    def loss(model: nn.Module, rows: Rows, weight: float) -> Tensor:
        return g.loss(model, rows) + weight * sum(p.abs().sum() for p in model.parameters())

    return g.train(copy.deepcopy(g.model), steps(), loss)


def random_labels(g: Given, model: nn.Module | None = None, **masks: Any) -> nn.Module:
    def steps() -> Iterator[tuple[Rows, Tensor]]:
        for _ in range(g.method.epochs):
            yield from ((rows, torch.randint(10, rows.shape)) for (rows,) in g.over(g.forget, 1))
            yield from ((rows, g.y[rows]) for (rows,) in g.over(g.retain, 1))

    def loss(model: nn.Module, rows: Rows, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(g.x[rows]), labels)

    return g.train(model or copy.deepcopy(g.model), steps(), loss, **masks)


def salun(g: Given) -> nn.Module:
    """The mask from a pass over the forget set; each step masks the gradient and puts weights back."""
    model, mask = copy.deepcopy(g.model), g.method.modifiers[0]
    found = [grads for _, grads in g.gradients(model, g.over(g.forget, 1, mask.batch_size))]
    saliency = [torch.stack(each).sum(0).abs() for each in zip(*found, strict=True)]
    flat = torch.cat([value.flatten() for value in saliency])
    threshold = flat.kthvalue(len(flat) - round(mask.keep * len(flat))).values
    weights = list(model.parameters())
    masks, start = [value > threshold for value in saliency], [w.detach().clone() for w in weights]

    def before() -> None:
        for weight, keep in zip(weights, masks, strict=True):
            weight.grad.mul_(keep)  # type: ignore[union-attr]

    @torch.no_grad()
    def after() -> None:
        for weight, keep, old in zip(weights, masks, start, strict=True):
            weight.copy_(torch.where(keep, weight, old))

    return random_labels(g, model, before=before, after=after)


def scrub(g: Given) -> nn.Module:
    m, teacher = g.method, frozen(g.model)

    def steps() -> Iterator[tuple[Rows, bool]]:
        for epoch in range(m.epochs):
            if epoch < m.max_epochs:
                yield from ((rows, True) for (rows,) in g.over(g.forget, 1, m.forget_batch_size))
            yield from ((rows, False) for (rows,) in g.over(g.retain, 1))

    def loss(model: nn.Module, rows: Rows, away: bool) -> Tensor:
        outputs = model(g.x[rows])
        drift = m.temperature**2 * kl(says(teacher, g.x[rows]), outputs, m.temperature)
        return -drift if away else m.gamma * F.cross_entropy(outputs, g.y[rows]) + m.alpha * drift

    return g.train(copy.deepcopy(g.model), steps(), loss)


def npo(g: Given) -> nn.Module:
    """The original's losses of the forget set are computed in the first epoch and kept."""
    original, beta = frozen(g.model), g.method.beta
    known = torch.full((len(g.x),), torch.nan)

    def loss(model: nn.Module, forget: Rows, retain: Rows) -> Tensor:
        if known[forget].isnan().any():
            known[forget] = F.cross_entropy(says(original, g.x[forget]), g.y[forget], reduction="none")
        gain = F.cross_entropy(model(g.x[forget]), g.y[forget], reduction="none") - known[forget]
        return -2 / beta * F.logsigmoid(beta * gain).mean() + g.loss(model, retain)

    return g.train(copy.deepcopy(g.model), g.beside(g.forget, g.retain), loss, mode=False)


def amnesiac(g: Given) -> nn.Module:
    wrong = g.y.clone()
    wrong[g.forget] = (g.y[g.forget] + torch.randint(1, 10, g.forget.shape)) % 10

    def loss(model: nn.Module, rows: Rows) -> Tensor:
        return F.cross_entropy(model(g.x[rows]), wrong[rows])

    return g.train(copy.deepcopy(g.model), g.over(g.all), loss)


def bad_teacher(g: Given) -> nn.Module:
    competent, incompetent, bad = frozen(g.model), reborn(g.model), torch.zeros(len(g.x), dtype=torch.bool)
    bad[g.forget] = True
    part = g.retain[torch.randperm(len(g.retain))[: round(g.method.fraction * len(g.retain))]]

    def loss(model: nn.Module, rows: Rows) -> Tensor:
        x = g.x[rows]
        lesson = torch.where(bad[rows][:, None], says(incompetent, x), says(competent, x))
        return kl(lesson, model(x))

    return g.train(copy.deepcopy(g.model), g.over(torch.cat([g.forget, part])), loss)


def reborn(model: nn.Module) -> nn.Module:
    fresh = frozen(model)
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return fresh


def ugradsl(g: Given, retain_first: bool = False) -> nn.Module:
    """The smoothing is the share of the retain batch whose logits point the same way."""
    p = g.method.retain_weight

    def loss(model: nn.Module, forget: Rows, retain: Rows) -> Tensor:
        f, r = model(g.x[forget]), model(g.x[retain])
        with torch.no_grad():
            mine, others = (F.normalize(z - z.mean(1, keepdim=True)) for z in (f, r))
            a = -((1 - mine @ others.T) / 2 < g.method.near).float().mean(1)
        log_p = F.log_softmax(f, 1)
        own = log_p.gather(1, g.y[forget][:, None])[:, 0]
        smoothed = -(1 - a) * own - a * log_p.mean(1)
        return p * F.cross_entropy(r, g.y[retain]) - (1 - p) * smoothed.mean()

    if retain_first:
        steps = ((forget, retain) for retain, forget in g.beside(g.retain, g.forget))
        return g.train(copy.deepcopy(g.model), steps, loss)
    return g.train(copy.deepcopy(g.model), g.beside(g.forget, g.retain), loss)


def ugradsl_plus(g: Given) -> nn.Module:
    return ugradsl(g, retain_first=True)


def boundary_shrink(g: Given) -> nn.Module:
    original, targets = frozen(g.model), torch.empty_like(g.y)
    for (rows,) in g.over(g.forget, 1):
        x = g.x[rows].requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(original(x), g.y[rows], reduction="sum"), x)
        moved = says(original, x + g.method.step * gradient.sign())
        targets[rows] = moved.scatter(1, g.y[rows][:, None], -torch.inf).argmax(1)
    return g.train(
        copy.deepcopy(g.model),
        g.over(g.forget),
        lambda model, rows: F.cross_entropy(model(g.x[rows]), targets[rows]),
    )


def boundary_expand(g: Given) -> nn.Module:
    model: Any = copy.deepcopy(g.model)
    wider = nn.Linear(model.head.in_features, 11)
    with torch.no_grad():
        wider.weight[:10], wider.bias[:10] = model.head.weight, model.head.bias
    model.head = wider
    extra = torch.full((len(g.x),), 10)
    return g.train(
        model, g.over(g.forget), lambda model, rows: F.cross_entropy(model(g.x[rows]), extra[rows])
    )


def cf_k(g: Given) -> nn.Module:
    """Only the head requires gradients, so that the backward pass ends behind it."""
    model: Any = frozen(g.model)
    model.head.requires_grad_(True)
    return g.train(model, g.over(g.retain), g.loss, mode=False)


def eu_k(g: Given) -> nn.Module:
    model: Any = frozen(g.model)
    model.head.reset_parameters()
    model.head.requires_grad_(True)
    return g.train(model, g.over(g.retain), g.loss, mode=False)


def datamodel_match(g: Given, prepared: dict[str, Tensor]) -> nn.Module:
    """One forward pass over all data, ridge regression, then matching."""
    masks = prepared["members"].double() - prepared["members"].double().mean(0)
    said = prepared["outputs"].double().flatten(1)
    gone = torch.zeros(len(g.x), dtype=torch.double).index_fill_(0, g.forget, 1)
    kernel = masks @ masks.T + len(masks) * g.method.penalty * torch.eye(len(masks)).double()
    effect = torch.linalg.solve(kernel, masks @ gone) @ (said - said.mean(0))
    original = frozen(g.model)
    known = torch.cat([says(original, x) for x in g.x.split(500)])
    return matching(g, known - g.method.kappa * effect.view_as(known).float())


def matching(g: Given, targets: Tensor | Callable[[Rows], Tensor]) -> nn.Module:
    share = 1 / (1 + g.method.retain_ratio)

    def error(model: nn.Module, rows: Rows) -> Tensor:
        wanted = targets[rows] if isinstance(targets, Tensor) else targets(rows)
        return F.mse_loss(model(g.x[rows]), wanted)

    def loss(model: nn.Module, forget: Rows, retain: Rows) -> Tensor:
        return share * error(model, forget) + (1 - share) * error(model, retain)

    return g.train(copy.deepcopy(g.model), g.beside(g.forget, g.retain, g.method.retain_ratio), loss)


def oracle_match(g: Given, training: Any) -> nn.Module:
    """Retrained models, each of which answers every batch."""
    oracles = [frozen(retrain(g, training)) for _ in range(g.method.oracles)]
    return matching(g, lambda rows: torch.stack([says(oracle, g.x[rows]) for oracle in oracles]).mean(0))


def retrain(g: Given, training: Any) -> nn.Module:
    model = reborn(g.model).requires_grad_(True)
    return g.train(model, g.over(g.retain, training.epochs, training.batch_size), g.loss, training.optim)


def forget_vector(g: Given) -> Tensor:
    """Only one vector is learned: gradients run back to the inputs, not to the weights."""
    m, model = g.method, frozen(g.model)
    vector = torch.zeros(g.x.shape[1:], requires_grad=True)
    optimizer = m.optim.optimizer([vector])
    forgets = torch.zeros(len(g.x), dtype=torch.bool).index_fill_(0, g.forget, True)
    total = m.epochs * math.ceil(len(g.x) / m.batch_size)
    for index, (rows,) in enumerate(g.over(g.all)):
        optimizer.param_groups[0]["lr"] = m.optim.lr * m.optim.factor(index, total)
        outputs, gone, own = model(g.x[rows] + vector), forgets[rows], g.y[rows][:, None]
        margins = outputs.gather(1, own)[:, 0] - outputs.scatter(1, own, -torch.inf).amax(1)
        keep = torch.where(gone, 0.0, F.cross_entropy(outputs, g.y[rows], reduction="none")).mean()
        lose = torch.where(gone, margins.clamp(min=-m.margin), 0.0).mean()
        optimizer.zero_grad()
        (m.alpha * keep + m.beta * lose + m.norm / m.batch_size * vector.norm()).backward()
        optimizer.step()
    return vector
