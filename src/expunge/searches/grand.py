"""The examples that pull least at the weights, or most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.errors import ConfigError
from expunge.searches.base import Ranking, searches
from expunge.searches.early import early_models, required
from expunge.searches.gradients import example_gradients
from expunge.tasks.base import Task
from expunge.training.scope import Everything, Scope
from expunge.training.session import Session


@searches.register("grand")
@dataclass(frozen=True, kw_only=True)
class GraNd(Ranking):
    """The ``m`` units with the smallest gradients early in training (``worst``), or the largest ones.

    ``GraNd_i = E ‖∇_θ ℓ_i(θ_t)‖₂`` over models of different initialisation after ``t`` epochs: a bound on
    how much a step on example ``i`` changes the loss of any other. Runs on every task.

    Args:
        size: number of units, or their fraction of all.
        unit: what is forgotten whole: ``example``, ``class``, ``subject`` or ``prompt``.
        mode: ``worst`` for the hardest to forget, ``easiest`` for the opposite.
        models: over how many the norm is averaged.
        epochs: ``t``; 0 scores the models as they are initialised.
        scope: the parameters that are differentiated; ``last_layers`` is cheaper in memory.
        batch_size: examples whose gradients are held at once.

    Cost: once for all sets of one training set ``models`` × (``epochs`` passes of training + one forward
        and backward pass with the gradients of single examples); memory for ``batch_size`` copies of the
        parameters.
    Differs: the paper scores models as they are initialised (``epochs=0``) or later; scores at
        initialisation were found not to do what the paper says of them, so the default is a tenth of a
        recipe of 30 epochs, as for ``el2n``. 5 models, where the authors recommend 10. Evaluation mode
        as theirs.
    References: Paul et al., Deep Learning on a Data Diet, NeurIPS 2021, arXiv:2107.07075; Kirsch, Does
        "Deep Learning on a Data Diet" reproduce?, 2023, arXiv:2303.14753.
    """

    models: int = 5
    epochs: int = 3
    scope: Scope = Everything()
    batch_size: int = 32

    words = (
        "those with the smallest gradients early in training",
        "those with the largest gradients early in training",
    )
    needs_recipe: ClassVar[bool] = True
    prepared_by = ("models", "epochs", "scope")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("models", 1), ("epochs", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"must be at least {least}, got {getattr(self, name)}.", name)

    def prepare(self, train: Data, task: Task, session: Session) -> dict[str, Tensor]:
        """The mean gradient norm of each example, ``(N,)``."""
        total = torch.zeros(len(train), dtype=torch.float64)
        for model in early_models(required(session, "grand"), train, session, self.models, self.epochs):
            found = example_gradients(model, train, task, session, self.scope, self.batch_size)
            norms = [torch.linalg.vector_norm(gradients, dim=1).cpu() for gradients in found]
            total += torch.cat(norms).double()
        return {"norm": total / self.models}

    def hardness(self, model: nn.Module, train: Data, task: Task, session: Session) -> Tensor:
        return -(session.prepared or self.prepare(train, task, session))["norm"]
