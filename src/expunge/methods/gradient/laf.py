"""Label-agnostic forgetting: representations leave the distribution of the forget set, without labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge import seeding
from expunge.data.arrays import ArrayData, Batch
from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.methods.scopes.last_layers import LastLayers
from expunge.tasks.base import Task
from expunge.tasks.regression import Regression
from expunge.training import features
from expunge.training.engine import Engine
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.step import Step, View


@methods.register("laf")
@dataclass(frozen=True, kw_only=True)
class LAF(GradientMethod):
    """Drives the forget set's representations off their own distribution and holds the others, label-free.

    With ``g`` the penultimate features scaled to unit length, a variational autoencoder ``h`` is fitted to
    ``g_o(x)`` of all data and one, ``h_f``, to that of ``D_f``. With ``u(x; h) = ‖h(g_θ(x)) − g_θ(x)‖²``,
    ``s(u) = u / (u + 1)`` and ``d(x) = 1 − cos(g_θ(x), g_o(x))``, over a retain batch ``R`` and a forget
    batch ``B``: ``L_UE = mean_R exp s(u(x; h)) − mean_B exp s(u(x; h_f))``,
    ``L_RA = mean_R d(x) − log Σ_B exp(d(x) / τ)``, and ``min_θ L_UE + λ L_RA``.

    Args:
        temperature: ``τ`` of the alignment.
        align_weight: ``λ``.
        latent: dimensions of the autoencoders' codes.
        fit_epochs: epochs that each of them is fitted for.
        labelled: LAF+R: how many retained examples may be read with their targets, to repair the last
            layer by the task's loss afterwards; 0 reads no target at all.
        repair_epochs: passes over them.

    Shapes: features ``(N, D)``, the input of the last linear layer; positions of a sequence are averaged.
    Cost: one forward pass over all data and two small autoencoders on its features, then ``epochs``
        passes over the forget set with a retain batch beside each batch, each with a second forward
        pass through the original; one copy of the model. LAF+R: ``repair_epochs`` passes over
        ``labelled`` examples.
    Guarantee: empirical.
    Differs: the decoder ends linearly and features have unit length. The authors' decoder ends in a
        sigmoid, which cannot reach unbounded features: their ``u`` stays above a hundred (on digits),
        where ``s'(u) = 1 / (u + 1)²`` has vanished, and features that only grow longer raise it too,
        which changes no prediction. Both terms are minimised as one sum; the authors take a step of an
        Adam of its own for each in turn (rates 1 : 2 to 1 : 5, hence ``λ``). Means over batches in
        place of sums; after the fit codes are their means, not drawn. As there, ``h`` is fitted to
        all data and not to ``D_r``, and BatchNorm stays in evaluation mode (theirs is left so by the
        fit). LAF+R there trains the head at a rate of its own.
    References: Shen et al., Label-Agnostic Forgetting, ICLR 2024, arXiv:2404.00506; ``τ``, ``latent`` and
        epochs of its small networks and class forgetting.
    """

    epochs: int = 20
    batch_size: int = 32
    optim: Optim = AdamW(lr=1e-4, weight_decay=0.0)
    mode: Literal["train", "eval"] = "eval"
    temperature: float = 20.0
    align_weight: float = 4.0
    latent: int = 8
    fit_epochs: int = 10
    labelled: int = 0
    repair_epochs: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("latent", 1), ("fit_epochs", 1), ("labelled", 0), ("repair_epochs", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"must be at least {least}, got {getattr(self, name)}.", name)
        if not self.temperature > 0:
            raise ConfigError(f"must be above 0, got {self.temperature}.", "temperature")
        if self.align_weight < 0:
            raise ConfigError(f"must not be negative, got {self.align_weight}.", "align_weight")

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        if self.labelled > len(split.retain):
            raise Unsupported(
                f"labelled={self.labelled}, but {len(split.retain)} examples are retained. Set it to less."
            )

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Representations:
        forget, retain = (
            features.penultimate(model, part, task, session, batch_size=self.batch_size)
            for part in (split.forget, split.retain)
        )
        everything = torch.cat([retain, forget])
        return Representations(
            model=session.engine.copy(model).eval().requires_grad_(False),
            task=task,
            engine=session.engine,
            module=features.depths(model, 1)[0],
            of_all=self._fitted(everything, session.child("all")),
            of_forget=self._fitted(forget, session.child("forget")),
        )

    def objective(self, step: Step) -> dict[str, Tensor]:
        state: Representations = step.state
        retain_before, forget_before = state.before(step.retain), state.before(step.forget)
        retain, forget = state.now(step.retain, step.model), state.now(step.forget, step.model)
        kept = _bounded(state.of_all.unexplained(retain)).mean()
        left = _bounded(state.of_forget.unexplained(forget)).mean()
        away = torch.logsumexp(_turned(forget, forget_before) / self.temperature, 0)
        return {
            "forget": -left - self.align_weight * away,
            "retain": kept + self.align_weight * _turned(retain, retain_before).mean(),
        }

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        result = super().unlearn(model, split, task, session)
        if self.labelled == 0:
            return result
        order = torch.randperm(len(split.retain), generator=session.generator("labelled"))
        plan = Plan(
            what="laf repair",
            objective=lambda step: {"retain": step.retain.loss.mean()},
            parts={"retain": split.retain.subset(split.retain.ids[order[: self.labelled]])},
            passes=lambda epoch: (Pass("retain"),),
            epochs=self.repair_epochs,
            batch_size=self.batch_size,
            optim=self.optim,
            scope=LastLayers(),
            mode=self.mode,
        )
        return optimise(result, plan, task, session.child("repair"))

    def _fitted(self, rows: Tensor, session: Session) -> Autoencoder:
        """An autoencoder trained on features ``(N, D)`` scaled to unit length, frozen."""
        with seeding.seeded(session.child("initialise").seed):
            model = Autoencoder(rows.shape[1], self.latent)
        plan = Plan(
            what="laf autoencoder",
            objective=lambda step: {"loss": step.model.loss(step.retain.batch["inputs"]).mean()},  # type: ignore[operator]
            parts={"retain": ArrayData({"inputs": F.normalize(rows)})},
            passes=lambda epoch: (Pass("retain"),),
            epochs=self.fit_epochs,
            batch_size=self.batch_size,
            optim=AdamW(lr=1e-3, weight_decay=0.0),
        )
        plain = Engine(device=session.engine.device)
        fitted = optimise(model, plan, Regression(), replace(session, engine=plain))
        assert isinstance(fitted, Autoencoder)
        return fitted.requires_grad_(False)


class Autoencoder(nn.Module):
    """A variational autoencoder of vectors ``(N, D)``: D-128-32-``latent``-32-128-D, linear at its end."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, 32), nn.ReLU(), nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, width)
        )

    def loss(self, x: Tensor) -> Tensor:
        """``‖x̂ − x‖² + 0.025 KL(q(z | x) ‖ N(0, I))`` of each row with a drawn ``z``, ``(N,)``."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        drawn = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        loss: Tensor = self._error(drawn, x) + 0.025 * divergence
        return loss

    def unexplained(self, x: Tensor) -> Tensor:
        """``‖x̂ − x‖²`` of each row with the mean code, ``(N,)``."""
        return self._error(self.encoder(x).chunk(2, 1)[0], x)

    def _error(self, code: Tensor, x: Tensor) -> Tensor:
        found: Tensor = (self.decoder(code) - x).square().sum(1)
        return found


@dataclass(frozen=True, kw_only=True)
class Representations:
    """The original and what was fitted to its features; ``module`` is the layer that they go into."""

    model: nn.Module
    task: Task
    engine: Engine
    module: str
    of_all: Autoencoder
    of_forget: Autoencoder

    def before(self, view: View) -> Tensor:
        """The features of a batch in the original, of unit length, ``(N, D)``."""
        return self._features(self.model, self.module, view.batch)

    def now(self, view: View, model: nn.Module) -> Tensor:
        """The same in the model being changed.

        Raises:
            Unsupported: they do not depend on anything that may move.
        """
        now = self._features(model, self._name(model), view.batch)
        if torch.is_grad_enabled() and not now.requires_grad:
            raise Unsupported(
                "laf changes what comes before the last linear layer, and nothing there may move. "
                "Use a scope with earlier layers."
            )
        return now

    def _features(self, model: nn.Module, module: str, batch: Batch) -> Tensor:
        with self.engine.autocast(), features.captured(model, module, gradient=True) as found:
            self.task.outputs(model, batch)
        return F.normalize(features.flat(found[-1:]).float())

    def _name(self, model: nn.Module) -> str:
        """The layer's name in a model that a scope may have wrapped."""
        ending = "." + self.module
        found: list[str] = [name for name, _ in model.named_modules() if f".{name}".endswith(ending)]
        return min(found, key=len)


def _bounded(unexplained: Tensor) -> Tensor:
    """``exp s(u)``, ``s(u) = u / (u + 1)``: from 1 at ``u = 0`` to ``e``."""
    return (unexplained / (unexplained + 1)).exp()


def _turned(now: Tensor, before: Tensor) -> Tensor:
    """``1 − cos`` of the angle between two representations of unit length of each example, ``(N,)``."""
    return 1 - (now * before).sum(1)
