"""ESD: erased stable diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.arrays import Batch
from expunge.data.captions import EMPTY
from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.base import GradientMethod, methods
from expunge.methods.conditions import condition_of, conditional, nothing_for
from expunge.methods.scopes.denoiser import Denoiser
from expunge.tasks.base import Task
from expunge.tasks.diffusion import Diffusion
from expunge.training.engine import Engine
from expunge.training.loop import Pass
from expunge.training.optim import AdamW, Optim
from expunge.training.sampling import noise, sample
from expunge.training.scope import Scope
from expunge.training.session import Session
from expunge.training.step import Step


@dataclass(frozen=True)
class Erasure:
    """One run: the original to turn away from, and how far the model being edited draws."""

    original: nn.Module
    task: Diffusion
    engine: Engine
    seed: int
    steps: int
    guidance: float

    def drawn(self, model: nn.Module, batch: Batch, index: int) -> Batch:
        """The batch at a level of noise of step ``index``, as the model itself draws it.

        A level and the noise of an example depend on the seed, the step and the example's id alone.
        """
        seeds = [seeding.derive(self.seed, "noise", index, int(id_)) for id_ in batch["ids"].tolist()]
        reached = sample(
            model,
            self.task,
            condition_of(batch),
            empty=nothing_for(self.task, batch),
            steps=self.steps,
            guidance=self.guidance,
            start=noise(batch["inputs"].shape[1:], seeds),
            until=self.level(index),
            engine=self.engine,
        )
        return {**batch, "noisy": reached.latents.to(batch["inputs"]), "timesteps": reached.timesteps}

    def level(self, index: int) -> int:
        """How many steps of the sampler are taken: each of ``0..steps − 1`` once in so many steps."""
        turn, place = divmod(index, self.steps)
        order = torch.randperm(self.steps, generator=seeding.generator(self.seed, "levels", turn))
        return int(order[place])

    def target(self, batch: Batch, strength: float) -> Tensor:
        """``f_o(∅) − η (f_o(c) − f_o(∅))``, ``(N, D)``."""
        with self.engine.frozen(self.original) as model, self.engine.autocast():
            told = self.task.outputs(model, batch).float()
            free = self.task.outputs(model, self.task.instead(batch, EMPTY)).float()
        return free - strength * (told - free)


@methods.register("esd")
@dataclass(frozen=True, kw_only=True)
class ESD(GradientMethod):
    """Turns what the model predicts for a concept's captions away from what the original predicts for them.

    ``min_θ  mean ‖f_θ(z_t, t, c) − f_o(z_t, t, ∅) + η (f_o(z_t, t, c) − f_o(z_t, t, ∅))‖² / D`` with ``f``
    the model's own prediction (noise, velocity or ``x_0``), ``c`` the captions (or classes) to forget, and
    ``z_t`` drawn by the model being edited from noise, under ``c`` with guidance, down to a random one of the
    sampler's ``steps`` levels. No image is looked at.

    Args:
        epochs: passes over the forget examples, whose captions are the prompts; the authors take 1,000 steps
            of one prompt, or 200 in their later code.
        negative_guidance: ``η``.
        steps, guidance: of the sampler.
        captions: erase other captions of the examples than their own, by name: ``style`` or ``object`` of a
            canvas are the concept by itself.
        scope: which part of the denoiser moves: ``cross_attention`` is ESD-x, for styles; ``rest`` ESD-u, for
            objects; ``all``.

    Shapes: denoisers of captions or of classes; for the latter set the scope to everything or to the
        denoiser's part ``all``. Unsupported for other tasks.
    Cost: for each step ``steps`` forward passes on average (half as many levels, twice for the guidance),
        two of the original and one with a backward pass. One copy of the model.
    Guarantee: empirical.
    Differs: the timestep is the level that ``z`` is at. In the authors' code, and its copies, the last
        timestep of the sampler is dropped and another is drawn in the interval above, so that the model is
        told 39 to 59 steps of 1,000 more noise than there is, and a finished image takes the place of the
        first level. Pure noise is among the levels here, where styles are decided; each level comes once in
        ``steps`` steps. The error is that of the model's own prediction: of a velocity it is ``1 / ᾱ_t``
        times that of the noise, which would vanish at the first levels. Batches instead of one prompt at a
        time; one level for a batch. AdamW without decay is the authors' Adam. Their latest script tells the
        right level, but draws ``z`` with the original; it takes 200 steps with ``η`` 2 and rate 5e-5.
    References: Gandikota et al., Erasing Concepts from Diffusion Models, ICCV 2023, arXiv:2303.07345;
        learning rate 1e-5, ``η`` 1, guidance 3, 50 steps as in their code.
    """

    batch_size: int = 16
    optim: Optim = AdamW(lr=1e-5, weight_decay=0.0)
    scope: Scope = Denoiser(part="cross_attention")
    mode: Literal["train", "eval"] = "eval"
    negative_guidance: float = 1.0
    steps: int = 50
    guidance: float = 3.0
    captions: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negative_guidance < 0:
            raise ConfigError(f"must not be negative, got {self.negative_guidance}.", "negative_guidance")
        if self.steps < 1:
            raise ConfigError(f"must be at least 1, got {self.steps}.", "steps")
        if not self.guidance > 0:
            raise ConfigError(f"must be above 0, got {self.guidance}.", "guidance")

    def reads_inputs(self) -> tuple[str, ...]:
        return ()

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        conditional(split, task, "esd")

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget"),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Erasure:
        denoising = conditional(split, task, "esd")
        original = session.engine.placed(model)
        seed = session.child("esd").seed
        return Erasure(original, denoising, session.engine, seed, self.steps, self.guidance)

    def objective(self, step: Step) -> dict[str, Tensor]:
        erasure: Erasure = step.state
        batch = step.forget.batch
        if self.captions:
            batch = erasure.task.instead(batch, self.captions)
        batch = erasure.drawn(step.model, batch, step.index)
        with erasure.engine.autocast():
            outputs = erasure.task.outputs(step.model, batch)
        target = erasure.target(batch, self.negative_guidance)
        return {"forget": (outputs.float() - target).square().mean()}
