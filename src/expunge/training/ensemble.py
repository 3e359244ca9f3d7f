"""Many models of one recipe: one after another, or stacked and trained at once."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from expunge import seeding
from expunge.data.arrays import Batch, Data, batch_count
from expunge.errors import ConfigError, DataError, Diverged, Unsupported
from expunge.tasks.base import Task
from expunge.training.optim import SGD, AdamW
from expunge.training.recipe import Recipe
from expunge.training.scope import Everything
from expunge.training.session import Event, Session

How = Literal["auto", "stacked", "sequential"]

STACKED_PARAMETERS = 50_000
"""On a CPU, models with more parameters than this are not stacked unless that is asked for."""


@dataclass(frozen=True)
class Ensemble:
    """Trained models, how they were trained and how long it took.

    Attributes:
        models: in the order of their data sets.
        how: ``stacked`` or ``sequential``.
        reason: why, in a sentence.
        seconds: wall-clock time of the training.
    """

    models: tuple[nn.Module, ...]
    how: Literal["stacked", "sequential"]
    reason: str
    seconds: float

    @property
    def models_per_minute(self) -> float:
        return 60 * len(self.models) / max(self.seconds, 1e-9)


def train_many(
    recipe: Recipe,
    datasets: Sequence[Data],
    sessions: Sequence[Session],
    how: How = "auto",
    group: int = 16,
    what: str = "shadow",
) -> Ensemble:
    """What ``recipe.train(data, session)`` gives for each pair, up to floating-point rounding.

    ``stacked`` holds each parameter of ``S`` models in one tensor ``(S, …)`` and takes a step of all of
    them at once. Every model keeps its own initialisation, order of batches, augmentation, draws and
    BatchNorm statistics, those of ``recipe.train`` with its session. Models whose data sets are equally
    large are stacked together, at most ``group`` at once.

    ``auto`` stacks where ``stacking`` finds nothing against it; what it chose and why is in the result
    and in the events, which carry the models per minute.

    Raises:
        Unsupported: ``how="stacked"`` for models that cannot be stacked; the message says why.
        Diverged: a loss or a weight became NaN or infinite.
        ConfigError: a group below 1.
        DataError: not as many data sets as sessions, or none.

    Cost: the memory of ``group`` models, their gradients, momenta and activations.
    """
    if group < 1:
        raise ConfigError(f"must be at least 1, got {group}.", "group")
    if not datasets or len(datasets) != len(sessions):
        raise DataError(f"{len(datasets)} data sets for {len(sessions)} models; give one for each.")
    stack, reason = stacking(recipe, datasets[0], sessions[0], how)
    chosen: Literal["stacked", "sequential"] = "stacked" if stack else "sequential"
    session, start = sessions[0], time.perf_counter()
    session.emit(Event("started", f"{what} models ({chosen}: {reason})", 0, len(datasets)))
    found: list[nn.Module | None] = [None] * len(datasets)
    done = 0
    for rows in _groups(datasets, group if stack else 1):
        if stack:
            name = f"{what} models {done + 1} to {done + len(rows)}"
            stacked = _Stack(recipe, [datasets[i] for i in rows], [sessions[i] for i in rows], name)
            for row, model in zip(rows, stacked.train(), strict=True):
                found[row] = model
        else:
            (i,) = rows
            found[i] = recipe.train(datasets[i], sessions[i], f"{what} {i + 1}")
        done += len(rows)
    models = tuple(model for model in found if model is not None)
    ensemble = Ensemble(models, chosen, reason, time.perf_counter() - start)
    rate = {"models_per_minute": ensemble.models_per_minute}
    session.emit(Event("finished", f"{what} models ({chosen})", done, done, rate))
    return ensemble


def stacking(recipe: Recipe, data: Data, session: Session, how: How = "auto") -> tuple[bool, str]:
    """Whether models of a recipe are stacked, and why.

    They can be where the optimiser treats every number alone (``sgd``, ``adamw``), all parameters are
    trained, nothing is drawn inside the model (dropout), batches are not accumulated in parts nor
    activations computed again, and ``torch.vmap`` can run the model and the loss. ``auto`` stacks those
    on a GPU always, and on a CPU if they have no convolution and at most ``STACKED_PARAMETERS``
    parameters: there a step of one small model is mostly the overhead of its calls, which the others
    share. Stacked convolutions become grouped ones, which on a CPU gain little on 8×8 pictures and lose
    on 28×28 ones (1.8 times the time).

    Raises:
        Unsupported: ``how="stacked"`` for models that cannot be.
    """
    if how == "sequential":
        return False, "asked for"
    model = recipe.initial(session)
    obstacle = _obstacle(recipe, model, session) or _refusal(recipe, data, session)
    if obstacle and how == "stacked":
        raise Unsupported(f"the models cannot be trained as one stack: {obstacle}. Use how=sequential.")
    if obstacle:
        return False, obstacle
    if how == "stacked":
        return True, "asked for"
    if session.engine.torch_device.type != "cpu":
        return True, "on a GPU"
    if any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules()):
        return False, "convolutions on a CPU"
    count = sum(parameter.numel() for parameter in model.parameters())
    small = count <= STACKED_PARAMETERS
    return small, f"{count} parameters on a CPU, the limit being {STACKED_PARAMETERS}"


def _obstacle(recipe: Recipe, model: nn.Module, session: Session) -> str:
    """Why models like this one cannot be stacked; empty if they can."""
    if not isinstance(recipe.training.optim, (SGD, AdamW)):
        return (
            f"the optimiser {type(recipe.training.optim).__name__} is not known to treat every number alone"
        )
    if session.engine.accumulate > 1:
        return "batches are accumulated in parts"
    if session.engine.activation_checkpointing:
        return "activations are computed again"
    if recipe.training.gradient_penalty:
        return "the norms of their gradients are penalised"
    if recipe.training.scope != Everything() or any(not p.requires_grad for p in model.parameters()):
        return "some of their parameters are frozen"
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return f"'{name}' draws at random in training"
    return ""


def _refusal(recipe: Recipe, data: Data, session: Session) -> str:
    """What ``torch.vmap`` says against the model and its loss on a first batch; empty if nothing."""
    stack = _Stack(recipe, [data], [session], "trial")
    try:
        stack.losses(next(stack.batches()))
    except (RuntimeError, ValueError) as error:
        return f"torch.vmap refuses the model or its loss ({' '.join(str(error).split())[:120]})"
    return ""


def _groups(datasets: Sequence[Data], size: int) -> Iterator[list[int]]:
    """Positions of data sets of equal length, at most ``size`` together."""
    lengths: dict[int, list[int]] = {}
    for i, data in enumerate(datasets):
        lengths.setdefault(len(data) if size > 1 else 0, []).append(i)
    for rows in lengths.values():
        yield from (rows[i : i + size] for i in range(0, len(rows), size))


class _Losses(nn.Module):
    """One model's mean loss on a batch, as a module whose state can be swapped."""

    def __init__(self, model: nn.Module, task: Task, session: Session) -> None:
        super().__init__()
        self.model, self.task, self.engine = model, task, session.engine

    def forward(self, batch: Batch) -> Tensor:
        with self.engine.autocast():
            outputs = self.task.outputs(self.model, batch)
        return self.task.loss(outputs, batch).mean()


class _Stack:
    """The training of models with equally large data sets, all in one."""

    def __init__(
        self, recipe: Recipe, datasets: Sequence[Data], sessions: Sequence[Session], what: str
    ) -> None:
        self.recipe, self.datasets, self.what = recipe, datasets, what
        self.session = sessions[0]
        self.engine, self.task = self.session.engine, recipe.task
        self.models = [self.engine.place(recipe.initial(session)).train() for session in sessions]
        wrapped = [_Losses(model, self.task, self.session) for model in self.models]
        self.parameters, self.buffers = stack_module_state(wrapped)
        self.base = copy.deepcopy(wrapped[0])
        self.draws = [session.generator("draws") for session in sessions]
        self.optimizer = recipe.training.optim.optimizer(self.parameters.values())

    def train(self) -> list[nn.Module]:
        training = self.recipe.training
        total = training.epochs * batch_count(len(self.datasets[0]), training.batch_size)
        index = 0
        self.session.emit(Event("started", self.what, 0, total))
        with seeding.seeded(seeding.derive(self.session.seed, "loop")):
            for epoch in range(training.epochs):
                sums = []
                for batch in self.batches():
                    rate = training.optim.lr * training.optim.factor(index, total)
                    for group in self.optimizer.param_groups:
                        group["lr"] = rate
                    sums.append(self._step(batch))
                    index += 1
                    self.session.emit(Event("step", self.what, index, total))
                self._check(torch.stack(sums).mean(0), epoch)
        self._unstack()
        self.session.emit(Event("finished", self.what, index, total))
        return [model.eval() for model in self.models]

    def batches(self) -> Iterator[Batch]:
        """One batch of each model, stacked: every column ``(S, N, …)``."""
        streams = []
        for data, draws in zip(self.datasets, self.draws, strict=True):
            order = data.random_order(self.recipe.training.batch_size, draws)
            streams.append(data.batches(order, device=self.engine.torch_device, generator=draws))
        for batches in zip(*streams, strict=True):
            drawn = [self.task.prepare(b, d) for b, d in zip(batches, self.draws, strict=True)]
            try:
                yield {name: torch.stack([batch[name] for batch in drawn]) for name in drawn[0]}
            except RuntimeError:
                raise Unsupported(
                    "the models cannot be trained as one stack: their batches differ in shape. "
                    "Use how=sequential."
                ) from None

    def losses(self, batch: Batch) -> Tensor:
        """The mean loss of each model on its part of the batch, ``(S,)``."""

        def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch) -> Tensor:
            found = functional_call(self.base, (parameters, buffers), (batch,))
            assert isinstance(found, Tensor)
            return found

        found = vmap(loss)(self.parameters, self.buffers, batch)
        assert isinstance(found, Tensor)
        return found

    def _step(self, batch: Batch) -> Tensor:
        """One step of every model; their losses ``(S,)``."""
        losses, stacked = self.losses(batch), list(self.parameters.values())
        # no model's loss depends on another's weights: the gradient of the sum is that of each
        gradients = torch.autograd.grad(losses.sum(), stacked)
        for parameter, gradient in zip(stacked, gradients, strict=True):
            parameter.grad = gradient
        self._clip()
        self.optimizer.step()
        return losses.detach()

    def _clip(self) -> None:
        """What ``clip_grad_norm_`` does, with the norm of each model's own gradient."""
        largest = self.recipe.training.optim.clip
        if largest is None:
            return
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        squares = [gradient.flatten(1).square().sum(1) for gradient in gradients]
        factors = (largest / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp(max=1)  # (S,)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))

    def _check(self, means: Tensor, epoch: int) -> None:
        bad = (~means.isfinite()).nonzero()[:, 0].tolist()
        if bad:
            raise Diverged(
                f"{self.what}: the loss of model {bad[0] + 1} of the stack became {float(means[bad[0]])} in "
                f"epoch {epoch + 1}. Lower the learning rate (now {self.recipe.training.optim.lr}) or set "
                "optim.clip."
            )
        epochs = self.recipe.training.epochs
        self.session.emit(Event("evaluated", self.what, epoch + 1, epochs, {"loss": float(means.mean())}))

    @torch.no_grad()
    def _unstack(self) -> None:
        """Puts the state of each model back into it."""
        for i, model in enumerate(self.models):
            own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            for name, values in {**self.parameters, **self.buffers}.items():
                tensor = own[name.removeprefix("model.")]
                tensor.copy_(values[i])
                if not torch.isfinite(tensor).all():
                    raise Diverged(
                        f"{self.what}: '{name.removeprefix('model.')}' of model {i + 1} is no longer finite. "
                        f"Lower the learning rate (now {self.recipe.training.optim.lr}) or set optim.clip."
                    )
