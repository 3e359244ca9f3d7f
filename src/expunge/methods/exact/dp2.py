"""A differentially private base, fine-tuned on what is retained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data, batch_count
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError, MissingEvidence, Unsupported
from expunge.methods.base import Method, methods
from expunge.tasks.base import Task
from expunge.training.accountant import Accountant, calibrated
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import AdamW, Optim
from expunge.training.private import Private
from expunge.training.recipe import Recipe, Training
from expunge.training.scope import Everything, Scope
from expunge.training.session import Event, Session

WEIGHTS = "model/"
"""Before the names of the base's tensors in what is prepared."""


@methods.register("dp2")
@dataclass(frozen=True, kw_only=True)
class DP2(Method):
    """Fine-tunes a base on the retain set that was trained on all data by DP-SGD (DP2Unlearning).

    The base is trained once, for all requests: in each of ``T`` steps every unit is drawn with probability
    ``q`` and ``θ`` moves along ``(Σ_u min(1, C / ‖g_u‖) g_u + σ C z) / (q U)``, ``z ~ N(0, I)``. Then
    ``min_θ mean_{i∈D_r} ℓ_i(θ)`` from there. The model handed in is not used.

    Args:
        epsilon: ``ε`` of one unit, at most; ``σ`` is the noise that gives it.
        delta: ``δ``; below one over the number of units.
        clip: ``C``, the largest norm of one unit's gradient.
        unit: ``record``, one example, or ``subject``: all examples of a subject (column ``subjects``)
            are drawn together, and the gradient of their mean loss is clipped.
        base: how the base is trained; by default as the recipe says, which needs no noise and is hardly
            best. Larger batches cost less utility.
        epochs, batch_size, optim: of the fine-tuning.
        scope: which parameters move, in the base and in the fine-tuning.

    Shapes: every task and model whose examples have gradients of their own: no BatchNorm (Unsupported).
    Cost: once: a training by the gradients of single examples, at once by ``torch.vmap`` with memory for a
        batch of them, else with a backward pass for each (language models of transformers). A request:
        ``epochs`` passes over the retain set.
    Guarantee: certified. With ``A`` the private training and ``F_r`` the fine-tuning on ``D_r``, for every
        set of models ``P[F_r(A(D)) ∈ S] ≤ e^ε P[F_r(A(D ∖ u)) ∈ S] + δ``, and the other way round: the result
        is hard to tell from that of this same method (same ``T``, ``q``, ``σ``) on data that never held
        unit ``u``; it is no bound on the distance to ``retrain``. For a request of ``k`` units ``ε`` is
        larger, soon too large to mean anything; it is computed and told to listeners with every request. A
        guarantee for records says little of a subject with 20: use ``unit: subject``. It presumes that
        the recipe's initial model, the settings and the number of examples (``q``) owe nothing to the
        forgotten ones, and that the seed is drawn at random and never published: with it the noise can be
        computed and taken off. Noise is float32 from torch's generator, which is no defence against
        attacks on the rounding of samplers. Only the weights of the result are covered: not the base's
        training log, and not the retained data.
    Differs: the authors' second route, texts rewritten token by token (DP-MLM), is not here: its ``ε`` is per
        rewritten token and bounds nothing about the trained model. Their DP-SGD hands a loader that samples
        already to opacus' ``make_private``, which wraps it again, and mixes ``BatchMemoryManager`` with
        steps of its own; then sampling rate and steps are not those that the accountant is told. Here
        opacus gives the accountant alone: sampling, clipping and noise are this library's loop's, a step
        without any unit is taken too, and the sum is divided by the expected number of units. Their rate
        (SGD, 5e-5, steps of a clipped mean) hardly moves the weights; ours is the recipe's. Their ``ε`` is
        per question while the request is an author. Batch size and rate of the fine-tuning are choices of
        ours; 3 epochs are theirs. No code of theirs was run.
    References: Al Mahmud et al., DP2Unlearning, 2025, arXiv:2504.13774; Abadi et al., Deep Learning with
        Differential Privacy, CCS 2016, arXiv:1607.00133; Mironov et al., Rényi Differential Privacy of the
        Sampled Gaussian Mechanism, 2019, arXiv:1908.10530; Ganesh, Tight Group-Level DP Guarantees for
        DP-SGD, 2024, arXiv:2401.10294.
    """

    guarantee = "certified"
    needs_recipe = True
    prepared_by = ("epsilon", "delta", "clip", "unit", "base", "scope")

    epsilon: float = 8.0
    delta: float = 1e-5
    clip: float = 1.0
    unit: Literal["record", "subject"] = "record"
    base: Training | None = None
    epochs: int = 3
    batch_size: int = 128
    optim: Optim = AdamW(lr=1e-4, weight_decay=0.0)
    scope: Scope = Everything()

    def __post_init__(self) -> None:
        for name in ("epsilon", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"must be above 0, got {getattr(self, name)}.", name)
        if not 0 < self.delta < 1:
            raise ConfigError(f"must be in (0, 1), got {self.delta}.", "delta")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)

    def promise(self) -> str:
        return (
            f"(ε, δ) = ({self.epsilon:g}, {self.delta:g}) for one {self.unit}, against the same method on "
            f"data that never held it, if the seed stays secret; weaker for several {self.unit}s."
        )

    def check(self, split: Split, task: Task) -> None:
        """Refuses to forget a part of a subject where subjects are the unit."""
        if self.unit == "subject":
            train = split.train()
            units, gone = self.private().units(train), torch.isin(train.ids, split.forget.ids)
            shared = units[gone][torch.isin(units[gone], units[~gone])]
            if len(shared):
                name = int(train.column("subjects")[units == shared[0]][0])
                raise Unsupported(
                    f"dp2 with unit=subject forgets subjects whole, and subject {name} is to be forgotten "
                    "in part. Give all its examples to forget, or use unit=record."
                )

    def check_training(self, train: Data, recipe: Recipe) -> None:
        training = self.base or recipe.training
        if training.gradient_penalty:
            raise Unsupported(
                "dp2: gradient_penalty is about the gradient of a whole batch, and private training clips "
                "those of single examples. Set it to 0."
            )
        private = self.private()
        private.check(recipe.initial(Session()), training.optim)
        units = int(private.units(train).max()) + 1
        if self.delta >= 1 / units:
            raise Unsupported(
                f"dp2: a delta of {self.delta:g} for {units} {self.unit}s allows publishing one of them "
                f"whole. Set delta well below {1 / units:.2g}."
            )

    def private(self, noise: float = 0.0) -> Private:
        """The gradient of the base's training."""
        return Private(clip=self.clip, noise=noise, unit=self.unit)

    def prepare(self, train: Data, task: Task, session: Session) -> dict[str, Tensor]:
        """The base's weights, the ids ``(N,)`` of its data, and its noise, rate and steps."""
        recipe = self._recipe(task, session)
        self.check_training(train, recipe)
        training = self.base or recipe.training
        rate = self.private().rate(train, training.batch_size)
        steps = training.epochs * batch_count(len(train), training.batch_size)
        noise = calibrated(self.epsilon, self.delta, rate, steps)
        plan = Plan(
            what="dp2 base",
            objective=lambda step: {"loss": step.retain.loss.mean()},
            parts={"retain": train},
            passes=lambda epoch: (Pass("retain"),),
            epochs=training.epochs,
            batch_size=training.batch_size,
            optim=training.optim,
            scope=self.scope,
            private=self.private(noise),
        )
        session = replace(session.child("dp2 base"), recipe=None)
        base = optimise(recipe.initial(session), plan, task, session)
        numbers = {"noise": noise, "rate": rate, "steps": steps}
        return {
            "ids": train.ids.sort().values,
            **{name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()},
            **{WEIGHTS + name: value.detach().cpu().clone() for name, value in base.state_dict().items()},
        }

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        recipe = self._recipe(task, session)
        self.check(split, task)
        train = split.train()
        made = session.prepared if session.prepared is not None else self.prepare(train, task, session)
        if not torch.equal(made["ids"].cpu(), train.ids):
            raise DataError(
                f"the base was prepared for {len(made['ids'])} training examples, which are not the "
                f"{len(train)} of this split. Prepare it for the same data."
            )
        base = recipe.initial(session)
        weights = {k.removeprefix(WEIGHTS): v for k, v in made.items() if k.startswith(WEIGHTS)}
        base.load_state_dict(weights)
        self._say(made, split, session)
        plan = Plan(
            what="dp2",
            objective=lambda step: {"retain": step.retain.loss.mean()},
            parts={"retain": split.retain},
            passes=lambda epoch: (Pass("retain"),),
            epochs=self.epochs,
            batch_size=self.batch_size,
            optim=self.optim,
            scope=self.scope,
        )
        return optimise(base, plan, task, replace(session.child("dp2 fine-tuning"), recipe=None))

    def _say(self, made: Mapping[str, Tensor], split: Split, session: Session) -> None:
        """Tells listeners what holds for one unit and for all that are to be forgotten."""
        noise, rate, steps = (float(made[name]) for name in ("noise", "rate", "steps"))
        accountant = Accountant(noise=noise, rate=rate, steps=int(steps))
        count = int(self.private().units(split.forget).max()) + 1
        each, request = accountant.epsilon(self.delta), accountant.epsilon(self.delta, count)
        values = {"epsilon": each, "delta": self.delta, "noise": noise, "rate": rate, "steps": steps}
        values |= {"units": float(count)} | ({"epsilon_request": request} if isfinite(request) else {})
        said = (
            f"dp2: (ε, δ) = ({each:.3g}, {self.delta:g}) for one {self.unit}, "
            f"({request:.3g}, {self.delta:g}) for the {count} of the request"
        )
        session.emit(Event("evaluated", said, values=values))

    def _recipe(self, task: Task, session: Session) -> Recipe:
        if session.recipe is None:
            raise MissingEvidence(
                "dp2 trains its base itself and needs the recipe: "
                "pass recipe=expunge.Recipe(model, task, training)."
            )
        return replace(session.recipe, task=task)
