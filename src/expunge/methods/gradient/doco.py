"""DoCo: a concept's images become those of its anchor for a discriminator, without harm to the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from expunge import seeding
from expunge.data.arrays import batch_count
from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.anchors import ANCHOR, Anchor, anchored
from expunge.methods.base import GradientMethod, methods
from expunge.methods.conditions import conditional, imagined
from expunge.methods.scopes.denoiser import Denoiser
from expunge.tasks.base import Task
from expunge.tasks.diffusion import Diffusion
from expunge.training.loop import Pass, Plan
from expunge.training.modifier import Gradients, Modifier
from expunge.training.optim import AdamW, ForwardOnly, Optim
from expunge.training.scope import Scope
from expunge.training.session import Session
from expunge.training.step import Step

Definition = Literal["corrected", "conformance"]


class Judge:
    """The discriminator of one run, whose logit is high where it takes an image for the concept's."""

    def __init__(self, network: nn.Module, lr: float, task: Diffusion) -> None:
        self.network, self.task = network, task
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr)
        self.examples = self.steps = 0

    def watch(self, anchor: Tensor, concept: Tensor) -> None:
        """Adds the gradient of ``Σ_i −log(1 − D(anchor_i)) − log D(concept_i)``; both without gradient."""
        with torch.enable_grad():
            loss = softplus(self.network(anchor)) + softplus(-self.network(concept))
            loss.flatten(1).mean(1).sum().backward()
        self.examples += len(concept)

    def fooled(self, concept: Tensor) -> Tensor:
        """``mean −log(1 − D(concept))`` over patches and examples, a scalar."""
        found: Tensor = softplus(self.network(concept)).mean()
        return found

    def learn(self) -> None:
        """A step on the mean of what was watched since the last one."""
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.examples
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.examples, self.steps = 0, self.steps + 1


@dataclass(frozen=True, kw_only=True)
class Surgery(Modifier):
    """Lets the judge learn, and takes from the forget gradient what goes against the retain gradient.

    For each tensor, where ``⟨g, b⟩ < 0`` of the forget gradient ``g`` and the retain gradient ``b``:
    ``g ← g − λ ⟨g, b̂⟩ b̂``; under ``conformance`` ``g ← g − λ ⟨ĝ, b̂⟩ b̂``. Hats are unit tensors.
    """

    judge: Judge
    warm_up: int
    strength: float
    prior: float
    definition: Definition

    separate = True

    def gradients(
        self, terms: dict[str, Gradients], state: object, optimizer: torch.optim.Optimizer
    ) -> dict[str, Gradients]:
        warm = self.judge.steps < self.warm_up
        self.judge.learn()
        if warm:
            return {name: {} for name in terms}
        forget, retain = terms["forget"], terms["retain"]
        found = {n: self.cut(a, retain[n]) if n in retain else a for n, a in forget.items()}
        kept = {name: self.prior * b for name, b in retain.items()} if self.prior > 0 else {}
        return {**terms, "forget": found, "retain": kept}

    def cut(self, forget: Tensor, retain: Tensor) -> Tensor:
        """One tensor of the forget gradient."""
        along, length = (forget * retain).sum(), retain.norm()
        if not (along < 0 and length > 0):
            return forget
        share = along / length
        if self.definition == "conformance":
            share = share / forget.norm()
        rest: Tensor = forget - self.strength * share * (retain / length)
        return rest


@methods.register("doco")
@dataclass(frozen=True, kw_only=True)
class DoCo(GradientMethod):
    """Trains the model against a discriminator until a concept's images pass for those of its anchor.

    On images that the original drew for the anchor's caption ``a``, with noise, ``ẑ_a`` is the clean image
    that the original predicts under ``a`` and ``ẑ_c`` the one that the model predicts under the concept's
    caption ``c``. The discriminator ``D`` minimises ``−log(1 − D(ẑ_a)) − log D(ẑ_c)`` and the model
    ``L_f = −log(1 − D(ẑ_c))``, means over ``D``'s patches. With the gradients ``g = ∇L_f`` and
    ``b = ∇ mean_{i∈D_r} ℓ_i`` of a tensor of weights, the step goes along ``g' + ρ b``, where
    ``g' = g − λ ⟨g, b̂⟩ b̂`` if ``⟨g, b⟩ < 0`` and ``g`` if not; hats are unit tensors. With ``λ = 1`` a step
    along ``g'`` does not raise the retain loss, to first order.

    Args:
        definition: ``conformance``: ``g' = g − λ ⟨ĝ, b̂⟩ b̂`` as in the authors' code: too much is taken out
            where ``‖g‖ < 1``, so that the step goes along ``b``, and too little where it is more.
        strength: ``λ``.
        prior: ``ρ``; 0 uses the retain set for the projection alone, as the authors' code does.
        warm_up: fraction of all steps in which the discriminator alone learns, those at the beginning.
        judge_lr: learning rate of the discriminator, with Adam.
        width: channels of its first layer; it has three convolutions, which see 15 × 15 places of an image.
        anchor, concept, samples, steps, guidance: what the concept turns into, and the images drawn for it:
            see ``ca``.
        scope: the cross-attention.

    Shapes: denoisers of captions or of classes on images ``(N, C, H, W)``; of classes set the scope to the
        denoiser's part ``all``. Unsupported for other tasks, and for optimisers without gradients.
    Cost: ``2 · steps`` forward passes over the samples; then ``epochs`` passes over them with a retain batch
        beside each batch, with three forward and two backward passes. One copy of the model; a discriminator.
    Guarantee: empirical.
    Differs: the projection above. The discriminator normalises each example by itself: BatchNorm, as there,
        mixes the noise levels of a batch. ``ẑ`` follows from the noise level; there a file of the installed
        diffusers is replaced for it. The retain gradient is part of the step, and the learning rate follows
        its schedule; there neither is so once gradients are projected. Both sides learn from the same pass,
        each against the other as it was before; the form of the discriminator, samples and sampler are
        choices of ours.
    References: DoCo, Unlearning Concepts in Diffusion Model via Concept Domain Correction and Concept
        Preserving Gradient, AAAI 2025, arXiv:2405.15304; learning rate 6e-6, batches of 8, 2,000 steps of
        which 1,000 warm-up, judge 5e-4 for styles and 1e-4 for objects, ``λ`` 1 as in its code.
    """

    epochs: int = 80
    batch_size: int = 8
    optim: Optim = AdamW(lr=6e-6, weight_decay=0.0)
    scope: Scope = Denoiser(part="cross_attention")
    mode: Literal["train", "eval"] = "eval"
    definition: Definition = "corrected"
    strength: float = 1.0
    prior: float = 1.0
    warm_up: float = 0.5
    judge_lr: float = 5e-4
    width: int = 64
    anchor: Anchor = "next"
    concept: str = ""
    samples: int | None = 200
    steps: int = 20
    guidance: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("strength", "prior"):
            if getattr(self, name) < 0:
                raise ConfigError(f"must not be negative, got {getattr(self, name)}.", name)
        if not 0 <= self.warm_up < 1:
            raise ConfigError(f"must be at least 0 and below 1, got {self.warm_up}.", "warm_up")
        if not self.judge_lr > 0:
            raise ConfigError(f"must be above 0, got {self.judge_lr}.", "judge_lr")
        for name in ("width", "samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)

    def reads_inputs(self) -> tuple[str, ...]:
        return ("retain",)

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        conditional(split, task, "doco")
        shape = tuple(split.forget.column("inputs").shape)
        if len(shape) != 4:
            raise Unsupported(f"doco judges images (N, C, H, W), got inputs {shape}. Use sa or erase_diff.")
        if isinstance(self.optim, ForwardOnly):
            raise Unsupported("doco projects gradients, and this optimiser has none. Use adamw or sgd.")

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget", beside="retain"),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Judge:
        channels = split.forget.column("inputs").shape[1]
        with seeding.seeded(session.child("judge").seed):
            network = discriminator(channels, self.width)
        return Judge(network.to(session.engine.torch_device), self.judge_lr, conditional(split, task, "doco"))

    def plan(self, model: nn.Module, split: Split, task: Task, session: Session) -> Plan:
        denoising = conditional(split, task, "doco")
        split = anchored(split, task, session, self.anchor, concept=self.concept, model=model)
        chosen = split.forget
        if self.samples is not None and self.samples < len(chosen):
            order = torch.randperm(len(chosen), generator=session.generator("samples"))
            chosen = chosen.subset(chosen.ids[order[: self.samples].sort().values])
        total = self.epochs * batch_count(len(chosen), self.batch_size)
        images = imagined(
            model, chosen, denoising, session, under=ANCHOR, steps=self.steps, guidance=self.guidance
        )
        plan = super().plan(model, replace(split, forget=images), task, session)
        surgery = Surgery(
            judge=plan.state,
            warm_up=int(self.warm_up * total),
            strength=self.strength,
            prior=self.prior,
            definition=self.definition,
        )
        return replace(plan, modifiers=(surgery, *self.modifiers))

    def objective(self, step: Step) -> dict[str, Tensor]:
        judge: Judge = step.state
        asked, anchor = step.forget, step.forget.instead(ANCHOR)
        drawn = judge.task.original_clean(asked.outputs.float(), asked.batch)
        wanted = judge.task.original_clean(anchor.original.float(), anchor.batch)
        judge.watch(wanted, drawn.detach())
        return {"forget": judge.fooled(drawn), "retain": step.retain.loss.mean()}


def discriminator(channels: int, width: int) -> nn.Sequential:
    """A logit for each patch of images, ``(N, C, H, W)`` to ``(N, 1, ⌈H/4⌉, ⌈W/4⌉)``, each by itself."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.GroupNorm(1, 2 * width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 3, padding=1),
    )
