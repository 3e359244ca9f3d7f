"""What every verb needs besides its subject: a seed, an engine, listeners, a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from expunge import seeding
from expunge.training.engine import Engine

if TYPE_CHECKING:
    from expunge.training.recipe import Recipe


@dataclass(frozen=True)
class Event:
    """Something that happened. Listeners read it; nothing they do changes the computation.

    Args:
        kind: ``started`` and ``finished`` open and close a piece of work, ``step`` is one optimiser
            step of it, ``evaluated`` one measured value.
        what: the work, for example ``"salun"``.
        index, total: steps done and steps in all.
        values: named numbers: the objective's terms averaged over an epoch, or scores.
    """

    kind: Literal["started", "step", "evaluated", "finished"]
    what: str
    index: int = 0
    total: int = 0
    values: Mapping[str, float] = field(default_factory=dict)


Callback = Callable[[Event], None]


@dataclass(frozen=True)
class Session:
    """One call's seed, engine, listeners and recipe. Immutable; ``child`` gives a part its own seed.

    ``prepared`` is what the method at hand made beforehand of all training data, if it did.
    """

    seed: int = 0
    engine: Engine = Engine()
    callbacks: tuple[Callback, ...] = ()
    recipe: Recipe | None = None
    prepared: Mapping[str, Tensor] | None = None

    def child(self, *names: object) -> Session:
        """The same session with a seed derived for one purpose."""
        return replace(self, seed=seeding.derive(self.seed, *names))

    def generator(self, *names: object) -> torch.Generator:
        """A CPU generator for one purpose."""
        return seeding.generator(self.seed, *names)

    def emit(self, event: Event) -> None:
        if not self.callbacks:
            return
        state = torch.get_rng_state()  # a listener that draws must not change what comes after it
        for callback in self.callbacks:
            callback(event)
        torch.set_rng_state(state)
