"""What metrics read: one forward pass for each model and part feeds them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data, fixed_order
from expunge.errors import MissingEvidence
from expunge.tasks.base import Task
from expunge.training import features
from expunge.training.session import Event, Session

if TYPE_CHECKING:
    from expunge.evaluation.metric import Metric
    from expunge.evaluation.score import Score

BATCH_SIZE = 512
"""Examples in a forward pass of an evaluation."""


@dataclass(frozen=True)
class Reading:
    """What one model said about the examples of one part, in the order of the part's ids.

    Shapes: ``outputs`` ``(N, …)`` float32 on the CPU; ``loss``, ``score``, ``log_likelihood`` ``(N,)``.
    """

    outputs: Tensor
    loss: Tensor
    score: Tensor
    log_likelihood: Tensor

    @property
    def confidence(self) -> Tensor:
        """``exp(−loss)``: the probability of the true label, the geometric mean of those of tokens."""
        return torch.exp(-self.loss)


class Subject:
    """One model under examination, and its readings of every part, each made once.

    The model is never changed: it runs in evaluation mode without gradients, and attacks that
    train work on copies.
    """

    def __init__(
        self, name: str, model: nn.Module, parts: Mapping[str, Data], task: Task, session: Session
    ) -> None:
        self.name = name
        self.model = model
        self.parts = parts
        self.task = task
        self.session = session
        self.scores: dict[object, Score] = {}
        self._readings: dict[str, Reading] = {}

    def read(self, part: str) -> Reading:
        """The readings of a part, by one forward pass the first time.

        Raises:
            MissingEvidence: the split has no such part.
        """
        if part not in self._readings:
            if part not in self.parts:
                raise MissingEvidence(f"there is no {part} data. Give the split {part}=….")
            self._readings[part] = self._forward(part)
        return self._readings[part]

    def features(self, part: str, module: str | None = None) -> Tensor:
        """The penultimate representation ``(N, D)``, or the input of a named module."""
        data = self.parts[part]
        with features.captured(self.model, module) as found:
            self._outputs(data, keep=False)
        return features.flat(found).float().cpu()

    def _forward(self, part: str) -> Reading:
        rows = self._outputs(self.parts[part], keep=True)
        reading = Reading(*(torch.cat(column) for column in zip(*rows, strict=True)))
        self.session.emit(Event("evaluated", f"{self.name}: {part}"))
        return reading

    def _outputs(self, data: Data, keep: bool) -> list[tuple[Tensor, ...]]:
        engine, task, rows = self.session.engine, self.task, []
        order = fixed_order(len(data), BATCH_SIZE)
        with engine.frozen(self._placed) as model:
            for batch in data.batches(order, device=engine.torch_device):
                batch = task.prepare(batch, None)
                with engine.autocast():
                    outputs = task.outputs(model, batch)
                if keep:
                    rows.append(self._row(outputs.float(), batch))
        return rows

    def _row(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        task = self.task
        values = (
            outputs,
            task.loss(outputs, batch),
            task.score(outputs, batch),
            task.log_likelihood(outputs, batch),
        )
        return tuple(value.cpu() for value in values)

    @cached_property
    def _placed(self) -> nn.Module:
        """The model itself where it already is in place, else a copy."""
        device = self.session.engine.torch_device
        here = all(parameter.device.type == device.type for parameter in self.model.parameters())
        if here and not self.session.engine.channels_last:
            return self.model
        return self.session.engine.copy(self.model)


@dataclass(frozen=True)
class Evidence:
    """All that a metric may ask for when it judges one model.

    Args:
        subject: the model being judged.
        original: the model before unlearning.
        retrained: models trained without the forget set; when the subject is one of them, the others.
        cost: seconds, memory in MiB and the mean seconds of a retraining, where they were measured.
    """

    subject: Subject
    original: Subject
    retrained: tuple[Subject, ...]
    task: Task
    parts: Mapping[str, Data]
    session: Session
    cost: Mapping[str, float] = field(default_factory=dict)

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
        return replace(self, subject=subject, cost={})

    def references(self) -> tuple[Subject, ...]:
        """The retrained models.

        Raises:
            MissingEvidence: there is none.
        """
        if not self.retrained:
            raise MissingEvidence("there is no (other) retrained model to compare with. Give more of them.")
        return self.retrained

    def batch(self, part: str) -> Batch:
        """All examples of a part as one batch, for per-example comparisons of stored outputs."""
        data = self.parts[part]
        (batch,) = data.batches([torch.arange(len(data))], device="cpu")
        return self.task.prepare(batch, None)
