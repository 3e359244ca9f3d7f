"""Models that must never win: always one answer, knowledge destroyed, never trained.

A metric on which one of them comes first measures damage, not forgetting.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from expunge.errors import ConfigError, did_you_mean
from expunge.evaluation.subject import Subject
from expunge.training.fresh import fresh
from expunge.training.session import Session

CONTROLS = ("collapsed", "constant", "never_trained")


class Constant(nn.Module):
    """Answers every input with the same ``answer``, its only parameter, in a batch of the input's size.

    Args:
        answer: ``(…)``, one example's output; for sequence models ``(V,)``, one position's.
        positions: whether the answer is repeated over the input's second dimension.
    """

    def __init__(self, answer: Tensor, positions: bool = False) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer.clone())
        self.positions = positions

    def forward(self, first: Tensor, *_: object, **__: object) -> Tensor:
        shape = first.shape[:2] if self.positions else first.shape[:1]
        return self.answer.expand(*shape, *self.answer.shape).clone()


def control(name: str, original: Subject, session: Session, part: str = "test") -> nn.Module:
    """One of the three controls for a model under examination.

    ``constant`` always gives the mean of the original's outputs on ``part``; ``collapsed`` has the
    original's weights, each tensor's elements in random order; ``never_trained`` is freshly
    initialised by the session's recipe, or, where there is none, by its layers' own
    ``reset_parameters``.

    Raises:
        ConfigError: no such control.
        Unsupported: there is no recipe, and a layer with weights cannot initialise itself.
    """
    if name == "constant":
        return constant(original, part)
    if name == "collapsed":
        return _shuffled(original.model, session.generator("collapsed"))
    if name == "never_trained":
        return fresh(original.model, session.child("never_trained"))
    raise ConfigError(f"unknown control '{name}'.{did_you_mean(name, CONTROLS)}")


def constant(original: Subject, part: str) -> Constant:
    """Always the mean of a model's outputs on one part."""
    outputs = original.read(part).outputs
    sequence = outputs.ndim == 3
    return Constant(outputs.mean((0, 1) if sequence else 0), positions=sequence).eval()


def floors(original: Subject, part: str) -> dict[str, float]:
    """Score (``accuracy``) and ``loss`` of the constant model on one part, from the outputs at hand."""
    reading, data = original.read(part), original.parts[part]
    answer = constant(original, part).answer.detach()
    (batch,) = data.batches([torch.arange(len(data))], device="cpu")
    batch = original.task.prepare(batch, None)
    outputs = answer.expand_as(reading.outputs)
    score, loss = original.task.score(outputs, batch), original.task.loss(outputs, batch)
    return {"accuracy": float(score.double().mean()), "loss": float(loss.double().mean())}


def _shuffled(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy whose weights stand in random order; statistics of BatchNorm stay as they are."""
    broken = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in broken.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return broken
