"""What a method is: objectives that the one loop minimises, one-shot edits, guards, exact methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.errors import ConfigError, Diverged, Unsupported
from expunge.methods.classes import forgotten_classes
from expunge.registry import Registry
from expunge.tasks.base import Task
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.modifier import Modifier
from expunge.training.optim import SGD, Optim
from expunge.training.recipe import Recipe
from expunge.training.scope import Everything, Scope
from expunge.training.session import Session
from expunge.training.step import Step


class Method(ABC):
    """Turns a trained model into one that has forgotten. Subclasses are frozen dataclasses."""

    guarantee: ClassVar[Literal["exact", "certified", "empirical"]] = "empirical"
    """What is promised: exactly a retrained model, a proven bound, or evidence only."""

    needs_recipe: ClassVar[bool] = False
    """Whether the session must bring the recipe that the original was trained with."""

    forgets: ClassVar[Literal["examples", "classes"]] = "examples"
    """``classes`` where only whole classes can be forgotten."""

    prepared_by: ClassVar[tuple[str, ...]] = ()
    """The fields that decide what is made once, before any request, and shared by all: see ``prepare``."""

    def reads_inputs(self) -> tuple[str, ...]:
        """The parts whose inputs are looked at; of others at most what is asked, captions or classes."""
        return ("forget", "retain")

    def promise(self) -> str:
        """What the guarantee amounts to with these settings, in a sentence; nothing more by default."""
        return ""

    def check(self, split: Split, task: Task) -> None:
        """Refuses a forget set or a task that can be known to be wrong before anything is trained.

        Raises:
            Unsupported: for example single examples where only classes can be forgotten.
        """
        if self.forgets == "classes":
            forgotten_classes(split, task)

    def check_training(self, train: Data, recipe: Recipe) -> None:
        """Refuses training data or a recipe that can be known to be wrong before anything is trained.

        Raises:
            Unsupported: for example shards that would be smaller than a batch.
        """

    def check_request(self, split: Split, recipe: Recipe, session: Session) -> None:
        """Refuses what cannot be deleted from what ``prepare`` makes with this session, before it is made.

        Raises:
            Unsupported: for example a shard that is due for retraining and must not be retrained.
        """

    def prepare(self, train: Data, task: Task, session: Session) -> dict[str, Tensor]:
        """What is made once of all training data: reference models, shards, their checkpoints.

        It arrives as ``session.prepared``; where that is None ``unlearn`` calls this itself, and a
        caller with several requests pays for it once.

        Raises:
            MissingEvidence: no recipe to train by.
        """
        return {}

    def blank(self, model: nn.Module, split: Split) -> nn.Module:
        """A model built like the result, for saved weights to be read into; by default like the original.

        ``model`` is one of the original's structure that may be changed.
        """
        return model

    @abstractmethod
    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        """A new model that has forgotten ``split.forget``; the model passed in is never changed.

        Raises:
            Unsupported: the method cannot run on this model or task.
            Diverged: the weights or the objective became NaN or infinite.
        """


methods: Registry[Method] = Registry(
    "method",
    Method,  # type: ignore[type-abstract]
    (
        "expunge.methods.gradient",
        "expunge.methods.edits",
        "expunge.methods.guards",
        "expunge.methods.exact",
    ),
)


@dataclass(frozen=True, kw_only=True)
class GradientMethod(Method):
    """An objective, minimised by the loop under a scope, modifiers and an optimiser.

    The class is its own configuration. A subclass writes ``objective`` and, where it does not go
    over the forget set with a retain batch beside each batch, ``passes``.

    Args:
        epochs: number of epochs.
        batch_size: examples of each part in a step.
        optim: how the step is taken.
        scope: which parameters may move.
        modifiers: what happens to the gradients before the step.
        mode: whether BatchNorm and dropout behave as in training (``train``) or not (``eval``).
    """

    epochs: int = 5
    batch_size: int = 128
    optim: Optim = SGD(lr=0.01)
    scope: Scope = Everything()
    modifiers: tuple[Modifier, ...] = ()
    mode: Literal["train", "eval"] = "train"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)

    def passes(self, epoch: int) -> Sequence[Pass]:
        """The passes of one epoch."""
        return (Pass("forget", beside="retain"),)

    def reads_inputs(self) -> tuple[str, ...]:
        alone = all(one.over == "forget" and one.beside is None for one in self.passes(0))
        return ("forget",) if alone and not self.modifiers else super().reads_inputs()

    @abstractmethod
    def objective(self, step: Step) -> dict[str, Tensor]:
        """Named scalar terms whose sum is minimised; the one that keeps is called ``retain``."""

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Any:
        """State for the run, computed once; arrives as ``step.state``."""
        return None

    def plan(self, model: nn.Module, split: Split, task: Task, session: Session) -> Plan:
        """All that the loop needs for one request."""
        return Plan(
            what=methods.name_of(self),
            objective=self.objective,
            parts={"forget": split.forget, "retain": split.retain},
            passes=self.passes,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optim=self.optim,
            scope=self.scope,
            modifiers=self.modifiers,
            mode=self.mode,
            state=self.setup(model, split, task, session),
        )

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        task = task.unlearning()
        return optimise(model, self.plan(model, split, task, session), task, session)


@dataclass(frozen=True, kw_only=True)
class Edit(Method):
    """One shot on the weights, without an optimiser; they must be floating-point numbers.

    Args:
        scope: which parameters may be edited; a scope that adds parameters cannot be used.
    """

    scope: Scope = Everything()

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        check_floating(model, methods.name_of(self))
        edited = session.engine.copy(model)
        names = self.scope.names(edited)
        with seeding.seeded(seeding.derive(session.seed, "edit")):
            self.edit(edited, names, split, task, session)
        for name, parameter in edited.named_parameters():
            if not torch.isfinite(parameter).all():
                raise Diverged(f"{methods.name_of(self)}: the weights of '{name}' are no longer finite.")
        return edited.eval()

    @abstractmethod
    def edit(self, model: nn.Module, names: list[str], split: Split, task: Task, session: Session) -> None:
        """Changes the named parameters of ``model``, a copy, in place."""


def check_floating(model: nn.Module, what: str) -> None:
    """Refuses a model with quantised weights: they have no gradients and cannot take any value.

    Raises:
        Unsupported: names the first parameter of an integer or 8-bit type, or quantised module.
    """
    found = [
        f"'{name}' is {parameter.dtype}"
        for name, parameter in model.named_parameters()
        if not parameter.is_floating_point() or parameter.element_size() < 2
    ]
    found += _quantised_layers(model)
    if found:
        raise Unsupported(
            f"{what} writes new weights and needs floating-point ones, but {found[0]}. "
            "Give the model from before it was quantised, and quantise the result."
        )


def check_layers(model: nn.Module, what: str) -> None:
    """Refuses torch's quantised layers, through which no gradient goes.

    Raises:
        Unsupported: names the first of them.
    """
    if found := _quantised_layers(model):
        raise Unsupported(
            f"{what} needs gradients, and there are none through torch's quantised layers: {found[0]}. "
            "Give the model from before it was quantised, and quantise the result."
        )


def _quantised_layers(model: nn.Module) -> list[str]:
    """What to say of each of torch's quantised layers, which have no parameters."""
    named = model.named_modules()
    return [
        f"'{name}' is a {type(module).__name__}"
        for name, module in named
        if hasattr(module, "_packed_params")
    ]


class Guard(Method):
    """The weights stay as they are; what the model is asked, or what it answers, changes at inference.

    A subclass writes ``learn`` and ``attach``. ``unlearn`` attaches what was learnt to a copy of the model;
    a guard that was saved is attached in the same way to the model that was saved with it.
    """

    @abstractmethod
    def learn(self, model: nn.Module, split: Split, task: Task, session: Session) -> dict[str, Tensor]:
        """All that the guard needs at inference, as tensors by name; the model is not changed."""

    @abstractmethod
    def attach(self, model: nn.Module, learned: Mapping[str, Tensor]) -> nn.Module:
        """``model`` itself, which may be changed, under guard: hooks, and the tensors as buffers.

        The modules and weights keep their names. Without tensors it is one that a file can be read into.
        """

    def blank(self, model: nn.Module, split: Split) -> nn.Module:
        return self.attach(model, {})

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        with seeding.seeded(seeding.derive(session.seed, "guard")):  # libraries draw where they are imported
            learned = self.learn(model, split, task, session)
        return self.attach(session.engine.copy(model), learned).eval()
