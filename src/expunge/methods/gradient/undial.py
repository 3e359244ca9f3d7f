"""UNDIAL: self-distillation towards the original with the true label turned down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from expunge.errors import ConfigError
from expunge.methods.base import methods
from expunge.methods.labels import LogitObjective, label_states, mean_over_labels, of_labels
from expunge.training.optim import AdamW, Optim
from expunge.training.step import View


@methods.register("undial")
@dataclass(frozen=True, kw_only=True)
class Undial(LogitObjective):
    """Imitates the original with the logit of each true label lowered, a target that does not move.

    ``min_θ  mean_{i∈D_f} mean_t CE(softmax(z_o − β onehot(y_t)), p_θ) + λ mean_{i∈D_r} ℓ_i(θ)`` with
    ``z_o`` the original's logits. The gradient for the logits is ``p_θ − softmax(z_o − β onehot(y_t))``,
    0 at the original where ``β = 0``.

    Args:
        beta: ``β``, how far the logit of the true label is lowered.
        retain_weight: ``λ``; 0 in the peer's default, 1, 2 and 5 in its grid.

    Shapes: logits ``(N, C)``, of every labelled token of a language model. Unsupported for tasks without
        classes or tokens.
    Cost: ``epochs`` passes over the forget set, each batch with a second forward pass through the
        original, whose logits of the batch exist at once, and with a retain batch where ``λ > 0``.
    Guarantee: empirical.
    Differs: only labelled positions count, and each example's mean counts alike. Open-unlearning takes the
        mean over prompt and padding too and uses the label −100 as an index there, which lowers the logit
        of token ``V − 100``. Evaluation mode, so that the student equals the teacher at first also with
        dropout. Defaults are open-unlearning's; the batch size 32 is its 8 with 4 accumulated.
    References: Dong et al., UNDIAL, NAACL 2025, arXiv:2402.10052; locuslab/open-unlearning.
    """

    epochs: int = 10
    batch_size: int = 32
    optim: Optim = AdamW(lr=1e-4)
    mode: Literal["train", "eval"] = "eval"
    beta: float = 10.0
    retain_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0:
            raise ConfigError(f"must not be negative, got {self.beta}.", "beta")

    def forgetting(self, view: View, state: Any) -> Tensor:
        states = label_states(view.said, view.batch, state)
        teacher = label_states(view.original, view.batch, state).hidden
        return mean_over_labels(states, of_labels(states, self._imitated, teacher))

    def _imitated(self, logits: Tensor, labels: Tensor, teacher: Tensor) -> Tensor:
        own = labels[:, None]
        lowered = teacher.float().scatter_add(-1, own, logits.new_full(own.shape, -self.beta))
        return -(lowered.softmax(-1) * logits.log_softmax(-1)).sum(-1)
