"""Data, networks, batches and draws that ``authors_classifiers.py`` gives to the authors' code and ours."""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch
from expunge.data.split import Split
from expunge.tasks import Classification
from expunge.training import loop
from expunge.training.optim import AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

TASK = Classification(10)
TRAIN, FORGET = 1200, 120


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Args:
        source: repository and commit.
        run: what of theirs was run, and how.
        difference: between theirs and ours, in the unit that ``measure`` names.
        relative: the norm of the difference over the norm of what the method changes, for other measures the
            difference over the value; None where that has no sense.
        within: the largest ``difference`` that is rounding; None where a difference is intended, which must
            then be there.
    """

    method: str
    source: tuple[str, str]
    run: str
    measure: str = "largest difference of a parameter"
    difference: float
    relative: float | None = None
    within: float | None
    explanation: str


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 1, 8, 8) in [0, 1] and labels: 1,200 to train on, the others to test on."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(found.target).long()
    return images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:]


def cnn(*, norm: bool = True, bias: bool = True) -> nn.Sequential:
    """Two convolutions and a linear layer.

    Args:
        norm: with BatchNorm.
        bias: convolutions before BatchNorm have biases.
    """

    def convolution(inside: int, outside: int, stride: int) -> list[nn.Module]:
        layer = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=bias or not norm)
        return [layer, *([nn.BatchNorm2d(outside)] if norm else []), nn.ReLU()]

    head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(*convolution(1, 8, 1), *convolution(8, 16, 2), *head)


@functools.cache
def forgotten() -> Tensor:
    """Which of the training digits are to be forgotten, a random tenth of them (1,200 truth values)."""
    chosen = torch.zeros(TRAIN, dtype=torch.bool)
    chosen[torch.randperm(TRAIN, generator=torch.Generator().manual_seed(5))[:FORGET]] = True
    return chosen


@functools.cache
def split() -> Split:
    """The digits with a random tenth to forget."""
    images, labels, *_ = digits()
    return Split.from_ids((images, labels), forgotten().nonzero().flatten())


@functools.cache
def recipe(*, norm: bool = True, bias: bool = True) -> Recipe:
    """15 epochs of AdamW."""
    training = Training(epochs=15, batch_size=64, optim=AdamW(lr=3e-3))
    return Recipe(lambda: cnn(norm=norm, bias=bias), TASK, training)


@functools.cache
def original(*, norm: bool = True, bias: bool = True) -> nn.Module:
    """The trained network; not to be changed."""
    return recipe(norm=norm, bias=bias).train(split().train(), Session(seed=0))


class Recorded:
    """While open, remembers the batches and drawn labels that our loop uses, for their code to use again."""

    def __enter__(self) -> Recorded:
        self.calls: list[tuple[str, list[Batch]]] = []
        self.labels: list[Tensor] = []
        once, relabel = loop._Run._once, Classification.relabel
        recorded = self

        def kept(run: Any, part: Any, size: int) -> Iterator[Batch]:
            call: list[Batch] = []
            recorded.calls.append((part, call))
            for batch in once(run, part, size):
                call.append(batch)
                yield batch

        def drawn(task: Classification, batch: Batch, generator: torch.Generator) -> Batch:
            out = relabel(task, batch, generator)
            recorded.labels.append(out["targets"])
            return out

        self._open = contextlib.ExitStack()
        self._open.enter_context(mock.patch.object(loop._Run, "_once", kept))
        self._open.enter_context(mock.patch.object(Classification, "relabel", drawn))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def loader(self, part: str, *, ids: bool = False) -> Replay:
        """The passes over a part, as a loader of theirs."""
        return Replay([call for name, call in self.calls if name == part], ids=ids)


class Replay:
    """A loader that gives one recorded pass after another, one each time it is gone through."""

    def __init__(self, passes: list[list[Batch]], *, ids: bool = False) -> None:
        self.passes, self.ids, self.next = passes, ids, 0
        self.dataset = SimpleNamespace(targets=np.zeros(1))

    def __len__(self) -> int:
        return len(self.passes[0])

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        batches, self.next = self.passes[self.next], self.next + 1
        for batch in batches:
            pair = (batch["inputs"], batch["targets"])
            yield (*pair, batch["ids"]) if self.ids else pair


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Their calls for a GPU do nothing, and what they print is not shown."""

    def same(value: Any, *_: Any, **__: Any) -> Any:
        return value

    with (
        mock.patch.object(torch.Tensor, "cuda", same),
        mock.patch.object(nn.Module, "cuda", same),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def borrowed(file: Path, *names: str, edit: Callable[[str], str] | None = None, **namespace: Any) -> Any:
    """Functions and classes of their file, wherever they are defined in it, as attributes.

    Args:
        edit: changes their source; what it changes, the row says.
        namespace: what their global names mean, imports included.

    Raises:
        SystemExit: the file is missing, or has no such name.
    """
    if not file.is_file():
        raise SystemExit(f"{file} is missing: check their repository out there.")
    source = file.read_text(encoding="utf-8")
    tree = ast.parse(edit(source) if edit else source)
    kinds = (ast.FunctionDef, ast.ClassDef)
    found: list[ast.stmt] = [
        node for node in ast.walk(tree) if isinstance(node, kinds) and node.name in names
    ]
    if missing := set(names) - {node.name for node in found if isinstance(node, kinds)}:
        raise SystemExit(f"{file} has no {', '.join(sorted(missing))}.")
    exec(compile(ast.Module(found, []), str(file), "exec"), namespace)
    return SimpleNamespace(**namespace)


def meters() -> dict[str, Any]:
    """Stand-ins for what their training loops print with: ``AverageMeter`` and ``accuracy``."""

    class AverageMeter:
        def __init__(self, *_: Any) -> None:
            self.sum = self.count = self.avg = self.val = 0.0

        def update(self, value: float, count: int = 1) -> None:
            self.val, self.sum, self.count = value, self.sum + value * count, self.count + count
            self.avg = self.sum / self.count

    def accuracy(outputs: Tensor, labels: Tensor, topk: tuple[int, ...] = (1,)) -> list[Tensor]:
        return [(outputs.argmax(1) == labels).float().mean() * 100 for _ in topk]

    return {"AverageMeter": AverageMeter, "accuracy": accuracy}


def flat(model: nn.Module) -> Tensor:
    """All parameters in a row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def apart(ours: nn.Module, theirs: nn.Module, start: nn.Module) -> dict[str, float]:
    """``difference`` and ``relative`` of a row: of the parameters, and over how far ours moved.

    Raises:
        SystemExit: neither moved, so that nothing was compared.
    """
    mine, others, first = flat(ours), flat(theirs), flat(start)
    if torch.equal(mine, first) or torch.equal(others, first):
        raise SystemExit("A method did not move the model: nothing was compared.")
    gap = mine - others
    return {"difference": float(gap.abs().max()), "relative": float(gap.norm() / (mine - first).norm())}


@torch.no_grad()
def accuracies(model: nn.Module) -> dict[str, float]:
    """Accuracy on forgotten, retained and test digits, in evaluation mode."""
    model = copy.deepcopy(model).eval()
    images, labels, test, answers = digits()
    chosen = forgotten()
    parts: Mapping[str, tuple[Tensor, Tensor]] = {
        "forget": (images[chosen], labels[chosen]),
        "retain": (images[~chosen], labels[~chosen]),
        "test": (test, answers),
    }
    return {name: (model(x).argmax(1) == y).float().mean().item() for name, (x, y) in parts.items()}
