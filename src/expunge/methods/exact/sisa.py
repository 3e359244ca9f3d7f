"""Sharded, isolated, sliced, aggregated training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from expunge.errors import ConfigError
from expunge.methods.base import methods
from expunge.methods.exact.sequences import Prefix
from expunge.methods.exact.sharded import ShardedMethod
from expunge.training.recipe import Recipe, Training
from expunge.training.scope import Everything, Scope
from expunge.training.session import Session


@methods.register("sisa")
@dataclass(frozen=True, kw_only=True)
class SISA(ShardedMethod):
    """Retrains only the shards that held a deleted example, each from the checkpoint before its slice.

    Shard ``s`` starts from weights of its own and stage ``r`` goes on from stage ``r − 1`` with the data
    ``D_{s,1} ∪ … ∪ D_{s,r}``; the models of the last stages are averaged, ``p(y | x) = 1/S Σ_s p_s(y | x)``
    (predictions, where these are real numbers). A deletion from slice ``r`` of shard ``s`` repeats stages
    ``r … R`` of that shard. The original of this method is its own ensemble, trained by ``prepare``; the
    model handed in is not used.

    Args:
        shards: ``S``.
        slices: ``R``, in each shard.
        epochs: of a stage; by default ``2 e / (R + 1)``, rounded, for the recipe's ``e``: as many examples
            are then seen as without slices.

    Shapes: the result holds ``S`` models of the recipe; every task whose models can be averaged.
    Cost: ``prepare``: one training of all data, ``S · R`` copies of the weights; a deletion: on average
        over the slices ``(2 R + 1) / (3 R)`` of the training of one shard (2/3 for many slices).
    Guarantee: exact. The ensemble is equal, bit for bit, to one trained with the same seed on data that
        never held the example: shards and slices are dealt by id and seed, and every stage has a seed of
        its own. It holds for requests that do not depend on the model.
    Differs: no code of the authors was compared; the epochs of a stage follow their rule of equal cost.
        Examples are dealt by id (the i-th example is in no shard by chance of how many there are), so that
        the dealing, too, is the same without the deleted example. Probabilities are averaged, not votes.
        Repeated runs on one ``prepare`` are equal, as its seed is the one that counts.
    References: Bourtoule et al., Machine Unlearning, S&P 2021, arXiv:1912.03817.
    """

    shards: int = 5
    slices: int = 5
    epochs: int | None = None

    prepared_by = ("shards", "slices", "epochs")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"must be at least 1, got {self.epochs}.", "epochs")

    def orders(self) -> tuple[Prefix, ...]:
        return (tuple(range(self.slices)),)

    def training(self, recipe: Recipe) -> Training:
        equal = max(1, round(2 * recipe.training.epochs / (self.slices + 1)))
        return replace(recipe.training, epochs=self.epochs or equal)

    def initial(self, recipe: Recipe, session: Session, shard: int) -> nn.Module:
        return recipe.initial(session.child("shard", shard, "initial"))

    def scope(self, model: nn.Module, depth: int) -> Scope:
        return Everything()

    def retrains(self, usable: Sequence[Prefix]) -> bool:
        return True
