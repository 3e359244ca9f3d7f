"""Bare loops of the methods of several phases, of classes and of regressors: see bare_loops.py."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from bare_loops import Given, features, frozen, kl, reborn, says
from torch import Tensor, nn

from expunge.methods.gradient.laf import Autoencoder
from expunge.training.optim import AdamW

Rows = Tensor


def laf(g: Given) -> nn.Module:
    """Two autoencoders on the original's features, then both models on both batches."""
    m, original = g.method, frozen(g.model)

    def of(model: Any, rows: Rows) -> Tensor:
        return F.normalize(features(model, model.head, g.x[rows])[1])

    with torch.no_grad():
        known = torch.cat([of(original, rows) for rows in g.all.split(m.batch_size)])
    fits = []
    for rows in (g.all, g.forget):
        coder = Autoencoder(known.shape[1], m.latent)
        steps = g.over(rows, m.fit_epochs)
        rate = AdamW(lr=1e-3, weight_decay=0.0)
        g.train(coder, steps, lambda model, batch: model.loss(known[batch]).mean(), rate)
        fits.append(coder.requires_grad_(False))

    def bounded(coder: Autoencoder, now: Tensor) -> Tensor:
        left = coder.unexplained(now)
        return (left / (left + 1)).exp().mean()

    def loss(model: nn.Module, forget: Rows, retain: Rows) -> Tensor:
        now_f, now_r = of(model, forget), of(model, retain)
        with torch.no_grad():
            before_f, before_r = of(original, forget), of(original, retain)
        turned_f, turned_r = 1 - (now_f * before_f).sum(1), 1 - (now_r * before_r).sum(1)
        align = turned_r.mean() - torch.logsumexp(turned_f / m.temperature, 0)
        return bounded(fits[0], now_r) - bounded(fits[1], now_f) + m.align_weight * align

    return g.train(copy.deepcopy(g.model), g.beside(g.forget, g.retain), loss, mode=False)


def concept_poison(g: Given) -> nn.Module:
    """One pass for the features, clusters, a linear fit; then poisoned examples beside retained ones."""
    from sklearn.cluster import KMeans

    original: Any = frozen(g.model)
    with torch.no_grad():
        hidden = torch.cat([features(original, original.head, x)[1] for x in g.x.split(256)])
    hidden = hidden - hidden.mean(0)
    centres = KMeans(g.method.concepts, n_init=3, random_state=0).fit(hidden.numpy()).cluster_centers_
    scores = hidden @ torch.from_numpy(centres).T
    scores = scores / scores.std(0)
    onehot = F.one_hot(g.y).float()
    gram = scores.T @ scores / len(scores)
    penalty = 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
    weights = torch.linalg.solve(gram + penalty, scores.T @ (onehot - onehot.mean(0)) / len(scores))
    weight, strongest = weights[:, int(g.y[g.forget[0]])].topk(g.method.strongest)
    order = (scores[g.forget][:, strongest] @ weight).argsort(descending=True)
    poisoned = g.forget[order[: -(-len(order) // 2)]]
    wrong = g.y[g.retain[torch.randint(len(g.retain), g.y.shape)]]

    def loss(model: nn.Module, forget: Rows, retain: Rows) -> Tensor:
        return F.cross_entropy(model(g.x[forget]), wrong[forget]) + g.loss(model, retain)

    return g.train(copy.deepcopy(g.model), g.beside(poisoned, g.retain), loss)


class Adapted(nn.Module):
    """``W + (s / r) B A`` for a convolution."""

    def __init__(self, base: Any, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        where = {"stride": base.stride, "padding": base.padding}
        self.a = nn.Conv2d(base.in_channels, rank, base.kernel_size, bias=False, **where)
        self.b = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.scale * self.b(self.a(x))
        return out

    @torch.no_grad()
    def merge(self) -> None:
        self.base.weight += self.scale * torch.einsum(
            "or,rikl->oikl", self.b.weight[:, :, 0, 0], self.a.weight
        )


def gs_lora(g: Given, prototypes: bool = False) -> nn.Module:
    """Frozen network, adapters on its convolutions, a tenth of each retained class replayed."""
    m, model = g.method, frozen(g.model)
    adapters: list[Adapted] = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and not isinstance(module, Adapted):
                adapters.append(Adapted(child, m.scope.rank, m.scope.alpha))
                setattr(module, name, adapters[-1])
    own = [g.retain[g.y[g.retain] == label] for label in g.y[g.retain].unique()]
    few = torch.cat([rows[torch.randperm(len(rows))[: -(-len(rows) // 10)]] for rows in own])
    bound = torch.log(torch.tensor(10.0)) + 2
    terms = Prototypes(g, frozen(g.model), few) if prototypes else None

    def steps() -> Iterator[tuple[Rows, Rows, bool]]:
        for index, (retain, forget) in enumerate(g.beside(few, g.forget)):
            yield retain, forget, index >= m.warmup * m.epochs * -(-len(few) // m.batch_size)

    def loss(model: Any, retain: Rows, forget: Rows, sparse: bool) -> Tensor:
        if terms is None:
            kept, left, total = model(g.x[retain]), model(g.x[forget]), torch.zeros(())
        else:
            kept, left, total = terms.of(model, retain, forget)
        total = total + F.cross_entropy(kept, g.y[retain])
        total = total + m.beta * F.relu(bound - F.cross_entropy(left, g.y[forget]))
        if sparse:
            groups = [torch.cat([unit.a.weight.flatten(), unit.b.weight.flatten()]) for unit in adapters]
            total = total + m.alpha * sum(group.norm() for group in groups)
        return total

    result = g.train(model, steps(), loss, mode=False)
    for unit in adapters:
        unit.merge()
    return result


def gs_lora_plus(g: Given) -> nn.Module:
    return gs_lora(g, prototypes=True)


class Prototypes:
    """The means of the original's features in each class, and the terms that hold or leave them.

    The running average of the adapters, once an epoch, is left out on this side.
    """

    def __init__(self, g: Given, original: Any, few: Rows) -> None:
        self.g, used = g, torch.cat([g.forget, few])
        with torch.no_grad():
            rows = torch.cat([features(original, original.head, x)[1] for x in g.x[used].split(256)])
        member = F.one_hot(g.y[used], 10).float()
        self.means = member.T @ rows / member.sum(0)[:, None]
        self.bound = torch.log(torch.tensor(float(rows.shape[1]))) + 2

    def of(self, model: Any, retain: Rows, forget: Rows) -> tuple[Tensor, Tensor, Tensor]:
        (kept, at_r), (left, at_f) = (features(model, model.head, self.g.x[r]) for r in (retain, forget))
        m, y = self.g.method, self.g.y
        away = kl(self.means[y[forget]], at_f)
        near = kl(self.means[y[retain]], at_r)
        return kept, left, m.prototype_forget * F.relu(self.bound - away) + m.prototype_retain * near


def unsir(g: Given) -> nn.Module:
    """Noise for the class, an epoch on it and on the retain set, an epoch on the retain set alone."""
    m, original = g.method, frozen(g.model)
    noise = torch.randn(m.noise_size, *g.x.shape[1:], requires_grad=True)
    labels = g.y[g.forget[0]].expand(m.noise_size)
    optimizer = torch.optim.AdamW([noise], lr=m.noise_rate, weight_decay=0.0)
    for _ in range(m.noise_steps):
        optimizer.zero_grad()
        size = noise.square().flatten(1).sum(1).mean()
        (m.penalty * size - F.cross_entropy(original(noise), labels)).backward()
        optimizer.step()
    copies = m.noise_copies
    x = torch.cat([*[noise.detach()] * copies, g.x[g.retain]])
    y = torch.cat([*[labels] * copies, g.y[g.retain]])
    mixed = replace(g, x=x, y=y)
    model = copy.deepcopy(g.model)
    mixed.train(model, mixed.over(mixed.all, m.epochs, m.impair_batch_size), mixed.loss)
    return g.train(model, g.over(g.retain), g.loss)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs[:, 0] - targets).square()


def gaussian_amnesiac(g: Given) -> nn.Module:
    wrong = g.y.clone()
    wrong[g.forget] = g.y.mean() + g.y.std() * torch.randn(len(g.forget))
    model = copy.deepcopy(g.model)
    return g.train(model, g.over(g.all), lambda model, r: squared(model(g.x[r]), wrong[r]).mean())


def blindspot(g: Given) -> nn.Module:
    """A proxy trained on the retain set, which answers every batch; maps of the layers' inputs compared."""
    m, forgets = g.method, torch.zeros(len(g.x)).index_fill_(0, g.forget, 1)

    def error(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).abs()

    def proxy_loss(model: nn.Module, rows: Rows) -> Tensor:
        return error(model(g.x[rows]), g.y[rows]).mean()

    fresh = reborn(g.model).requires_grad_(True)
    proxy = frozen(g.train(fresh, g.over(g.retain, m.proxy_epochs), proxy_loss, m.proxy_optim))
    model = copy.deepcopy(g.model)
    own, others = inputs_of_layers(model), inputs_of_layers(proxy)

    def loss(model: nn.Module, rows: Rows) -> Tensor:
        own.clear()
        others.clear()
        outputs = model(g.x[rows])
        imitated = error(outputs, says(proxy, g.x[rows])[:, 0])
        for mine, theirs in zip(own, others, strict=True):
            imitated = imitated + m.attention_weight * (attention(mine) - attention(theirs)).square().mean(1)
        kept = error(outputs, g.y[rows])
        return torch.where(forgets[rows] > 0, imitated, kept).mean()

    return g.train(model, g.over(g.all), loss)


def inputs_of_layers(model: nn.Module) -> list[Tensor]:
    """A list that the inputs of all layers but the first are added to at each forward pass."""
    found: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for layer in layers[1:]:
        layer.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0]))
    return found


def attention(activations: Tensor) -> Tensor:
    squares = activations.square()
    return F.normalize(squares.mean(1).flatten(1) if squares.ndim > 2 else squares, dim=1)
