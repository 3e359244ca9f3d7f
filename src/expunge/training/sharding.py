"""Training data in shards and slices, and the one model that the models of all shards make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.errors import Unsupported
from expunge.tasks.base import Task, model_output
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.classification import Classification
from expunge.tasks.diffusion import Diffusion
from expunge.tasks.regression import Regression


def dealt(ids: Tensor, hands: int, seed: int) -> Tensor:
    """Which of ``hands`` each id is dealt to: a function of the id and the seed alone.

    ``π_b(i mod h)`` with ``b = ⌊i / h⌋`` and a random permutation ``π_b`` for each run of ``h``
    consecutive ids. No example's hand depends on which others there are, so taking one out moves no
    other, and hands dealt from ``0..N − 1`` differ by at most one example.

    Shapes: ``(N,)`` int64 to ``(N,)`` in ``0..hands − 1``.
    """
    blocks, where = torch.unique(ids // hands, return_inverse=True)
    permutations = [
        torch.randperm(hands, generator=seeding.generator(seed, "dealt", b)) for b in blocks.tolist()
    ]
    return torch.stack(permutations)[where, ids % hands]


def mixes_probabilities(task: Task) -> bool:
    """Whether the models of shards are averaged as distributions (True) or as predictions (False).

    Raises:
        Unsupported: it is not known what the mean of two models of this task is.
    """
    if isinstance(task, (Classification, CausalLM)):
        return True
    if isinstance(task, (Regression, Diffusion)):
        return False
    raise Unsupported(
        f"it is not known how to average models of the task '{type(task).__name__}'. Use retrain instead."
    )


class ShardedModel(nn.Module):
    """Several models that answer as one: ``log(1/S Σ_s softmax f_s(x))``, or ``1/S Σ_s f_s(x)``.

    The first is for logits, whose softmax is again the averaged distribution; the second for predictions
    under squared error. Which of them it is is kept in the state dict, as the weights are.

    Args:
        members: one model of each shard, which are not copied.
        mixture: True for the first.
    """

    mixture: Tensor

    def __init__(self, members: Sequence[nn.Module], mixture: bool = True) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("mixture", torch.tensor(mixture))

    def forward(self, *arguments: object, **named: object) -> Tensor:
        outputs = torch.stack([model_output(member(*arguments, **named)) for member in self.members])
        if not self.mixture:
            return outputs.mean(0)
        return outputs.float().log_softmax(-1).logsumexp(0) - torch.tensor(float(len(outputs))).log()
