"""Methods for regressors: Gaussian amnesiac and blindspot, on digits whose target is their number."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from authors_classifiers_setup import Recorded, Row, apart, borrowed, digits, on_cpu
from torch import Tensor, nn

from expunge.data.arrays import Batch
from expunge.data.split import Split
from expunge.methods.gradient import blindspot
from expunge.methods.gradient.blindspot import Blindspot
from expunge.methods.gradient.gaussian_amnesiac import GaussianAmnesiac
from expunge.tasks.regression import Regression
from expunge.training import features
from expunge.training.optim import AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

SOURCE = ("ayu987/deep-regression-unlearning", "97b097e")
TASK = Regression()
BATCH = 128
"""Ten steps are an epoch."""
YOUNGEST = 2
"""The largest number that is forgotten, as they forget the youngest."""

STEPS = ("training_step", "validation_step", "validation_epoch_end", "epoch_end", "evaluate", "get_lr")


def rows(checkouts: Path) -> list[Row]:
    with on_cpu(), mock.patch.object(torch, "save"):
        return [*gaussian(checkouts), *proxied(checkouts)]


def regressor() -> nn.Sequential:
    """Three convolutions and two linear layers; no bias before BatchNorm, whose gradient is rounding."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)),
    )


class Shown(nn.Module):
    """A regressor that also returns what goes into its inner layers, as their networks do."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own, self.layers = own, features.depths(own, Blindspot().layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for name, layer in self.own.named_children():
            if name in self.layers:
                found.append(x)
            x = layer(x)
        return x, *found


@functools.cache
def split() -> Split:
    images, labels, *_ = digits()
    return Split.from_ids((images, labels.float()), (labels <= YOUNGEST).nonzero().flatten())


@functools.cache
def recipe() -> Recipe:
    training = Training(epochs=10, batch_size=64, optim=AdamW(lr=3e-3, weight_decay=0.0))
    return Recipe(regressor, TASK, training)


@functools.cache
def original() -> nn.Module:
    """The trained network; not to be changed."""
    return recipe().train(split().train(), Session(seed=0))


@functools.cache
def session() -> Session:
    return Session(seed=1, recipe=recipe())


class Passes:
    """A loader that gives one recorded pass after another, as their loops expect the batches."""

    def __init__(self, passes: list[list[Batch]], *, marked: bool = False) -> None:
        self.passes, self.marked = list(passes), marked

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for batch in self.passes.pop(0):
            pair = (batch["inputs"], batch["targets"][:, None])
            forget = torch.isin(batch["ids"], split().forget.ids).float()
            yield (*pair, forget) if self.marked else pair


def held_out() -> list[tuple[Tensor, Tensor]]:
    """What they validate with, in one batch."""
    *_, images, labels = digits()
    return [(images, labels.float()[:, None])]


def cycle(checkouts: Path, file: str, *names: str, loss: Callable[..., Tensor] = F.l1_loss) -> Any:
    """Functions of ``utils.py`` or ``unlearn.py``.

    Args:
        loss: what their ``F.l1_loss`` is.
    """
    functional = SimpleNamespace(l1_loss=loss, normalize=F.normalize)
    common = {"torch": torch, "np": np, "F": functional}
    steps = borrowed(checkouts / SOURCE[0] / "utils.py", *STEPS, **common)
    known = {name: getattr(steps, name) for name in STEPS}
    return borrowed(checkouts / SOURCE[0] / file, *names, **common, **known)


def plateau(*_: object, **__: object) -> SimpleNamespace:
    """Their scheduler, which waits for ten epochs without progress; theirs asks for an argument now gone."""
    return SimpleNamespace(step=lambda _: None)


def half_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * F.mse_loss(outputs, targets)


def gaussian(checkouts: Path) -> Iterator[Row]:
    begin, method = original(), GaussianAmnesiac(batch_size=BATCH)
    with Recorded() as recorded:
        ours = method.unlearn(begin, split(), TASK, session())
    passes = [call for _, call in recorded.calls]
    runs = (
        (
            half_squared,
            f"{len(passes[0])} steps, half the squared error in both, our draws",
            2e-6,
            "Rounding.",
        ),
        (F.l1_loss, "the same with their absolute error", None, "Another loss: ours takes that of the task."),
    )
    for loss, run, within, explanation in runs:
        theirs = Shown(copy.deepcopy(begin))
        _fit(cycle(checkouts, "utils.py", "fit_one_cycle", loss=loss), theirs, Passes(passes), 1, 1e-3)
        yield Row(
            method="gaussian_amnesiac",
            source=SOURCE,
            run=run,
            **apart(ours, theirs.own, begin),
            within=within,
            explanation=explanation,
        )


def _fit(functions: Any, model: nn.Module, loader: Passes, epochs: int, rate: float) -> None:
    with mock.patch.object(torch.optim.lr_scheduler, "ReduceLROnPlateau", plateau):
        functions.fit_one_cycle(epochs, model, loader, held_out(), device="cpu", save_path="", lr=rate)


def proxied(checkouts: Path) -> Iterator[Row]:
    """Rows of blindspot: proxy and unlearning are theirs, from our new weights."""
    begin, method = original(), Blindspot(batch_size=BATCH)
    unlearn = cycle(
        checkouts, "unlearn.py", "attention", "attention_diff", "forget_loss", "fit_one_forget_cycle"
    )

    def flat(activations: Tensor) -> Tensor:
        maps: Tensor = unlearn.attention(activations.movedim(-1, 1))
        return maps

    with Recorded() as recorded, mock.patch.object(blindspot, "attention", flat):
        same = method.unlearn(begin, split(), TASK, session())
    *before, last = [call for _, call in recorded.calls]
    proxy = Shown(recipe().initial(session().child("proxy")))
    fit = cycle(checkouts, "utils.py", "fit_one_cycle")
    _fit(fit, proxy, Passes(before), method.proxy_epochs, method.proxy_optim.lr)
    theirs = Shown(copy.deepcopy(begin))
    with mock.patch.object(torch.optim.lr_scheduler, "ReduceLROnPlateau", plateau):
        loader = Passes([last], marked=True)
        unlearn.fit_one_forget_cycle(1, theirs, proxy, loader, held_out(), method.optim.lr, "cpu", "")
    yield Row(
        method="blindspot",
        source=SOURCE,
        run=f"proxy, then {len(last)} steps, map of flat layers set to theirs",
        **apart(same, theirs.own, begin),
        within=5e-6,
        explanation="Rounding.",
    )
    yield Row(
        method="blindspot",
        source=SOURCE,
        run="the same with our default",
        **apart(method.unlearn(begin, split(), TASK, session()), theirs.own, begin),
        within=None,
        explanation="Our attention map of a layer without positions keeps its units; theirs is one number, "
        "always 1, and the term vanishes.",
    )
