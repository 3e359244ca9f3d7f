"""The examples that are learnt early, or late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.errors import ConfigError, Unsupported
from expunge.searches.base import Ranking, reading, searches
from expunge.searches.early import early_models, required
from expunge.tasks.base import Task
from expunge.tasks.classification import Classification
from expunge.training.session import Session


@searches.register("el2n")
@dataclass(frozen=True, kw_only=True)
class EL2N(Ranking):
    """The ``m`` units with the smallest error early in training (``worst``), or the largest (``easiest``).

    ``EL2N_i = E ‖p(x_i) − onehot(y_i)‖₂`` over models of different initialisation after their first
    epochs. An example that is right so soon is learnt from the others, and a model without it says the
    same. In terms of pruning, the worst set is what can be left out of the training data.

    Args:
        size: number of units, or their fraction of all.
        unit: what is forgotten whole: ``example``, ``class``, ``subject`` or ``prompt``.
        mode: ``worst`` for the hardest to forget, ``easiest`` for the opposite.
        models: over how many the error is averaged.
        epochs: for how many each is trained; 0 scores them as they are initialised.

    Cost: once for all sets of one training set ``models`` × (``epochs`` passes of training + one forward
        pass).
    Differs: the authors recommend 10 models and take epoch 20 of 200 (a tenth); the defaults here are 5
        models and 3 epochs, a tenth of the recipe's 30. The rate is the recipe's first one throughout
        and is not brought down to 0 within these epochs. Scores as theirs in evaluation mode and
        without augmentation.
    References: Paul et al., Deep Learning on a Data Diet, NeurIPS 2021, arXiv:2107.07075.
    """

    models: int = 5
    epochs: int = 3

    words = (
        "those with the smallest error early in training",
        "those with the largest error early in training",
    )
    needs_recipe: ClassVar[bool] = True
    prepared_by = ("models", "epochs")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("models", 1), ("epochs", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"must be at least {least}, got {getattr(self, name)}.", name)

    def check(self, train: Data, task: Task) -> None:
        if not isinstance(task, Classification):
            raise Unsupported(
                f"el2n needs the probabilities of classes, which task '{type(task).__name__}' does not have. "
                "Use grand."
            )
        super().check(train, task)

    def prepare(self, train: Data, task: Task, session: Session) -> dict[str, Tensor]:
        """The mean error of each example, ``(N,)``."""
        targets = task.groups(train)
        total = torch.zeros(len(train), dtype=torch.float64)
        for model in early_models(required(session, "el2n"), train, session, self.models, self.epochs):
            logits = reading(model, train, task, session).outputs.double()
            error = logits.softmax(1) - F.one_hot(targets, logits.shape[1])
            total += torch.linalg.vector_norm(error, dim=1)
        return {"error": total / self.models}

    def hardness(self, model: nn.Module, train: Data, task: Task, session: Session) -> Tensor:
        self.check(train, task)
        return -(session.prepared or self.prepare(train, task, session))["error"]
