"""Keeps the router of a mixture of experts choosing the expert that is being unlearned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.tasks.base import Task
from expunge.training import experts
from expunge.training.modifier import Modifier, modifiers
from expunge.training.session import Session
from expunge.training.step import Step


@modifiers.register("router_anchor")
@dataclass(frozen=True, kw_only=True)
class RouterAnchor(Modifier):
    """Adds ``α ‖g − a‖²``: the router's probabilities are held at the expert that unlearns (UOE, SEUF).

    ``g^(l)`` are the probabilities of block ``l``'s router for a token of the forget set and ``a`` is 1 for
    the expert and 0 for all others; the term is the mean over the tokens that are no padding. Without it
    a loss can be made small by sending forget tokens to other experts, with nothing unlearned.

    The block and the expert are chosen as the scope ``expert`` does; give both the same ones.

    Args:
        weight: ``α``.
        block: ``l``; by default where the forget set uses one expert most.
        expert: which one; likewise.
        batch_size: examples in a forward pass of the choice.

    Raises:
        Unsupported: the model is no mixture of experts.

    Cost: one forward pass over the forget set before the first step; none at a step.
    Differs: there is no official code, and ``α`` is documented nowhere: its default is a choice of ours.
        The paper's form of the term; one report of it has a divergence from the original router instead.
    References: Zhuang et al., UOE / SEUF: Is Unlearning One Expert Enough for Mixture-of-Experts LLMs?,
        2024, arXiv:2411.18797.
    """

    weight: float = 1.0
    block: int | None = None
    expert: int | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"must be above 0, got {self.weight}.", "weight")
        if self.batch_size < 1:
            raise ConfigError(f"must be at least 1, got {self.batch_size}.", "batch_size")
        for name in ("block", "expert"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"is counted from 0, got {getattr(self, name)}.", name)

    def prepare(
        self, model: nn.Module, split: Split, task: Task, session: Session
    ) -> tuple[experts.Bank, int]:
        return experts.chosen(
            model,
            split.forget,
            task,
            session,
            batch_size=self.batch_size,
            block=self.block,
            expert=self.expert,
        )

    def terms(
        self,
        step: Step,
        objective: Callable[[Step], dict[str, Tensor]],
        state: tuple[experts.Bank, int],
    ) -> dict[str, Tensor]:
        if not step.has("forget"):
            return objective(step)
        bank, expert = state
        step = step.again("forget")
        with experts.routed(step.model, [bank]) as seen:
            _ = step.forget.said  # the objective reads the same forward pass
        found = experts.on_text(seen[0], step.forget.batch)
        anchor = F.one_hot(torch.tensor(expert, device=found.device), bank.count)
        return {**objective(step), "anchor": self.weight * (found - anchor).square().sum(-1).mean()}
