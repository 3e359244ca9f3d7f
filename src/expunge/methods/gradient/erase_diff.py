"""EraseDiff: as little forget loss as can be had without giving up the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.anchors import ANCHOR, Anchor, anchored
from expunge.methods.base import GradientMethod, methods
from expunge.methods.conditions import conditional
from expunge.methods.scopes.denoiser import Denoiser
from expunge.tasks.base import Task
from expunge.training.loop import Pass, optimise
from expunge.training.modifier import Gradients, Modifier
from expunge.training.optim import AdamW, Optim
from expunge.training.parameters import inner
from expunge.training.scope import Scope
from expunge.training.session import Session
from expunge.training.step import Step


@dataclass
class Gap:
    """``q`` of one step, summed over the examples of its parts."""

    total: float = 0.0
    examples: int = 0


@dataclass(frozen=True)
class Barrier(Modifier):
    """Weighs the forget gradient so that ``q`` falls at least at the rate ``η q``, to first order.

    ``λ = max(0, (η q − ⟨∇L_r, ∇q⟩) / ‖∇q‖²)``: the direction nearest to ``∇L_r`` with
    ``⟨∇L_r + λ ∇q, ∇q⟩ ≥ η q``.
    """

    rate: float
    gap: Gap = field(default_factory=Gap)

    separate = True

    def terms(
        self, step: Step, objective: Callable[[Step], dict[str, Tensor]], state: Any
    ) -> dict[str, Tensor]:
        found = objective(step)
        count = len(step.forget)
        self.gap.total += float(found["forget"].detach()) * count
        self.gap.examples += count
        return found

    def gradients(
        self, terms: dict[str, Gradients], state: Any, optimizer: torch.optim.Optimizer
    ) -> dict[str, Gradients]:
        gap = max(0.0, self.gap.total / self.gap.examples)
        self.gap.total, self.gap.examples = 0.0, 0
        square = inner(terms["forget"], terms["forget"])
        if not square > 0:
            return terms
        weight = ((self.rate * gap - inner(terms["retain"], terms["forget"])) / square).clamp(min=0)
        return {**terms, "forget": {name: weight * g for name, g in terms["forget"].items()}}


@methods.register("erase_diff")
@dataclass(frozen=True, kw_only=True)
class EraseDiff(GradientMethod):
    """Minimises the retain loss among the models whose forget loss is near its own minimum.

    ``f(θ) = mean_{i∈D_f} ‖f_θ(x_t, t, c) − sg f_θ(x_t, t, a)‖² / D`` draws a concept's caption ``c`` to the
    anchor's, ``a``; ``L_r`` is the denoising loss of the retain set.

    - ``paper``: in every epoch ``θ' = argmin f`` by ``inner`` passes over the forget set from the current
      weights, which are then taken up again; then a pass of steps along ``∇L_r + λ ∇q`` with
      ``q = f(θ) − f(θ')`` and ``λ = max(0, (η q − ⟨∇L_r, ∇q⟩) / ‖∇q‖²)`` of the step.
    - ``reference``: ``min_θ L_r + α f(θ)``, which is what the code of UnlearnCanvas amounts to: its inner
      value is a constant there, without a gradient.

    Args:
        variant: see above.
        anchor: what the concept turns into: see ``anchored``.
        concept: its words, where the captions do not tell.
        inner: ``K``, passes over the forget set in search of ``θ'``.
        rate: ``η``, how fast ``q`` falls; it does so for steps of plain gradient descent.
        forget_weight: ``α`` of the reference.

    Shapes: denoisers of captions or of classes. Unsupported for other tasks.
    Cost: ``epochs`` passes over the forget set with a retain batch beside each batch, and two forward and one
        backward pass for the former; the paper's variant has ``inner`` passes more, two backward passes in
        place of one and two forward passes through a second copy of the model.
    Guarantee: empirical.
    Differs: the rule for ``λ`` and one search for ``θ'`` an epoch are choices of ours after the
        value-function method that the paper builds on; the authors' code for classes of images has
        ``max(0, η − cos(∇L_r, ∇q))`` for ``λ``, and the paper's own text was not at hand. The reference
        has no inner passes here: in that code they change nothing but Adam's running means, which are not
        restored with the weights. It also takes the first batch of four images over and over; here all
        examples are used. There the scope is cross-attention alone; here the whole denoiser.
    References: Wu et al., Erasing Undesirable Influence in Diffusion Models, 2024, arXiv:2401.05779; learning
        rate 5e-5, ``K`` 2, ``α`` 0.1 and batches of 4 as in UnlearnCanvas, arXiv:2402.11846. The rule for
        ``λ``: Liu et al., BOME! Bilevel Optimization Made Easy, NeurIPS 2022, arXiv:2209.08709.
    """

    epochs: int = 5
    batch_size: int = 4
    optim: Optim = AdamW(lr=5e-5, weight_decay=0.0)
    scope: Scope = Denoiser(part="all")
    mode: Literal["train", "eval"] = "eval"
    variant: Literal["paper", "reference"] = "paper"
    anchor: Anchor = "next"
    concept: str = ""
    inner: int = 2
    rate: float = 0.1
    forget_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner < 1:
            raise ConfigError(f"must be at least 1, got {self.inner}.", "inner")
        if not self.rate > 0:
            raise ConfigError(f"must be above 0, got {self.rate}.", "rate")
        if not self.forget_weight > 0:
            raise ConfigError(f"must be above 0, got {self.forget_weight}.", "forget_weight")

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        conditional(split, task, "erase_diff")

    def objective(self, step: Step) -> dict[str, Tensor]:
        weight = self.forget_weight if self.variant == "reference" else 1.0
        terms = {"forget": weight * self.to_anchor(step), "retain": step.retain.loss.mean()}
        if step.state is not None:  # the model that the inner passes reached
            with torch.no_grad():
                view = step.forget
                reached, wanted = view.through(step.state), view.instead(ANCHOR).through(step.state)
                least = (reached.float() - wanted.float()).square().mean()
            terms["forget"] = terms["forget"] - least
        return terms

    def to_anchor(self, step: Step) -> Tensor:
        """``f``, a scalar."""
        with torch.no_grad():
            wanted = step.forget.instead(ANCHOR).outputs
        return (step.forget.outputs.float() - wanted.float()).square().mean()

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        task = task.unlearning()
        split = anchored(split, task, session, self.anchor, concept=self.concept, model=model)
        plan = self.plan(model, split, task, session)
        if self.variant == "reference":
            return optimise(model, plan, task, session)
        towards = replace(
            plan,
            objective=lambda step: {"forget": self.to_anchor(step)},
            passes=lambda epoch: (Pass("forget"),),
            epochs=self.inner,
        )
        result = model
        for epoch in range(self.epochs):
            reached = optimise(result, towards, task, session.child("inner", epoch)).eval()
            outer = replace(
                plan, epochs=1, state=reached, modifiers=(Barrier(rate=self.rate), *self.modifiers)
            )
            result = optimise(result, outer, task, session.child("outer", epoch))
        return result
