"""CA: concept ablation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.anchors import ANCHOR, Anchor, anchored
from expunge.methods.base import GradientMethod, methods
from expunge.methods.conditions import conditional, imagined
from expunge.methods.scopes.denoiser import Denoiser
from expunge.tasks.base import Task
from expunge.training.cross_attention import cross_attention
from expunge.training.loop import Pass, Plan
from expunge.training.optim import AdamW, Optim
from expunge.training.scope import Scope
from expunge.training.session import Session
from expunge.training.step import Step


@methods.register("ca")
@dataclass(frozen=True, kw_only=True)
class CA(GradientMethod):
    """Makes the model predict for a concept's captions what it predicts for an anchor's, on anchor images.

    ``min_θ  mean ‖f_θ(x_t, t, c) − sg f_θ(x_t, t, a)‖² / D + ρ mean ‖f_θ(x_t, t, a) − y‖² / D`` with ``x_t``
    a noised image that the original drew for the anchor's caption ``a``, ``c`` the caption of the concept,
    ``y`` what is to be predicted, and no gradient through ``sg``: the model itself is the target, not the
    original.

    Args:
        anchor: what the concept turns into: see ``anchored``. The authors take ``painting`` for styles and a
            wider notion for objects.
        concept: its words, where the captions do not tell.
        samples: images that the original draws, once, one for each of so many forget examples; ``null`` for
            all of them.
        regularisation: ``ρ``, the weight of drawing the anchor as before.
        steps, guidance: of the sampler that draws them.
        scope: the matrices of keys and values of the cross-attention.

    Shapes: denoisers of captions or of classes; for the latter set the scope to everything or to the
        denoiser's part ``all``. Unsupported for other tasks.
    Cost: ``2 · steps`` forward passes over the samples; then ``epochs`` passes over them, each batch with two
        forward and backward passes. One copy of the model.
    Guarantee: empirical.
    Differs: the learning rate is the one that is given; the authors' code multiplies it by batch and number
        of GPUs. The regularisation is of the same anchor images as the ablation, there of a second batch of
        them. Captions are those of the forget set with the concept replaced, not expanded by a language
        model. Keys and values of a caption's first token get no gradient, as there, where the model has
        cross-attention. Sampler settings, batch size and epochs are choices of ours; the authors draw 200 to
        1,000 images and take up to 1,000 steps of 4.
    References: Kumari et al., Ablating Concepts in Text-to-Image Diffusion Models, ICCV 2023,
        arXiv:2303.13516, the model-based variant; learning rate 2e-6.
    """

    epochs: int = 20
    batch_size: int = 4
    optim: Optim = AdamW(lr=2e-6, weight_decay=0.0)
    scope: Scope = Denoiser(part="key_value")
    mode: Literal["train", "eval"] = "eval"
    anchor: Anchor = "next"
    concept: str = ""
    samples: int | None = 200
    regularisation: float = 0.2
    steps: int = 20
    guidance: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"must be at least 1, got {self.samples}.", "samples")
        if self.regularisation < 0:
            raise ConfigError(f"must not be negative, got {self.regularisation}.", "regularisation")

    def reads_inputs(self) -> tuple[str, ...]:
        return ()

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        conditional(split, task, "ca")

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget"),)

    def plan(self, model: nn.Module, split: Split, task: Task, session: Session) -> Plan:
        denoising = conditional(split, task, "ca")
        split = anchored(split, task, session, self.anchor, concept=self.concept, model=model)
        chosen = split.forget
        if self.samples is not None and self.samples < len(chosen):
            order = torch.randperm(len(chosen), generator=session.generator("samples"))
            chosen = chosen.subset(chosen.ids[order[: self.samples].sort().values])
        images = imagined(
            model, chosen, denoising, session, under=ANCHOR, steps=self.steps, guidance=self.guidance
        )
        return super().plan(model, replace(split, forget=images), task, session)

    def objective(self, step: Step) -> dict[str, Tensor]:
        with first_token_still(step.model):
            asked, anchor = step.forget, step.forget.instead(ANCHOR)
            with torch.set_grad_enabled(self.regularisation > 0):
                wanted = anchor.outputs
            terms = {"forget": (asked.outputs.float() - wanted.detach().float()).square().mean()}
            if self.regularisation > 0:
                terms["anchor"] = self.regularisation * anchor.loss.mean()
        return terms


@contextmanager
def first_token_still(model: nn.Module) -> Iterator[None]:
    """No gradient goes through keys and values of a caption's first token, inside the block."""

    def cut(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], 1)

    try:
        layers = [module for _, module in cross_attention(model)]
    except Unsupported:
        layers = []  # a denoiser of classes has no tokens
    handles = [
        getattr(layer, name).register_forward_hook(cut) for layer in layers for name in ("to_k", "to_v")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
