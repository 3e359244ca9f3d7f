"""UNSIR, bad teaching and amnesiac fine-tuning, all as the code of selective synaptic dampening has them."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from authors_classifiers_setup import TASK, Recorded, Row, apart, borrowed, digits, on_cpu, original, split
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, default_collate

from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.methods.gradient.amnesiac import Amnesiac
from expunge.methods.gradient.bad_teacher import BadTeacher
from expunge.methods.gradient.unsir import Unsir
from expunge.training.fresh import fresh
from expunge.training.optim import SGD, AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

SOURCE = ("if-loops/selective-synaptic-dampening", "cdfdc0e")
SESSION = Session(seed=1)
CLASS, CHANNELS = 3, 3
NOISES, COPIES, STEPS, SIZE = 32, 8, 25, 32
"""Of UNSIR: noise images, how often ours uses each, steps that make them, examples in an impair step."""
CYCLE = (
    "training_step",
    "validation_step",
    "validation_epoch_end",
    "epoch_end",
    "evaluate",
    "get_lr",
    "accuracy",
)
UNREAD = ("unlearning_teacher", "forget_valid_dl", "valid_dl")

Orders = list[list[Tensor]]
"""Passes over a data set of theirs: the places that each batch takes."""


def rows(checkouts: Path) -> list[Row]:
    with on_cpu(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [*unsir(checkouts), *taught(checkouts), amnesiac(checkouts)]


class Ordered:
    """A loader of their data set that takes the next of the given passes each time it is gone through."""

    def __init__(self, data: Any, orders: Orders) -> None:
        self.dataset, self.orders = data, orders

    def __iter__(self) -> Iterator[Any]:
        for places in self.orders.pop(0):
            yield default_collate([self.dataset[int(place)] for place in places])


@contextlib.contextmanager
def loaders(orders: Orders | None) -> Iterator[None]:
    """Their shuffled loaders give these passes; None leaves them to shuffle."""

    def loader(data: Any, batch_size: int = 1, shuffle: bool = False, **_: Any) -> Any:
        if shuffle and orders is not None:
            return Ordered(data, orders)
        return plain(data, batch_size=batch_size, shuffle=shuffle)

    plain = DataLoader
    with mock.patch.object(torch.utils.data, "DataLoader", loader):
        yield


def theirs(checkouts: Path, file: str, *names: str, **namespace: Any) -> Any:
    """Functions of one of their files, with what all of them use."""
    common = {
        "torch": torch,
        "nn": nn,
        "F": F,
        "np": np,
        "deepcopy": copy.deepcopy,
        "ConcatDataset": ConcatDataset,
        "DataLoader": lambda *given, **named: torch.utils.data.DataLoader(*given, **named),
        "get_metric_scores": lambda *_: None,
    }
    return borrowed(checkouts / SOURCE[0] / "src" / file, *names, **{**common, **namespace})


def cycle(checkouts: Path, *names: str, **named: Any) -> Any:
    """Functions of ``unlearn.py``, and the loop that they and the strategies train with."""
    steps = vars(theirs(checkouts, "utils.py", *CYCLE))
    known = {name: steps[name] for name in CYCLE}
    return theirs(checkouts, "unlearn.py", "fit_one_unlearning_cycle", *names, **known, **named)


def places(ids: Tensor, recorded: Recorded, passes: slice = slice(None)) -> Orders:
    """Where the examples of our batches lie in a list of theirs that has these ids."""
    where = {int(one): place for place, one in enumerate(ids)}
    return [
        [torch.tensor([where[int(one)] for one in batch["ids"]]) for batch in call]
        for _, call in recorded.calls[passes]
    ]


def triples(data: Data) -> list[tuple[Tensor, int, int]]:
    labels = data.column("targets").tolist()
    return list(zip(data.column("inputs"), labels, labels, strict=True))


def held(data: Any) -> SimpleNamespace:
    """A loader of which only the data set is asked for."""
    return SimpleNamespace(dataset=data)


def three_channels() -> nn.Sequential:
    """A CNN for images of three channels, on which their loop over channels depends."""
    return nn.Sequential(
        *(nn.Conv2d(CHANNELS, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)),
    )


@functools.cache
def threes() -> Split:
    """The digits in three equal channels, all threes to forget."""
    images, labels, *_ = digits()
    chosen = (labels == CLASS).nonzero().flatten()
    return Split.from_ids((images.repeat(1, CHANNELS, 1, 1), labels), chosen)


@functools.cache
def start() -> nn.Module:
    """The network that UNSIR starts from; not to be changed."""
    training = Training(epochs=10, batch_size=64, optim=AdamW(lr=3e-3))
    return Recipe(three_channels, TASK, training).train(threes().train(), Session(seed=0))


def unsir(checkouts: Path) -> Iterator[Row]:
    method = Unsir(noise_size=NOISES, noise_copies=COPIES, noise_steps=STEPS, impair_batch_size=SIZE)
    noise, _ = method.noise(start(), threes(), TASK, SESSION)
    with Recorded() as recorded:
        ours = method.unlearn(start(), threes(), TASK, SESSION)
    orders = impaired(method, recorded)
    made, clean = repaired(checkouts, released=False, orders=orders)
    yield Row(
        method="unsir",
        source=SOURCE,
        run=f"noise, {STEPS} steps",
        measure="largest difference of a noise value",
        difference=float((made - noise).abs().max()),
        relative=float((made - noise).norm() / noise.norm()),
        within=1e-5,
        explanation="Identical." if torch.equal(made, noise) else "Rounding.",
    )
    yield Row(
        method="unsir",
        source=SOURCE,
        run="impair and repair, our batches; their two slips removed: all noise images in 8 copies, and the "
        "gradients cleared that making them leaves in the weights",
        **apart(ours, clean, start()),
        within=1e-6,
        explanation="Rounding.",
    )
    _, shuffled = repaired(checkouts, released=False)
    _, released = repaired(checkouts, released=True)
    order = apart(ours, shuffled, start())
    yield Row(
        method="unsir",
        source=SOURCE,
        run="as released",
        **apart(ours, released, start()),
        within=None,
        explanation="A loop goes over the channels of the noise instead of its images, so that only "
        f"{CHANNELS} noise images are ever used; and gradients left over from making the noise enter the "
        f"first impair step. Without these slips their own order of batches makes {order['difference']:.2g} "
        f"({order['relative']:.2g} of what is changed).",
    )


def impaired(method: Unsir, recorded: Recorded) -> Orders:
    """Our impair and repair passes, as places in their lists: noise first, then the samples by class."""
    sample = method.sample(threes().retain, TASK, SESSION)
    by_class = torch.argsort(sample.column("targets"), stable=True)
    noise, place = NOISES * COPIES, torch.empty_like(by_class)
    place[by_class] = torch.arange(len(by_class))
    whole = torch.cat([torch.arange(noise), noise + place])
    _, impair = recorded.calls[-2]
    mixed = [whole[batch["ids"]] for batch in impair]
    return [mixed, *places(sample.ids[by_class], recorded, slice(len(recorded.calls) - 1, None))]


def repaired(checkouts: Path, *, released: bool, orders: Orders | None = None) -> tuple[Tensor, nn.Module]:
    """The noise and the network that their ``UNSIR`` makes, from the first draws of our noise.

    Args:
        released: with their slips; else these are removed.
        orders: the passes, if not their own.
    """
    made: list[Tensor] = []
    strategy = impairing(checkouts, made, released=released)
    model, data = copy.deepcopy(start()), threes()
    parts = {"retain_train_dl": data.retain, "retain_valid_dl": data.retain, "forget_train_dl": data.forget}
    torch.manual_seed(0)
    with loaders(orders):
        strategy.UNSIR(
            model,
            **{name: held(triples(part)) for name, part in parts.items()},
            **dict.fromkeys(UNREAD),
            num_classes=10,
            forget_class=CLASS,
            device="cpu",
        )
    return made[0], model


def impairing(checkouts: Path, made: list[Tensor], *, released: bool) -> Any:
    """Their strategy; the noise that it makes is put into ``made``."""

    def all_images(source: str) -> str:
        return source.replace("batch[0].size(0)", "batch.size(0)").replace("=80", f"={COPIES}")

    unlearn = cycle(
        checkouts,
        *("UNSIR_noise", "UNSIR_noise_train", "UNSIR_create_noisy_loader"),
        edit=None if released else all_images,
    )

    def first(*_: int) -> Any:
        noise = unlearn.UNSIR_noise(NOISES, CHANNELS, 8, 8)
        noise.noise.data = torch.randn(noise.noise.shape, generator=SESSION.generator("noise"))
        return noise

    def train(noise: Any, model: nn.Module, *given: Any, **named: Any) -> Any:
        found = unlearn.UNSIR_noise_train(noise, model, *given, **named)
        made.append(found().detach().clone())
        if not released:
            model.zero_grad()
        return found

    return theirs(
        checkouts,
        "forget_full_class_strategies.py",
        *("UNSIR", "get_classwise_ds"),
        UNSIR_noise=first,
        UNSIR_noise_train=train,
        UNSIR_create_noisy_loader=unlearn.UNSIR_create_noisy_loader,
        fit_one_unlearning_cycle=unlearn.fit_one_unlearning_cycle,
    )


def taught(checkouts: Path) -> Iterator[Row]:
    rate = 0.05

    def descent(weights: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=rate * TASK.classes, momentum=0.9)

    once = BadTeacher(batch_size=1000, optim=SGD(lr=rate))
    yield Row(
        method="bad_teacher",
        source=SOURCE,
        run="SGD, one step, our rate × number of classes in theirs",
        **apart(*misled(checkouts, once, descent), original(bias=False)),
        within=1e-6,
        explanation="Rounding. Their divergence is averaged over classes too, so that its gradient is "
        "smaller by their number.",
    )

    def adam(weights: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(weights, lr=1e-4)

    often = BadTeacher(batch_size=45)
    yield Row(
        method="bad_teacher",
        source=SOURCE,
        run="Adam, 10 steps",
        **apart(*misled(checkouts, often, adam), original(bias=False)),
        within=5e-6,
        explanation="Rounding, and Adam's ε against a gradient divided by the number of classes.",
    )


def misled(
    checkouts: Path, method: BadTeacher, optimizer: Callable[[Any], torch.optim.Optimizer]
) -> tuple[nn.Module, nn.Module]:
    """Our network and theirs, of the same untrained teacher and batches."""
    begin = original(bias=False)
    with Recorded() as recorded:
        ours = method.unlearn(begin, split(), TASK, SESSION)
    seen = torch.cat([batch["ids"] for batch in recorded.calls[0][1]]).sort().values
    kept = seen[~torch.isin(seen, split().forget.ids)]
    mixing = theirs(checkouts, "datasets.py", "UnLearningData", Dataset=Dataset)
    names = ("UnlearnerLoss", "unlearning_step", "blindspot_unlearner")
    unlearn = cycle(checkouts, *names, UnLearningData=mixing.UnLearningData)
    student = copy.deepcopy(begin).train()
    with loaders(places(torch.cat([split().forget.ids, kept]), recorded)):
        unlearn.blindspot_unlearner(
            model=student,
            unlearning_teacher=fresh(begin, SESSION.child("bad_teacher")),
            full_trained_teacher=copy.deepcopy(begin),
            retain_data=triples(split().retain.subset(kept)),
            forget_data=triples(split().forget),
            epochs=method.epochs,
            optimizer=optimizer(student.parameters()),
            device="cpu",
        )
    return ours, student


def amnesiac(checkouts: Path) -> Row:
    method, begin = Amnesiac(), original(bias=False)
    with Recorded() as recorded:
        ours = method.unlearn(begin, split(), TASK, SESSION)
    batches = recorded.calls[0][1]
    ids, labels = (torch.cat([batch[name] for batch in batches]) for name in ("ids", "targets"))
    known = dict(zip(ids.tolist(), labels.tolist(), strict=True))
    drawn = iter([known[one] for one in split().forget.ids.tolist()])
    strategy = theirs(
        checkouts,
        "forget_random_strategies.py",
        "amnesiac",
        random=SimpleNamespace(choice=lambda _: next(drawn)),
        fit_one_unlearning_cycle=cycle(checkouts).fit_one_unlearning_cycle,
    )
    model, order = copy.deepcopy(begin), torch.cat([split().forget.ids, split().retain.ids])
    parts = {"retain_train_dl": split().retain, "forget_train_dl": split().forget}
    with loaders(places(order, recorded)):
        strategy.amnesiac(
            model,
            **{name: held(triples(part)) for name, part in parts.items()},
            **dict.fromkeys(UNREAD),
            retain_valid_dl=DataLoader(triples(split().retain), 256),  # type: ignore[arg-type]
            num_classes=TASK.classes,
            device="cpu",
        )
    return Row(
        method="amnesiac",
        source=SOURCE,
        run="as released, 3 epochs of Adam, our batches and wrong labels",
        **apart(ours, model, begin),
        within=1e-6,
        explanation="Rounding.",
    )
