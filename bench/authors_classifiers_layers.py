"""CF-k and EU-k of SCRUB's notebook on membership inference: the last stage of a residual network."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from authors_classifiers_distillation import SOURCE, passes
from authors_classifiers_saliency import agreeing
from authors_classifiers_setup import TASK, Recorded, Replay, Row, apart, borrowed, on_cpu, split
from torch import Tensor, nn

from expunge.methods.gradient.cf_k import CFK
from expunge.methods.gradient.eu_k import EUK
from expunge.methods.scopes.modules import Modules
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

CONTINUED, RESTARTED = 10, 5
OPTIM = SGD(lr=0.01, momentum=0.0, weight_decay=0.0)


class _Block(nn.Module):
    """A residual block whose layers are named as in their ResNet."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if inside != outside:
            layers = nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside)
            self.shortcut = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class _Residual(nn.Module):
    """A stem, two residual blocks and a classifier.

    Args:
        norm: with BatchNorm in the stem.
    """

    def __init__(self, norm: bool) -> None:
        super().__init__()
        between = [nn.BatchNorm2d(4)] if norm else []
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *between, nn.ReLU())
        self.layer4 = nn.Sequential(_Block(4, 8), _Block(8, 8))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer4(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


@functools.cache
def _recipe(norm: bool) -> Recipe:
    training = Training(epochs=8, batch_size=64, optim=SGD(lr=0.1, weight_decay=5e-4))
    return Recipe(lambda: _Residual(norm), TASK, training)


@functools.cache
def _start(norm: bool) -> nn.Module:
    return _recipe(norm).train(split().train(), Session(seed=0))


def _cells(notebook: str) -> str:
    """The cells of a notebook that define functions, as one file."""
    cells = ["".join(cell["source"]) for cell in json.loads(notebook)["cells"] if cell["cell_type"] == "code"]
    return "\n".join(cell for cell in cells if cell.lstrip().startswith("def "))


def _whole_shortcut(notebook: str) -> str:
    """The cells with EU-k patched: it resets all of the shortcut, not its convolution alone."""
    old = "layer4[0].shortcut[0].weight.copy_(model_initial.layer4[0].shortcut[0].weight)"
    new = "layer4[0].shortcut.load_state_dict(model_initial.layer4[0].shortcut.state_dict())"
    source = _cells(notebook)
    if source.count(old) != 1:
        raise SystemExit("euk_unlearn: the reset of the shortcut is not where it was.")
    return source.replace(old, new)


def _notebook(checkouts: Path, batches: Replay, *, patched: bool = False) -> SimpleNamespace:
    """Their two functions on our batches."""
    loops = passes(checkouts)
    arguments = SimpleNamespace(model="resnet", print_freq=10**9, sgda_learning_rate=0.01, lr_decay_rate=0.1)
    return borrowed(  # type: ignore[no-any-return]
        checkouts / SOURCE[0] / "MIA_experiments.ipynb",
        "fk_fientune",
        "cfk_unlearn",
        "euk_unlearn",
        edit=_whole_shortcut if patched else _cells,
        copy=copy,
        torch=torch,
        nn=nn,
        args=arguments,
        seed=1,
        training_epochs=RESTARTED,
        train_loader_full=None,
        retain_dataset=None,
        replace_loader_dataset=lambda *_, **__: batches,
        train_vanilla=loops.vanilla,
        sgda_adjust_learning_rate=loops.schedule,
    )


def _both(
    checkouts: Path, method: CFK | EUK, *, norm: bool, patched: bool = False
) -> tuple[nn.Module, nn.Module]:
    """Our model and theirs.

    Args:
        norm: with BatchNorm in the stem.
        patched: EU-k resets all of the shortcut.
    """
    start, session = _start(norm), Session(seed=5, recipe=_recipe(norm))
    with Recorded() as recorded:
        ours = method.unlearn(start, split(), TASK, session)
    code = _notebook(checkouts, recorded.loader("retain"), patched=patched)
    with on_cpu():
        if isinstance(method, CFK):
            theirs = code.cfk_unlearn(start)
        else:
            theirs = code.euk_unlearn(start, _recipe(norm).initial(session.child("eu_k")))
    return ours, theirs


def _moved(ours: nn.Module, start: nn.Module) -> float:
    """The largest change of a parameter."""
    pairs = zip(ours.parameters(), start.parameters(), strict=True)
    return max(float((a - b).abs().max().detach()) for a, b in pairs)


def _statistics(ours: nn.Module, theirs: nn.Module) -> float:
    """The largest difference of a running statistic."""
    pairs = zip(ours.named_buffers(), theirs.buffers(), strict=True)
    return max(float((a - b).abs().max()) for (name, a), b in pairs if "running" in name)


def _continued(checkouts: Path) -> list[Row]:
    method = CFK(epochs=CONTINUED, batch_size=64, optim=OPTIM, scope=Modules(patterns=("layer4",)))
    plain = _both(checkouts, method, norm=False)
    ours, theirs = _both(checkouts, method, norm=True)
    return [
        Row(
            method="cf_k",
            source=SOURCE,
            run=f"cfk_unlearn of the MIA notebook (layer4), {CONTINUED} epochs, no BatchNorm in frozen "
            "layers",
            **agreeing(*plain, _start(False)),
        ),
        Row(
            method="cf_k",
            source=SOURCE,
            run="the same with a frozen stem that has BatchNorm",
            **apart(ours, theirs, _start(True)),
            within=None,
            explanation=f"Weights moved by {_moved(ours, _start(True)):.2g}; running statistics differ by "
            f"{_statistics(ours, theirs):.2g}. Theirs lets the statistics of frozen BatchNorm layers move, "
            "ours keeps them.",
        ),
    ]


def _restarted(checkouts: Path) -> Row:
    method = EUK(epochs=RESTARTED, batch_size=64, optim=OPTIM, scope=Modules(patterns=("layer4",)))
    ours, theirs = _both(checkouts, method, norm=False)
    patched = apart(*_both(checkouts, method, norm=False, patched=True), _start(False))["difference"]
    stem = apart(*_both(checkouts, method, norm=True), _start(True))["difference"]
    return Row(
        method="eu_k",
        source=SOURCE,
        run=f"euk_unlearn of the MIA notebook (layer4), {RESTARTED} epochs, no BatchNorm in the stem",
        **apart(ours, theirs, _start(False)),
        within=None,
        explanation=f"Weights moved by {_moved(ours, _start(False)):.2g}. Theirs does not reset the "
        f"BatchNorm of the shortcut; with that patched the difference is {patched:.1g}. With BatchNorm in "
        f"the stem {stem:.2g}.",
    )


def rows(checkouts: Path) -> list[Row]:
    """CF-k twice and EU-k."""
    return [*_continued(checkouts), _restarted(checkouts)]
