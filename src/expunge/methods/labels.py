"""Objectives that look at every label of an example: what the token-wise methods share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from expunge.data.arrays import Batch
from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.tasks import token_states
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM, labelled
from expunge.tasks.token_states import TokenStates
from expunge.training.loop import Pass
from expunge.training.session import Session
from expunge.training.step import Step, View


@dataclass(frozen=True, kw_only=True)
class LabelObjective(GradientMethod):
    """``min_θ  mean_{i∈D_f} (1/|A_i|) Σ_{t∈A_i} v_t(θ) + λ mean_{i∈D_r} ℓ_i(θ)``, ``v_t`` of one label.

    The labels ``A_i`` are the answer tokens of a language model, and else the one label of the example.

    Args:
        retain_weight: ``λ``; with 0 no retain example is read.
    """

    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retain_weight < 0:
            raise ConfigError(f"must not be negative, got {self.retain_weight}.", "retain_weight")

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget", beside="retain" if self.retain_weight > 0 else None),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Any:
        return task

    @abstractmethod
    def forgetting(self, view: View, state: Any) -> Tensor:
        """The mean of ``v_t`` over the labels of each forget example, ``(N,)``; ``state`` as ``setup``'s."""

    def objective(self, step: Step) -> dict[str, Tensor]:
        terms = {"forget": self.forgetting(step.forget, step.state).mean()}
        if self.retain_weight > 0:
            terms["retain"] = self.retain_weight * step.retain.loss.mean()
        return terms


@dataclass(frozen=True, kw_only=True)
class LogitObjective(LabelObjective):
    """One whose ``v_t`` needs the logits of all classes or tokens."""

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        if type(task).jensen_shannon is Task.jensen_shannon:  # the outputs are no finite distribution
            raise Unsupported(
                f"{methods.name_of(self)} compares the probabilities of classes or tokens, and task "
                f"'{type(task).__name__}' has none. Use a method for every task: grad_diff, npo, wga."
            )


def weighted_log_probs(view: View, task: Task, weight: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of ``w(log p_t) log p_t`` over each example's labels, no gradient through ``w``. ``(N,)``.

    Where a task is no language model, its log-likelihood (up to a constant) stands for the one label's.
    """
    if not isinstance(task, CausalLM):
        return weight(view.log_likelihood.detach()) * view.log_likelihood
    logs, mask = task.token_log_probs(view.said, view.batch)  # (N, T − 1), 0 where there is no label
    return (weight(logs.detach()) * logs).sum(-1) / mask.sum(-1)


def label_states(said: Tensor | TokenStates, batch: Batch, task: Task) -> TokenStates:
    """What was said of every label, ``(M, D)`` before the output layer; of a classifier its logits."""
    if isinstance(said, TokenStates):
        return said
    if isinstance(task, CausalLM):
        return token_states.from_logits(said, batch, labelled(batch))
    targets = batch["targets"]
    rows = torch.arange(len(targets), device=targets.device)
    shape = (len(targets), 1)
    return TokenStates(said, nn.Identity(), targets, (rows, torch.zeros_like(rows)), shape, said.shape[-1])


def of_labels(states: TokenStates, value: Callable[..., Tensor], *others: Tensor) -> Tensor:
    """``value(logits (m, V), labels (m,), *others (m, …))`` of all ``M`` labels, in chunks of them. ``(M,)``.

    The logits are float32. Those of a chunk are computed anew for the gradient, so that they never exist
    all at once.
    """

    def chunk(hidden: Tensor, labels: Tensor, *rest: Tensor) -> Tensor:
        return value(states.head(hidden).float(), labels, *rest)

    size = max(1, token_states.CHUNK // states.vocabulary)
    parts = zip(*(column.split(size) for column in (states.hidden, states.labels, *others)), strict=True)
    if len(states.hidden) <= size or not torch.is_grad_enabled():
        return torch.cat([chunk(*part) for part in parts])
    return torch.cat([checkpoint(chunk, *part, use_reentrant=False) for part in parts])


def mean_over_labels(states: TokenStates, values: Tensor, counted: Tensor | None = None) -> Tensor:
    """The mean of ``values`` ``(M,)`` over the labels of each example, or the ``counted`` ones. ``(N,)``."""
    weights = torch.ones_like(values) if counted is None else counted.to(values)
    return states.summed(values * weights) / states.summed(weights)
