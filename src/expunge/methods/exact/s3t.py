"""Sequence-aware sharded, sliced training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from expunge import seeding
from expunge.data.arrays import Data
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.base import methods
from expunge.methods.exact.sequences import Prefix, cyclic, matched
from expunge.methods.exact.sharded import ShardedMethod
from expunge.methods.scopes.modules import Modules
from expunge.training.networks import head_of
from expunge.training.optim import AdamW, Optim
from expunge.training.recipe import Recipe, Training
from expunge.training.scope import Scope
from expunge.training.session import Session
from expunge.training.sharding import dealt

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@methods.register("s3t")
@dataclass(frozen=True, kw_only=True)
class S3T(ShardedMethod):
    """Gives each slice adapters of its own, in several orders, so that a deletion only switches some off.

    The weights ``W`` of the recipe's initial model stay as they are. In stage ``k`` of an order, the
    ``k``-th block of layers from the top and the head are trained on the first ``k`` slices of the order,
    the layers as ``W + (α / √r) B A`` with ``α = r``. A deletion from a slice fells every stage that was
    trained on it; each shard then answers by its longest stage that stands, with the head of that stage.
    The models of the shards are averaged. The original of this method is its own ensemble, trained by
    ``prepare`` on top of the recipe's initial model, which should be pretrained on other data; the model
    handed in is not used.

    Args:
        shards, slices: ``S``, and ``L`` in each.
        budget: ``B``, orders that are trained in each shard; by default ``L``, so that each slice begins one.
        probabilities: of a deletion from each slice, where known: orders are then chosen by matching, at
            most ``L``. They say something only if ``slice_by`` puts examples of equal risk together.
        slice_by: the column that holds the slice of each example; by default slices are dealt by id.
        retrain: ``auto`` trains a shard again when no stage is left in it; ``never`` says that it is due.
        rank: ``r``.
        targets: endings of the names of the layers to adapt, for example ``["q_proj", "v_proj"]``; by
            default every linear layer and convolution. The head never is: it is trained whole.
        epochs, batch_size, optim: how a stage is trained.

    Shapes: the result holds ``S`` models of the recipe with the adapters merged. Needs a head and at least
        ``L`` layers below it; blocks have ``⌊layers / L⌋`` layers, what is left at the bottom has none.
    Cost: ``prepare``: ``(L + 1) / 2`` trainings on the data for each order (stages that orders share are
        trained once), ``S · B`` sets of adapters and ``S · B · L`` heads; a deletion: none until a shard is
        used up, which takes ``L H_L`` random deletions with a budget of ``L``, ``L`` with one of 1.
    Guarantee: exact. What serves is equal, bit for bit, to the same stages trained on data that never
        held the example; after a retraining the whole shard is. It holds for requests that do not depend on
        the model, and where initial model and settings were not chosen by the deleted examples.
    Differs: the authors go on while any shard is left; here a used-up shard is due for retraining at once,
        for its share of the data would be lost unsaid. They keep the epoch that is best on the test data;
        here it is the last. They slice by per cent of the order of the data set (another rule for
        tiny-imagenet), here by id. Their adapters have dropout of 0.1, ours none.
        Convolutions are adapted too; normalisation keeps the statistics of the initial model, so none leak.
        The orders of a budget below ``L`` with ``probabilities`` are ours: those of the highest score.
    References: Basu Roy Chowdhury et al., Towards Scalable Exact Machine Unlearning Using
        Parameter-Efficient Fine-Tuning, ICLR 2025, arXiv:2406.16257.
    """

    shards: int = 5
    slices: int = 4
    budget: int | None = None
    probabilities: tuple[float, ...] = ()
    slice_by: str | None = None
    retrain: Literal["never", "auto"] = "never"
    rank: int = 16
    targets: tuple[str, ...] = ()
    epochs: int = 15
    batch_size: int = 128
    optim: Optim = AdamW(lr=2e-4, weight_decay=0.0, schedule="linear")

    prepared_by = (
        "shards", "slices", "budget", "probabilities", "slice_by",
        "rank", "targets", "epochs", "batch_size", "optim",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        most = self.slices if self.probabilities else math.factorial(self.slices)
        if self.budget is not None and not 1 <= self.budget <= most:
            raise ConfigError(f"must be in 1..{most} for {self.slices} slices, got {self.budget}.", "budget")
        if self.probabilities:
            given = self.probabilities
            if len(given) != self.slices or min(given) < 0 or sum(given) > 1 + 1e-6:
                raise ConfigError(
                    f"needs {self.slices} probabilities, one a slice, of sum at most 1; got {list(given)}.",
                    "probabilities",
                )

    def check_training(self, train: Data, recipe: Recipe) -> None:
        super().check_training(train, recipe)
        self.blocks(recipe.initial(Session()))

    @property
    def may_retrain(self) -> bool:
        return self.retrain == "auto"

    def orders(self) -> tuple[Prefix, ...]:
        budget = self.budget or self.slices
        if self.probabilities:
            return matched(self.probabilities, budget)
        return cyclic(self.slices, budget)

    def training(self, recipe: Recipe) -> Training:
        return Training(epochs=self.epochs, batch_size=self.batch_size, optim=self.optim)

    def retrains(self, usable: Sequence[Prefix]) -> bool:
        return not usable

    def cells(self, data: Data, seed: int) -> Tensor:
        if self.slice_by is None:
            return super().cells(data, seed)
        slices = data.column(self.slice_by)
        if slices.is_floating_point() or slices.ndim != 1 or slices.min() < 0 or slices.max() >= self.slices:
            raise DataError(
                f"the column '{self.slice_by}' must hold integers 0..{self.slices - 1}, the slices, of shape "
                f"(N,); got {slices.dtype} of shape {tuple(slices.shape)}, the largest {slices.max().item()}."
            )
        return dealt(data.ids, self.shards, seed) * self.slices + slices

    def initial(self, recipe: Recipe, session: Session, shard: int) -> nn.Module:
        model = recipe.initial(session.child("initial"))
        layers = [layer for block in self.blocks(model) for layer in block]
        head = head_of(model)
        model.requires_grad_(False)
        head.requires_grad_(True)
        with seeding.seeded(seeding.derive(session.seed, "shard", shard, "adapters")):
            for name in layers:
                layer = model.get_submodule(name)
                assert isinstance(layer.weight, Tensor)
                parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, self.rank))
        return model

    def blocks(self, model: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Names of the layers of each block, the top block first.

        Raises:
            Unsupported: the model has no head, or fewer layers below it than slices.
        """
        head = head_of(model)
        layers = [
            name
            for name, module in model.named_modules()
            if isinstance(module, KINDS) and module is not head
            if not self.targets or name.endswith(self.targets)
        ]
        size = len(layers) // self.slices
        if size == 0:
            advice = f"Set slices to at most {len(layers)}" if layers else "Use sisa"
            chosen = f" with names that end in {list(self.targets)}" if self.targets else ""
            raise Unsupported(
                f"s3t needs a layer to adapt for each of {self.slices} slices; below its head the model has "
                f"{len(layers)} linear layers and convolutions{chosen}. {advice}."
            )
        ends = [len(layers) - depth * size for depth in range(self.slices)]
        return tuple(tuple(layers[end - size : end]) for end in ends)

    def scope(self, model: nn.Module, depth: int) -> Scope:
        head = {id(parameter) for parameter in head_of(model).parameters()}
        names = [name for name, parameter in model.named_parameters() if id(parameter) in head]
        return Modules(patterns=(*names, *(f"{name}.{ADAPTER}" for name in self.blocks(model)[depth])))

    def merged(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        return model


ADAPTER = "parametrizations.weight.0"
"""Where ``parametrize`` keeps the factors of a layer."""


class LowRank(nn.Module):
    """``W + √r B A``, a change of rank ``r`` that is 0 at first: ``B = 0``, ``A`` uniform as in LoRA.

    ``α / √r`` (Kalajdzievski, 2023, arXiv:2312.03732) with ``α = r`` is ``√r``.

    Shapes: ``A`` ``(r, inputs)``, ``B`` ``(outputs, r)``; a kernel counts as a matrix of its outputs.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, weight[0].numel(), device=weight.device))
        self.up = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))
        self.scale = math.sqrt(rank)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down).view_as(weight)
