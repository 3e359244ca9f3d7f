"""One expert of a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.tasks.base import Task
from expunge.training import experts
from expunge.training.scope import Scope, scopes
from expunge.training.session import Session
from expunge.training.slices import Slices


@scopes.register("expert")
@dataclass(frozen=True, kw_only=True)
class Expert(Scope):
    """The expert that the forget set uses most, and its row of the router (UOE, SEUF).

    ``s_i^(l) = mean_t softmax(router^(l)(h_t))_i`` over the tokens of the forget set; the expert ``i`` of
    block ``l`` with the largest ``s`` may move, and nothing else. Freezing the router is not enough to
    keep it choosing this expert; the modifier ``router_anchor`` adds the term that does.

    Args:
        block: ``l``; by default the one with the largest ``s``.
        expert: ``i``; likewise.
        router: whether the expert's row of the router moves too.
        batch_size: examples in a forward pass.

    Raises:
        Unsupported: the model is no mixture of experts, or used without a forget and a retain set.

    Cost: one forward pass over the forget set; the optimiser's memory for one expert.
    Differs: there is no official code. One expert in one block is the paper's best; how the block is
        chosen is not documented, so that taking the largest ``s`` of all is a choice of ours. Shared
        experts, which every token passes, are not among the choices: unlearning in them is reported to be
        worst.
    References: Zhuang et al., UOE / SEUF: Is Unlearning One Expert Enough for Mixture-of-Experts LLMs?,
        2024, arXiv:2411.18797.
    """

    block: int | None = None
    expert: int | None = None
    router: bool = True
    batch_size: int = 32

    reads_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"must be at least 1, got {self.batch_size}.", "batch_size")
        for name in ("block", "expert"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"is counted from 0, got {getattr(self, name)}.", name)

    def names(self, model: nn.Module) -> list[str]:
        raise Unsupported("expert chooses parts of parameters by data. Choose feed_forward for this method.")

    def enter(self, model: nn.Module) -> nn.Module:
        raise Unsupported("expert chooses by data. Use feed_forward without a forget and retain set.")

    def fitted(self, model: nn.Module, split: Split, task: Task, session: Session) -> Scope:
        bank, expert = experts.chosen(
            model,
            split.forget,
            task,
            session,
            batch_size=self.batch_size,
            block=self.block,
            expert=self.expert,
        )
        movable = [name for name, p in model.named_parameters() if p.requires_grad]
        router = [name for name in movable if name.startswith(f"{bank.router}.")] if self.router else []
        inside = [name for name in movable if name.startswith(f"{bank.experts}.")]
        listed = isinstance(model.get_submodule(bank.experts), nn.ModuleList)
        whole = [name for name in inside if listed and name.startswith(f"{bank.experts}.{expert}.")]
        cut = router if listed else [*router, *inside]
        if not whole and not set(cut) & set(inside):
            raise Unsupported(f"expert {expert} of block {bank.block} is frozen. Choose another expert.")
        return Slices({name: (0, [expert]) for name in cut}, tuple(whole))
