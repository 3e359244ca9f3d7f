"""One model under examination: what it said about each part, read once for all metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data, fixed_order
from expunge.errors import DataError, MissingEvidence, Unsupported
from expunge.evaluation.generation import GREEDY, Decoding, answers
from expunge.tasks.base import Task
from expunge.training import features
from expunge.training.session import Event, Session

if TYPE_CHECKING:
    from expunge.evaluation.score import Score

T = TypeVar("T")

KEPT = 2**28
"""Numbers of a part's outputs that are kept at most; a language model's logits may be more."""


@dataclass(frozen=True)
class Reading:
    """What one model said about the examples of one part, in the order of the part's ids.

    Shapes: ``kept`` the outputs, ``(N, …)`` float32 on the CPU, or None where ``spell`` makes them when they
        are asked for, as a language model's logits, by another forward pass; ``loss``, ``score``,
        ``log_likelihood`` and ``margin`` (the logit-scaled confidence) ``(N,)``; ``tokens`` what a task says
        of each label of a sequence, by name: ``(N, T)``, NaN where there is none.
    """

    kept: Tensor | None
    loss: Tensor
    score: Tensor
    log_likelihood: Tensor
    margin: Tensor
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    spell: Callable[[], Tensor | None] | None = None

    @cached_property
    def outputs(self) -> Tensor:
        """What the model answered.

        Raises:
            Unsupported: they are too many to keep.
        """
        found = self.spell() if self.kept is None and self.spell is not None else self.kept
        if found is None:
            raise Unsupported(
                f"the outputs are more than the {KEPT:,} numbers that are kept. Use a metric of losses or "
                "token probabilities, or a part with fewer examples."
            )
        return found

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
        self.kept: dict[object, tuple[float, ...]] = {}  # what attacks that share runs found in each
        self._readings: dict[tuple[str, str], Reading] = {}
        self._written: dict[tuple[str, Decoding], list[list[str]]] = {}
        self._layers: dict[tuple[str, tuple[str, ...], int], dict[str, Tensor]] = {}
        self._spoilt: dict[tuple[str, str], str] = {}
        self._made: dict[object, object] = {}

    def read(self, part: str, answer: str = "") -> Reading:
        """The readings of a part, by one forward pass the first time.

        Args:
            answer: of other answers (or to other questions) that the data brings by this name.

        Raises:
            MissingEvidence: the split has no such part.
            Unsupported: the data has no such answers.
            DataError: an output of the model is NaN or infinite.
        """
        key = (part, answer)
        if key not in self._readings:
            self._part(part)
            self._readings[key] = self._forward(part, answer)
        reading = self._readings[key]
        if key not in self._spoilt:
            self._spoilt[key] = _spoilt(reading, self.parts[part], part, self.name)
        if self._spoilt[key]:
            raise DataError(self._spoilt[key])
        return reading

    def answers(
        self, part: str, decoding: Decoding = GREEDY, rows: Sequence[int] | None = None
    ) -> list[list[str]]:
        """What the model writes after the prompts of a part, ``samples`` texts an example; once.

        Greedy answers to examples of another part that has all of these are taken from there.

        Args:
            rows: of these examples alone; nothing is written for the others.

        Raises:
            MissingEvidence: the split has no such part.
            Unsupported: the data holds no text.
        """
        key, data, seed = (part, decoding), self._part(part), self.session.seed
        if key not in self._written and (known := self._known(data, decoding)) is not None:
            self._written[key] = known
        if rows is not None and key not in self._written:
            few = data.subset(data.ids[list(rows)])
            return answers(self.placed, few, self.session.engine, decoding, seed)
        if key not in self._written:
            self._written[key] = answers(self.placed, data, self.session.engine, decoding, seed)
        found = self._written[key]
        return found if rows is None else [found[row] for row in rows]

    def _known(self, data: Data, decoding: Decoding) -> list[list[str]] | None:
        """The texts for these examples where a part with all of them has been answered, drawing nothing."""
        for (part, how), texts in self._written.items():
            if how == decoding and not how.temperature and self.parts[part].holds(data):
                place = {id_: row for row, id_ in enumerate(self.parts[part].ids.tolist())}
                return [texts[place[id_]] for id_ in data.ids.tolist()]
        return None

    def once(self, key: object, compute: Callable[[], T]) -> T:
        """What is computed of this model, by what identifies it: made once for all metrics."""
        if key not in self._made:
            self._made[key] = compute()
        return cast(T, self._made[key])

    def has(self, key: object) -> bool:
        """Whether ``once`` has made this."""
        return key in self._made

    def _part(self, name: str) -> Data:
        if name not in self.parts:
            raise MissingEvidence(f"there is no {name} data. Give the split {name}=….")
        return self.parts[name]

    def features(self, part: str, module: str | None = None) -> Tensor:
        """The penultimate representation ``(N, D)``, or the input of a named module.

        Positions of a sequence are averaged, padding left out; feature maps are laid out flat.

        Raises:
            Unsupported: the model has no such module, or does not use it.
        """
        data, engine, rows = self.parts[part], self.session.engine, list[Tensor]()
        order = self._order(data)
        with engine.frozen(self.placed) as model, features.captured(self.placed, module) as found:
            for batch in data.batches(order, device=engine.torch_device):
                batch = self.task.prepare(batch, None)
                with engine.autocast():
                    self.task.outputs(model, batch)
                if not found:
                    raise Unsupported(f"the model never calls '{module}' with a tensor. Name another module.")
                value, mask = found[-1], batch.get("attention_mask")
                found.clear()
                rows.append(features.pooled(value, mask) if value.ndim == 3 else value.float().flatten(1))
        return torch.cat(rows).cpu()[_places(order)]

    def layers(self, part: str, names: tuple[str, ...], limit: int = 1000) -> dict[str, Tensor]:
        """The inputs of named modules, each ``(n, C)``, all from one forward pass made once.

        Feature maps and sequences are averaged over their pixels or positions (padding left out). Only
        ``features.sampled(N, limit)`` of the part's examples are looked at.

        Raises:
            MissingEvidence: the split has no such part.
            Unsupported: the model has no such module, or does not use it.
            DataError: an activation is NaN or infinite.
        """
        data = self._part(part)
        key = (part, names, limit)
        if key not in self._layers:
            chosen = data if len(data) <= limit else data.subset(data.ids[features.sampled(len(data), limit)])
            self._layers[key] = self._activations(chosen, names)
        for name, values in self._layers[key].items():
            if not torch.isfinite(values).all():
                raise DataError(f"the inputs of '{name}' are NaN or infinite for some {part} examples.")
        return self._layers[key]

    def _activations(self, data: Data, names: tuple[str, ...]) -> dict[str, Tensor]:
        engine, rows = self.session.engine, dict[str, list[Tensor]]()
        order = fixed_order(len(data), self.task.batch_size(data))
        with engine.frozen(self.placed) as model, features.watched(model, names) as found:
            for batch in data.batches(order, device=engine.torch_device):
                batch = self.task.prepare(batch, None)
                with engine.autocast():
                    self.task.outputs(model, batch)
                for name in names:
                    if name not in found:
                        raise Unsupported(
                            f"the model never calls '{name}' with a tensor. Name another module."
                        )
                    rows.setdefault(name, []).append(
                        features.pooled(found[name], batch.get("attention_mask")).cpu()
                    )
        return {name: torch.cat(values) for name, values in rows.items()}

    def _forward(self, part: str, answer: str) -> Reading:
        data = self.parts[part]
        try:
            rows = self._outputs(data, answer)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None
        reading = _joined(rows, self._order(data, answer))
        self.session.emit(Event("evaluated", f"{self.name}: {part}"))
        return reading if answer else replace(reading, spell=lambda: self._spelled_out(data))

    def _outputs(self, data: Data, answer: str = "") -> list[Reading]:
        rows, total = list[Reading](), KEPT + 1 if answer else 0
        for said, batch in self._said(data, answer):
            rows.append(self._row(said, batch, total <= KEPT))
            kept = rows[-1].kept
            total = KEPT + 1 if kept is None else total + kept.numel()
        return rows

    def _said(self, data: Data, answer: str = "") -> Iterator[tuple[Any, Batch]]:
        """What the model says to each batch, as the task has it."""
        engine, task = self.session.engine, self.task
        with engine.frozen(self.placed) as model:
            for batch in data.batches(self._order(data, answer), device=engine.torch_device):
                batch = task.prepare(task.instead(batch, answer) if answer else batch, None)
                with engine.autocast():
                    said = task.said(model, batch)
                yield said, batch

    def _order(self, data: Data, answer: str = "") -> list[Tensor]:
        return data.even_order(self.task.batch_size(data), answer)

    def _row(self, said: Any, batch: Batch, keep: bool) -> Reading:
        task = self.task
        there = isinstance(said, Tensor)
        said = said.float() if there else said
        few = keep and there and said.numel() <= KEPT
        tokens = {name: value.cpu() for name, value in task.tokens(said, batch).items()}
        return Reading(
            task.spelled_out(said, batch).float().detach().cpu() if few else None,
            task.loss(said, batch).detach().cpu(),
            task.score(said, batch).detach().cpu(),
            task.log_likelihood(said, batch).detach().cpu(),
            task.margin(said, batch).detach().cpu(),
            tokens,
        )

    def _spelled_out(self, data: Data) -> Tensor | None:
        """The outputs, by a forward pass of their own; None where they are too many to keep."""
        rows, total = list[Tensor](), 0
        for said, batch in self._said(data):
            total += self.task.output_count(said)
            if total > KEPT:
                return None
            rows.append(self.task.spelled_out(said, batch).float().cpu())
        return _stacked(rows, 0.0)[_places(self._order(data))]

    def release(self) -> None:
        """Forgets what the model said, and its copy on the device; asked again, it is read again."""
        for known in (self._readings, self._written, self._layers, self._made):
            known.clear()
        self.__dict__.pop("placed", None)

    @cached_property
    def placed(self) -> nn.Module:
        """The model itself where it already is in place, else a copy; never to be changed."""
        return self.session.engine.placed(self.model)


def _joined(rows: Sequence[Reading], order: Sequence[Tensor]) -> Reading:
    """The readings of all batches in the order of the part; sequences as long as the longest."""
    outputs, places = [row.kept for row in rows if row.kept is not None], _places(order)
    return Reading(
        _stacked(outputs, 0.0)[places] if len(outputs) == len(rows) else None,
        torch.cat([row.loss for row in rows])[places],
        torch.cat([row.score for row in rows])[places],
        torch.cat([row.log_likelihood for row in rows])[places],
        torch.cat([row.margin for row in rows])[places],
        {name: _stacked([row.tokens[name] for row in rows], torch.nan)[places] for name in rows[0].tokens},
    )


def _places(order: Sequence[Tensor]) -> Tensor | slice:
    """Where each example of the part is among those that were read in this order."""
    positions = torch.cat(list(order))
    return slice(None) if (positions.diff() == 1).all() else positions.argsort()


def _stacked(values: Sequence[Tensor], padding: float) -> Tensor:
    longest = max(value.shape[1] if value.ndim > 1 else 0 for value in values)
    padded = [
        value
        if value.ndim < 2 or value.shape[1] == longest
        else torch.cat(
            [value, value.new_full((len(value), longest - value.shape[1], *value.shape[2:]), padding)], 1
        )
        for value in values
    ]
    return torch.cat(padded)


def _spoilt(reading: Reading, data: Data, part: str, name: str) -> str:
    """Why a reading cannot be used, in a sentence; empty where it can."""
    outputs = reading.loss if reading.kept is None else reading.kept
    if torch.isfinite(outputs.sum() + reading.loss.sum()):
        return ""  # a finite sum has finite terms
    bad = ~torch.isfinite(outputs.flatten(1) if outputs.ndim > 1 else outputs[:, None]).all(1)
    bad |= ~torch.isfinite(reading.loss)
    if not bad.any():
        return ""
    first = int(data.ids[bad.nonzero()[0, 0]])
    return (
        f"the outputs or losses of '{name}' are NaN or infinite for {int(bad.sum())} of {len(bad)} {part} "
        f"examples (the first is {first}). Train it again, with a lower learning rate."
    )
