"""Retraining from scratch without the forget set."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from expunge.data.split import Split
from expunge.errors import MissingEvidence
from expunge.methods.base import Method, methods
from expunge.tasks.base import Task
from expunge.training.session import Session


@methods.register("retrain")
@dataclass(frozen=True, kw_only=True)
class Retrain(Method):
    """Trains a new model on the retain set from new random weights: the definition of having forgotten.

    ``θ_r = A(D_r, ξ)`` with ``A`` the recipe of the original and ``ξ`` fresh randomness.

    Shapes: every parameter and buffer is new. Works for every task.
    Cost: one training on the retain set.
    Guarantee: exact.
    Differs: every parameter is initialised anew. The helper of the SSD code resets direct children
        only, which leaves a ResNet's stem and stages trained; figures that use it have a retrained
        model that is none.
    References: Bourtoule et al., Machine Unlearning, S&P 2021, arXiv:1912.03817.
    """

    guarantee = "exact"
    needs_recipe = True

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        if session.recipe is None:
            raise MissingEvidence(
                "retrain needs the recipe that the model was trained with: "
                "pass recipe=expunge.Recipe(model, task, training)."
            )
        return session.recipe.train(split.retain, session.child("retrain"), what="retrain")
