"""Gradient rectified unlearning: no step that the retain gradients speak against."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.tasks.base import Task
from expunge.training.loop import PROBE
from expunge.training.modifier import Gradients, Modifier, modifiers
from expunge.training.parameters import inner
from expunge.training.session import Session


@dataclass
class Direction:
    """The running mean of the retain gradients, by parameter."""

    mean: Gradients = field(default_factory=dict)


@modifiers.register("gru")
@dataclass(frozen=True, kw_only=True)
class GRU(Modifier):
    """Takes from every other term's gradient the part that would raise the retain loss, if there is one.

    ``r ← ema · r + (1 − ema) · g_r`` over the steps; where ``⟨g, r⟩ < 0``:
    ``g ← g − (⟨g, r⟩ / ‖r‖²) r``, the nearest gradient with ``⟨g, r⟩ ≥ 0``. A gradient that agrees with
    ``r`` stays as it is, as does the term ``retain``.

    Args:
        ema: how much of ``r`` stays at each step; 0 is the gradient of the step's own retain batch.

    Cost: one backward pass for each term and, where the objective has no term ``retain``, one forward and
        backward pass over a retain batch a step; one copy of the parameters.
    Differs: all parameters are rectified together, on the device they are on and in their own precision;
        the authors' code moves every gradient to the CPU in float64 at each step. A plain running mean
        (theirs is of another form, which the sheet calls non-standard; 0.8 with 0.6 to 0.99 tried is its
        range); no limit on the cosine, which their code sets instead of bounding. The inner product is
        the plain one, so that under Adam the retain loss may rise to first order all the same:
        ``retain_projection`` measures as the optimiser does.
    References: Wang et al., GRU, ICML 2025, arXiv:2503.09117; open-unlearning, pull request 83.
    """

    ema: float = 0.8

    separate = True
    protects_retain = True

    def __post_init__(self) -> None:
        if not 0 <= self.ema < 1:
            raise ConfigError(f"is a fraction in [0, 1), got {self.ema}.", "ema")

    def prepare(self, model: nn.Module, split: Split, task: Task, session: Session) -> Direction:
        return Direction()

    def gradients(
        self, terms: dict[str, Gradients], state: Direction, optimizer: torch.optim.Optimizer
    ) -> dict[str, Gradients]:
        retain = terms.get("retain", terms.get(PROBE))
        if retain is not None:
            for name, gradient in retain.items():
                state.mean[name] = gradient.lerp(state.mean.get(name, gradient), self.ema)
        return {
            term: gradients if term in ("retain", PROBE) else _rectified(gradients, state.mean)
            for term, gradients in terms.items()
        }


def _rectified(gradients: Gradients, direction: Gradients) -> Gradients:
    if not gradients.keys() & direction.keys():
        return gradients
    against = inner(gradients, direction)
    if not against < 0:
        return gradients
    share = against / inner(direction, direction)
    zeros = {name: torch.zeros_like(d) for name, d in direction.items() if name not in gradients}
    return {
        name: g - share * direction[name] if name in direction else g
        for name, g in {**gradients, **zeros}.items()
    }
