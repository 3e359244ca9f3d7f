"""Who's Harry Potter at inference: what a model that knows the forget set even better raises is lowered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.adapters import Assisted, check_rank, trained
from expunge.methods.base import methods
from expunge.methods.guarded import LanguageGuard
from expunge.tasks.base import Task
from expunge.training.loop import Pass, Plan
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.step import Step


class Reinforced(Assisted):
    """``z − w ReLU(z_reinforced − z)``."""

    def combined(self, target: Tensor, assistant: Tensor) -> Tensor:
        return target - cast(WHPInference, self.method).weight * (assistant - target).clamp(min=0)


@methods.register("whp_inference")
@dataclass(frozen=True, kw_only=True)
class WHPInference(LanguageGuard):
    """Lowers every logit that a model reinforced on the forget set raises.

    ``z = z_model − w ReLU(z_reinforced − z_model)``. The reinforced model is the frozen one with an adapter
    that minimises ``CE_f``; both share the weights and one key-value cache. There is no second fine-tuning:
    that is the method ``whp``.

    Args:
        rank, alpha: of the adapter, ``s = alpha / rank``.
        weight: ``w``; 0 is the model itself.

    Shapes: a causal language model of transformers whose blocks have linear layers; any forget set.
    Cost: training: ``epochs`` passes over the forget set. Inference: twice the forward pass, the cache twice.
    Guarantee: empirical; about what is said only, not about the weights.
    Differs: the reinforced model is an adapter, not a second set of weights. MUSE's code trains it for 10
        epochs at 1e-5, all weights; the rate of 1e-3 is a choice of ours for adapters. ``w`` is 1 as its
        default.
    References: Eldan and Russinovich, Who's Harry Potter?, 2023, arXiv:2310.02238; Shi et al., MUSE, 2024,
        arXiv:2407.06460.
    """

    rank: int = 32
    alpha: float = 32.0
    epochs: int = 10
    batch_size: int = 32
    optim: Optim = AdamW(lr=1e-3, schedule="cosine")
    weight: float = 1.0

    watch = Reinforced

    def __post_init__(self) -> None:
        check_rank(self.rank, self.alpha)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if self.weight < 0:
            raise ConfigError(f"must not be negative, got {self.weight}.", "weight")

    def learn(self, model: nn.Module, split: Split, task: Task, session: Session) -> dict[str, Tensor]:
        plan = Plan(
            what=methods.name_of(self),
            objective=self.objective,
            parts={"forget": split.forget},
            passes=lambda _: (Pass("forget"),),
            epochs=self.epochs,
            batch_size=self.batch_size,
            optim=self.optim,
        )
        return trained(session.engine.copy(model), self.rank, self.alpha, plan, task, session)

    def objective(self, step: Step) -> dict[str, Tensor]:
        """The loss of the forget set."""
        return {"forget": step.forget.loss.mean()}
