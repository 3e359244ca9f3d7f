"""Models early in training."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from expunge.data.arrays import Data
from expunge.errors import MissingEvidence
from expunge.training.ensemble import train_many
from expunge.training.recipe import Recipe
from expunge.training.session import Session


def required(session: Session, name: str) -> Recipe:
    """The recipe of the original.

    Raises:
        MissingEvidence: there is none.
    """
    if session.recipe is None:
        raise MissingEvidence(
            f"{name} trains models of its own and needs the original's recipe. Give recipe=…."
        )
    return session.recipe


def early_models(
    recipe: Recipe, data: Data, session: Session, count: int, epochs: int
) -> tuple[nn.Module, ...]:
    """Models after the first epochs of the recipe, each from weights of its own; untrained after none.

    The learning rate stays what it is at first: a schedule that ends within these epochs would be another
    training and not the beginning of this one. Warming up takes as many steps as in the whole.

    Cost: ``count · epochs`` passes over the data.
    """
    sessions = [replace(session.child("early", i), recipe=None) for i in range(count)]
    if epochs == 0:
        return tuple(recipe.initial(child).eval() for child in sessions)
    whole = recipe.training
    warmup = min(whole.optim.warmup * whole.epochs / epochs, 1 - 1e-9)
    optim = replace(whole.optim, schedule="constant", warmup=warmup)
    short = replace(recipe, training=replace(whole, epochs=epochs, optim=optim))
    return train_many(short, [data] * count, sessions, what="early").models
