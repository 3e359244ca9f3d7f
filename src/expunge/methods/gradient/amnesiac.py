"""Amnesiac unlearning: wrong labels, drawn once, among the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data, fixed_order
from expunge.data.replaced import Replaced
from expunge.data.split import Split
from expunge.errors import Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.training.loop import Pass
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.step import Step


@methods.register("amnesiac")
@dataclass(frozen=True, kw_only=True)
class Amnesiac(GradientMethod):
    """Fine-tunes on all data, in which each forget example has one wrong label for the whole run.

    ``min_θ mean_{i∈D} ℓ(f_θ(x_i), y'_i)`` over batches that mix both sets, with ``y'_i = y_i`` on ``D_r``
    and on ``D_f`` a ``y'_i ≠ y_i`` drawn once from the task's uninformative targets: for a classifier
    uniformly from the other classes.

    Shapes: as the task's. Unsupported where the task has no targets to replace, or only one.
    Cost: ``epochs`` forward and backward passes over all data; no copy of the model.
    Guarantee: empirical.
    Differs: this is the fixed-label fine-tuning that the SSD and bad-teaching code call amnesiac. The
        update of the paper of that name, which takes back the recorded parameter changes of the batches
        that held the forget set, needs a log of the training and is not part of it.
    References: Graves et al., Amnesiac Machine Learning, AAAI 2021, arXiv:2010.10981; variant and
        defaults of the code of Foster et al., SSD, AAAI 2024, arXiv:2308.07707.
    """

    epochs: int = 3
    optim: Optim = AdamW(lr=1e-4, weight_decay=0.0)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("retain"),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Tensor:
        return split.forget.ids.to(session.engine.torch_device)

    def objective(self, step: Step) -> dict[str, Tensor]:
        loss, forget = step.retain.loss, torch.isin(step.retain.batch["ids"], step.state)
        return {"forget": (loss * forget).mean(), "retain": (loss * ~forget).mean()}

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        wrong = _wrong(split.forget, task, session.generator("amnesiac"))
        mixed = Replaced(split.train(), split.forget.ids, wrong)
        return super().unlearn(model, replace(split, retain=mixed), task, session)


def _wrong(data: Data, task: Task, generator: torch.Generator) -> dict[str, Tensor]:
    """New values ``(N, …)`` of the columns that the task replaces, no example's equal to its old ones."""
    drawn = [
        _drawn(batch, task, generator) for batch in data.batches(fixed_order(len(data), 256), device="cpu")
    ]
    return {name: torch.cat([columns[name] for columns in drawn]) for name in drawn[0]}


def _drawn(batch: Batch, task: Task, generator: torch.Generator, tries: int = 100) -> Batch:
    found = task.relabel(batch, generator)
    columns = {name: values for name, values in found.items() if values is not batch[name]}
    for _ in range(tries):
        equal = [(values == batch[name]).view(len(values), -1).all(1) for name, values in columns.items()]
        same = torch.stack(equal).all(0)
        if not same.any():
            return columns
        again = task.relabel({name: values[same] for name, values in batch.items()}, generator)
        for name in columns:
            columns[name][same] = again[name]
    raise Unsupported(
        f"{tries} draws gave {int(same.sum())} examples no target other than their own: there seems to be "
        "only one. Use a method that does not relabel: grad_ascent, grad_diff, npo."
    )
