"""Boundary expanding: the forget examples move to a class that is there for training only."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.tasks.classification import Classification
from expunge.training.features import depths
from expunge.training.loop import Pass
from expunge.training.optim import SGD, Optim
from expunge.training.session import Session
from expunge.training.step import Step


@methods.register("boundary_expand")
@dataclass(frozen=True, kw_only=True)
class BoundaryExpand(GradientMethod):
    """Trains the forget examples into an extra class and then removes that class.

    The last linear layer gets a row, ``W' = [W; w]`` with ``w ~ N(0, 2 / (d + C + 1))`` and bias 0;
    ``min_θ mean_{i∈D_f} −log softmax(f'_θ(x_i))_{C+1}``; the result is the trained network with the
    first ``C`` rows. The retain set is not used.

    Shapes: a model whose last linear layer ``(d → C)`` gives the logits ``(N, C)``; classification
        only. The result has the structure of the original.
    Cost: ``epochs`` forward and backward passes over the forget set; one row more in the model.
    Guarantee: empirical.
    Differs: the copy in the worst-case-sets code never removes the unit, so that its predictions and
        its membership features run over ``C + 1`` classes; the authors' own code removes it, and so
        does this. The whole network is trained in one mode; the authors' first step is in the mode
        that the model was handed over in.
    References: Chen et al., Boundary Unlearning, CVPR 2023, arXiv:2303.11570. Defaults of the authors'
        code, made for an all-convolutional network on CIFAR-10; other networks need another rate.
    """

    epochs: int = 10
    batch_size: int = 64
    optim: Optim = SGD(lr=1e-5)

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        if not isinstance(task, Classification):
            raise Unsupported(
                f"boundary_expand adds a class, and task '{type(task).__name__}' has none. "
                "Use a method for every task: grad_diff, npo, scrub."
            )

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget"),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Task:
        return task

    def objective(self, step: Step) -> dict[str, Tensor]:
        task, batch = step.state, step.forget.batch
        extra = torch.full_like(batch["ids"], task.classes - 1)
        return {"forget": task.loss(step.forget.outputs, {**batch, "targets": extra}).mean()}

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        classes = cast(Classification, task).classes
        widened = session.engine.copy(model)
        name = depths(widened, 1)[0]
        head = cast(nn.Linear, widened.get_submodule(name))
        if head.out_features != classes:
            raise Unsupported(
                f"the last linear layer '{name}' has {head.out_features} outputs, not one for each of the "
                f"{classes} classes. Use boundary_shrink, which adds no class."
            )
        widened = _with_head(widened, name, *_with_row(head, session.generator("row")))
        wide_task = replace(cast(Classification, task), classes=classes + 1)
        result = super().unlearn(widened, split, wide_task, session)
        head = cast(nn.Linear, result.get_submodule(name))
        bias = None if head.bias is None else head.bias.detach()[:classes].clone()
        return _with_head(result, name, head.weight.detach()[:classes].clone(), bias)


def _with_row(head: nn.Linear, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """The layer's weight and bias with one more row, drawn as Xavier's normal initialisation does."""
    weight = head.weight.detach()
    deviation = (2 / (head.in_features + head.out_features + 1)) ** 0.5
    row = deviation * torch.randn(1, head.in_features, generator=generator)
    bias = None if head.bias is None else torch.cat([head.bias.detach(), head.bias.new_zeros(1)])
    return torch.cat([weight, row.to(weight)]), bias


def _with_head(model: nn.Module, name: str, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The model with other values in the linear layer ``name``, which may have another number of rows."""
    head = copy.deepcopy(cast(nn.Linear, model.get_submodule(name)))
    head.out_features = len(weight)
    head.weight = nn.Parameter(weight, requires_grad=head.weight.requires_grad)
    if bias is not None:
        head.bias = nn.Parameter(bias, requires_grad=head.bias.requires_grad)
    if not name:
        return head  # the model is this layer
    above, _, own = name.rpartition(".")
    setattr(model.get_submodule(above), own, head)
    return model
