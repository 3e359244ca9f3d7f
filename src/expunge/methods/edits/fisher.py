"""Fisher forgetting: noise where the retain set does not look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.base import Edit, methods
from expunge.methods.classes import forgotten_classes
from expunge.tasks.base import Task
from expunge.tasks.classification import Classification
from expunge.training.curvature import fisher_diagonal
from expunge.training.session import Session

BOUND, HEAD_BOUND, WIDER, ROW = 1e3, 1e2, 10.0, 1e-4
"""Of the authors' code: the largest 1/F, that of the head, the factor for head and vectors, a zeroed row."""


@methods.register("fisher")
@dataclass(frozen=True, kw_only=True)
class Fisher(Edit):
    """Adds Gaussian noise to each weight, the more the less the retain set determines it.

    ``θ_j ← θ_j + N(0, σ_j²)``, ``σ_j² = α · min(1 / (F_j + 10⁻⁸), 10³)``, with the Fisher information of the
    retain set ``F_j = mean_{i∈D_r} Σ_y p(y | x_i) (∂ log p(y | x_i) / ∂θ_j)²``.

    The bound is ``10²`` in the head, the last linear layer. The variance is averaged along the second
    dimension of a weight (its inputs), and ten times as large in the head and in every vector (biases,
    BatchNorm).

    Args:
        alpha: ``α``, the strength. The default is a choice of ours.
        zero_rows: for whole classes: the head's rows of the forgotten classes start from 0 with a variance
            of ``10⁻³``, independent of ``α``.
        samples: retained examples, drawn at random, that ``F`` is made of; all with ``null``.
        batch_size: examples that are differentiated at once; it does not change the result but for
            rounding.

    Shapes: every parameter; buffers stay. Classification alone, as the sum over ``y`` needs classes.
    Cost: one forward and ``C`` backward passes over the samples, ``2 · batch_size`` copies of the
        parameters. No training.
    Guarantee: empirical.
    Differs: ``F`` is of single examples, each with its own probabilities. The released copy takes the
        mean gradient of 32 examples under one label, squares it and weights it by their mean probability
        of that label, so that a confident example counts with labels it gives no chance: an ``F`` many
        times too large, and less noise. The head is the last linear layer, where the released code takes
        every tensor whose first dimension is the number of classes; rows are zeroed by ``zero_rows``,
        not where the forget set has a certain size.
    References: Golatkar et al., Eternal Sunshine of the Spotless Net, CVPR 2020, arXiv:1911.04933; as FF in
        Jia et al., Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023, arXiv:2304.04934.
    """

    alpha: float = 1e-6
    zero_rows: bool = False
    samples: int | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ConfigError(f"must be above 0, got {self.alpha}.", "alpha")
        for name in ("samples", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"must be at least 1, got {value}.", name)

    def check(self, split: Split, task: Task) -> None:
        if not isinstance(task, Classification):
            raise Unsupported(
                f"fisher sums over the classes of the outputs, and task '{type(task).__name__}' has none. "
                "Use influence or ssd."
            )
        if self.zero_rows:
            forgotten_classes(split, task)

    def edit(self, model: nn.Module, names: list[str], split: Split, task: Task, session: Session) -> None:
        head = _head(model)
        rows = forgotten_classes(split, task) if self.zero_rows else torch.empty(0, dtype=torch.long)
        information = fisher_diagonal(
            model, self._sample(split.retain, session), task, session, names=names, batch_size=self.batch_size
        )
        weights = dict(model.named_parameters())
        for name in names:
            weight, last = weights[name], name in head
            variance = self._variance(information[name], last)
            if last:
                place = rows.to(weight.device)
                variance[place] = ROW * WIDER
                with torch.no_grad():
                    weight[place] = 0.0
            noise = torch.randn(weight.shape, generator=session.generator("fisher", name)).to(weight)
            with torch.no_grad():
                weight.add_(variance.sqrt() * noise)

    def _sample(self, data: Data, session: Session) -> Data:
        if self.samples is None or self.samples >= len(data):
            return data
        drawn = torch.randperm(len(data), generator=session.generator("fisher"))[: self.samples]
        return data.subset(data.ids[drawn])

    def _variance(self, information: Tensor, last: bool) -> Tensor:
        variance = self.alpha * (1 / (information + 1e-8)).clamp(max=HEAD_BOUND if last else BOUND)
        if variance.ndim > 1:
            variance = variance.mean(1, keepdim=True).expand_as(variance).clone()
        return variance * WIDER if last or variance.ndim == 1 else variance


def _head(model: nn.Module) -> set[str]:
    """The names of the parameters of the last linear layer; none where there is no such layer."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {f"{linear[-1]}.{kind}".removeprefix(".") for kind in ("weight", "bias")} if linear else set()
