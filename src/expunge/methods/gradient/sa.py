"""SA: selective amnesia."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.replaced import Replaced
from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.anchors import ANCHOR, Anchor, anchored
from expunge.methods.base import GradientMethod, methods
from expunge.methods.conditions import conditional, imagined
from expunge.methods.scopes.denoiser import Denoiser
from expunge.tasks.base import Task
from expunge.tasks.diffusion import Diffusion
from expunge.training.loop import Plan
from expunge.training.optim import AdamW, Optim
from expunge.training.parameters import importance
from expunge.training.scope import Scope
from expunge.training.session import Session
from expunge.training.step import Step


@dataclass(frozen=True)
class Memory:
    """The Fisher information of each weight, and where the weight was."""

    fisher: dict[str, Tensor]
    start: dict[str, Tensor]

    def penalty(self, model: nn.Module) -> Tensor:
        """``Σ_j F_j (θ_j − θ_o,j)²``."""
        now = dict(model.named_parameters())
        moved = [name for name in self.fisher if name in now and now[name].requires_grad]
        parts = [(self.fisher[name] * (now[name] - self.start[name]).square()).sum() for name in moved]
        return torch.stack(parts).sum() if parts else next(iter(now.values())).new_zeros(())


@methods.register("sa")
@dataclass(frozen=True, kw_only=True)
class SA(GradientMethod):
    """Learns to draw something else for a concept, replays all others and stays near itself.

    ``min_θ  mean ‖f_θ(x^q_t, t, c_f) − y‖² + γ mean ‖f_θ(x^r_t, t, c_r) − y‖² + λ Σ_j F_j (θ_j − θ_o,j)²``.
    The squares are sums over the ``D`` numbers of an input, not means. ``x^q`` are the surrogate's images for
    captions (or classes) to forget, ``x^r`` images that the original drew for those to retain, and
    ``F_j = mean_{i,t} (∂ ‖f_o(x^r_t, t, c_r) − y‖² / ∂θ_j)²`` over these, one timestep for each image. Of the
    data only captions and classes are used.

    Args:
        surrogate: ``anchor``: images that the original draws for what the concept turns into; ``noise``:
            uniform in [−1, 1], for models of pixels.
        anchor: what the concept turns into: see ``anchored``.
        concept: its words, where the captions do not tell.
        gamma: ``γ``.
        strength: ``λ``.
        samples: images that are replayed, and as many of the surrogate; ``null`` for one of each example.
        steps, guidance: of the sampler that draws them.

    Shapes: denoisers of captions or of classes. Unsupported for other tasks.
    Cost: ``2 · steps`` forward passes over the samples, one forward and backward pass over the replayed ones
        one by one; then ``epochs`` passes over the surrogate's with a replayed batch beside each. Two copies
        of the weights besides the model.
    Guarantee: empirical.
    Differs: ``F`` squares the gradient of one image at one timestep. The authors' code adds up the gradients
        of all timesteps of an image before it squares them, which is not the diagonal of the Fisher
        information: what points in opposite directions cancels. The number of samples here and that the
        information is of retained conditions are choices of ours.
        With ``noise`` each example keeps the one image that was drawn for it.
    References: Heng and Soh, Selective Amnesia, NeurIPS 2023, arXiv:2305.10120; ``γ`` 1, ``λ`` 10, learning
        rate 1e-4 and batches of 128 as for DDPM in the code of SalUn, which takes 20,000 steps.
    """

    epochs: int = 20
    batch_size: int = 128
    optim: Optim = AdamW(lr=1e-4, weight_decay=0.0)
    scope: Scope = Denoiser(part="all")
    mode: Literal["train", "eval"] = "eval"
    surrogate: Literal["anchor", "noise"] = "anchor"
    anchor: Anchor = "next"
    concept: str = ""
    gamma: float = 1.0
    strength: float = 10.0
    samples: int | None = 500
    steps: int = 20
    guidance: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "strength"):
            if getattr(self, name) < 0:
                raise ConfigError(f"must not be negative, got {getattr(self, name)}.", name)
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"must be at least 1, got {self.samples}.", "samples")

    def reads_inputs(self) -> tuple[str, ...]:
        return ()

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        conditional(split, task, "sa")

    def plan(self, model: nn.Module, split: Split, task: Task, session: Session) -> Plan:
        denoising = conditional(split, task, "sa")
        forget = self.surrogates(model, split, denoising, session)
        chosen = self._chosen(split.retain, session)
        replay = imagined(model, chosen, denoising, session, steps=self.steps, guidance=self.guidance)
        return super().plan(model, replace(split, forget=forget, retain=replay), task, session)

    def surrogates(self, model: nn.Module, split: Split, task: Diffusion, session: Session) -> Data:
        """The forget examples with the inputs of what is to be drawn instead."""
        if self.surrogate == "noise":
            data = self._chosen(split.forget, session)
            shape = data.column("inputs").shape
            return Replaced(
                data, data.ids, {"inputs": 2 * torch.rand(shape, generator=session.generator("noise")) - 1}
            )
        data = anchored(split, task, session, self.anchor, concept=self.concept, model=model).forget
        return imagined(
            model,
            self._chosen(data, session),
            task,
            session,
            under=ANCHOR,
            steps=self.steps,
            guidance=self.guidance,
        )

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Memory:
        placed = session.engine.placed(model)
        names = [name for name, parameter in placed.named_parameters() if parameter.requires_grad]
        if not self.scope.reads_data:
            names = self.scope.names(placed)
        parameters = dict(placed.named_parameters())
        start = {name: parameters[name].detach().clone() for name in names}
        fisher = importance(
            placed,
            split.retain,
            task,
            session,
            names=names,
            batch_size=1,
            measure=lambda outputs, batch: outputs.shape[1] * task.loss(outputs, batch),
        )
        return Memory(fisher, start)

    def objective(self, step: Step) -> dict[str, Tensor]:
        memory: Memory = step.state
        each = step.forget.outputs.shape[1]
        terms = {"forget": each * step.forget.loss.mean()}
        if self.gamma > 0:
            terms["retain"] = self.gamma * each * step.retain.loss.mean()
        if self.strength > 0:
            terms["near"] = self.strength * memory.penalty(step.model)
        return terms

    def _chosen(self, data: Data, session: Session) -> Data:
        if self.samples is None or self.samples >= len(data):
            return data
        order = torch.randperm(len(data), generator=session.generator("samples"))
        return data.subset(data.ids[order[: self.samples].sort().values])
