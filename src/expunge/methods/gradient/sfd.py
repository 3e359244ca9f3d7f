"""SFD: score forgetting distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.anchors import ANCHOR, Anchor, anchored
from expunge.methods.base import GradientMethod, methods
from expunge.methods.conditions import conditional
from expunge.tasks.base import Task
from expunge.tasks.diffusion import Diffusion
from expunge.training.engine import Engine
from expunge.training.loop import optimise
from expunge.training.one_step import Distillation, Distilling, drawn
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.step import Step, View
from expunge.training.still import still


@dataclass(frozen=True)
class Teacher:
    """The original, which is asked for its score, and how."""

    model: nn.Module
    task: Diffusion
    engine: Engine

    def clean(self, model: nn.Module, view: View, noisy: Tensor, under: str = "") -> Tensor:
        """The ``x_0`` that a model says is in ``noisy``, told the examples' own conditions or others."""
        batch = {**view.batch, "noisy": noisy}
        batch = self.task.instead(batch, under) if under else batch
        with self.engine.autocast():
            outputs = self.task.outputs(model, batch)
        return self.task.original_clean(outputs.float(), batch)

    def drawn(self, model: nn.Module, view: View, start: float) -> Tensor:
        """What a generator draws for the examples."""
        with self.engine.autocast():
            return drawn(model, self.task, view.batch, start).float()


@methods.register("sfd")
@dataclass(frozen=True, kw_only=True)
class SFD(GradientMethod):
    """Distils the model into a generator of one step, which draws another concept for the forgotten one.

    Generator ``g`` and fake score ``ψ`` start as the original ``p`` and take turns, ``ψ`` first::

        ψ:  Σ_c w_c ‖ε_ψ(x_t, t, c) − ε‖²                              with x = sg x_g
        g:  Σ_c w_c (x̂_p − x̂_ψ) · [(x̂_p − x_g) − α (x̂_p − x̂_ψ)] / ω    with ω = sg max(mean |x̂_p − x_g|, 1e-5)

    ``x_g = x̂_g(√(1 − ᾱ_s) z, s, c)`` is what the generator draws from noise ``z``, ``x_t`` that image with
    new noise, ``x̂`` the clean image that a network says is in it, told ``c``; ``x̂_p`` is told the anchor
    where ``c`` is to be forgotten. ``w`` is 1 for retained conditions and ``forget_weight`` for others. The
    squares and the product are sums over the numbers of an image, not means. Of the data only captions or
    classes are used.

    Args:
        anchor: the condition whose score takes the place of the forgotten one's: see ``anchored``.
        concept: its words, where the captions do not tell.
        alpha: ``α``.
        forget_weight: ``w_f``.
        start: ``s`` as a fraction of the timesteps.
        levels: the fractions of the timesteps that ``t`` is drawn from.

    Shapes: denoisers of captions or of classes. Unsupported for other tasks. A scope sees both networks,
        as ``generator.…`` and ``score.…``.
    Cost: ``epochs`` passes over the forget set with a retain batch beside each batch. A step of ``ψ`` has two
        forward passes and one backward pass for each part, one of ``g`` three and one through three networks.
        Three copies of the weights besides the model.
    Guarantee: empirical.
    Differs: the result draws in one step, with ``training.one_step.one_step`` at the same ``start``: numbers
        from it and from many steps of another model are not of one kind, and the multi-step sampler does not
        draw with it. It is the generator of the last step, without a moving average. Dropout is off in every
        network (``mode: eval``); in the authors' code the generator has it, and its pass for the forgotten
        label asks for it. There, labels to retain come with images that are thrown away, and the option for a
        second checkpoint loads the first. Here one optimiser holds both networks, each moved in its turn
        only, so that both have one learning rate. The anchor there is label 1 for every forgotten one.
    References: Chen et al., Score Forgetting Distillation: A Swift, Data-Free Method for Machine Unlearning
        in Diffusion Models, 2024, arXiv:2409.11219; its code for DDPM has the defaults here and 50,000 steps
        of 128. The loss of ``g``: Zhou et al., Score Identity Distillation, ICML 2024, arXiv:2404.04057.
    """

    epochs: int = 500
    batch_size: int = 128
    optim: Optim = AdamW(lr=1e-5, weight_decay=0.0, betas=(0.0, 0.999))
    mode: Literal["train", "eval"] = "eval"
    anchor: Anchor = "next"
    concept: str = ""
    alpha: float = 1.2
    forget_weight: float = 0.01
    start: float = 0.44
    levels: tuple[float, float] = (0.038, 0.712)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.forget_weight > 0:
            raise ConfigError(f"must be above 0, got {self.forget_weight}.", "forget_weight")
        if not 0 < self.start <= 1:
            raise ConfigError(f"is a fraction of the timesteps in (0, 1], got {self.start}.", "start")
        if not 0 <= self.levels[0] < self.levels[1] <= 1:
            raise ConfigError(f"needs two rising fractions of the timesteps, got {self.levels}.", "levels")

    def reads_inputs(self) -> tuple[str, ...]:
        return ()

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        conditional(split, task, "sfd")

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        denoising = Distilling.of(conditional(split, task, "sfd"), self.levels).unlearning()
        split = anchored(split, task, session, self.anchor, concept=self.concept, model=model)
        pair = Distillation(session.engine.copy(model), session.engine.copy(model))
        result = optimise(pair, self.plan(pair, split, denoising, session), denoising, session)
        generator: nn.Module = result.get_submodule("generator")
        return generator

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Teacher:
        teacher = session.engine.copy(model.get_submodule("generator")).eval().requires_grad_(False)
        return Teacher(teacher, conditional(split, task, "sfd"), session.engine)

    def objective(self, step: Step) -> dict[str, Tensor]:
        measure = self.of_score if step.index % 2 == 0 else self.of_generator
        return {
            "forget": self.forget_weight * measure(step, step.forget, ANCHOR).mean(),
            "retain": measure(step, step.retain, "").mean(),
        }

    def of_score(self, step: Step, view: View, under: str) -> Tensor:
        """``‖ε_ψ(x_t, t, c) − ε‖²`` of each example, ``(N,)``; the generator is not moved by it."""
        teacher: Teacher = step.state
        noise, steps = view.batch["noise"], view.batch["timesteps"]
        images = teacher.drawn(_part(step, "generator"), view, self.start).detach()
        noisy = teacher.task.noised(images, noise, steps)
        clean = teacher.clean(_part(step, "score"), view, noisy)
        signal, spread = teacher.task.levels(steps, noisy)
        return (signal / spread * (clean - images)).square().flatten(1).sum(1)

    def of_generator(self, step: Step, view: View, under: str) -> Tensor:
        """The product of the second line above, of each example, ``(N,)``; ``ψ`` is not moved by it."""
        teacher: Teacher = step.state
        images = teacher.drawn(_part(step, "generator"), view, self.start)
        noisy = teacher.task.noised(images, view.batch["noise"], view.batch["timesteps"])
        wanted = teacher.clean(teacher.model, view, noisy, under)
        with still(_part(step, "score")) as score:
            said = teacher.clean(score, view, noisy)
        apart = wanted - said
        scale = (wanted - images).detach().abs().flatten(1).mean(1).clamp(min=1e-5)
        return (apart * (wanted - images - self.alpha * apart)).flatten(1).sum(1) / scale


def _part(step: Step, name: str) -> nn.Module:
    """One of the two networks, through whatever a scope has wrapped them in."""
    return cast(nn.Module, getattr(step.model, name))
