"""Bad teaching: an untrained network teaches the forget set, the original teaches the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.training.fresh import fresh
from expunge.training.loop import Pass
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.step import Original, Step


@dataclass(frozen=True)
class Incompetent:
    """The untrained teacher, and the ids ``(N_f,)`` of the examples that it teaches."""

    teacher: Original
    task: Task
    ids: Tensor


@methods.register("bad_teacher")
@dataclass(frozen=True, kw_only=True)
class BadTeacher(GradientMethod):
    """Imitates an untrained network on the forget set and the original on part of the retain set.

    ``min_θ mean_{i∈D_f∪S} KL(p_i^(1/T) ‖ p_θ^(1/T))`` over batches that mix both, with ``p_i`` of a freshly
    initialised network for ``i ∈ D_f`` and of the original for ``i ∈ S``, a random fraction of ``D_r``.

    Args:
        fraction: how much of the retain set is taught, drawn once.
        temperature: ``T``.

    Shapes: as the task's; every task has the divergence. Without a recipe in the session every layer of
        the model must be able to initialise itself (``reset_parameters``).
    Cost: ``epochs`` forward and backward passes over the forget set and ``fraction`` of the retain set,
        each with two further forward passes, one for each teacher; two copies of the model.
    Guarantee: empirical.
    Differs: the divergence is summed over classes and averaged over examples. The authors call
        ``F.kl_div`` with its default reduction, which averages over classes too: a gradient smaller by
        the number of classes, so that with SGD the rate that works depends on it. Adam, their optimiser,
        divides that factor out. Batches are mixed as in their code, so that each example weighs the same.
    References: Chundawat et al., Can Bad Teaching Induce Forgetting?, AAAI 2023, arXiv:2205.08096;
        fraction, rate, batch size and one epoch as in the code of Foster et al., SSD, AAAI 2024.
    """

    epochs: int = 1
    batch_size: int = 256
    optim: Optim = AdamW(lr=1e-4, weight_decay=0.0)
    fraction: float = 0.3
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"is a fraction in (0, 1], got {self.fraction}.", "fraction")
        if not self.temperature > 0:
            raise ConfigError(f"must be above 0, got {self.temperature}.", "temperature")

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("retain"),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Incompetent:
        untrained = fresh(model, session.child("bad_teacher"))
        ids = split.forget.ids.to(session.engine.torch_device)
        return Incompetent(Original(untrained, task, session.engine, {}), task, ids)

    def objective(self, step: Step) -> dict[str, Tensor]:
        view, state = step.retain, step.state
        forget = torch.isin(view.batch["ids"], state.ids)
        with torch.no_grad():
            wrong = view.through(state.teacher.model)
        shape = (-1, *[1] * (wrong.ndim - 1))
        lesson = torch.where(forget.view(shape), wrong, view.original)
        divergence = state.task.divergence(lesson, view.outputs, view.batch, self.temperature)
        return {"forget": (divergence * forget).mean(), "retain": (divergence * ~forget).mean()}

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        kept = split.retain.ids
        count = max(1, round(self.fraction * len(kept)))
        drawn = torch.randperm(len(kept), generator=session.generator("bad_teacher"))[:count]
        mixed = split.forget.joined(split.retain.subset(kept[drawn]))
        return super().unlearn(model, replace(split, retain=mixed), task, session)
