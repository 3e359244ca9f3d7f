"""Edits of the weights in one go: SSD, IAU, WoodFisher influence and Fisher forgetting."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from authors_classifiers_setup import TASK, Row, accuracies, apart, borrowed, flat, on_cpu, original, split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from expunge.data.arrays import Data
from expunge.methods.edits.fisher import Fisher, _head
from expunge.methods.edits.iau import IAU
from expunge.methods.edits.influence import Influence
from expunge.methods.edits.ssd import SSD
from expunge.training.curvature import fisher_diagonal, flatten
from expunge.training.parameters import batch_gradients, mean_gradient
from expunge.training.session import Session

DAMPENED = ("if-loops/selective-synaptic-dampening", "cdfdc0e")
APPROXIMATED = ("Lolo1222/IAU", "a45c8af")
SALIENCY = ("OPTML-Group/Unlearn-Saliency", "a6e89fd")
SESSION = Session(seed=1)
RATE = 1e-2
INFORMATIVE = 320
"""Retained digits that Fisher information is computed of: one backward pass a digit and class."""

Triples = list[tuple[Tensor, Tensor, Tensor]]


def rows(checkouts: Path) -> list[Row]:
    with on_cpu():
        return [*ssd(checkouts), *iau(checkouts), influence(checkouts), *fisher(checkouts)]


def ssd(checkouts: Path) -> Iterator[Row]:
    """Their strategy for a class, which is the one of theirs that runs: it asks nothing of the class."""
    mixed = {alpha: dampened(checkouts, alpha, 64, mixing=True) for alpha in (2.0, 10.0)}
    ours = {alpha: SSD(alpha=alpha).unlearn(original(), split(), TASK, SESSION) for alpha in mixed}
    found = [apart(ours[alpha], mixed[alpha], original()) for alpha in mixed]
    largest = max(found, key=lambda one: one["difference"])
    single = SSD(alpha=2, batch_size=1).unlearn(original(), split(), TASK, SESSION)
    by_one = apart(single, dampened(checkouts, 2, 1, mixing=False), original())["difference"]
    yield Row(
        method="ssd",
        source=DAMPENED,
        run="α 2 and 10, batches of 64, our batches",
        **largest,
        within=1e-6,
        explanation=f"{_rounding(largest['difference'])} With α 2 and batches of 1, in their order: "
        f"{by_one:.0e}.",
    )
    released = dampened(checkouts, 2, 64, mixing=False)
    theirs, own = (accuracies(model) for model in (released, ours[2]))
    yield Row(
        method="ssd",
        source=DAMPENED,
        run="the same with α 2 and their own order of batches",
        **apart(ours[2], released, original()),
        within=None,
        explanation="They concatenate retain and forget set without shuffling, so that at most one batch of "
        f"the whole data mixes them. Forget accuracy: theirs {theirs['forget']:.1%}, ours "
        f"{own['forget']:.1%}; test {theirs['test']:.1%} and {own['test']:.1%}.",
    )


def dampened(checkouts: Path, alpha: float, size: int, *, mixing: bool) -> nn.Module:
    """What their ``ssd_tuning`` makes of the original.

    Args:
        size: examples in a batch.
        mixing: with our random batches; else with theirs, retain before forget set.
    """
    source = checkouts / DAMPENED[0] / "src"
    theirs = borrowed(
        source / "forget_full_class_strategies.py",
        "ssd_tuning",
        torch=torch,
        ssd=borrowed(source / "ssd.py", "ParameterPerturber", torch=torch, nn=nn),
        get_metric_scores=lambda *_: None,
    )
    model, both = copy.deepcopy(original()), split()
    if mixing:
        forget, whole = (_drawn(part, size) for part in (both.forget, both.train()))
    else:
        forget, whole = (_in_order([both.forget], size), _in_order([both.retain, both.forget], size))
    loaders = {"forget_train_dl": forget, "full_train_dl": whole}
    unread = ("unlearning_teacher", "retain_train_dl", "retain_valid_dl", "forget_valid_dl", "valid_dl")
    theirs.ssd_tuning(
        model,
        **loaders,
        **dict.fromkeys(unread),
        dampening_constant=1,
        selection_weighting=alpha,
        device="cpu",
    )
    return model


def _drawn(data: Data, size: int) -> Triples:
    """The batches that ours draws for an importance, as they expect them."""
    order = data.random_order(size, SESSION.generator("ssd"))
    return [_triple(batch) for batch in data.batches(order, device="cpu")]


def _in_order(parts: Sequence[Data], size: int) -> Triples:
    inputs, labels = (torch.cat([part.column(name) for part in parts]) for name in ("inputs", "targets"))
    pairs = zip(inputs.split(size), labels.split(size), strict=True)
    return [_triple({"inputs": images, "targets": classes}) for images, classes in pairs]


def _triple(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return batch["inputs"], batch["targets"], batch["targets"]


def _rounding(difference: float) -> str:
    return "Equal to the last bit." if difference == 0 else "Rounding."


def iau(checkouts: Path) -> Iterator[Row]:
    ours = IAU(lr=RATE).unlearn(original(), split(), TASK, SESSION)
    yield Row(
        method="iau",
        source=APPROXIMATED,
        run="rate 1e-2, evaluation mode",
        **apart(ours, approximated(checkouts, training=False), original()),
        within=5e-6,
        explanation="Rounding.",
    )
    yield Row(
        method="iau",
        source=APPROXIMATED,
        run="as released, in training mode",
        **apart(ours, approximated(checkouts, training=True), original()),
        within=None,
        explanation="Their BatchNorm normalises by the batch at hand while the gradients are taken; ours is "
        "in evaluation mode.",
    )


def approximated(checkouts: Path, *, training: bool) -> nn.Module:
    """What their script ``IAU_unlearn.py`` makes of the original, its files and imports being stand-ins."""
    file = checkouts / APPROXIMATED[0] / "IAU_unlearn.py"
    if not file.is_file():
        raise SystemExit(f"{file} is missing: check their repository out there.")
    body = ast.parse(file.read_text(encoding="utf-8")).body
    statements = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]
    handed = {"unlearn": split().forget, "remain": split().retain}
    names = ("ratio", "seed", "data_path", "batch_size", "model_fix_flag")
    arguments = SimpleNamespace(**dict.fromkeys(names, 0), dataset="origin", lr=RATE)
    space: dict[str, Any] = {
        "torch": SimpleNamespace(
            device=torch.device,
            cuda=SimpleNamespace(is_available=lambda: False),
            nn=nn,
            load=lambda _: original().state_dict(),
            save=lambda *_: None,
        ),
        "data": torch.utils.data,
        "optim": torch.optim,
        "time": lambda: 0,
        "parse_args": lambda: arguments,
        "open": lambda path, _: _Named(path),
        "dill": SimpleNamespace(
            load=lambda file: _dataset(next(part for name, part in handed.items() if name in file.path))
        ),
        "CNN": lambda: copy.deepcopy(original()).train(training),
    }
    exec(compile(ast.Module(statements, []), str(file), "exec"), space)
    made = space["model"]
    assert isinstance(made, nn.Module)
    return made.eval()


class _Named:
    """A file of which only the path is asked for."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> _Named:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _dataset(data: Data) -> TensorDataset:
    return TensorDataset(data.column("inputs"), data.column("targets"))


def influence(checkouts: Path) -> Row:
    source = checkouts / SALIENCY[0] / "Classification/unlearn/Wfisher.py"
    theirs = borrowed(
        source,
        *("get_require_grad_params", "sam_grad", "apply_perturb", "woodfisher", "Wfisher"),
        torch=torch,
        grad=torch.autograd.grad,
        tqdm=lambda loader: loader,
    )
    arguments = SimpleNamespace(batch_size=64, gpu=0, imagenet_arch=False, alpha=1.0)
    loaders = {name: DataLoader(_dataset(getattr(split(), name))) for name in ("retain", "forget")}
    model, loss = copy.deepcopy(original()), nn.CrossEntropyLoss()
    theirs.Wfisher(loaders, model, loss, arguments)
    solver = Influence(solver="woodfisher", damping=1.0, samples=None)
    ours = solver.unlearn(original(), split(), TASK, SESSION)
    target, gradients = _system()
    one_by_one = DataLoader(_dataset(split().retain), batch_size=1)
    step = theirs.woodfisher(copy.deepcopy(original()), one_by_one, "cpu", loss, target, arguments)
    steps = (step, target, flat(ours) - flat(original()))
    left = [_residual(gradients, found, target) for found in steps]
    along = torch.cosine_similarity(step - target, gradients[0], dim=0)
    return Row(
        method="influence",
        source=SALIENCY,
        run="Wfisher, damping 1, scale 1, against our WoodFisher",
        **apart(ours, model, original()),
        within=None,
        explanation="Their recursion keeps a single vector: its correction lies along the first gradient "
        f"(cosine {abs(along):.5f}). Residual of (F + I) x = v: theirs {left[0]:.2g}, v itself "
        f"{left[1]:.2g}, ours {left[2]:.0e}.",
    )


def _system() -> tuple[Tensor, Tensor]:
    """``v``, and the gradients of all retained digits, ``(N, P)``."""
    names, model = [name for name, _ in original().named_parameters()], original()
    forget, retain = (
        flatten(mean_gradient(model, part, TASK, SESSION, names=names, batch_size=128), names)
        for part in (split().forget, split().retain)
    )
    single = batch_gradients(model, split().retain, TASK, SESSION, names=names, batch_size=1)
    gradients = torch.stack([flatten(found, names) for _, found in single])
    return len(split().forget) / len(split().train()) * (forget - retain), gradients


def _residual(gradients: Tensor, found: Tensor, target: Tensor) -> float:
    """``‖(F + I) x − v‖ / ‖v‖``."""
    rows, x, v = gradients.double(), found.double(), target.double()
    return float((rows.T @ (rows @ x) / len(rows) + x - v).norm() / v.norm())


def fisher(checkouts: Path) -> Iterator[Row]:
    names = [name for name, _ in original().named_parameters()]
    data = split().retain.subset(split().retain.ids[:INFORMATIVE])
    ours = fisher_diagonal(original(), data, TASK, SESSION, names=names, batch_size=16)
    method, head = Fisher(), _head(original())
    spread = {name: method._variance(ours[name], name in head) for name in names}
    information, variances = informed(checkouts, data, 1)
    gaps = [
        float((theirs[name] - mine[name]).norm() / mine[name].norm())
        for theirs, mine in ((information, ours), (variances, spread))
        for name in names
    ]
    yield Row(
        method="fisher",
        source=SALIENCY,
        run="F and the variances, their loader set to batches of 1",
        measure="relative difference of the values",
        difference=max(gaps),
        relative=max(gaps),
        within=1e-4,
        explanation="Rounding.",
    )
    released, _ = informed(checkouts, data, 32)
    times = float(flatten(released, names).sum() / flatten(ours, names).sum())
    yield Row(
        method="fisher",
        source=SALIENCY,
        run="as released, batches of 32",
        measure="relative difference of the sum of F",
        difference=times - 1,
        within=None,
        explanation=f"Their F is {times:.0f} times as large in total: they square the mean gradient of 32 "
        "examples under one label and weight it by their mean probability of it.",
    )


def informed(checkouts: Path, data: Data, size: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``F`` and the variances of their code for the original, over batches of a size."""

    def resized(source: str) -> str:
        return source.replace("batch_size=32", f"batch_size={size}")

    theirs = borrowed(
        checkouts / SALIENCY[0] / "Classification/unlearn/fisher.py",
        *("hessian", "get_mean_var"),
        edit=resized,
        torch=torch,
        copy=copy,
        tqdm=lambda loader: loader,
    )
    model: Any = copy.deepcopy(original())
    for parameter in model.parameters():
        parameter.data0 = parameter.data.clone()
    arguments = SimpleNamespace(
        gpu=0, alpha=Fisher().alpha, num_classes=10, num_indexes_to_replace=None, dataset="cifar10"
    )
    theirs.hessian(_dataset(data), model, None, arguments)
    named = dict(model.named_parameters())
    variances = {name: theirs.get_mean_var(parameter, arguments)[1] for name, parameter in named.items()}
    return {name: parameter.grad2_acc for name, parameter in named.items()}, variances
