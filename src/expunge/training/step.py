"""What an objective reads. Every value is computed at most once for each step."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data
from expunge.errors import MissingEvidence, Unsupported
from expunge.tasks.base import Task
from expunge.training.engine import Engine

Part = Literal["forget", "retain"]


class Original:
    """The model as it was handed in, frozen and in evaluation mode, and what it said per example.

    Where an example always looks the same (no augmentation, no drawn noise), the original's
    log-likelihood and loss are one number each: they are computed when first asked for and kept, so
    from the second epoch on they cost nothing. Nothing is copied where the model is in place already.
    """

    def __init__(self, model: nn.Module, task: Task, engine: Engine, parts: dict[str, Data]) -> None:
        self._source = model
        self._task = task
        self._engine = engine
        self._rows = {name: torch.sort(data.ids).values for name, data in parts.items()}
        self._fixed = {name: not (task.random_outputs or data.augmented) for name, data in parts.items()}
        self._kept: dict[tuple[str, str], Tensor] = {}

    @cached_property
    def model(self) -> nn.Module:
        """The model as it was handed in where it is in place already, else a copy of it."""
        return self._engine.placed(self._source)

    def said(self, batch: Batch) -> Any:
        """What it says, without gradient: see ``Task.said``."""
        with self._engine.frozen(self.model) as model, self._engine.autocast():
            return self._task.said(model, batch)

    def per_example(self, part: str, kind: str, batch: Batch, compute: Callable[[], Tensor]) -> Tensor:
        """A kept per-example value of ``(N,)``, computed where it is not yet known."""
        if not self._fixed[part]:
            with torch.no_grad():
                return compute()
        rows = torch.searchsorted(self._rows[part], batch["ids"].cpu())
        kept = self._kept.setdefault((part, kind), torch.full((len(self._rows[part]),), torch.nan))
        if kept[rows].isnan().any():
            with torch.no_grad():
                kept[rows] = compute().float().cpu()
        return kept[rows].to(batch["ids"].device)


class View:
    """One batch of one part, through the model being changed and through the original.

    Everything with a gradient belongs to the model being changed. Shapes: ``outputs`` ``(N, …)``,
    all else ``(N,)``.
    """

    def __init__(
        self,
        part: Part,
        batch: Batch,
        model: nn.Module,
        original: Original,
        task: Task,
        engine: Engine,
        generator: torch.Generator | None,
        kept: str | None = "",
    ) -> None:
        self.part = part
        self.batch = batch
        self._model = model
        self._original = original
        self._task = task
        self._engine = engine
        self._generator = generator
        self._kept = kept
        self._instead: dict[str, View] = {}

    def __len__(self) -> int:
        return len(self.batch["ids"])

    @cached_property
    def said(self) -> Any:
        """What loss and log-likelihood are computed from: see ``Task.said``."""
        try:
            with self._engine.autocast():
                return self._task.said(self._model, self.batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise Unsupported(
                f"BatchNorm cannot be trained on a batch of {len(self)} example. Use mode=eval, which "
                "leaves its statistics as they are, or forget more than one example."
            ) from None

    @cached_property
    def outputs(self) -> Tensor:
        """What the model being changed says."""
        with self._engine.autocast():
            return self._task.spelled_out(self.said, self.batch)

    def through(self, model: nn.Module) -> Tensor:
        """What a third model says of the same batch, augmentation and drawn noise included."""
        with self._engine.autocast():
            return self._task.outputs(model, self.batch)

    @cached_property
    def loss(self) -> Tensor:
        """The task's loss of each example."""
        return self._task.loss(self.said, self.batch)

    @cached_property
    def log_likelihood(self) -> Tensor:
        """``log p(y | x)`` of each example."""
        return self._task.log_likelihood(self.said, self.batch)

    @cached_property
    def original_said(self) -> Any:
        """What loss and log-likelihood of the original are computed from: see ``Task.said``."""
        return self._original.said(self.batch)

    @cached_property
    def original(self) -> Tensor:
        """What the original model says."""
        with torch.no_grad(), self._engine.autocast():
            return self._task.spelled_out(self.original_said, self.batch)

    @cached_property
    def original_loss(self) -> Tensor:
        """The original's loss of each example; kept between epochs where it cannot change."""
        return self._of_original("loss", self._task.loss)

    @cached_property
    def original_log_likelihood(self) -> Tensor:
        """The original's log-likelihood of each example; kept likewise."""
        return self._of_original("log_likelihood", self._task.log_likelihood)

    def divergence(self, temperature: float = 1.0) -> Tensor:
        """``KL(original ‖ model)`` of each example, both tempered."""
        return self._task.divergence(self.original, self.outputs, self.batch, temperature)

    @cached_property
    def drift(self) -> Tensor:
        """``KL(original ‖ model)`` of each example."""
        return self.divergence()

    @cached_property
    def relabelled(self) -> View:
        """The same examples with targets that carry no information, drawn anew for each step."""
        batch = self._task.relabel(self.batch, self._generator)
        view = self._of(batch, None)
        if not self._task.relabel_changes_inputs:
            view.__dict__["said"] = self.said  # the inputs are the same: one forward pass is enough
        return view

    @cached_property
    def uninformed_loss(self) -> Tensor:
        """The loss of each example on what carries no information: the loss of ``relabelled``.

        Where that is another question (a denoiser's other condition) it is how far the answer to the
        example's own is from the one that the model itself gives to the other, which gets no gradient.
        """
        if not self._task.relabel_asks_otherwise:
            return self.relabelled.loss
        with torch.no_grad():
            wanted = self.relabelled.outputs
        return self._task.divergence(wanted, self.outputs, self.batch)

    def instead(self, name: str) -> View:
        """The same examples with another answer that the data brings: ``idk``, ``alternate``, …

        Its ``original_*`` values are kept between epochs as the answers' own are.

        Raises:
            Unsupported: the task or the data has no such answers.
        """
        if name not in self._instead:
            self._instead[name] = self._of(self._task.instead(self.batch, name), name)
        return self._instead[name]

    def again(self) -> View:
        """The same view with nothing computed yet."""
        return self._of(self.batch, self._kept)

    def _of(self, batch: Batch, kept: str | None) -> View:
        shared = (self._model, self._original, self._task, self._engine, self._generator)
        return View(self.part, batch, *shared, kept=kept)

    def _of_original(self, kind: str, measure: Callable[[Any, Batch], Tensor]) -> Tensor:
        def compute() -> Tensor:
            return measure(self.original_said, self.batch)

        if self._kept is None:
            with torch.no_grad():
                return compute()
        return self._original.per_example(self.part, f"{self._kept} {kind}", self.batch, compute)


class Step:
    """One optimiser step, as an objective sees it.

    ``over`` is the part whose batches this pass goes through. ``forget`` and ``retain`` are views of
    the batches at hand; asking for one that this pass does not bring is an error.
    """

    def __init__(
        self,
        over: Part,
        views: dict[Part, View],
        model: nn.Module,
        epoch: int,
        index: int,
        total: int,
        state: Any,
    ) -> None:
        self.over = over
        self.model = model
        self.epoch = epoch
        self.index = index
        self.total = total
        self.state = state
        self._views = views

    @property
    def forget(self) -> View:
        return self._view("forget")

    @property
    def retain(self) -> View:
        return self._view("retain")

    def has(self, part: Part) -> bool:
        """Whether this pass brings a batch of the part."""
        return part in self._views

    def again(self, *parts: Part) -> Step:
        """The same step, in which the views of these parts have computed nothing yet."""
        views = {part: view.again() if part in parts else view for part, view in self._views.items()}
        return Step(self.over, views, self.model, self.epoch, self.index, self.total, self.state)

    def _view(self, part: Part) -> View:
        if part not in self._views:
            raise MissingEvidence(
                f"the objective asked for a {part} batch in a pass over {self.over} alone. "
                f"Declare Pass('{self.over}', beside='{part}') in passes()."
            )
        return self._views[part]
