"""Methods for whole classes: boundary shrinking and expanding, and label-agnostic forgetting."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from authors_classifiers_setup import TASK, Row, apart, borrowed, digits, on_cpu
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from expunge.data.split import Split
from expunge.methods.gradient import boundary_expand
from expunge.methods.gradient.boundary_expand import BoundaryExpand
from expunge.methods.gradient.boundary_shrink import BoundaryShrink
from expunge.methods.gradient.laf import LAF, Representations
from expunge.training import features
from expunge.training.engine import Engine
from expunge.training.optim import SGD, AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

BOUNDARY = ("TY-LEE-KR/Boundary-Unlearning-Code", "19f9f23")
AGNOSTIC = ("ShaofeiShen768/LAF", "bda3694")
CLASS = 3
SESSION = Session(seed=1)
RATE = 3e-3
EPOCHS, FASTER, TEMPERATURE = 60, 40, 20.0
"""Of label-agnostic forgetting: epochs, how many times their rates, and its temperature."""


def rows(checkouts: Path) -> list[Row]:
    with on_cpu():
        return [*boundary(checkouts), aligned(checkouts), agnostic(checkouts)]


class Perceptron(nn.Module):
    """64-96-10, in the two parts that their code asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU())
        self.classifier = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x))
        return logits


class Embedder(nn.Module):
    """Two convolutions and two linear layers; the 256 numbers between these are the representation."""

    def __init__(self, *, both: bool = False) -> None:
        super().__init__()
        self.both = both
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        )
        self.fc1, self.fc2 = nn.Linear(128, 256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Any:
        embedding = self.fc1(self.layers(x))
        return (self.fc2(embedding), embedding) if self.both else self.fc2(embedding)


@functools.cache
def split() -> Split:
    """The training digits with all threes to forget."""
    images, labels, *_ = digits()
    return Split.from_ids((images, labels), (labels == CLASS).nonzero().flatten())


@functools.cache
def trained(kind: type[nn.Module]) -> nn.Module:
    """A network trained on all digits; not to be changed."""
    return recipe(kind).train(split().train(), Session(seed=0))


def recipe(kind: type[nn.Module]) -> Recipe:
    training = Training(epochs=10, batch_size=64, optim=AdamW(lr=3e-3, weight_decay=0.0))
    return Recipe(kind, TASK, training)


@torch.no_grad()
def accuracies(model: nn.Module) -> dict[str, float]:
    """Accuracy on the threes, on the other training digits and on the other test digits."""
    images, labels, test, answers = digits()
    parts = {
        "forget": (images[labels == CLASS], labels[labels == CLASS]),
        "retain": (images[labels != CLASS], labels[labels != CLASS]),
        "test": (test[answers != CLASS], answers[answers != CLASS]),
    }
    model = copy.deepcopy(model).eval()
    said = {name: (model(x), y) for name, (x, y) in parts.items()}
    logits = {name: (out[0] if isinstance(out, tuple) else out, y) for name, (out, y) in said.items()}
    return {name: (out.argmax(1) == y).float().mean().item() for name, (out, y) in logits.items()}


def boundary(checkouts: Path) -> Iterator[Row]:
    """Rows of both boundary methods; the threes are one batch."""
    start = trained(Perceptron)
    settings: dict[str, Any] = {"batch_size": 1000, "optim": SGD(lr=RATE)}
    theirs, coarse = (shrunk(checkouts, start, fine=fine) for fine in (True, False))
    run = (
        "MLP 64-96-10 on digits, class 3, 10 epochs of one batch, their rate set to 0.003, without the means "
        "of CIFAR-10 and the rounding of images to multiples of 1/255; ours with may_stay and bounds (0, 1)"
    )
    same = BoundaryShrink(may_stay=True, bounds=(0.0, 1.0), **settings)
    ours = same.unlearn(start, split(), TASK, SESSION)
    yield Row(
        method="boundary_shrink",
        source=BOUNDARY,
        run=run,
        **apart(ours, theirs, start),
        within=1e-6,
        explanation="Rounding. With images of multiples of 1/255, which may change a target: "
        f"{apart(ours, coarse, start)['difference']:.1g}.",
    )
    default = BoundaryShrink(**settings)
    ours = default.unlearn(start, split(), TASK, SESSION)
    _, targets = same.setup(start, split(), TASK, SESSION)
    stays = float((targets[split().forget.ids] == CLASS).float().mean())
    their, own = accuracies(theirs), accuracies(ours)
    yield Row(
        method="boundary_shrink",
        source=BOUNDARY,
        run="the same with our defaults",
        **apart(ours, theirs, start),
        within=None,
        explanation=f"{stays:.0%} of their targets are the true class. Forget accuracy: theirs "
        f"{their['forget']:.0%}, ours {own['forget']:.0%}; test {their['test']:.1%} and {own['test']:.1%}.",
    )
    theirs, row = expanded(checkouts, start)
    with mock.patch.object(boundary_expand, "_with_row", functools.partial(_widened, row)):
        ours = BoundaryExpand(**settings).unlearn(start, split(), TASK, SESSION)
    yield Row(
        method="boundary_expand",
        source=BOUNDARY,
        run="their random new row put into ours, their rate set to 0.003",
        **apart(ours, theirs, start),
        within=1e-6,
        explanation="Rounding.",
    )


def _widened(row: Tensor, head: nn.Linear, _: object) -> tuple[Tensor, Tensor]:
    return torch.cat([head.weight.detach(), row]), torch.cat([head.bias.detach(), torch.zeros(1)])


def shrunk(checkouts: Path, start: nn.Module, *, fine: bool) -> nn.Module:
    """What their ``boundary_shrink`` makes of a network; with ``fine``, images are not rounded."""
    source = checkouts / BOUNDARY[0]
    attack = borrowed(
        source / "adv_generator.py",
        *("AttackBase", "FGSM", "inf_generator"),
        edit=lambda text: text.replace("torch.round(x * 255) / 255", "x") if fine else text,
        torch=torch,
        nn=nn,
        F=F,
    )
    theirs = borrowed(
        source / "boundary_unlearning.py",
        "boundary_shrink",
        edit=lambda text: _faster(text).replace("norm = True", "norm = None"),
        **_bare(FGSM=attack.FGSM, inf_generator=attack.inf_generator),
    )
    with mock.patch.object(torch, "save"):
        made = theirs.boundary_shrink(start, _threes(), None, None, None, "cpu", False)
    assert isinstance(made, nn.Module)
    return made


def expanded(checkouts: Path, start: nn.Module) -> tuple[nn.Module, Tensor]:
    """What their ``boundary_expanding`` makes of a network, and the row that it drew."""
    source, drawn = checkouts / BOUNDARY[0], []
    attack = borrowed(source / "adv_generator.py", "inf_generator")
    models = borrowed(source / "models.py", "init_params", nn=nn)
    trainer = borrowed(source / "trainer.py", "loss_picker", "optimizer_picker", nn=nn, optim=torch.optim)

    def initialised(layer: nn.Linear) -> None:
        models.init_params(layer)
        drawn.append(layer.weight.detach()[10:].clone())

    theirs = borrowed(
        source / "boundary_unlearning.py",
        "boundary_expanding",
        edit=_faster,
        **_bare(
            inf_generator=attack.inf_generator,
            w_init=initialised,
            loss_picker=trainer.loss_picker,
            optimizer_picker=trainer.optimizer_picker,
        ),
    )
    torch.manual_seed(0)
    with mock.patch.object(torch, "save"):
        made = theirs.boundary_expanding(start, _threes(), *[None] * 4, "sgd", "cpu", False)
    assert isinstance(made, nn.Module)
    return made, drawn[0]


def _faster(source: str) -> str:
    return source.replace("lr=0.00001", f"lr={RATE}")


def _bare(**names: Any) -> dict[str, Any]:
    """The names that their functions need, with no test at their end."""
    utils = SimpleNamespace(get_forget_loader=lambda *_: (None, None))
    tqdm = SimpleNamespace(tqdm=lambda steps: steps)
    common = {"copy": copy, "time": time, "torch": torch, "nn": nn, "np": np, "utils": utils, "tqdm": tqdm}
    return {**common, "eval": lambda **_: (0, 0), **names}


def _threes() -> list[tuple[Tensor, Tensor]]:
    return [(split().forget.column("inputs"), split().forget.column("targets"))]


def aligned(checkouts: Path) -> Row:
    """The alignment term, by its gradients in all layers, once the network has moved away from the original.

    Ours is taken out of the method's objective by autoencoders that explain everything.
    """
    still: Any = trained(Embedder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        moved: Any = copy.deepcopy(still)
        for parameter in moved.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    views = {part: _view(getattr(split(), part), 32) for part in ("forget", "retain")}
    explained = SimpleNamespace(unexplained=lambda x: 0 * x.sum(1))
    state = Representations(
        model=still,
        task=TASK,
        engine=Engine(),
        module=features.depths(still, 1)[0],
        of_all=explained,  # type: ignore[arg-type]
        of_forget=explained,  # type: ignore[arg-type]
    )
    step: Any = SimpleNamespace(state=state, model=moved, **views)
    own = LAF(temperature=TEMPERATURE, align_weight=1.0).objective(step)
    body = [p for name, p in moved.named_parameters() if not name.startswith("fc2.")]
    ours = torch.autograd.grad(own["forget"] + own["retain"], body)
    names = ("extractor_loss_functioncosine",)
    theirs = borrowed(checkouts / AGNOSTIC[0] / "VUnlearning.py", *names, torch=torch, nn=nn)
    pairs = [
        embed.fc1(embed.layers(views[part].batch["inputs"]))
        for part in ("retain", "forget")
        for embed in (moved, still)
    ]
    total = theirs.extractor_loss_functioncosine(*pairs, TEMPERATURE) / 32
    gaps = [a - b for a, b in zip(ours, torch.autograd.grad(total, body), strict=True)]
    norms = [torch.cat([g.flatten() for g in found]).norm() for found in (gaps, ours)]
    return Row(
        method="laf",
        source=AGNOSTIC,
        run="gradients of the representation-alignment term L_RA",
        measure="largest difference of a gradient",
        difference=max(float(gap.abs().max()) for gap in gaps),
        relative=float(norms[0] / norms[1]),
        within=1e-6,
        explanation="Rounding, after theirs is divided by the batch size: they sum, ours takes means.",
    )


def _view(data: Any, count: int) -> SimpleNamespace:
    (batch,) = data.batches([torch.arange(count)], device="cpu")
    return SimpleNamespace(batch=batch)


def agnostic(checkouts: Path) -> Row:
    start = trained(Embedder)
    found = {
        "theirs": relabelled(checkouts, start, 1),
        f"at {FASTER} times their rates": relabelled(checkouts, start, FASTER),
    }
    ours = accuracies(LAF(epochs=EPOCHS, temperature=TEMPERATURE).unlearn(start, split(), TASK, SESSION))
    again = accuracies(recipe(Embedder).train(split().retain, Session(seed=5)))
    said = {**{name: one for name, (one, _) in found.items()}, "ours": ours, "retrained": again}
    accuracy = [f"{name} " + " / ".join(f"{one:.3g}" for one in each.values()) for name, each in said.items()]
    return Row(
        method="laf",
        source=AGNOSTIC,
        run=f"the whole method, small CNN on digits, class 3, {EPOCHS} epochs",
        measure="difference of the forget accuracy",
        difference=abs(found["theirs"][0]["forget"] - ours["forget"]),
        within=None,
        explanation=f"Forget / retain / test accuracy: {', '.join(accuracy[:2])}; {'; '.join(accuracy[2:])}. "
        "Their decoder ends in a sigmoid that cannot reach the features: the distance u of the forget set "
        f"begins at {found['theirs'][1]:.0f}, where the loss is flat.",
    )


def relabelled(checkouts: Path, start: nn.Module, times: float) -> tuple[dict[str, float], float]:
    """Accuracies after their method at so many times their rates, and the mean distance ``u`` before it."""
    source = checkouts / AGNOSTIC[0]
    common: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "copy": copy}
    model = borrowed(
        source / "Model.py", "CNN_VAE_Encoder", "CNN_VAE_Decoder", "VariationalAutoencoder", **common
    )
    fit = borrowed(source / "Train.py", "vae_loss_function", "vae_train", **common)
    names = ("extractor_loss_functionnmse", "extractor_loss_functioncosine", "extractor_unlearning")
    unlearning = borrowed(source / "VUnlearning.py", *names, **common)
    torch.manual_seed(1)
    theirs = Embedder(both=True)
    theirs.load_state_dict(start.state_dict())
    loaders = {
        name: DataLoader(_pairs(part), batch_size=32, shuffle=True)
        for name, part in (("unlearn", split().forget), ("remain", split().retain), ("all", split().train()))
    }
    of_all, of_forget = (
        fit.vae_train(theirs, model.VariationalAutoencoder("Digit", 8), loaders[name])
        for name in ("all", "unlearn")
    )
    with torch.no_grad():
        known = theirs(split().forget.column("inputs"))[1]
        distance = (of_forget(known)[0] - known).square().sum(1).mean()
    rates = (5e-5 * times, 1e-4 * times)
    made, *_ = unlearning.extractor_unlearning(
        theirs, of_all, of_forget, loaders, EPOCHS, *rates, TEMPERATURE
    )
    return accuracies(made), float(distance)


def _pairs(data: Any) -> TensorDataset:
    return TensorDataset(data.column("inputs"), data.column("targets"))
