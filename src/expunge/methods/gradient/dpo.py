"""Direct preference optimisation of another answer over the one to forget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.answers import check_answers
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.training.loop import Pass
from expunge.training.optim import AdamW, Optim
from expunge.training.step import Step, View


@methods.register("dpo")
@dataclass(frozen=True, kw_only=True)
class DPO(GradientMethod):
    """Prefers another answer to the one to forget, relative to the original (IdkDPO, AltPO).

    ``min_θ  −(2/β) mean_{i∈D_f} log σ( β [r_i(a_i) − r_i(y_i)] ) + λ mean_{i∈D_r} ℓ_i(θ)`` with
    ``r_i(y) = ℓℓ(y|x_i; θ) − ℓℓ(y|x_i; θ_o)``, ``a`` the preferred answer, ``y`` the one to forget and ``ℓℓ``
    the log-likelihood of an answer. It starts at ``(2/β) log 2``; without the term of ``a`` it is ``npo``.

    Args:
        answers: the name of the preferred answers in the data: refusals (``idk``), other answers that the
            original gave (``alternate``), or counterfactual ones (``perturbed_1``).
        beta: ``β``, how soon an example whose preference has turned is left alone.
        reduction: ``ℓℓ`` as the ``sum`` over the answer tokens, DPO's definition, or their ``mean``; the
            same ``β`` then means another loss.
        retain: the retain term: the task's ``loss``, or the ``divergence`` ``KL(p_θo ‖ p_θ)``.
        retain_weight: ``λ``; 0 is DPO alone.

    Shapes: as the task's; needs a task with other answers (``causal_lm``) and data that brings them.
    Cost: ``epochs`` passes over the forget set with both answers, and a retain batch beside each batch
        where ``λ > 0``, forward and backward. The original's log-likelihoods are kept after the first
        epoch, two numbers an example; ``divergence`` needs the original itself, a forward pass a step.
    Guarantee: empirical.
    Differs: each retained example weighs the same, where authors and open-unlearning weigh it by its
        tokens; the divergence is taken at answer tokens alone, theirs over prompt and padding too. In
        TOFU's code the branch ``dpo`` stops at an undefined name and has ``β = 0.1`` and no ``2/β``; other
        copies overwrite the loss or zero the reference's ratio. Both models are in evaluation mode. Each
        record brings its own line; theirs draws one of a hundred anew. Rate, decay, schedule and epochs are
        those of NPO's code, the batch is 32 in all; AltPO takes 2 epochs.
    References: Rafailov et al., Direct Preference Optimization, NeurIPS 2023, arXiv:2305.18290; Zhang et
        al., Negative Preference Optimization, COLM 2024, arXiv:2404.05868 (as a baseline of unlearning);
        Mekala et al., Alternate Preference Optimization, COLING 2025, arXiv:2409.13474.
    """

    epochs: int = 10
    batch_size: int = 32
    optim: Optim = AdamW(lr=1e-5, weight_decay=0.01, schedule="linear", warmup=0.1)
    mode: Literal["train", "eval"] = "eval"
    answers: str = "idk"
    beta: float = 0.1
    reduction: Literal["sum", "mean"] = "sum"
    retain: Literal["loss", "divergence"] = "loss"
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ConfigError(f"must be above 0, got {self.beta}.", "beta")
        if self.retain_weight < 0:
            raise ConfigError(f"must not be negative, got {self.retain_weight}.", "retain_weight")

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        check_answers(split, task, self.answers)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget", beside="retain" if self.retain_weight > 0 else None),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        preference = self._ratio(step.forget.instead(self.answers)) - self._ratio(step.forget)
        terms = {"forget": -2 / self.beta * F.logsigmoid(self.beta * preference).mean()}
        if self.retain_weight > 0:
            kept = step.retain.loss if self.retain == "loss" else step.retain.drift
            terms["retain"] = self.retain_weight * kept.mean()
        return terms

    def _ratio(self, view: View) -> Tensor:
        """``log p_θ(y|x) / p_θo(y|x)``, ``(N,)``."""
        if self.reduction == "mean":
            return view.original_loss - view.loss
        return view.log_likelihood - view.original_log_likelihood
