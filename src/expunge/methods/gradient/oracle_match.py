"""Oracle matching: the outputs of true retrained models as targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError, MissingEvidence
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.training.ensemble import train_many
from expunge.training.loop import Pass
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.step import Step, View


@methods.register("oracle_match")
@dataclass(frozen=True, kw_only=True)
class OracleMatch(GradientMethod):
    """Fine-tunes to the mean outputs of models that were truly retrained: what matching could reach at best.

    ``min_θ mean_{i ∈ D_f ∪ D'} ‖f_θ(x_i) − f̄(x_i)‖² / D`` with ``f̄ = (1/M) Σ_m f_m`` over ``M`` models
    trained on ``D_r`` by the recipe, ``D'`` ``retain_ratio`` times as many retain examples as ``D_f`` has,
    drawn anew in each epoch, and ``D`` the number of outputs. It trains the very models that unlearning
    is to save, so it is no method to deploy: it is the upper bound of ``datamodel_match``, which predicts
    these targets.

    Args:
        oracles: ``M``, models retrained.
        retain_ratio: retain examples beside each forget example.
        batch_size: forget examples in a step; ``retain_ratio`` times as many retain examples come on top.

    Shapes: outputs of any shape ``(N, …)``. Works for every task.
    Cost: ``oracles`` trainings on the retain set; then ``epochs`` passes over ``1 + retain_ratio`` times the
        forget set, each with a forward pass through every oracle; ``oracles`` copies of the model.
    Guarantee: empirical.
    Differs: batches are in random order and mix both parts (the authors' loader does not shuffle). The
        oracles see each example as the model does, augmentation and drawn noise included; the authors
        look outputs up by index. The retain examples change from epoch to epoch. The rate is
        constant instead of × 0.95 an epoch, and there is no pull to the original (their weight is 0).
    References: Georgiev et al., Attribute-to-Delete: Machine Unlearning via Datamodel Matching, ICLR 2025,
        arXiv:2410.23232.
    """

    needs_recipe = True

    epochs: int = 5
    batch_size: int = 128
    optim: Optim = AdamW(lr=5e-4, weight_decay=0.0)
    oracles: int = 10
    retain_ratio: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("oracles", "retain_ratio"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget", beside="retain", beside_ratio=self.retain_ratio),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> list[nn.Module]:
        if session.recipe is None:
            raise MissingEvidence(
                "oracle_match needs the recipe that the model was trained with: "
                "pass recipe=expunge.Recipe(model, task, training)."
            )
        sessions = [replace(session.child("oracle", i), recipe=None) for i in range(self.oracles)]
        trained = train_many(session.recipe, [split.retain] * self.oracles, sessions, what="oracle")
        return [session.engine.place(oracle).eval().requires_grad_(False) for oracle in trained.models]

    def objective(self, step: Step) -> dict[str, Tensor]:
        share = 1 / (1 + self.retain_ratio)
        return {
            "forget": share * self._error(step, step.forget),
            "retain": (1 - share) * self._error(step, step.retain),
        }

    def _error(self, step: Step, view: View) -> Tensor:
        with torch.no_grad():
            target = torch.stack([view.through(oracle).float() for oracle in step.state]).mean(0)
        return (view.outputs.float() - target).square().mean()
