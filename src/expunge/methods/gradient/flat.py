"""An f-divergence between the model's answers and refusals, from the forget set alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import Unsupported
from expunge.methods.answers import check_answers
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM
from expunge.training.loop import Pass
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.step import Step, View

Form = Callable[[Tensor], Tensor]

FORMS: dict[str, tuple[Form, Form]] = {
    "total_variation": (lambda v: torch.tanh(v) / 2, lambda v: torch.tanh(v) / 2),
    "kl": (lambda v: v, lambda v: torch.exp(v - 1)),
    "reverse_kl": (lambda v: -torch.exp(-v), lambda v: v - 1),
    "jeffrey": (lambda v: v, lambda v: v + v**2 / 4 + v**3 / 16),
    "squared_hellinger": (lambda v: -torch.expm1(-v), torch.expm1),
    "pearson": (lambda v: v, lambda v: v**2 / 4 + v),
    "neyman": (lambda v: -torch.expm1(-v), lambda v: -2 * torch.expm1(-v / 2)),
    "jensen_shannon": (lambda v: math.log(2) - F.softplus(-v), lambda v: F.softplus(v) - math.log(2)),
}
"""Of each divergence the activation ``g`` and ``f*(g(·))``, both rising."""


@methods.register("flat")
@dataclass(frozen=True, kw_only=True)
class FLAT(GradientMethod):
    """Drives the probability of refusals and that of the answers to forget apart, by an f-divergence.

    ``min_θ  mean_{i∈D_f} [ f*(g(P_θ(y_i|x_i))) − g(P_θ(idk_i|x_i)) ]`` with ``P`` the mean probability of an
    answer's tokens, ``f*`` the conjugate of the divergence's ``f`` and ``g`` the activation that belongs to
    it: the variational form of the divergence of refusals from answers. For ``total_variation`` that is
    ``½ tanh P(y) − ½ tanh P(idk)``. ``P`` lies in [0, 1], so that every form is bounded.

    Args:
        answers: the name of the answers in the data that take the place of the old ones.
        divergence: which ``f``.

    Shapes: needs tokens: a ``causal_lm`` task, and data with other answers.
    Cost: ``epochs`` passes over the forget set with both answers, forward and backward; no retain set, no
        copy of the model.
    Guarantee: empirical.
    Differs: the authors' code takes ``P`` over all positions with 0 for prompt and padding, which dilutes it
        by the length of the batch, and averages ``P`` over the batch before ``g``; here ``P`` is of answer
        tokens, and ``g`` of each example. Their ``g`` of ``reverse_kl``, ``squared_hellinger`` and ``neyman``
        falls with ``P``, so that refusals become less likely and, but for ``neyman``, the old answers more
        so; here it is their function of ``−P``, which rises. Their ``f*`` of ``neyman`` is not taken of
        ``g``. ``jeffrey`` has no closed conjugate: it is cut after the third power as in their code, at
        most 0.018 too low. A mean of token probabilities is no probability of the answer, and the gradient
        of a token's probability vanishes with it. Rate, decay and epochs are those of the authors'
        configuration for TOFU, the batch that for Harry Potter (whose rate is 2e-7), and the linear schedule
        with a tenth of warm-up a choice of ours.
    References: Wang et al., LLM Unlearning via Loss Adjustment with Only Forget Data, ICLR 2025,
        arXiv:2410.11143; Nowozin et al., f-GAN, NeurIPS 2016, arXiv:1606.00709 (the variational form).
    """

    epochs: int = 5
    batch_size: int = 32
    optim: Optim = AdamW(lr=1e-5, weight_decay=0.01, schedule="linear", warmup=0.1)
    answers: str = "idk"
    divergence: Literal[
        "total_variation",
        "kl",
        "reverse_kl",
        "jeffrey",
        "squared_hellinger",
        "pearson",
        "neyman",
        "jensen_shannon",
    ] = "total_variation"

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        check_answers(split, task, self.answers)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget"),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> CausalLM:
        if not isinstance(task, CausalLM):
            raise Unsupported(f"task '{type(task).__name__}' has no tokens. Use a method without them: npo.")
        return task

    def objective(self, step: Step) -> dict[str, Tensor]:
        activation, conjugate = FORMS[self.divergence]
        old = _probability(step.forget, step.state)
        new = _probability(step.forget.instead(self.answers), step.state)
        return {"forget": (conjugate(old) - activation(new)).mean()}


def _probability(view: View, task: CausalLM) -> Tensor:
    """The mean probability of an answer's tokens, ``(N,)``."""
    logs, mask = task.token_log_probs(view.said, view.batch)
    return (logs.exp() * mask).sum(-1) / mask.sum(-1)
