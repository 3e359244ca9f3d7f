"""Sparsity: the l1 penalty of Unlearn-Sparse, and its magnitude pruning."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from authors_classifiers_saliency import SIZE, agreeing, both, unlearner
from authors_classifiers_setup import TASK, Row, apart, borrowed, on_cpu, original, split
from torch import nn
from torch.nn.utils import prune

from expunge.errors import ConfigError
from expunge.methods.gradient.finetune import Finetune
from expunge.methods.gradient.l1_sparse import L1Sparse
from expunge.methods.modifiers.magnitude_pruning import MagnitudePruning
from expunge.training.optim import SGD
from expunge.training.session import Session

SOURCE = ("OPTML-Group/Unlearn-Sparse", "80ba55d")
EPOCHS, RATE = 10, 0.01
OPTIM = SGD(lr=RATE, weight_decay=5e-4)


def _never_free(folder: Path) -> str:
    """What they do where every epoch is free of the penalty.

    Raises:
        SystemExit: one of the three codes does something else.
    """
    cifar = unlearner(folder, "FT.py", "FT_l1", "FT_iter", "l1_regularization")
    imagenet = unlearner(
        folder,
        "FT.py",
        "FT_l1",
        "FT_iter",
        "l1_regularization",
        get_x_y_from_data_dict=lambda batch, device: batch,
    )
    alpha = 0.2
    try:
        L1Sparse(epochs=1, alpha=alpha, no_l1_epochs=1)
    except ConfigError:
        pass
    else:
        raise SystemExit("l1_sparse takes as many penalty-free epochs as epochs.")
    common = {"unlearn_epochs": 1, "unlearn_lr": RATE, "alpha": alpha, "no_l1_epochs": 1}
    penalised = both(L1Sparse(epochs=1, batch_size=SIZE, optim=OPTIM, alpha=alpha), cifar, **common)
    free = both(Finetune(epochs=1, batch_size=SIZE, optim=OPTIM), imagenet, **common, imagenet_arch=True)
    if any(apart(*pair, original())["difference"] > 1e-6 for pair in (penalised, free)):
        raise SystemExit("FT_l1 with no epoch but penalty-free ones: not as described.")
    return (
        "With as many penalty-free epochs as epochs their CIFAR code applies the full penalty throughout and "
        "their ImageNet code none; ours refuses."
    )


def _penalty(folder: Path) -> Row:
    theirs = unlearner(folder, "FT.py", "FT_l1", "FT_iter", "l1_regularization")
    found = []
    for alpha, free in ((5e-4, 0), (5e-4, 4), (0.2, 0)):
        method = L1Sparse(epochs=EPOCHS, batch_size=SIZE, optim=OPTIM, alpha=alpha, no_l1_epochs=free)
        changes = {"unlearn_epochs": EPOCHS, "unlearn_lr": RATE, "alpha": alpha, "no_l1_epochs": free}
        found.append(agreeing(*both(method, theirs, **changes), original(), within=1e-5))
    worst = max(found, key=lambda case: case["difference"])
    worst["explanation"] += " " + _never_free(folder)
    return Row(
        method="l1_sparse",
        source=SOURCE,
        run=f"FT_l1, CNN with BatchNorm, {EPOCHS} epochs; strength and penalty-free epochs (5e-4, 0), "
        "(5e-4, 4) and (0.2, 0)",
        **worst,
    )


def _magnitude(folder: Path) -> Row:
    """One-shot pruning of convolutions.

    Raises:
        SystemExit: other weights are pruned than theirs.
    """
    code = borrowed(folder / "utils.py", "pruning_model", "remove_prune", nn=nn, prune=prune)
    found = []
    for rate in (0.5, 0.95):
        theirs, ours, pruned = (copy.deepcopy(original()) for _ in range(3))
        with on_cpu():
            code.pruning_model(pruned, rate)
            code.remove_prune(pruned)
        theirs.load_state_dict(pruned.state_dict())
        for parameter in ours.parameters():
            parameter.requires_grad_(parameter.ndim == 4)
        MagnitudePruning(rate=rate).prepare(ours, split(), TASK, Session())
        mine, others = ours.state_dict(), theirs.state_dict()
        if any(not torch.equal(value == 0, others[name] == 0) for name, value in mine.items()):
            raise SystemExit(f"magnitude_pruning at {rate}: the masks differ.")
        found.append(apart(ours, theirs, original()))
    return Row(
        method="magnitude_pruning",
        source=SOURCE,
        run="pruner.pruning_model, rates 0.5 and 0.95",
        **max(found, key=lambda case: case["difference"]),
        within=0.0,
        explanation="Same mask and values. Theirs prunes convolutions alone; ours by default linear and "
        "embedding layers too.",
    )


def rows(checkouts: Path) -> list[Row]:
    """The penalty and the pruning."""
    folder = checkouts / SOURCE[0]
    return [_penalty(folder / "unlearn"), _magnitude(folder / "pruner")]
