"""ScissorHands: the weights that a concept hangs on are drawn anew, and the rest repaired."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.anchors import ANCHOR, Anchor, anchored
from expunge.methods.base import GradientMethod, check_floating, methods
from expunge.methods.conditions import conditional
from expunge.methods.scopes.denoiser import Denoiser
from expunge.tasks.base import Task
from expunge.training import parameters
from expunge.training.loop import Plan, optimise
from expunge.training.modifier import Gradients, Modifier
from expunge.training.optim import AdamW, Optim
from expunge.training.scope import Scope
from expunge.training.session import Session
from expunge.training.step import Step


@dataclass
class Memory:
    """``g_o`` of the model that the repair began with, and the steps taken since."""

    direction: Gradients
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Cone(Modifier):
    """Adds as much of ``g_o = −∇L_f``, taken before the first step, as keeps ``⟨g, g_o⟩ ≥ 0``.

    ``g ← g + v g_o`` with ``v = max(margin, −⟨g, g_o⟩ / ‖g_o‖²)`` where ``⟨g, g_o⟩ < 0``, over the
    parameters of ``where`` together: the dual of the quadratic program of GEM for one constraint.
    """

    where: Scope
    every: int
    margin: float
    batch_size: int

    def prepare(self, model: nn.Module, split: Split, task: Task, session: Session) -> Memory:
        movable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        names = [name for name in self.where.names(model) if name in movable]
        found = parameters.mean_gradient(
            model, split.forget, task, session, names=names, batch_size=self.batch_size
        )
        return Memory({name: -gradient for name, gradient in found.items()})

    def gradients(
        self, terms: dict[str, Gradients], state: Memory, optimizer: torch.optim.Optimizer
    ) -> dict[str, Gradients]:
        due = state.steps % self.every == 0
        state.steps += 1
        if not due:
            return terms
        products = [parameters.inner(term, state.direction) for term in terms.values()]
        along, square = torch.stack(products).sum(), parameters.inner(state.direction, state.direction)
        if not (along < 0 and square > 0):
            return terms
        weight = (-along / square).clamp(min=self.margin)
        return {**terms, "cone": {name: weight * g for name, g in state.direction.items()}}


@methods.register("scissorhands")
@dataclass(frozen=True, kw_only=True)
class ScissorHands(GradientMethod):
    """Draws the weights anew that the loss on the forget set is most sensitive to, then repairs the model.

    Sensitivity is ``s_j = |θ_j| Σ_B |∂ mean_{i∈B} ℓ_i / ∂θ_j|`` over the batches of the forget set. The
    ``share`` of weights with the largest becomes normal with deviation ``std``, cut off at ±2; biases become
    0. Then ``min_θ  mean_{i∈D_r} ℓ_i(θ) + α mean_{i∈D_f} ‖f_θ(x_t, t, c) − sg f_θ(x_t, t, a)‖² / D``, which
    draws the concept's caption ``c`` to its anchor's, ``a``, as the model itself answers that one.

    Args:
        share: of the weights, drawn anew.
        reset: where they are: the cross-attention; of models without set it to everything.
        among: what the share is of and which weights it ranks: those of ``reset``; or those of ``scope`` as
            well, of which then only those in ``reset`` are drawn anew, however many that are.
        std: of the new weights.
        forget_weight: ``α``.
        anchor: what the concept turns into: see ``anchored``.
        concept: its words, where the captions do not tell.
        project: keep the repair from learning the forget set again: of the gradient ``g`` at the weights of
            ``reset`` the part along ``g_o`` is taken out, ``g − (⟨g, g_o⟩ / ‖g_o‖²) g_o``, where
            ``⟨g, g_o⟩ < 0``; ``g_o = −∇ mean_{i∈D_f} ℓ_i`` as it was before the first step.
        every: project at each so many steps.
        margin: the least multiple of ``g_o`` that is added where one is; 0 is the projection.

    Shapes: denoisers of captions or of classes; of the latter set ``reset`` to everything. Unsupported for
        other tasks.
    Cost: a forward and backward pass over the forget set, with ``project`` two; then ``epochs`` passes over
        it with a retain batch beside each batch, with three forward and two backward passes. Two copies of
        the model.
    Guarantee: empirical.
    Differs: the share is of the cross-attention. The authors' code ranks all weights of the U-Net
        (``among: scope``), of which only those in the cross-attention are drawn anew: few, or none. All
        examples count in the sensitivity and in the repair, which there take the first batch of the loader
        again and again. The one-constraint quadratic program is solved in closed form, without a solver and
        without ``1e-3`` added to ``‖g_o‖²``; its margin is 0.5 there. There each gradient is looked up
        by another loop's variable, which is wrong as soon as a parameter has none; here by name. AdamW
        without decay is the authors' Adam.
    References: Wu and Harandi, Scissorhands: Scrub Data Influence via Connection Sensitivity in Networks,
        ECCV 2024, arXiv:2401.06187. Share 0.01, ``std`` 0.02, ``α`` 0.1, learning rate 1e-5, 2 epochs,
        batches of 4 and a projection at each tenth step are those of UnlearnCanvas, arXiv:2402.11846. The
        projection: Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017, arXiv:1706.08840.
    """

    epochs: int = 2
    batch_size: int = 4
    optim: Optim = AdamW(lr=1e-5, weight_decay=0.0)
    scope: Scope = Denoiser(part="all")
    mode: Literal["train", "eval"] = "eval"
    share: float = 0.01
    reset: Scope = Denoiser(part="cross_attention")
    among: Literal["reset", "scope"] = "reset"
    std: float = 0.02
    forget_weight: float = 0.1
    anchor: Anchor = "next"
    concept: str = ""
    project: bool = False
    every: int = 10
    margin: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ConfigError(f"is a fraction in (0, 1], got {self.share}.", "share")
        if not self.std > 0:
            raise ConfigError(f"must be above 0, got {self.std}.", "std")
        if self.every < 1:
            raise ConfigError(f"must be at least 1, got {self.every}.", "every")
        for name in ("forget_weight", "margin"):
            if getattr(self, name) < 0:
                raise ConfigError(f"must not be negative, got {getattr(self, name)}.", name)

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        conditional(split, task, "scissorhands")

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        check_floating(model, "scissorhands")
        task = task.unlearning()
        split = anchored(split, task, session, self.anchor, concept=self.concept, model=model)
        cut = self.cut(model, split, task, session)
        return optimise(cut, self.plan(cut, split, task, session), task, session)

    def cut(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        """A copy of the model in which the most sensitive weights are drawn anew."""
        found = session.engine.copy(model)
        names = self.reset.fitted(found, split, task, session).names(found)
        ranked = names if self.among == "reset" else list(dict.fromkeys([*names, *self.scope.names(found)]))
        total, _ = parameters.gradient_sum(
            found, split.forget, task, session, names=ranked, batch_size=self.batch_size, transform=torch.abs
        )
        weights, draws = dict(found.named_parameters()), session.generator("reset")
        sensitive = {name: weights[name].detach().abs() * total[name] for name in ranked}
        chosen = parameters.largest(sensitive, self.share)
        for name in names:
            old, new = weights[name].detach(), torch.zeros(weights[name].shape)
            if not name.endswith("bias"):
                nn.init.trunc_normal_(new, std=self.std, generator=draws)
            old.copy_(torch.where(chosen[name], new.to(old), old))
        return found

    def plan(self, model: nn.Module, split: Split, task: Task, session: Session) -> Plan:
        plan = super().plan(model, split, task, session)
        if not self.project:
            return plan
        cone = Cone(where=self.reset, every=self.every, margin=self.margin, batch_size=self.batch_size)
        return replace(plan, modifiers=(cone, *self.modifiers))

    def objective(self, step: Step) -> dict[str, Tensor]:
        with torch.no_grad():
            wanted = step.forget.instead(ANCHOR).outputs
        towards = (step.forget.outputs.float() - wanted.float()).square().mean()
        return {"forget": self.forget_weight * towards, "retain": step.retain.loss.mean()}
