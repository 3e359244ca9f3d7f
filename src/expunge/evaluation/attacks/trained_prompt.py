"""What attacks have in common that fit a piece of the prompt to some forgotten facts and try it on others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data
from expunge.errors import ConfigError
from expunge.evaluation import language
from expunge.evaluation.attacks import hidden
from expunge.evaluation.attacks.budget import Attack, Tried, check_budgets, confidence, halves
from expunge.evaluation.attacks.inserted import embedded, embedding, inserted, places
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import registered
from expunge.evaluation.statistics import Floats
from expunge.tasks.base import Task
from expunge.training.engine import Engine


@dataclass(frozen=True, eq=False)
class Piece:
    """What is put into a prompt: tokens ``(K,)``, or vectors ``(K, D)`` in place of their embeddings."""

    tokens: Tensor
    vectors: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Fitting:
    """Everything that the fit of one half needs.

    Args:
        before: how many tokens of the prompt stand after the piece; None puts it at the start.
        generator: of the draws.
    """

    model: nn.Module
    layer: nn.Embedding
    task: Task
    engine: Engine
    known: Data
    before: int | None
    generator: torch.Generator

    def losses(self, piece: Piece, batch: Batch) -> Tensor:
        """The mean loss of the tokens of each answer after the changed prompt, ``(N,)``."""
        new, inside = inserted(batch, piece.tokens, places(batch, self.before))
        vectors = piece.vectors
        put = embedded(self.layer, vectors, inside) if vectors is not None else nullcontext()
        with put, self.engine.autocast():
            return self.task.loss(self.task.said(self.model, new), new)

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of the known facts without end, in random order."""
        while True:
            order = self.known.random_order(size, self.generator)
            for batch in self.known.batches(order, device=self.engine.torch_device):
                yield self.task.prepare(batch, None)


@dataclass(frozen=True, kw_only=True)
class TrainedPrompt(Attack):
    """A piece of the prompt that is fitted to half of every subject's facts and tried on the other half."""

    length: int
    steps: tuple[int, ...]
    batch_size: int
    x_label = "steps"

    def __post_init__(self) -> None:
        check_budgets(self.steps, "steps")
        for name in ("length", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)

    @abstractmethod
    def fitted(self, fitting: Fitting) -> Iterator[Piece]:
        """The piece after each step."""

    @abstractmethod
    def before(self, data: Data) -> int | None:
        """How many tokens of the prompt stand after the piece; None puts it at the start."""

    def tried(self, evidence: Evidence) -> Tried:
        data = language.tokens(evidence, "forget")
        success = np.zeros((len(self.steps) + 1, len(data)))
        success[0] = confidence(evidence)
        first = halves(evidence)
        for number, held in enumerate((first, ~first)):
            success[1:, held] = self._half(evidence, data, held, number)
        return Tried((0.0, *map(float, self.steps)), success)

    def details(self, evidence: Evidence, found: Tried) -> dict[str, Any]:
        return {"before": float(found.success[0].mean())}

    def _half(self, evidence: Evidence, data: Data, held: np.ndarray[Any, Any], number: int) -> Floats:
        """The success on the facts held out, after each number of steps, ``(steps, N)``."""
        engine, task = evidence.session.engine, evidence.task
        session = evidence.session.child(registered(self), number)
        known, asked = (data.subset(data.ids[torch.from_numpy(rows)]) for rows in (~held, held))
        rows = []
        with engine.frozen(engine.placed(evidence.subject.model)) as model:
            fitting = Fitting(
                model,
                embedding(model, task),
                task,
                engine,
                known,
                self.before(data),
                session.generator("draws"),
            )
            for step, piece in enumerate(self.fitted(fitting), 1):
                if step in self.steps:
                    found = [
                        (-fitting.losses(piece, batch).double()).exp().cpu().numpy()
                        for batch in hidden.batches(evidence, asked)
                    ]
                    rows.append(np.concatenate(found))
                if step >= self.steps[-1]:
                    break
        return np.stack(rows)
