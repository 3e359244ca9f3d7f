"""SCRUB and NegGrad+ of SCRUB's repository, and negative preference optimisation."""

from __future__ import annotations

import copy
import functools
import itertools
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from authors_classifiers_saliency import DATA, agreeing
from authors_classifiers_setup import (
    TASK,
    Recorded,
    Replay,
    Row,
    apart,
    borrowed,
    cnn,
    digits,
    forgotten,
    meters,
    on_cpu,
    original,
    recipe,
    split,
)
from torch import Tensor, nn

from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.gradient.npo import NPO
from expunge.methods.gradient.scrub import Scrub
from expunge.tasks import divergences
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe
from expunge.training.session import Session

SOURCE = ("meghdadk/SCRUB", "98ffb11")
PREFERENCE = ("licong-lin/negative-preference-optimization", "1207bbe")
DECAY = 5e-4
SIZE, FORGET_SIZE = 128, 32
LARGE = {"epochs": 3, "max_epochs": 2, "alpha": 0.001, "gamma": 0.99, "temperature": 4.0}
STRONG = {"epochs": 5, "max_epochs": 2, "alpha": 0.5, "gamma": 1.0, "temperature": 2.0}
RATES = (5e-4, 5e-3)


def passes(checkouts: Path) -> SimpleNamespace:
    """Their passes over the data, divergence and schedule."""
    folder = checkouts / SOURCE[0] / "thirdparty" / "repdistiller"

    def accuracy(outputs: Tensor, labels: Tensor, topk: tuple[int, ...]) -> list[Tensor]:
        return [torch.zeros(1)] * len(topk)

    shown = meters() | {"accuracy": accuracy}
    names = ("train_distill", "train_negrad", "train_vanilla")
    modules: dict[str, Any] = {"torch": torch, "sys": sys, "time": time, "cycle": itertools.cycle}
    loops = borrowed(folder / "helper" / "loops.py", *names, **modules, **shown)
    return SimpleNamespace(
        distill=loops.train_distill,
        negrad=loops.train_negrad,
        vanilla=loops.train_vanilla,
        divergence=borrowed(folder / "distiller_zoo" / "KD.py", "DistillKL", nn=nn, F=F).DistillKL,
        schedule=borrowed(folder / "helper" / "util.py", "adjust_learning_rate", np=np).adjust_learning_rate,
    )


@functools.cache
def _smooth(*, norm: bool) -> nn.Module:
    """The network with GELU in place of ReLU, trained as the other."""

    def built() -> nn.Module:
        layers = (nn.GELU() if isinstance(layer, nn.ReLU) else layer for layer in cnn(norm=norm))
        return nn.Sequential(*layers)

    made = Recipe(built, TASK, recipe().training)
    return made.train(split().train(), Session(seed=0))


def _scrubbed(
    loops: SimpleNamespace, start: nn.Module, how: dict[str, Any], rate: float, *, schedule: str = ""
) -> tuple[nn.Module, nn.Module]:
    """Our SCRUB and theirs.

    Args:
        schedule: ``theirs`` for that of their notebooks there, ``both`` for the like of it here too.
    """
    optim = SGD(lr=rate, weight_decay=DECAY)
    if schedule == "both":
        retain, forget = -(-len(split().retain) // SIZE), -(-len(split().forget) // FORGET_SIZE)
        before = 3 * retain + how["max_epochs"] * forget
        milestones = (before / (before + (how["epochs"] - 3) * retain),)
        optim = SGD(lr=rate, weight_decay=DECAY, schedule="multistep", milestones=milestones)
    method = Scrub(**how, batch_size=SIZE, forget_batch_size=FORGET_SIZE, optim=optim)
    with Recorded() as recorded:
        ours = method.unlearn(start, split(), TASK, Session(seed=1))
    student, teacher = copy.deepcopy(start), copy.deepcopy(start)
    arguments = SimpleNamespace(
        distill="kd",
        gamma=how["gamma"],
        alpha=how["alpha"],
        beta=0,
        print_freq=10**9,
        lr_decay_epochs=[3, 5, 9],
        lr_decay_rate=0.1,
        sgda_learning_rate=rate,
    )
    optimiser = torch.optim.SGD(student.parameters(), rate, momentum=0.9, weight_decay=DECAY)
    divergence = loops.divergence(how["temperature"])
    criteria = nn.ModuleList([nn.CrossEntropyLoss(), divergence, divergence])
    parts = {"maximize": recorded.loader("forget"), "minimize": recorded.loader("retain")}
    with on_cpu():
        for epoch in range(1, how["epochs"] + 1):
            if schedule:
                loops.schedule(epoch, arguments, optimiser)
            for name, batches in parts.items():
                if name == "minimize" or epoch <= how["max_epochs"]:
                    modules = nn.ModuleList([student, teacher])
                    loops.distill(epoch, batches, modules, None, criteria, optimiser, arguments, name)
    return ours, student


def _scrub(loops: SimpleNamespace) -> list[Row]:
    """Four runs; all but the first without a ReLU, at whose bend rounding can grow."""
    scrubbed = functools.partial(_scrubbed, loops)
    smooth, plain = _smooth(norm=True), _smooth(norm=False)
    bent = apart(*scrubbed(original(norm=True), STRONG, RATES[1]), original(norm=True))["difference"]
    strong = agreeing(*scrubbed(smooth, STRONG, RATES[1]), smooth, within=2e-6)
    if bent > strong["within"]:
        strong["explanation"] += (
            f" With ReLU {bent:.1e}: rounding takes an input of one across zero, and the difference grows."
        )
    scheduled = apart(*scrubbed(smooth, STRONG, RATES[1], schedule="both"), smooth)["difference"]
    with mock.patch.object(divergences, "_positive", lambda value: value.clamp_min(0.0)):
        clamped = apart(*scrubbed(plain, STRONG, RATES[1]), plain)["difference"]
    bare = agreeing(*scrubbed(plain, STRONG, RATES[1]), plain, within=2e-6)
    bare["explanation"] += (
        " The comparison found that a divergence which rounding made negative was set to 0 here together "
        f"with its gradient (with that put back: {clamped:.1e}); the gradient is kept now."
    )
    row = functools.partial(Row, method="scrub", source=SOURCE)
    return [
        row(
            run="train_distill, large-scale setting (3 epochs, 2 of them with a forget pass, α 0.001, "
            f"γ 0.99, T 4, rate 5e-4, forget batches of {FORGET_SIZE}); {DATA}, our batches",
            **agreeing(*scrubbed(original(norm=True), LARGE, RATES[0]), original(norm=True)),
        ),
        row(run="the same code, 5 epochs, α 0.5, γ 1, T 2, rate 5e-3; GELU in place of ReLU", **strong),
        row(
            run="the same with the schedule of their notebooks: rate × 0.1 after epochs 3, 5 and 9",
            **apart(*scrubbed(smooth, STRONG, RATES[1], schedule="theirs"), smooth),
            within=None,
            explanation="Ours has a constant rate by default; their large-scale setting ends with epoch 3, "
            f"before the schedule begins. With a multistep schedule here: {scheduled:.1e}.",
        ),
        row(run="the second run, CNN without BatchNorm", **bare),
    ]


def _contrasted(loops: SimpleNamespace, norm: bool, batches: str = "ours") -> tuple[nn.Module, nn.Module]:
    """Our NegGrad+ and theirs.

    Args:
        batches: ``theirs`` for their own loader of the forget set.
    """
    epochs, size, rate, weight = 5, 64, 0.01, 0.95
    start = original(norm=norm)
    method = GradDiff(
        epochs=epochs, batch_size=size, optim=SGD(lr=rate, weight_decay=DECAY), retain_weight=weight
    )
    with Recorded() as recorded:
        ours = method.unlearn(start, split(), TASK, Session(seed=1))
    theirs, retain = copy.deepcopy(start), recorded.loader("retain")
    stream = [batch for part, call in recorded.calls if part == "forget" for batch in call]
    steps = len(retain)
    forget: Any = Replay([stream[epoch * steps : (epoch + 1) * steps] for epoch in range(epochs)])
    if batches == "theirs":
        images, labels, *_ = digits()
        data = torch.utils.data.TensorDataset(images[forgotten()], labels[forgotten()])
        order = torch.Generator().manual_seed(0)
        forget = torch.utils.data.DataLoader(data, size, shuffle=True, generator=order)
    optimiser = torch.optim.SGD(theirs.parameters(), rate, momentum=0.9, weight_decay=DECAY)
    criterion, arguments = nn.CrossEntropyLoss(), SimpleNamespace(print_freq=10**9)
    with on_cpu():
        for epoch in range(epochs):
            loops.negrad(epoch, retain, forget, theirs, criterion, optimiser, weight, arguments, quiet=True)
    return ours, theirs


def _grad_diff(loops: SimpleNamespace) -> Row:
    start, plain = original(norm=True), original(norm=False)
    found = agreeing(*_contrasted(loops, True), start)
    without = agreeing(*_contrasted(loops, False), plain)
    if found["difference"] == without["difference"] == 0:
        found["explanation"] = found["explanation"][:-1] + ", also without BatchNorm."
    own = apart(*_contrasted(loops, True, "theirs"), start)
    found["explanation"] += (
        f" With their own loader of the forget set the difference is {own['difference']:.1e} (relative "
        f"{own['relative']:.2g}): it draws other batches, and within an epoch repeats the same ones."
    )
    return Row(
        method="grad_diff",
        source=SOURCE,
        run=f"train_negrad (NegGrad+), 5 epochs, rate 0.01, weight 0.95; {DATA}, our batches",
        **found,
    )


class _Answers(nn.Module):
    """The classifier as a language model that answers with one token, a class, after a prompt of one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, labels: Tensor, attention_mask: None) -> SimpleNamespace:
        logits = self.model(inputs)
        loss = F.cross_entropy(logits, labels[:, 1])
        return SimpleNamespace(logits=torch.stack([logits, logits], 1), loss=loss)


def _preferred(compute_loss: Any, name: str, beta: float, rate: float) -> dict[str, Any]:
    """How far our run and theirs are apart with one of their losses."""
    method = NPO(
        epochs=5,
        batch_size=64,
        beta=beta,
        retain_weight=1.0 if name == "npo_grad_diff" else 0.0,
        optim=SGD(lr=rate),
    )
    start = original(norm=True)
    with Recorded() as recorded:
        ours = method.unlearn(start, split(), TASK, Session(seed=1))
    forget, retain = (
        [batch for part, call in recorded.calls if part == wanted for batch in call]
        for wanted in ("forget", "retain")
    )
    theirs, reference = (_Answers(copy.deepcopy(start)).eval() for _ in range(2))
    trainer = SimpleNamespace(
        loss_type=name,
        beta=beta,
        ref_policy="fine_tuned",
        oracle_model=reference,
        npo_coeff=1.0,
        grad_diff_coeff=1.0,
    )
    optimiser = torch.optim.SGD(theirs.parameters(), rate, momentum=0.9)
    for pair in zip(forget, retain or forget, strict=False):
        inputs = [
            (batch["inputs"], torch.stack([batch["targets"], batch["targets"]], 1), None) for batch in pair
        ]
        loss = compute_loss(trainer, theirs, inputs)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return agreeing(ours, theirs.model, start, within=1e-5)


def _npo(checkouts: Path) -> Row:
    folder = checkouts / PREFERENCE[0] / "TOFU"
    likelihood = borrowed(folder / "data_module.py", "get_batch_loss", nn=nn)
    code = borrowed(
        folder / "dataloader.py",
        "CustomTrainerForgetting",
        Trainer=object,
        torch=torch,
        nn=nn,
        F=F,
        get_batch_loss=likelihood.get_batch_loss,
    )
    cases = (("npo_grad_diff", 0.1, 0.01), ("npo", 0.1, 1e-3), ("npo_grad_diff", 2.0, 0.01))
    found = [_preferred(code.CustomTrainerForgetting.compute_loss, *case) for case in cases]
    worst = max(found, key=lambda case: case["difference"])
    worst["explanation"] = worst["explanation"].rstrip(".") + "; the largest of three runs."
    return Row(
        method="npo",
        source=PREFERENCE,
        run="compute_loss of their trainer for npo and npo_grad_diff, β 0.1 and 2, 10 steps of SGD, "
        "evaluation mode; small CNN on digits, a label as an answer of one token",
        **worst,
    )


def rows(checkouts: Path) -> list[Row]:
    """SCRUB four times, NegGrad+ and NPO."""
    loops = passes(checkouts)
    return [*_scrub(loops), _grad_diff(loops), _npo(checkouts)]
