"""What the methods of continual forgetting share: adapters on a frozen network, few blocks of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.methods.scopes.lora import LoRA
from expunge.tasks.base import Task
from expunge.training.loop import Pass, optimise
from expunge.training.optim import AdamW, Optim
from expunge.training.scope import Scope
from expunge.training.session import Session
from expunge.training.step import Step


@dataclass
class Run:
    """State of one request: the bound of the forget loss, and the adapters once there are any."""

    bound: float
    groups: list[list[nn.Parameter]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class GroupSparseLoRA(GradientMethod):
    """Bounded class forgetting through fresh adapters with a group lasso over the network's blocks.

    Every request is one call with the next split: the adapters are merged into the weights at its end,
    and the next call adds new ones.

    Args:
        beta: ``β``, weight of forgetting.
        bound: ``BND``, the forget loss at which forgetting stops, in nats; by default ``log C + 2``
            for ``C`` classes, 2 nats worse than guessing.
        alpha: ``α``, weight of the group lasso.
        warmup: fraction of the epochs before the group lasso starts.
        retain_fraction: share of each retained class that is replayed, at least one example.
    """

    epochs: int = 100
    batch_size: int = 48
    optim: Optim = AdamW(lr=0.01, weight_decay=0.05, schedule="cosine")
    scope: Scope = LoRA(rank=8, alpha=1.0, head=False)
    beta: float = 0.2
    bound: float | None = None
    alpha: float = 1e-4
    warmup: float = 0.2
    retain_fraction: float = 0.1

    forgets = "classes"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "bound"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"must be above 0, got {value}.", name)
        if self.alpha < 0:
            raise ConfigError(f"must not be negative, got {self.alpha}.", "alpha")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"is a fraction of the epochs in [0, 1), got {self.warmup}.", "warmup")
        if not 0 < self.retain_fraction <= 1:
            raise ConfigError(f"is a fraction in (0, 1], got {self.retain_fraction}.", "retain_fraction")

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        if not isinstance(self.scope, LoRA):
            raise Unsupported(f"{methods.name_of(self)} trains adapters. Set scope to lora.")
        self.ceiling(task)

    def ceiling(self, task: Task) -> float:
        """``bound``, or what it is by default.

        Raises:
            Unsupported: no bound, and a task without a number of classes.
        """
        if self.bound is not None:
            return self.bound
        classes = getattr(task, "classes", None)
        if not isinstance(classes, int):
            raise Unsupported(
                f"task '{type(task).__name__}' has no number of classes to bound the forget loss by. "
                "Set bound: the loss of an uninformed model and a little more."
            )
        return math.log(classes) + 2

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Run:
        return Run(self.ceiling(task))

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("retain", beside="forget"),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        run = step.state
        terms = {
            "retain": step.retain.loss.mean(),
            "forget": self.beta * F.relu(run.bound - step.forget.loss.mean()),
        }
        if self.alpha > 0 and step.epoch >= self.warmup * self.epochs:
            run.groups = run.groups or adapter_groups(step.model)
            terms["structure"] = self.alpha * group_norms(run.groups).sum()
        return terms

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        few = few_of_each_class(split.retain, self.retain_fraction, task, session.generator("replay"))
        return optimise(model, self.plan(model, replace(split, retain=few), task, session), task, session)


def few_of_each_class(data: Data, fraction: float, task: Task, generator: torch.Generator) -> Data:
    """A random ``fraction`` of each class, rounded up, in the order of ids."""
    groups, kept = task.groups(data), []
    for label in torch.unique(groups):
        ids = data.ids[groups == label]
        count = math.ceil(round(fraction * len(ids), 6))
        kept.append(ids[torch.randperm(len(ids), generator=generator)[:count]])
    return data.subset(torch.sort(torch.cat(kept)).values)


def adapter_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """The low-rank matrices of a model under the scope ``lora``, one list for each of its blocks.

    A block is the outermost element of an ``nn.Sequential`` or ``nn.ModuleList`` that is neither: a
    transformer's block, a residual block, a layer of a perceptron. A layer outside of all such
    containers is a block of its own.
    """
    containers = {n for n, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.Sequential))}
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".lora_" in name:
            groups.setdefault(_block(name.partition(".lora_")[0], containers), []).append(parameter)
    return list(groups.values())


def group_norms(groups: list[list[nn.Parameter]]) -> Tensor:
    """``sqrt(Σ ‖A‖² + ‖B‖²)`` of each group, ``(G,)``; its gradient at 0 is 0."""
    flat = [torch.cat([parameter.flatten() for parameter in group]) for group in groups]
    return torch.stack([torch.linalg.vector_norm(group) for group in flat])


def _block(name: str, containers: set[str]) -> str:
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        if ".".join(parts[: depth - 1]) in containers and path not in containers:
            return path
    return name
