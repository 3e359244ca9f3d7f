"""GS-LoRA and GS-LoRA++ beside the code of their authors, on a network with the names that it looks for.

Their adapters are those of the package ``loralib``, whose repository ``microsoft/LoRA`` has to be there too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from authors_classifiers_setup import Row, apart, borrowed, flat, meters, on_cpu
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.methods.gradient.gs_lora import GSLoRA
from expunge.methods.gradient.gs_lora_plus import GSLoRAPlus
from expunge.methods.scopes.lora import LoRA
from expunge.tasks import Classification
from expunge.training.optim import AdamW
from expunge.training.session import Session

GS = ("bjzhb666/GS-LoRA", "a92fb97")
LORALIB = "microsoft/LoRA"
WIDTH, HIDDEN, CLASSES, BLOCKS, EXAMPLES, STEPS, RANK = 8, 16, 5, 6, 50, 25, 4
LR, DECAY = 1e-2, 0.05
BETA, ALPHA, BOUND = 1.0, 1e-3, 2.5
PROTOTYPE_FORGET, PROTOTYPE_RETAIN, PROTOTYPE_BOUND = 0.05, 0.01, 2.0

Layer = Callable[[int, int], nn.Module]


def rows(checkouts: Path) -> list[Row]:
    lora = checkouts / LORALIB / "loralib"
    names = ("LoRALayer", "Linear")
    layers = borrowed(lora / "layers.py", *names, torch=torch, nn=nn, F=nn.functional, math=math)
    trains = borrowed(lora / "utils.py", "mark_only_lora_as_trainable", nn=nn)
    epoch = engine(checkouts / GS[0])
    start, adapted = pretrained(), Network(lambda a, b: layers.Linear(a, b, r=RANK), embeds=True)
    adapted.load_state_dict(start.state_dict(), strict=False)
    trains.mark_only_lora_as_trainable(adapted)
    found = []
    for plus in (False, True):
        theirs, ours = trained(epoch, adapted, plus=plus), unlearned(start, adapted, plus=plus)
        moved = float((flat(ours) - flat(start)).abs().max())
        found.append(
            Row(
                method="gs_lora_plus" if plus else "gs_lora",
                source=GS,
                run="the same with both prototype terms"
                if plus
                else f"train_one_epoch, {BLOCKS} blocks, {STEPS} steps of AdamW",
                **apart(ours, theirs, start),
                within=3e-7,
                explanation=f"Rounding; weights moved by {moved:.3f}.",
            )
        )
    return found


class Block(nn.Module):
    """A residual block, its two layers named as theirs are."""

    def __init__(self, linear: Layer) -> None:
        super().__init__()
        self.fn = nn.Module()
        self.fn.fn = nn.Module()
        net = nn.Sequential(linear(WIDTH, HIDDEN), nn.GELU(), nn.Identity(), linear(HIDDEN, WIDTH))
        self.fn.fn.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.fn.fn.net(inputs)  # type: ignore[no-any-return, operator, union-attr]


class Network(nn.Module):
    """Blocks and a head.

    Args:
        embeds: returns the input of the head beside its output, and takes labels, as their networks do.
    """

    def __init__(self, linear: Layer, *, embeds: bool) -> None:
        super().__init__()
        self.transformer = nn.Module()
        blocks = [nn.ModuleList([nn.Identity(), Block(linear)]) for _ in range(BLOCKS)]
        self.transformer.layers = nn.ModuleList(blocks)
        self.head, self.embeds = nn.Linear(WIDTH, CLASSES), embeds

    def forward(self, inputs: Tensor, _: Any = None) -> Any:
        for block in self.transformer.layers:  # type: ignore[union-attr]
            inputs = block[1](inputs)
        return (self.head(inputs), inputs) if self.embeds else self.head(inputs)


def examples() -> tuple[Tensor, Tensor]:
    """Clouds of points around a centre for each class."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(EXAMPLES) % CLASSES
    centres = 2 * torch.randn(CLASSES, WIDTH, generator=draws)
    return centres[labels] + 0.3 * torch.randn(EXAMPLES, WIDTH, generator=draws), labels


def pretrained() -> nn.Module:
    torch.manual_seed(0)
    model = Network(nn.Linear, embeds=False)
    inputs, labels = examples()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def engine(folder: Path) -> Any:
    """Their ``train_one_epoch``; it logs nothing, and its batches are not sent to a GPU in advance."""
    fetcher = borrowed(folder / "util" / "data_prefetcher.py", "data_prefetcher", "to_cuda", torch=torch)
    names = ("train_one_epoch", "get_structure_loss", "get_prototype_loss")
    return borrowed(
        folder / "engine_cl.py",
        *names,
        torch=torch,
        F=nn.functional,
        util=SimpleNamespace(AverageMeter=meters()["AverageMeter"]),
        train_accuracy=lambda *_, **__: torch.zeros(1),
        data_prefetcher=lambda loader, device, prefetch: fetcher.data_prefetcher(loader, device, False),
        wandb=SimpleNamespace(log=lambda *_: None),
    ).train_one_epoch


def trained(epoch: Any, adapted: nn.Module, *, plus: bool) -> nn.Module:
    """Theirs, its adapters merged into the weights."""
    model = copy.deepcopy(adapted)
    inputs, labels = examples()
    forgets = labels == 0
    with torch.no_grad():
        embeds = model.eval()(inputs)[1]
    prototypes = {label: embeds[labels == label].mean(0) for label in range(CLASSES)}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LR, weight_decay=DECAY)
    for index in range(STEPS):
        meter = meters()["AverageMeter"]
        with on_cpu():
            epoch(
                model.train(),
                [(inputs[forgets], labels[forgets])],
                [(inputs[~forgets], labels[~forgets])],
                "cpu",
                nn.CrossEntropyLoss(),
                optimizer,
                index,
                *(meter() for _ in range(6)),
                beta=BETA,
                alpha=ALPHA,
                BND=BOUND,
                batch=index,
                testloader_forget=[],
                testloader_remain=[],
                forget_acc_before=0,
                highest_H_mean=0,
                cfg={"DATA_ROOT": "", "BND_pro": PROTOTYPE_BOUND},
                task_i="0",
                use_prototype=plus,
                prototype_dict=prototypes,
                prototype_weight_forget=PROTOTYPE_FORGET,
                prototype_weight_remain=PROTOTYPE_RETAIN,
                losses_prototype_forget=meter(),
                losses_prototype_remain=meter(),
            )
    merged = Network(nn.Linear, embeds=False)
    kept = model.eval().state_dict()
    merged.load_state_dict({name: value for name, value in kept.items() if "lora_" not in name})
    return merged


@dataclass(frozen=True, kw_only=True)
class Started(LoRA):
    """Adapters that start from given matrices ``A``, by the name of their layer."""

    given: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def enter(self, model: nn.Module) -> nn.Module:
        entered = super().enter(model)
        for name, parameter in entered.named_parameters():
            if ".lora_A" in name:
                parameter.copy_(self.given[name.removeprefix("model.").partition(".lora_A")[0]])
        return entered


def unlearned(start: nn.Module, adapted: nn.Module, *, plus: bool) -> nn.Module:
    """Ours, from the same adapters."""
    given = {
        name.removesuffix(".lora_A"): parameter.detach().clone()
        for name, parameter in adapted.named_parameters()
        if name.endswith(".lora_A")
    }
    common: dict[str, Any] = {
        "epochs": STEPS,
        "batch_size": EXAMPLES,
        "optim": AdamW(lr=LR, weight_decay=DECAY),
        "scope": Started(rank=RANK, alpha=1.0, targets=("net.0", "net.3"), given=given),
        "beta": BETA,
        "bound": BOUND,
        "alpha": ALPHA,
        "warmup": 0.0,
        "retain_fraction": 1.0,
    }
    added: dict[str, Any] = {
        "prototype_forget": PROTOTYPE_FORGET,
        "prototype_retain": PROTOTYPE_RETAIN,
        "prototype_bound": PROTOTYPE_BOUND,
        "average_decay": 0.0,
    }
    method = GSLoRAPlus(**common, **added) if plus else GSLoRA(**common)
    inputs, labels = examples()
    parts = Split.from_ids((inputs, labels), (labels == 0).nonzero()[:, 0])
    return method.unlearn(start, parts, Classification(CLASSES), Session(seed=0))
