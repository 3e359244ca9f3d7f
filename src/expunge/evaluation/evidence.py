"""What metrics may ask for when they judge a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from expunge.data.arrays import Batch, Data
from expunge.errors import DataError, MissingEvidence, Unsupported
from expunge.evaluation.subject import Subject
from expunge.tasks.base import Task
from expunge.training.session import Session

if TYPE_CHECKING:
    from expunge.evaluation.metric import Metric
    from expunge.evaluation.score import Score
    from expunge.evaluation.shadows import Shadows

Tensors = dict[str, Tensor]
Compute = Callable[[], tuple[Mapping[str, Any], Tensors]]
"""Makes the facts and the named tensors of a piece."""
Keep = Callable[[str, tuple[Any, ...], Compute], Tensors]
"""Gives the tensors of a piece by its name and what it depends on, computed if they are not there yet."""


@dataclass(frozen=True)
class Evidence:
    """All that a metric may ask for when it judges one model.

    Args:
        subject: the model being judged.
        original: the model before unlearning.
        retrained: models trained without the forget set; the subject may be one of them.
        cost: seconds, memory in MiB and the mean seconds of a retraining, where they were measured.
        siblings: further models made as the subject was, with other seeds: of an unlearned model the
            method's other runs, of a retrained one the other retrained models.
        shadows: reference models trained on random halves of the data, for per-example attacks.
        keep: keeps what metrics train for themselves beyond this evaluation; None where nothing does.
    """

    subject: Subject
    original: Subject
    retrained: tuple[Subject, ...]
    task: Task
    parts: Mapping[str, Data]
    session: Session
    cost: Mapping[str, float] = field(default_factory=dict)
    siblings: tuple[Subject, ...] = ()
    shadows: Shadows | None = None
    keep: Keep | None = None

    def kept(self, name: str, depends: tuple[Any, ...], compute: Compute) -> Tensors:
        """The tensors of a piece that metrics need whatever the model, computed if they are not there yet.

        Args:
            name: of the piece.
            depends: all that decides it, JSON-serialisable.
        """
        return compute()[1] if self.keep is None else self.keep(name, depends, compute)

    def score(self, metric: Metric) -> Score:
        """What a metric finds for the subject, measured once however many metrics ask.

        Raises:
            ExpungeError: it cannot be computed; the message says why.
        """
        known = self.subject.scores
        if metric not in known:
            known[metric] = metric.measure(self)
        return known[metric]

    def of(self, subject: Subject) -> Evidence:
        """The same evidence about another model, whose cost is not known."""
        return replace(self, subject=subject, cost={}, siblings=())

    def references(self) -> tuple[Subject, ...]:
        """The retrained models other than the subject itself.

        Raises:
            MissingEvidence: there is none.
        """
        found = tuple(other for other in self.retrained if other is not self.subject)
        if not found:
            raise MissingEvidence("there is no (other) retrained model to compare with. Give more of them.")
        return found

    def compared(self, part: str) -> list[Tensor]:
        """The retrained models' outputs on a part, each ``(N, …)`` like the subject's own.

        Raises:
            MissingEvidence: there is no retrained model.
            Unsupported: one answers in another shape.
        """
        mine = self.subject.read(part).outputs
        others = self.references()
        found = [other.read(part).outputs for other in others]
        for other, outputs in zip(others, found, strict=True):
            if outputs.shape != mine.shape:
                raise Unsupported(
                    f"the outputs of '{self.subject.name}' have the shape {tuple(mine.shape[1:])} for an "
                    f"example, those of '{other.name}' {tuple(outputs.shape[1:])}; they cannot be compared."
                )
        return found

    def clusters(self, part: str) -> Tensor | None:
        """The data subject of each example of a part, ``(N,)`` integers; None where there are none."""
        try:
            return self.parts[part].column("subjects").long()
        except DataError:
            return None

    def batch(self, part: str) -> Batch:
        """All examples of a part as one batch, for per-example comparisons of stored outputs."""
        data = self.parts[part]
        (batch,) = data.batches([torch.arange(len(data))], device="cpu")
        return self.task.prepare(batch, None)
