"""Forget vectors, and the filters of CUDA, beside the code of their authors."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from authors_classifiers_setup import TASK, TRAIN, Recorded, Row, borrowed, digits, on_cpu, original
from torch import Tensor, nn
from torch.utils.data import DataLoader

from expunge.data.arrays import Batch
from expunge.data.poison import Examples
from expunge.data.split import Split
from expunge.data.unlearnable import CUDA
from expunge.methods.guards.forget_vector import ForgetVector
from expunge.training.optim import SGD
from expunge.training.session import Session

VECTOR = ("Changchangsun/Forget-Vector", "8be664c")
FILTERS = ("vinusankars/Convolution-based-Unlearnability", "ff58b1c")
STEPS, RATE, LOW_RATE, FORGOTTEN = 20, 0.2, 0.01, 3
PICTURES, CLASSES = 40, 10


def rows(checkouts: Path) -> list[Row]:
    original()  # so that its own training is not recorded
    folder = checkouts / VECTOR[0]
    alone = loop(folder / "main_delta_2loss.py")
    combined = loop(folder / "main_delta_2loss_transfer2.py")
    return [vector(alone), combination(combined), *filters(checkouts / FILTERS[0])]


def loop(file: Path) -> Callable[[dict[str, Any]], None]:
    """The body of their first training loop, to its optimiser's step: a block of their main function."""
    if not file.is_file():
        raise SystemExit(f"{file} is missing: check their repository out there.")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    loops = (node for node in ast.walk(tree) if isinstance(node, ast.For))
    bodies = (node.body for node in loops if ast.unparse(node.target) == "(i, (image, target, source))")
    body = next(bodies)
    end = [ast.unparse(statement) for statement in body].index("optimizer.step()")
    code = compile(ast.Module(body[: end + 1], []), str(file), "exec")
    return lambda names: exec(code, names)


def theirs(
    step: Callable[[dict[str, Any]], None],
    batches: list[Batch],
    learned: Tensor,
    rate: float = RATE,
    decay: float = 0.0,
    **more: Any,
) -> None:
    """Trains ``learned`` in place by their loop, over our batches and with our weights of the terms."""
    like = ForgetVector()
    named = {"Tau": like.margin, "Alpha": like.alpha, "Beta": like.beta, "Lambda": like.norm}
    model = copy.deepcopy(original()).eval().requires_grad_(False)
    optimizer = torch.optim.SGD([learned.requires_grad_()], rate, momentum=0.9, weight_decay=decay)
    forgotten = torch.isin(torch.arange(TRAIN), parts(FORGOTTEN).forget.ids)
    for batch in batches:
        names: dict[str, Any] = {
            "image": batch["inputs"],
            "target": batch["targets"],
            "source": (~forgotten[batch["ids"]]).long(),
        }
        names |= {"torch": torch, "device": "cpu", "model": model, "optimizer": optimizer}
        names |= {"criterion": nn.CrossEntropyLoss(reduction="sum"), **named, **more}
        names |= {"num_elements_equal_to_neg_tau": 0, "num_elements_retain": 0}
        with on_cpu():
            step(names)


def parts(label: int) -> Split:
    images, labels, *_ = digits()
    return Split.from_ids((images, labels), (labels == label).nonzero()[:, 0])


def learned(label: int) -> Tensor:
    """Our vector that forgets a class."""
    model = method().unlearn(copy.deepcopy(original()), parts(label), TASK, Session(seed=1))
    return model.get_buffer("forget_vector").clone()


def method(rate: float = RATE) -> ForgetVector:
    return ForgetVector(epochs=STEPS, batch_size=TRAIN, optim=SGD(lr=rate))


def vector(step: Callable[[dict[str, Any]], None]) -> Row:
    with Recorded() as recorded:
        ours = learned(FORGOTTEN)
    batches = [batch for _, call in recorded.calls for batch in call]
    found = {}
    for decay in (0.0, 5e-4):
        found[decay] = torch.zeros_like(ours)
        theirs(step, batches, found[decay], decay=decay, delta=found[decay])
    gap = (found[0.0] - ours).detach()
    decayed = float((found[5e-4] - found[0.0]).detach().abs().max())
    return Row(
        method="forget_vector",
        source=VECTOR,
        run=f"body of the training loop, {STEPS} steps, no weight decay, our batches",
        measure="largest difference of the vector",
        difference=float(gap.abs().max()),
        relative=float(gap.norm() / ours.norm()),
        within=1e-6,
        explanation=(
            f"{equality(gap)}; the vector has norm {float(ours.norm()):.1f}. Their default weight decay "
            f"moves it by {decayed:.2g}."
        ),
    )


def equality(gap: Tensor) -> str:
    return "Rounding" if gap.any() else "Identical"


def combination(step: Callable[[dict[str, Any]], None]) -> Row:
    vectors = [learned(label) for label in range(CLASSES)]
    found, gaps = {}, {}
    for rate in (LOW_RATE, RATE):
        with Recorded() as recorded:
            model = copy.deepcopy(original())
            _, ours = method(rate).combine(model, vectors, parts(FORGOTTEN), TASK, Session(seed=1))
        batches = [batch for _, call in recorded.calls for batch in call]
        weights = torch.zeros(CLASSES)
        theirs(step, batches, weights, rate, weights=weights, deltas=vectors)
        found[rate], gaps[rate] = ours, (weights - ours).detach()
    ours, gap = found[LOW_RATE], gaps[LOW_RATE]
    return Row(
        method="forget_vector",
        source=VECTOR,
        run=f"combination of class vectors, {STEPS} steps of rate {LOW_RATE}, our batches",
        measure="largest difference of a combination weight",
        difference=float(gap.abs().max()),
        relative=float(gap.norm() / ours.norm()),
        within=1e-6,
        explanation=(
            f"{equality(gap)}; the weights have norm {float(ours.norm()):.2f}. At the rate {RATE} rounding "
            f"grows from step to step, to {float(gaps[RATE].abs().max()):.1g} at weights of norm "
            f"{float(found[RATE].norm()):.0f}."
        ),
    )


def filters(folder: Path) -> list[Row]:
    draws = np.random.default_rng(0)
    brightness = np.linspace(0.3, 1, PICTURES)[:, None, None, None]
    pictures = (draws.random((PICTURES, 32, 32, 3)) * brightness * 255).astype(np.uint8)
    labels = np.arange(PICTURES) % CLASSES
    protected, layers = protection(folder / "final_filter_unlearnable.py", pictures, labels)
    kernels = torch.stack([layer.weight[0, 0].detach() for layer in layers])
    others = torch.tensor(protected).permute(0, 3, 1, 2).int()
    inputs = torch.tensor(pictures).permute(0, 3, 1, 2)
    clean = Examples(inputs, torch.tensor(labels), CLASSES)
    found = []
    for manipulation in (CUDA(scale="image"), CUDA()):
        with mock.patch.object(CUDA, "kernels", return_value=kernels):
            ours = manipulation.apply(clean, torch.Generator())[0].inputs.int()
        default = manipulation == CUDA()
        found.append(
            Row(
                method="cuda",
                source=FILTERS,
                run="the same with our default scale=constant"
                if default
                else f"{PICTURES} images, scale=image",
                measure="largest difference of a pixel, of 255",
                difference=int((ours - others).abs().max()),
                relative=None,
                within=None,
                explanation="They divide each image by its own maximum, which removes its brightness."
                if default
                else "They cut values off, ours rounds.",
            )
        )
    return found


def protection(file: Path, pictures: Any, labels: Any) -> tuple[Any, Any]:
    """Their pictures and filters, of ``get_filter_unlearnable`` with these pictures for CIFAR-10."""

    class Pictures:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.data = pictures.copy()

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.tensor(self.data[index]).permute(2, 0, 1).float() / 255, int(labels[index])

    def loader(dataset: Any, batch_size: int, **_: Any) -> Any:
        return DataLoader(dataset, batch_size)

    known = borrowed(
        file,
        "get_filter_unlearnable",
        np=np,
        torch=torch,
        datasets=SimpleNamespace(CIFAR10=Pictures),
        DataLoader=loader,
        args=SimpleNamespace(dataset="cifar10"),
        num_cls=CLASSES,
        mix=1.0,
        train_transform=None,
        tqdm=lambda loader, **_: loader,
    )
    with on_cpu():
        changed, layers = known.get_filter_unlearnable(CUDA().blur, 1.0, False, CUDA().size, 0, False)
    return changed.data, layers
