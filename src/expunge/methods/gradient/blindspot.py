"""Blindspot unlearning: on the forget set, imitate a model that has hardly been trained on the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.errors import ConfigError, MissingEvidence, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.tasks.regression import Regression
from expunge.training import features
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.step import Original, Step


@dataclass(frozen=True)
class Proxy:
    """The proxy, the layers whose inputs are compared, and the ids ``(N_f,)`` it is imitated on."""

    model: Original
    layers: tuple[str, ...]
    ids: Tensor


@methods.register("blindspot")
@dataclass(frozen=True, kw_only=True)
class Blindspot(GradientMethod):
    """Imitates, on the forget set, a new model trained for two epochs on the retain set.

    The proxy is ``b = argmin mean_{i∈D_r} |f_b(x_i) − y_i|`` after ``proxy_epochs`` from new weights. Then,
    over batches ``B`` that mix both sets, ``c`` being the fraction of forget examples in the batch,
    ``min_θ c · mean_{i∈B∩D_f} [ |f_θ(x_i) − f_b(x_i)| + β Σ_l mean (a_l(x_i; θ) − a_l(x_i; b))² ] +
    (1 − c) · mean_{i∈B∩D_r} |f_θ(x_i) − y_i|``, which is the mean over the batch of one term an example.
    ``a_l`` is the attention map of layer ``l``: the mean over channels of the squared activations at each
    position, as one vector of length 1 for each example.

    Args:
        attention_weight: ``β``; 0 imitates the predictions alone.
        layers: how many layers are compared at most, evenly spaced.
        proxy_epochs: epochs of the proxy.
        proxy_optim: its optimiser.

    Shapes: inputs of convolutions and linear layers, chosen by structure. Regression alone; a scope that
        wraps the model (LoRA) changes the layers' names and is refused.
    Cost: ``proxy_epochs`` passes over the retain set; ``epochs`` passes over all data, each with a second
        forward pass, through the proxy; two copies of the model.
    Guarantee: empirical.
    Differs: activations are the inputs of layers, where the authors' models return the outputs of their
        blocks. A layer of units without positions keeps its units as positions: the authors' map of
        such a layer is one number, which scaled to length 1 is always 1, so that their term vanishes.
        Maps are scaled to length 1 for each example, as in the released code. The absolute error is that
        of their AgeDB code; their STS-B code uses the squared one.
    References: Tarun et al., Deep Regression Unlearning, ICML 2023, arXiv:2210.08196.
    """

    epochs: int = 1
    batch_size: int = 256
    optim: Optim = AdamW(lr=1e-3, weight_decay=0.0)
    attention_weight: float = 50.0
    layers: int = 8
    proxy_epochs: int = 2
    proxy_optim: Optim = AdamW(lr=0.01, weight_decay=0.0)

    needs_recipe = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "proxy_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if self.attention_weight < 0:
            raise ConfigError(f"must not be negative, got {self.attention_weight}.", "attention_weight")

    def check(self, split: Split, task: Task) -> None:
        if not isinstance(task, Regression):
            raise Unsupported(
                f"blindspot compares real-valued predictions, and task '{type(task).__name__}' has none. "
                "Use bad_teacher."
            )

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("retain"),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Proxy:
        kept = split.retain.ids[~torch.isin(split.retain.ids, split.forget.ids)]
        proxy = self.proxy(split.retain.subset(kept), task, session.child("proxy"))
        layers = features.depths(model, self.layers)
        ids = split.forget.ids.to(session.engine.torch_device)
        return Proxy(Original(proxy, task, session.engine, {}), layers, ids)

    def proxy(self, retain: Data, task: Task, session: Session) -> nn.Module:
        """A new model, weakly trained on the retain set."""
        if session.recipe is None:
            raise MissingEvidence(
                "blindspot trains a new model like the original and needs the recipe it was built by: "
                "pass recipe=expunge.Recipe(model, task, training)."
            )
        plan = Plan(
            what="blindspot proxy",
            objective=lambda step: {
                "retain": _error(step.retain.outputs, step.retain.batch["targets"]).mean()
            },
            parts={"retain": retain},
            passes=self.passes,
            epochs=self.proxy_epochs,
            batch_size=self.batch_size,
            optim=self.proxy_optim,
        )
        return optimise(session.recipe.initial(session), plan, task, session)

    def objective(self, step: Step) -> dict[str, Tensor]:
        view, proxy = step.retain, step.state
        forget = torch.isin(view.batch["ids"], proxy.ids)
        with features.watched(step.model, proxy.layers, gradient=True) as own:
            outputs = view.outputs
        with torch.no_grad(), features.watched(proxy.model.model, proxy.layers) as others:
            wanted = view.through(proxy.model.model)
        imitated = _error(outputs, wanted)
        if self.attention_weight > 0:
            for name in proxy.layers:
                gap = (attention(own[name]) - attention(others[name])).square().mean(1)
                imitated = imitated + self.attention_weight * gap
        kept = _error(outputs, view.batch["targets"])
        return {"forget": (imitated * forget).mean(), "retain": (kept * ~forget).mean()}

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        return super().unlearn(model, replace(split, retain=split.train()), task, session)


def attention(activations: Tensor) -> Tensor:
    """``(N, …, C)`` to maps ``(N, P)`` of length 1: mean squares over channels at each of ``P`` positions."""
    squares = activations.float().square()
    maps = squares.mean(-1).flatten(1) if squares.ndim > 2 else squares
    return F.normalize(maps, dim=1)


def _error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The absolute error of each example, averaged over outputs. ``(N,)``."""
    return (outputs.float() - targets.reshape(outputs.shape).float()).abs().mean(1)
