"""Few-shot erasing through the text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data.captions import CaptionedImages
from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.methods.conditions import conditional
from expunge.methods.scopes.text_encoder import TextEncoder
from expunge.tasks.base import Task
from expunge.training.loop import Pass, Plan
from expunge.training.optim import AdamW, Optim
from expunge.training.scope import Scope
from expunge.training.session import Session
from expunge.training.step import Step


@methods.register("few_shot")
@dataclass(frozen=True, kw_only=True)
class FewShot(GradientMethod):
    """Unlearns to denoise a few images of a concept, by changing how their captions are read.

    ``max_φ  mean_i min(ℓ_i(θ, φ), b)`` over a few images with ``ℓ`` the loss of the task, ``φ`` the
    feed-forward layers and the last attention of the text encoder, and the denoiser ``θ`` as it is. An image
    whose loss has reached the bound ``b`` has no gradient. The concept is not named, and nothing retained is
    looked at.

    Args:
        samples: images of the concept, drawn once; ``null`` for all of them.
        captions: use other captions of the examples than their own, by name: ``style``, ``object``.
        bound: ``b``; ``null`` for none.
        scope: which parameters move; the default finds the layers by structure.

    Shapes: text-to-image models with captioned images. Unsupported for others.
    Cost: ``epochs`` forward and backward passes over the samples: some ten steps.
    Guarantee: empirical. Nothing is kept on purpose: what else the text encoder knew goes too, the more the
        longer it runs.
    Differs: the ascent has a bound. Theirs has none, so that the number of epochs is its only end, and they
        choose among checkpoints; a loss of 1 is that of predicting zeros for noise, and about that for
        velocity, and as the bound a choice of ours. Captions are those of the data, or a column of it; theirs
        are drawn from the templates of textual inversion with the concept in them. The last attention is
        that of the last block, theirs of the twelfth. Noise is normal and latents are those of the data,
        where their path for generated images draws it uniformly and in five dimensions. Decay acts on the
        weights, not on the gradient; at 1e-8 it is nothing.
    References: Fuchi and Takagi, Erasing Concepts from Text-to-Image Diffusion Models with Few-shot
        Unlearning, BMVC 2024, arXiv:2405.07288; 4 images, batch 2, 4 epochs, learning rate 1e-5, betas 0.9
        and 0.98, epsilon 1e-6 and decay 1e-8 as in their code.
    """

    epochs: int = 4
    batch_size: int = 2
    optim: Optim = AdamW(lr=1e-5, weight_decay=1e-8, betas=(0.9, 0.98), eps=1e-6)
    scope: Scope = TextEncoder()
    mode: Literal["train", "eval"] = "eval"
    samples: int | None = 4
    captions: str = ""
    bound: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"must be at least 1, got {self.samples}.", "samples")
        if self.bound is not None and not self.bound > 0:
            raise ConfigError(f"must be above 0, got {self.bound}.", "bound")

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        conditional(split, task, "few_shot")
        if not isinstance(split.forget, CaptionedImages):
            raise Unsupported(
                "few_shot changes how captions are read, and there are none. Use grad_ascent or sa."
            )

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget"),)

    def plan(self, model: nn.Module, split: Split, task: Task, session: Session) -> Plan:
        chosen = split.forget
        if self.samples is not None and self.samples < len(chosen):
            order = torch.randperm(len(chosen), generator=session.generator("samples"))
            chosen = chosen.subset(chosen.ids[order[: self.samples].sort().values])
        return super().plan(model, replace(split, forget=chosen), task, session)

    def objective(self, step: Step) -> dict[str, Tensor]:
        view = step.forget.instead(self.captions) if self.captions else step.forget
        loss = view.loss if self.bound is None else view.loss.clamp(max=self.bound)
        return {"forget": -loss.mean()}
