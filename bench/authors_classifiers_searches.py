"""Searches for a hard forget set beside the code of their authors: the digits, a tenth of them to forget."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from authors_classifiers_setup import (
    FORGET,
    TASK,
    TRAIN,
    Recorded,
    Replay,
    Row,
    apart,
    borrowed,
    digits,
    meters,
    on_cpu,
    original,
    recipe,
    split,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from expunge.data.arrays import Batch
from expunge.data.split import Split
from expunge.methods.exact.retrain import Retrain
from expunge.searches.base import losses
from expunge.searches.bilevel import Bilevel, project
from expunge.searches.entanglement import Entanglement
from expunge.searches.loss_ranking import LossRanking
from expunge.searches.moderate import Moderate, _distances
from expunge.training.session import Session

WORST = ("OPTML-Group/Unlearn-WorstCase", "fc727ce")
RUM = ("kairanzhao/RUM", "f593c9d")
SETS = "examples in one set and not in the other, of 120"
GAMMA, ROUNDS, LOWER_RATE = 1e-4, 3, 1e-3
ENTANGLED = 70
"""Size of the forget set whose entanglement is measured: a whole batch of 64 and a small one."""
PUBLISHED, LARGE = 1e-3, 1e4
"""Steps of the upper level: the published one, and one of the size of the reciprocal losses."""


def rows(checkouts: Path) -> list[Row]:
    theirs = Theirs.read(checkouts / WORST[0] / "data-wise")
    return [
        lower(theirs, bias=False),
        lower(theirs, bias=True),
        projection(theirs),
        *sets(theirs),
        moderate(checkouts / WORST[0] / "data-wise" / "moderate.py"),
        *entanglement(checkouts / RUM[0] / "surgical_plugins" / "overlap.py"),
    ]


@dataclass(frozen=True)
class Theirs:
    """Their functions, and the loop of their ``main_selmu.py`` around them."""

    utils: Any
    impl: Any
    finetune: Any

    @classmethod
    def read(cls, folder: Path) -> Theirs:
        optim = torch.optim
        utils = borrowed(folder / "utils.py", "SignSGD", "bisection", torch=torch, optim=optim, **meters())
        names = ("optimize_select", "w_iterative_unlearn", "_w_iterative_unlearn_impl")
        known = {"torch": torch, "nn": nn, "time": time, "copy": copy, "utils": utils}
        impl = borrowed(folder / "unlearn" / "impl.py", *names, **known)
        known["w_iterative_unlearn"] = impl.w_iterative_unlearn
        return cls(utils, impl, borrowed(folder / "unlearn" / "FT.py", "w_FT", "w_FT_iter", **known))

    def unlearned(self, start: nn.Module, batches: Any, weights: Tensor) -> nn.Module:
        """An epoch of their lower level."""
        model = copy.deepcopy(start)
        said = {"decreasing_lr": "91,136", "theta_lr": LOWER_RATE, "momentum": 0.9, "weight_decay": 5e-4}
        said |= {"unlearn": "w_FT", "unlearn_steps": 1, "select_epochs": ROUNDS, "no_l1_epochs": 0}
        said |= {"alpha": 0.0, "warmup": 0, "print_freq": 10**9}
        with quietly():
            self.finetune.w_FT(batches, model, criterion(), SimpleNamespace(**said), weights, None)
        return model

    def searched(
        self, start: nn.Module, weights: Tensor, step: float, ours: list[list[Batch]] | None = None
    ) -> tuple[set[int], Tensor]:
        """The set that their search finds, and its weights.

        Args:
            step: of the upper level.
            ours: the batches of our rounds; then losses are scaled to mean 1 and taken in evaluation mode,
                as in ours. Otherwise as released.
        """
        weights = weights.clone()
        for index in range(ROUNDS):
            batches = Shuffled() if ours is None else Replay([ours[index]], ids=True)
            model, rate, gamma = self.unlearned(start, batches, weights), step, GAMMA
            if ours is not None:
                model.eval()
                images, labels, *_ = digits()
                with torch.no_grad():
                    mean = float(nn.functional.cross_entropy(model(images), labels))
                rate, gamma = step / mean, GAMMA * mean
            said = SimpleNamespace(w_lr=rate, gamma=gamma, num_indexes_to_replace=FORGET)
            with quietly():
                weights, _ = self.impl.optimize_select(Shuffled(), model, criterion(), said, weights)
        return set(torch.topk(weights, FORGET)[1].tolist()), weights


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """On the CPU, and without torch's warnings about their code."""
    with on_cpu(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def criterion() -> nn.Module:
    return nn.CrossEntropyLoss(reduction="none")


class Shuffled:
    """All digits in random batches of 256, with their numbers."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        images, labels, *_ = digits()
        data = TensorDataset(images, labels, torch.arange(TRAIN))
        return iter(DataLoader(data, 256, shuffle=True))

    def __len__(self) -> int:
        return -(-TRAIN // 256)


def session(*, bias: bool = True) -> Session:
    return Session(seed=1, recipe=recipe(bias=bias))


def uniform() -> Tensor:
    return torch.full((TRAIN,), FORGET / TRAIN)


def lower(theirs: Theirs, *, bias: bool) -> Row:
    start, search = original(bias=bias), Bilevel(size=FORGET)
    child = session(bias=bias).child("bilevel", 0)
    with Recorded() as recorded:
        ours = search._unlearn(start, split().train(), uniform().double(), TASK, child)
    other = theirs.unlearned(start, recorded.loader("retain", ids=True), uniform())
    pairs = zip(ours.named_parameters(), other.parameters(), strict=True)
    counts = {name: int((mine != his).sum()) for (name, mine), his in pairs}
    total = sum(parameter.numel() for parameter in ours.parameters())
    biases = [name for name in counts if name in ("0.bias", "3.bias")] if bias else []
    if bias:
        elsewhere = sum(counts.values()) - sum(counts[name] for name in biases)
        kind = "all of them such biases" if not elsewhere else f"{elsewhere} of them not such biases"
        run = "the same, convolutions with biases before BatchNorm"
        said = (
            f"{sum(counts.values())} of {total:,} weights differ, {kind}: their gradient is rounding around "
            "0, and sign-SGD steps by its sign."
        )
    else:
        run = (
            "lower level w_FT, one epoch of sign-SGD, rate 1e-3, w = m/N, our batches; CNN without biases "
            "before BatchNorm"
        )
        said = "Identical."
    within = None if bias else 0.0
    return Row(
        method="bilevel", source=WORST, run=run, **apart(ours, other, start), within=within, explanation=said
    )


def projection(theirs: Theirs) -> Row:
    cost = losses(original(), split().train(), TASK, session())
    steps = (PUBLISHED, 1.0, LARGE)
    points = [uniform().double() - step * cost for step in steps]
    found = [(project(point, FORGET), theirs.utils.bisection(point, FORGET)) for point in points]
    furthest = max((float(other.sum()) for _, other in found), key=lambda total: abs(total - FORGET))
    return Row(
        method="bilevel",
        source=WORST,
        run="bisection (projection of w onto the capped simplex), steps of 1e-3, 1 and 1e4",
        measure="largest difference of w",
        difference=max(float((ours - other).abs().max()) for ours, other in found),
        relative=None,
        within=1e-5,
        explanation=f"Theirs stops at a bracket of 1e-5, so that w sums to {furthest:.3f} for {FORGET}.",
    )


def searched(step: float) -> tuple[set[int], list[list[Batch]]]:
    """Our set, and the batches of our rounds."""
    with Recorded() as recorded:
        search = Bilevel(size=FORGET, step=step, upper=ROUNDS)
        found = search.search(original(bias=False), split().train(), TASK, session(bias=False))
    return set(found.ids.tolist()), [call for _, call in recorded.calls]


def sets(theirs: Theirs) -> list[Row]:
    """The same start, as released, and as released with steps of the size of the losses' reciprocals."""
    start = original(bias=False)
    mine, batches = searched(1.0)
    small, others = searched(PUBLISHED)
    same, _ = theirs.searched(start, uniform(), 1.0, batches)
    same_small, _ = theirs.searched(start, uniform(), PUBLISHED, others)
    chosen = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(0))[:FORGET]
    first, drawn = torch.zeros(TRAIN).index_fill(0, chosen, 1.0), set(chosen.tolist())

    def released(step: float) -> tuple[set[int], Tensor]:
        torch.manual_seed(0)
        return theirs.searched(start, first, step)

    published, weights = released(PUBLISHED)
    (one, _), (large, _) = released(1.0), released(LARGE)
    ranked = set(
        LossRanking(size=FORGET).search(start, split().train(), TASK, session(bias=False)).ids.tolist()
    )
    moved = float((weights - first).abs().max())
    on_theirs, on_mine, on_large, on_ranked = (retrained(ids) for ids in (published, mine, large, ranked))
    kept, kept_at_one = len(published & drawn), len(one & drawn)
    return [
        _sets(
            "3 rounds, 120 of 1,200 digits, α 1 and 1e-3; theirs started from w = m/N, with losses of mean "
            "1, in evaluation mode, our batches",
            [(same, mine), (same_small, small)],
            "The same set for both α.",
            within=0.0,
        ),
        _sets(
            "as released with the published α of 1e-3, random 0/1 start; ours with α 1",
            [(published, mine)],
            f"Theirs is its random start: {kept} of {FORGET} are kept, as no w moves by more than "
            f"{moved:.2g} (at α 1 still {kept_at_one}). From the uniform start of ours, α 1e-3 finds "
            f"{len(small & mine)} of the {FORGET} that α 1 finds. A retrained model has "
            f"{on_theirs} on theirs and {on_mine} on ours.",
        ),
        _sets(
            "as released with α 1e4; ours with α 1",
            [(large, mine)],
            f"A retrained model has {on_large} on theirs and {on_mine} on ours. It has {on_ranked} on the "
            "set of the lowest losses of the original, found without any search, which shares "
            f"{len(ranked & large)} examples with theirs and {len(ranked & mine)} with ours.",
        ),
    ]


def _sets(
    run: str, found: list[tuple[set[int], set[int]]], explanation: str, within: float | None = None
) -> Row:
    apart_by = sum(len(mine - other) for mine, other in found)
    return Row(
        method="bilevel",
        source=WORST,
        run=run,
        measure=SETS,
        difference=apart_by,
        relative=apart_by / FORGET,
        within=within,
        explanation=explanation,
    )


def retrained(ids: set[int]) -> str:
    """The mean accuracy on these examples of three models that are trained without them."""
    images, labels, *_ = digits()
    rows = torch.tensor(sorted(ids))
    found = []
    for seed in range(3):
        parts = Split.from_ids((images, labels), rows)
        model = Retrain().unlearn(
            original(bias=False), parts, TASK, Session(seed=10 + seed, recipe=recipe(bias=False))
        )
        with torch.no_grad():
            found.append(float((model.eval()(images[rows]).argmax(1) == labels[rows]).double().mean()))
    return f"{100 * np.mean(found):.1f} %"


def moderate(file: Path) -> Row:
    names = ("get_median", "get_distance", "get_save_idx")
    theirs = borrowed(file, *names, np=np)
    images, labels, *_ = digits()
    with torch.no_grad():
        logits = copy.deepcopy(original(bias=False)).eval()(images)
    distance = theirs.get_distance(logits.numpy(), labels.numpy())
    ids = theirs.get_save_idx(SimpleNamespace(num_indexes_to_replace=TRAIN - FORGET), distance)
    ours = Moderate(size=FORGET).search(original(bias=False), split().train(), TASK, session(bias=False))
    apart_by = len(set(ours.ids.tolist()) ^ set(ids.tolist()))
    if apart_by:
        raise SystemExit(f"The sets of moderate differ in {apart_by} examples.")
    mine = _distances(logits, labels).numpy()
    gap, largest = float(np.abs(mine - distance).max()), float(distance.max())
    return Row(
        method="moderate",
        source=WORST,
        run="distances to the class medians, and the set",
        measure="largest difference of a distance",
        difference=gap,
        relative=gap / largest,
        within=3e-6,
        explanation=(
            f"Rounding, of distances up to {largest:.3g}; the sets of {FORGET} are equal. Their flag counts "
            "the examples that are kept, ours those that are forgotten."
        ),
    )


class Pooled(nn.Module):
    """The network, its last pooling under the name at which they read features."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network
        self.avgpool = next(layer for layer in network if isinstance(layer, nn.AdaptiveAvgPool2d))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)  # type: ignore[no-any-return]


def entanglement(file: Path) -> list[Row]:
    names = ("calculate_FC", "get_means", "get_norms_sum")

    def loader(_: Any, data: Any, batch_size: int, **__: Any) -> Any:
        return DataLoader(data, batch_size)

    theirs = borrowed(file, *names, torch=torch, copy=copy, init_data_loader=loader)
    network = copy.deepcopy(original()).eval()
    assert isinstance(network, nn.Sequential)
    found = Entanglement(size=ENTANGLED).search(network, split().train(), TASK, session())
    images, labels, *_ = digits()
    inside = torch.isin(torch.arange(TRAIN), found.ids)
    parts = [TensorDataset(images[rows], labels[rows]) for rows in (~inside, inside)]

    def score(size: int) -> float:
        said = SimpleNamespace(batch_size=size, seed=0, device="cpu")
        with on_cpu():
            return float(theirs.calculate_FC(Pooled(network), *parts, said)[0])

    fraction = ENTANGLED / TRAIN
    ours = found.details["entanglement"] * 2 * (fraction**2 + (1 - fraction) ** 2)
    whole, batched = score(TRAIN), score(64)
    return [
        _score(
            "ES of a forget set, the whole set as one batch; ours, at fraction f of the data, times "
            "2 (f² + (1 − f)²), as they take the midpoint of the two means for the mean of all",
            ours,
            whole,
            5e-6 * ours,
            f"Rounding: theirs {whole:.7g}, ours {ours:.7g}.",
        ),
        _score(
            "the same in batches of 64",
            ours,
            batched,
            None,
            "They average the means of batches whatever the size of the last one: "
            f"{batched:.4g} for {ours:.4g}.",
        ),
    ]


def _score(run: str, ours: float, theirs: float, within: float | None, explanation: str) -> Row:
    gap = abs(ours - theirs)
    return Row(
        method="entanglement",
        source=RUM,
        run=run,
        measure="difference of the ES",
        difference=gap,
        relative=gap / ours,
        within=within,
        explanation=explanation,
    )
