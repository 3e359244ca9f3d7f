"""Exact unlearning of the last k layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.methods.scopes.last_layers import LastLayers
from expunge.tasks.base import Task
from expunge.training.fresh import fresh
from expunge.training.loop import Pass
from expunge.training.optim import SGD, Optim
from expunge.training.scope import Scope
from expunge.training.session import Session
from expunge.training.step import Step


@methods.register("eu_k")
@dataclass(frozen=True, kw_only=True)
class EUK(GradientMethod):
    """Throws the last k layers away and trains new ones on the retain set, on top of the old features.

    ``θ_k ~ initialisation``, once; then ``min_{θ_k} mean_{i∈D_r} ℓ_i(θ)``, ``θ_k`` the parameters of the
    last ``k`` layers; ``k`` is ``scope.count``. The last layers have never seen the forget set; the
    features that they are trained on have, so that the whole is not exact.

    The new weights, and BatchNorm's statistics between them, are those of a model built anew by the
    recipe; without a recipe, what ``reset_parameters`` of each layer draws.

    Shapes: as the task's; works for every task. Unsupported without a recipe where a layer cannot reset
        itself, and with a scope that adds parameters.
    Cost: ``epochs`` forward and backward passes over the retain set, the backward pass through the last
        ``k`` layers alone; two copies of the model at the start.
    Guarantee: empirical.
    Differs: new random weights; SCRUB's code takes the initial weights of the original's own training.
        There the classifier of a ResNet is neither reset nor trained (``layer4`` is), that of an All-CNN
        reset but not trained, and BatchNorm's statistics stay; here the choice ends with the last layer
        and all of it is new. The worst-case-sets code resets the last layer at every epoch, from N(0, 1),
        with a new optimiser: only its last epoch counts. ``k = 1`` and the defaults but for the learning
        rate are ours; SCRUB's epochs are those of the original's training.
    References: Goel et al., Towards Adversarial Evaluations for Inexact Machine Unlearning, 2022,
        arXiv:2201.06640; code of Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023.
    """

    epochs: int = 30
    optim: Optim = SGD(lr=0.01, weight_decay=5e-4)
    scope: Scope = LastLayers(count=1)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("retain"),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        return {"retain": step.retain.loss.mean()}

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        return super().unlearn(self._restarted(model, session), split, task, session)

    def _restarted(self, model: nn.Module, session: Session) -> nn.Module:
        """A copy of the model in which the parameters of the scope, and buffers beside them, are new."""
        chosen = set(self.scope.names(model))
        owners = {name.rpartition(".")[0] for name in chosen}
        new = fresh(model, session.child("eu_k")).state_dict()
        restarted = session.engine.copy(model)
        old = {name for name, _ in restarted.named_parameters()} - chosen
        for name, value in restarted.state_dict().items():
            if name.rpartition(".")[0] in owners and name not in old:
                if name not in new or new[name].shape != value.shape:
                    raise Unsupported(
                        f"eu_k: the recipe builds no '{name}' of shape {tuple(value.shape)}. "
                        "Give the recipe that the model was trained with."
                    )
                value.copy_(new[name])
        return restarted
