"""Unlearning from logit difference: what a small assistant remembers is taken from what the model says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.adapters import Assisted, check_rank, shortened, trained
from expunge.methods.base import methods
from expunge.methods.guarded import LanguageGuard, body_and_head
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import labelled
from expunge.training.loop import Pass, Plan
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.step import Step, View


class Difference(Assisted):
    """``z + w (a − mean a)`` on plausible tokens."""

    def count(self, body: nn.Module) -> int:
        return min(cast(ULD, self.method).blocks, super().count(body))

    def combined(self, target: Tensor, assistant: Tensor) -> Tensor:
        method = cast(ULD, self.method)
        plausible = target >= target.amax(-1, keepdim=True) + math.log(method.plausible)
        centred = assistant - assistant.mean(-1, keepdim=True)
        return torch.where(plausible, target + method.weight * centred, target)


@methods.register("uld")
@dataclass(frozen=True, kw_only=True)
class ULD(LanguageGuard):
    """A small assistant remembers the forget set and nothing else; its logits are subtracted.

    The assistant is the first ``K`` blocks of the frozen model with its norm and output layer, and an
    adapter of low rank. It minimises ``CE_f + λ KL(U ‖ p_a)_r`` with ``U`` uniform over the vocabulary,
    means over labelled tokens. At inference ``z = z_model + w (z_a − mean_v z_a)``, ``w < 0``, on tokens with
    ``log p_model ≥ max log p_model + log ρ``, and ``z = z_model`` on the others. Scores and ``generate``
    alike go through it; one key-value cache serves both. The weights still hold all that they held.

    Args:
        blocks: ``K``.
        rank, alpha: of the adapter, ``s = alpha / rank``.
        uniform: ``λ``.
        weight: ``w``; 0 is the model itself.
        plausible: ``ρ``.
        remembered: names of other answers or questions of the data to remember too: ``paraphrased``.
        forgotten: names of other answers on which the assistant must be uniform: ``perturbed_1``.

    Shapes: a causal language model of transformers whose blocks have linear layers; any forget set.
    Cost: training: forward and backward passes of the assistant alone. Inference: ``K`` of the model's
        blocks and the output layer once more a token, ``K`` more layers in the cache, and full logits.
    Guarantee: empirical; about what is said only, not about the weights.
    Differs: the assistant's logits are centred, since otherwise their arbitrary offset would move plausible
        tokens against the others even where the assistant is uniform. The uniform term is a mean over
        labelled tokens through a log-softmax; the authors' takes all tokens and the logarithm of a softmax.
        Rank 32 as in the paper, 16 in their code; ``ρ`` is 0.01 when evaluated, as in their scripts.
        Paraphrases and perturbed answers come with the data, from no language model. Half of the blocks at
        most: ``K = 8`` of 32 in the paper, 2 by default here, a choice of ours for small models.
    References: Ji et al., Reversing the Forget-Retain Objectives, NeurIPS 2024, arXiv:2406.08607.
    """

    blocks: int = 2
    rank: int = 32
    alpha: float = 32.0
    epochs: int = 10
    batch_size: int = 32
    optim: Optim = AdamW(lr=1e-3, weight_decay=0.01, warmup=0.1)
    uniform: float = 5.0
    weight: float = -0.8
    plausible: float = 0.01
    remembered: tuple[str, ...] = ()
    forgotten: tuple[str, ...] = ()

    watch = Difference

    def __post_init__(self) -> None:
        check_rank(self.rank, self.alpha)
        for name in ("blocks", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if self.uniform < 0:
            raise ConfigError(f"must not be negative, got {self.uniform}.", "uniform")
        if self.weight > 0:
            raise ConfigError(f"must not be above 0, got {self.weight}.", "weight")
        if not 0 < self.plausible <= 1:
            raise ConfigError(
                f"is a share of the highest probability in (0, 1], got {self.plausible}.", "plausible"
            )

    def learn(self, model: nn.Module, split: Split, task: Task, session: Session) -> dict[str, Tensor]:
        copied = session.engine.copy(model)
        depth = int(body_and_head(copied)[0].config.num_hidden_layers)  # type: ignore[union-attr,arg-type]
        plan = Plan(
            what=methods.name_of(self),
            objective=self.objective,
            parts={"forget": split.forget, "retain": split.retain},
            passes=lambda _: (Pass("forget", beside="retain"),),
            epochs=self.epochs,
            batch_size=self.batch_size,
            optim=self.optim,
        )
        return trained(shortened(copied, min(self.blocks, depth)), self.rank, self.alpha, plan, task, session)

    def objective(self, step: Step) -> dict[str, Tensor]:
        """The two terms of the assistant."""
        kept = [step.forget, *(step.forget.instead(name) for name in self.remembered)]
        flat = [step.retain, *(step.forget.instead(name) for name in self.forgotten)]
        return {
            "forget": sum((view.loss.mean() for view in kept[1:]), kept[0].loss.mean()),
            "retain": self.uniform * torch.cat([from_uniform(view) for view in flat]).mean(),
        }


def from_uniform(view: View) -> Tensor:
    """``KL(U ‖ p)`` of each labelled token, ``(M,)``."""
    logs = view.outputs[:, :-1][labelled(view.batch)].float().log_softmax(-1)
    return -logs.mean(-1) - math.log(logs.shape[-1])
