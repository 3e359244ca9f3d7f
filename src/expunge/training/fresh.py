"""A model built like another one that was never trained."""

from __future__ import annotations

import copy

from torch import nn

from expunge import seeding
from expunge.errors import Unsupported
from expunge.training.session import Session


def fresh(model: nn.Module, session: Session) -> nn.Module:
    """A freshly initialised model like ``model``, in evaluation mode.

    The session's recipe builds it; where there is none, every layer of a copy draws its weights anew by
    its own ``reset_parameters``.

    Raises:
        Unsupported: there is no recipe, and a layer with weights cannot initialise itself.
    """
    if session.recipe is not None:
        return session.recipe.initial(session).eval()
    reborn = copy.deepcopy(model).eval()
    with seeding.seeded(seeding.derive(session.seed, "initialise")):
        for name, module in reborn.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif list(module.parameters(recurse=False)):
                raise Unsupported(
                    f"the model's layer '{name}' cannot initialise itself, so without a recipe there is no "
                    "never-trained model. Give the recipe."
                )
    return reborn
