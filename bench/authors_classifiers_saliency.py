"""SalUn, its mask and the baselines of its repository: the CIFAR-10 branch of their image classification.

The loops of Unlearn-Saliency and Unlearn-Sparse are built alike, so that what runs them here serves both.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from authors_classifiers_setup import (
    TASK,
    Recorded,
    Row,
    accuracies,
    apart,
    borrowed,
    cnn,
    digits,
    flat,
    forgotten,
    meters,
    on_cpu,
    original,
    recipe,
    split,
)
from torch import Tensor, nn

from expunge.methods.base import Method
from expunge.methods.exact.retrain import Retrain
from expunge.methods.gradient.finetune import Finetune
from expunge.methods.gradient.grad_ascent import GradAscent
from expunge.methods.gradient.random_labels import RandomLabels
from expunge.methods.gradient.salun import SalUn
from expunge.methods.modifiers.saliency_mask import SaliencyMask
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

FIXED = ("OPTML-Group/Unlearn-Saliency", "a6e89fd")
BEFORE = ("OPTML-Group/Unlearn-Saliency", "47377e3")
DATA = "small CNN with BatchNorm, digits, 10 % random forget set"
HELPERS = ("_apply_mask_to_grads", "_restore_masked_params")
EPOCHS, RATE, DECAY, SIZE = 5, 0.05, 5e-4, 64

Masks = dict[float, dict[str, Tensor]]


def agreeing(ours: nn.Module, theirs: nn.Module, start: nn.Module, within: float = 1e-6) -> dict[str, Any]:
    """What a row says where nothing but rounding may differ: ``apart``, its bound and an explanation.

    Raises:
        SystemExit: buffers differ by more than rounding.
    """
    found = apart(ours, theirs, start)
    gaps = [float((a - b).abs().max()) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True)]
    if max(gaps, default=0.0) > 10 * within:
        raise SystemExit(f"Buffers differ by {max(gaps)}.")
    same = "Identical, buffers too." if gaps else "Identical."
    exact = found["difference"] == max(gaps, default=0.0) == 0
    return {**found, "within": within, "explanation": same if exact else "Rounding."}


def settings(**changes: Any) -> SimpleNamespace:
    """Their command line."""
    usual = {
        "dataset": "cifar10",
        "num_classes": 10,
        "imagenet_arch": False,
        "arch": "resnet18",
        "unlearn": "",
        "unlearn_epochs": EPOCHS,
        "unlearn_lr": RATE,
        "momentum": 0.9,
        "weight_decay": DECAY,
        "decreasing_lr": "91,136",
        "rewind_epoch": 0,
        "warmup": 0,
        "no_l1_epochs": 0,
        "alpha": 0.0,
        "print_freq": 10**9,
        "save_dir": "",
    }
    return SimpleNamespace(**usual | changes)


def unlearner(folder: Path, file: str, name: str, *helpers: str, **namespace: Any) -> Callable[..., None]:
    """A function of their ``unlearn`` folder, inside the loop over epochs that decorates it."""
    loop = borrowed(
        folder / "impl.py", "_iterative_unlearn_impl", "iterative_unlearn", torch=torch, time=time, np=np
    )
    found = borrowed(
        folder / file,
        name,
        *helpers,
        iterative_unlearn=loop.iterative_unlearn,
        utils=SimpleNamespace(**meters()),
        deepcopy=copy.deepcopy,
        torch=torch,
        time=time,
        np=np,
        **namespace,
    )
    return getattr(found, name)  # type: ignore[no-any-return]


def both(
    method: Method, theirs: Callable[..., None], *mask: dict[str, Tensor], **changes: Any
) -> tuple[nn.Module, nn.Module]:
    """Our model and theirs, from the same weights, batches and drawn labels.

    Args:
        changes: to their command line.
    """
    model = copy.deepcopy(original())
    with Recorded() as recorded:
        ours = method.unlearn(original(), split(), TASK, Session(seed=1, recipe=recipe()))
    loaders = {part: recorded.loader(part) for part in ("forget", "retain")}
    with on_cpu(), mock.patch.object(torch, "randint", side_effect=recorded.labels):
        theirs(loaders, model, nn.CrossEntropyLoss(), settings(**changes), *mask)
    return ours, model


def _masks(folder: Path) -> Masks:
    """Their masks, by the fraction that may move."""
    images, labels, *_ = digits()
    chosen = forgotten()
    batches = list(zip(images[chosen].split(SIZE), labels[chosen].split(SIZE), strict=True))
    made = borrowed(folder / "generate_mask.py", "save_gradient_ratio", torch=torch, os=os)
    saved: Masks = {}

    def keep(mask: dict[str, Tensor], name: str) -> None:
        saved[float(name.removeprefix("with_").removesuffix(".pt"))] = mask

    with on_cpu(), mock.patch.object(torch, "save", keep):
        made.save_gradient_ratio(
            {"forget": batches}, copy.deepcopy(original()), nn.CrossEntropyLoss(), settings()
        )
    return saved


def _masks_apart(theirs: Masks) -> str:
    """Compares masks of three fractions.

    Raises:
        SystemExit: one of ours is not theirs with a weight more where the fraction is rounded.
    """
    same, more = [], []
    size = sum(value.numel() for value in theirs[0.5].values())
    for keep in (0.1, 0.5, 0.7):
        state = SaliencyMask(keep=keep, batch_size=SIZE).prepare(original(), split(), TASK, Session(seed=1))
        ours = torch.cat([state.movable[name].flatten() for name in theirs[keep]])
        mask = torch.cat([value.flatten() for value in theirs[keep].values()]).bool()
        extra = round(keep * size) - int(keep * size)
        if int((ours & ~mask).sum()) != extra or (mask & ~ours).any():
            raise SystemExit(f"saliency_mask, keep {keep}: the masks are not alike.")
        if extra:
            more.append(
                f"of {keep} ours has {extra} weight more of {size:,}, as they cut {keep * size:.1f} off "
                "and ours rounds it"
            )
        else:
            same.append(str(keep))
    return f"Masks of {' and '.join(same)} are the same; {', '.join(more)}."


def _salun() -> SalUn:
    return SalUn(
        epochs=EPOCHS,
        batch_size=SIZE,
        optim=SGD(lr=RATE, weight_decay=DECAY),
        modifiers=(SaliencyMask(batch_size=SIZE),),
    )


def _saliency(folder: Path, masks: Masks) -> Row:
    theirs = unlearner(folder / "unlearn", "RL.py", "RL", *HELPERS)
    found = agreeing(*both(_salun(), theirs, masks[0.5]), original())
    found["explanation"] += " " + _masks_apart(masks)
    return Row(
        method="salun",
        source=FIXED,
        run=f"mask generation (keep 0.5) and RL, CIFAR-10 branch, {EPOCHS} epochs, rate {RATE}; {DATA}, our "
        "batches and labels",
        **found,
    )


def _unfixed(folder: Path, masks: Masks) -> Row:
    """The released code until 2026-02-28, which restored no weight."""
    ours, theirs = both(_salun(), unlearner(folder / "unlearn", "RL.py", "RL"), masks[0.5])
    inside = torch.cat([value.flatten() for value in masks[0.5].values()]).bool()
    moved = flat(theirs) - flat(original())
    outside = moved[~inside]
    shares = []
    for model in (theirs, ours):
        found = accuracies(model)
        values = (1 - found["forget"], found["retain"], found["test"])
        shares.append(" / ".join(f"{100 * value:.1f}" for value in values))
    return Row(
        method="salun",
        source=BEFORE,
        run="the same with the code that published figures were made with (before the fix of 2026-02-28)",
        **apart(ours, theirs, original()),
        within=None,
        explanation=f"Their mask zeroed the gradient alone: weight decay moved {int((outside != 0).sum())} "
        f"of the {len(outside)} weights outside the mask, by {outside.norm():.3g} in norm where those inside "
        f"moved by {moved[inside].norm():.3g}. Unlearning, retain and test accuracy: theirs {shares[0]} %, "
        f"ours {shares[1]} %.",
    )


def _plain(folder: Path) -> list[Row]:
    """Random labels, gradient ascent and fine-tuning, without a mask."""
    optim = SGD(lr=RATE, weight_decay=DECAY)
    slow = SGD(lr=1e-3, weight_decay=DECAY)
    usual = f"{EPOCHS} epochs, rate {RATE}; {DATA}"
    cases: tuple[tuple[Method, str, dict[str, Any], str], ...] = (
        (
            RandomLabels(epochs=EPOCHS, batch_size=SIZE, optim=optim),
            "RL",
            {},
            f"RL without a mask, {usual}, our batches and labels",
        ),
        (
            GradAscent(epochs=3, batch_size=SIZE, optim=slow),
            "GA",
            {"unlearn_lr": slow.lr, "unlearn_epochs": 3},
            f"GA, 3 epochs, rate 1e-3; {DATA}, our batches",
        ),
        (
            Finetune(epochs=EPOCHS, batch_size=SIZE, optim=optim),
            "FT",
            {},
            f"FT, {usual}, our batches",
        ),
    )
    rows = []
    for method, name, changes, run in cases:
        helpers = (*HELPERS, "FT_iter") if name == "FT" else HELPERS
        theirs = unlearner(folder / "unlearn", f"{name}.py", name, *helpers)
        found = agreeing(*both(method, theirs, **changes), original())
        label = {"RL": "random_labels", "GA": "grad_ascent", "FT": "finetune"}[name]
        rows.append(Row(method=label, source=FIXED, run=run, **found))
    return rows


def _retrain(folder: Path) -> Row:
    epochs, rate = 10, 0.1
    training = Training(epochs=epochs, batch_size=SIZE, optim=SGD(lr=rate, weight_decay=DECAY))
    session = Session(seed=1, recipe=Recipe(cnn, TASK, training))
    assert session.recipe is not None
    start = session.recipe.initial(session.child("retrain"))
    with Recorded() as recorded:
        ours = Retrain().unlearn(start, split(), TASK, session)
    theirs, batches = copy.deepcopy(start), recorded.loader("retain")
    utils = SimpleNamespace(**meters())
    code = borrowed(
        folder / "trainer" / "train.py",
        "train",
        "get_optimizer_and_scheduler",
        torch=torch,
        time=time,
        utils=utils,
    )
    arguments = settings(lr=rate)
    optimiser, scheduler = code.get_optimizer_and_scheduler(theirs, arguments)
    with on_cpu():
        for epoch in range(epochs):
            code.train(batches, theirs, nn.CrossEntropyLoss(), optimiser, epoch, arguments)
            scheduler.step()
    return Row(
        method="retrain",
        source=FIXED,
        run=f"train, {epochs} epochs, rate {rate}, our initial weights and batches, small CNN with "
        "BatchNorm, digits",
        **agreeing(ours, theirs, start),
    )


def rows(checkouts: Path) -> list[Row]:
    """SalUn with and without their fix, and the baselines of its code."""
    folder = checkouts / FIXED[0] / "Classification"
    before = checkouts / "@".join(BEFORE) / "Classification"
    masks = _masks(folder)
    return [_saliency(folder, masks), _unfixed(before, masks), *_plain(folder), _retrain(folder)]
