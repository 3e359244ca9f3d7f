"""Who's Harry Potter: generic labels from a model that knows the forget set too well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.base import methods
from expunge.methods.labels import LogitObjective, label_states, mean_over_labels, of_labels
from expunge.tasks.base import Task
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import AdamW, Optim
from expunge.training.recipe import Training
from expunge.training.session import Session
from expunge.training.step import View


@dataclass(frozen=True)
class Generic:
    """The label to learn in the place of each label: ``labels`` ``(n, T)``, rows in the order of ``ids``."""

    ids: Tensor
    labels: Tensor
    task: Task


@methods.register("whp")
@dataclass(frozen=True, kw_only=True)
class WHP(LogitObjective):
    """Trains on labels that the original would give if it did not know the forget set better than others.

    A copy is trained on the forget set until it knows it too well. Where it raises a logit above the
    original's, that logit is lowered: ``z_g = z_o − α ReLU(z_reinforced − z_o)``. The generic label is
    ``g_t = argmax_v z_g(v)``, and ``min_θ  mean_{i∈D_f} mean_t CE(g_t, p_θ) + λ mean_{i∈D_r} ℓ_i(θ)`` from
    the original: the text stays, its labels change.

    Args:
        alpha: ``α``; 0 trains on the original's own likeliest labels.
        reinforce: how the copy is trained on the forget set; in the same scope as the result.
        retain_weight: ``λ``.

    Shapes: logits ``(N, C)``, of every labelled token of a language model. Unsupported for tasks without
        classes or tokens.
    Cost: ``reinforce.epochs`` and ``epochs`` passes over the forget set and two forward passes for the
        labels; two copies of the model while these are made, none after.
    Guarantee: empirical.
    Differs: the form that is distilled into weights; at inference time the same logits need both models.
        The paper's dictionary of anchor terms and their generic replacements, written by GPT-4, and its
        care for consistency along a text, are not part of it: labels come from the logits alone. There is
        no official training code. The copy is trained with the learning rate and epochs of MUSE's; every
        other default is ours (``α = 1`` in MUSE's class; the paper's was not verified).
    References: Eldan and Russinovich, Who's Harry Potter?, 2023, arXiv:2310.02238; Shi et al., MUSE,
        ICLR 2025, arXiv:2407.06460.
    """

    epochs: int = 5
    batch_size: int = 8
    optim: Optim = AdamW(lr=1e-5)
    mode: Literal["train", "eval"] = "eval"
    alpha: float = 5.0
    reinforce: Training = Training(epochs=10, batch_size=8, optim=AdamW(lr=1e-5, schedule="cosine"))
    retain_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise ConfigError(f"must not be negative, got {self.alpha}.", "alpha")

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Generic:
        plan = Plan(
            what="whp reinforced",
            objective=lambda step: {"forget": step.forget.loss.mean()},
            parts={"forget": split.forget, "retain": split.retain},
            passes=lambda epoch: (Pass("forget"),),
            epochs=self.reinforce.epochs,
            batch_size=self.reinforce.batch_size,
            optim=self.reinforce.optim,
            scope=self.scope,
            mode=self.mode,
        )
        reinforced = optimise(model, plan, task, session.child("reinforced"))
        return self.generic(model, reinforced, split.forget, task, session)

    def generic(
        self, model: nn.Module, reinforced: nn.Module, data: Data, task: Task, session: Session
    ) -> Generic:
        """The generic label of every label of a data set."""
        engine, rows, ids = session.engine, [], []
        original = engine.placed(model)
        order = data.fixed_order(self.batch_size)
        for batch in data.batches(order, device=engine.torch_device):
            batch = task.prepare(batch, None)
            with engine.frozen(original), engine.autocast():
                before = label_states(task.said(original, batch), batch, task)
            with engine.frozen(reinforced), engine.autocast():
                after = label_states(task.said(reinforced, batch), batch, task)
            with torch.no_grad():
                chosen = of_labels(before, self._without_gain(after.head), after.hidden)
            rows.append(before.spread(chosen).long())
            ids.append(batch["ids"])
        longest = max(row.shape[1] for row in rows)
        labels = torch.cat([nn.functional.pad(row, (0, longest - row.shape[1])) for row in rows])
        known, places = torch.cat(ids).sort()
        return Generic(known, labels[places], task)

    def _without_gain(self, head: Any) -> Any:
        def chosen(logits: Tensor, _: Tensor, hidden: Tensor) -> Tensor:
            return generic_logits(logits, head(hidden).float(), self.alpha).argmax(-1)

        return chosen

    def forgetting(self, view: View, state: Any) -> Tensor:
        states = label_states(view.said, view.batch, state.task)
        rows = torch.searchsorted(state.ids, view.batch["ids"])
        generic = state.labels[rows[states.where[0]], states.where[1]]
        return mean_over_labels(states, of_labels(states, _cross_entropy, generic))


def generic_logits(original: Tensor, reinforced: Tensor, alpha: float) -> Tensor:
    """``z_o − α ReLU(z_reinforced − z_o)``."""
    return original - alpha * (reinforced - original).relu()


def _cross_entropy(logits: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none")
