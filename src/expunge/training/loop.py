"""The only optimisation loop: training, retraining, unlearning, searching and relearning run on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.arrays import Batch, Data, batch_count
from expunge.data.split import Split
from expunge.errors import Diverged, Unsupported
from expunge.tasks.base import Task
from expunge.training.modifier import Gradients, Modifier
from expunge.training.optim import Curved, ForwardOnly, Optim
from expunge.training.private import Private, PrivateGradient
from expunge.training.recomputed import keep, recompute
from expunge.training.scope import Everything, Scope
from expunge.training.session import Event, Session
from expunge.training.soundness import spoilt, unsound
from expunge.training.step import Original, Part, Step, View

Terms = dict[str, Tensor]
Objective = Callable[[Step], Terms]
"""Named scalar terms; their sum is minimised."""

PROBE = "probe"
"""The term whose gradient a modifier reads but that is not part of the step."""


@dataclass(frozen=True)
class Pass:
    """One way through the data within an epoch.

    Args:
        over: every batch of this part, once, in random order.
        beside: with each of them, a batch of this part; it starts again when it is used up.
        batch_size: if other than the run's.
        beside_ratio: examples of ``beside`` to each one of ``over``.
    """

    over: Part
    beside: Part | None = None
    batch_size: int | None = None
    beside_ratio: int = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that the loop needs besides the model.

    Args:
        objective: what is minimised.
        parts: the data of each part.
        passes: the passes of an epoch, by its number.
        mode: ``train`` or ``eval``: whether BatchNorm and dropout behave as in training.
        state: handed to the objective as ``step.state``.
        after: called with the model after every step, for watchers that stop early: True stops.
        private: batches and gradients are those of DP-SGD: one part, and an objective that is a mean over
            its examples. No losses are reported: nothing hides an example in them.
    """

    what: str
    objective: Objective
    parts: Mapping[str, Data]
    passes: Callable[[int], Sequence[Pass]]
    epochs: int
    batch_size: int
    optim: Optim
    scope: Scope = Everything()
    modifiers: tuple[Modifier, ...] = ()
    mode: Literal["train", "eval"] = "train"
    state: Any = None
    after: Callable[[nn.Module, int], bool] | None = None
    private: Private | None = None


def optimise(model: nn.Module, plan: Plan, task: Task, session: Session) -> nn.Module:
    """A copy of the model, optimised; the model passed in is not changed.

    Raises:
        Diverged: a term of the objective, a gradient or a weight became NaN or infinite; it says at which
            step, and ``model`` is the model as it was before it.
        Unsupported: the scope, a modifier or the task cannot serve this model.
    """
    with seeding.seeded(seeding.derive(session.seed, "loop")):
        return _Run(model, plan, task, session).run()


class _Run:
    """One run of the loop; holds what its steps share."""

    def __init__(self, model: nn.Module, plan: Plan, task: Task, session: Session) -> None:
        self.plan, self.task, self.session, self.engine = plan, task, session, session.engine
        self.draws, self.labels = session.generator("draws"), session.generator("labels")
        self.original = Original(model, task, self.engine, dict(plan.parts))
        copy = self.engine.copy(model)
        self.flags = {name: p.requires_grad for name, p in copy.named_parameters()}
        self.scope = self._scope(copy)
        self.model = self.scope.enter(copy)
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if self.engine.activation_checkpointing:
            recompute(self.model)
        if isinstance(plan.optim, ForwardOnly):
            _check_still(self.model, plan.mode)
        self.private = self._private(plan.private) if plan.private is not None else None
        self.optimizer = plan.optim.optimizer(self.trained.values())
        self.protect = any(m.protects_retain for m in plan.modifiers)
        self.separate = any(m.separate for m in plan.modifiers)
        self.states = self._prepare()
        self.objective = self._modified()
        self.streams: dict[tuple[Part, int], Iterator[Batch]] = {}
        self.total = sum(self._length(p) for e in range(plan.epochs) for p in plan.passes(e))

    def run(self) -> nn.Module:
        plan, index = self.plan, 0
        self.session.emit(Event("started", plan.what, 0, self.total))
        for epoch in range(plan.epochs):
            sums: dict[str, list[Tensor]] = {}
            stop = False
            for pass_ in plan.passes(epoch):
                self._set_mode()
                for batches in self._batches(pass_):
                    self._set_rate(index)
                    for name, value in self._step(pass_, batches, epoch, index).items():
                        sums.setdefault(name, []).append(value)
                    index += 1
                    self.session.emit(Event("step", plan.what, index, self.total))
                    stop = plan.after is not None and plan.after(self.model, index)
                    if stop:
                        break
                if stop:
                    break
            self._report(sums, epoch)
            if stop:
                break
        return self._finish(index)

    def _prepare(self) -> list[Any]:
        if not self.plan.modifiers:
            return []
        split = self._split("modifiers need")
        return [m.prepare(self.model, split, self.task, self.session) for m in self.plan.modifiers]

    def _modified(self) -> Objective:
        """The objective as the modifiers let it be evaluated."""
        objective = self.plan.objective
        for modifier, state in zip(self.plan.modifiers, self.states, strict=True):
            objective = partial(modifier.terms, objective=objective, state=state)
        return objective

    def _private(self, private: Private) -> PrivateGradient:
        private.check(self.model, self.plan.optim, self.plan.modifiers)
        (data,) = self.plan.parts.values()
        return PrivateGradient(private, self.model, self.trained, data, self.plan.batch_size, self.session)

    def _scope(self, model: nn.Module) -> Scope:
        scope = self.plan.scope
        if not scope.reads_data:
            return scope
        return scope.fitted(model, self._split("a scope that reads data needs"), self.task, self.session)

    def _split(self, who: str) -> Split:
        parts = self.plan.parts
        if "forget" not in parts or "retain" not in parts:
            raise Unsupported(f"{who} both a forget and a retain part. Use it with a method that has them.")
        return Split(parts["forget"], parts["retain"])

    def _length(self, pass_: Pass) -> int:
        size = pass_.batch_size or self.plan.batch_size
        return batch_count(len(self.plan.parts[pass_.over]), size)

    def _set_mode(self) -> None:
        self.model.train(self.plan.mode == "train")
        if self.plan.mode == "train":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    own = [p.requires_grad for p in module.parameters(recurse=False)]
                    if not (any(own) if own else all(p.requires_grad for p in self.model.parameters())):
                        module.eval()  # outside the scope: its running statistics stay too

    def _set_rate(self, index: int) -> None:
        rate = self.plan.optim.lr * self.plan.optim.factor(index, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _batches(self, pass_: Pass) -> Iterator[dict[Part, Batch]]:
        size = pass_.batch_size or self.plan.batch_size
        beside = pass_.beside
        if beside is None and self.protect and pass_.over == "forget":
            beside = "retain"
        for batch in self._once(pass_.over, size):
            batches: dict[Part, Batch] = {pass_.over: batch}
            if beside is not None:
                key = (beside, size * pass_.beside_ratio)
                if key not in self.streams:
                    self.streams[key] = self._endless(*key)
                batches[beside] = next(self.streams[key])
            yield batches

    def _once(self, part: Part, size: int) -> Iterator[Batch]:
        data = self.plan.parts[part]
        if self.plan.private is not None:
            return self.plan.private.batches(data, size, self.engine.torch_device, self.draws)
        order = data.random_order(size, self.draws)
        return data.batches(order, device=self.engine.torch_device, generator=self.draws)

    def _endless(self, part: Part, size: int) -> Iterator[Batch]:
        while True:
            yield from self._once(part, size)

    def _step(self, pass_: Pass, batches: dict[Part, Batch], epoch: int, index: int) -> dict[str, Tensor]:
        drawn = {part: self.task.prepare(batch, self.draws) for part, batch in batches.items()}
        shared = (self.model, self.original, self.task, self.engine, self.draws)
        total: dict[str, Gradients] = {}
        logged: dict[str, Tensor] = {}
        sampled: Gradients = {}
        optim, examples = self.plan.optim, sum(len(batch["ids"]) for batch in drawn.values())

        def evaluate(weights: dict[str, float], chunk: dict[Part, Batch]) -> Terms:
            views = {part: View(part, batch, *shared) for part, batch in chunk.items()}
            if isinstance(optim, Curved) and optim.samples(index):
                self._sample(sampled, views.values(), examples)
            step = Step(pass_.over, views, self.model, epoch, index, self.total, self.plan.state)
            return {
                name: weights.get("retain" if name == PROBE else name, weights[pass_.over]) * value
                for name, value in self._probed(self.objective(step), step).items()
            }

        def loss(batch: Batch) -> Tensor:
            return torch.stack(list(evaluate({pass_.over: 1.0}, {pass_.over: batch}).values())).sum()

        if self.private is not None:
            total["total"] = self.private.noised(loss, drawn[pass_.over])
        chunks = _chunks(drawn, self.engine.accumulate) if self.private is None else ()
        for weights, chunk in chunks:
            if isinstance(optim, ForwardOnly):
                terms = self._estimate(total, partial(evaluate, weights, chunk), optim, index)
            else:
                terms = self._add(total, evaluate(weights, chunk))
            for name, value in terms.items():
                if name != PROBE:
                    logged[name] = logged.get(name, 0) + value.detach()
        for modifier, state in zip(self.plan.modifiers, self.states, strict=True):
            total = modifier.gradients(total, state, self.optimizer)
        total.pop(PROBE, None)
        if (wrong := unsound(logged, total)) is not None:
            raise self._diverged(f"{wrong} at step {index + 1} of {self.total}", self._left())
        self._apply(total, sampled, examples, index)
        return logged

    def _probed(self, terms: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        if self.protect and "retain" not in terms and step.has("retain"):
            return {**terms, PROBE: step.retain.loss.mean()}
        return terms

    def _add(self, total: dict[str, Gradients], terms: Terms) -> Terms:
        """Adds the gradients of one part of a batch; one backward pass unless terms stay apart."""
        parts = terms if self.separate else {"total": torch.stack(list(terms.values())).sum()}
        names, parameters = list(self.trained), list(self.trained.values())
        for i, (name, value) in enumerate(parts.items()):
            if not value.requires_grad:
                raise Unsupported(f"the term '{name}' does not depend on any parameter that may move.")
            found = torch.autograd.grad(value, parameters, retain_graph=i < len(parts) - 1, allow_unused=True)
            known = total.setdefault(name, {})
            for key, gradient in zip(names, found, strict=True):
                if gradient is not None:
                    known[key] = known[key] + gradient if key in known else gradient
        return terms

    def _sample(self, known: Gradients, views: Iterable[View], examples: int) -> None:
        """Adds the gradient for labels that the model draws, as ``Curved.observe`` defines it."""
        losses = []
        for view in views:
            batch = self.task.sample(view.outputs.detach(), view.batch, self.labels)
            weights = (self.task.label_counts(batch) / examples).sqrt()
            losses.append((weights * self.task.loss(view.outputs, batch)).sum())
        trained = list(self.trained.values())
        found = torch.autograd.grad(torch.stack(losses).sum(), trained, retain_graph=True, allow_unused=True)
        for name, gradient in zip(self.trained, found, strict=True):
            if gradient is not None:
                known[name] = known[name] + gradient if name in known else gradient

    def _estimate(
        self, total: dict[str, Gradients], evaluate: Callable[[], Terms], optim: ForwardOnly, index: int
    ) -> Terms:
        """Adds gradients that were estimated from values alone; every value is of the same draws."""
        state = self.draws.get_state()

        def again() -> Terms:
            self.draws.set_state(state)
            with torch.no_grad():
                return evaluate()

        terms = again()
        after = self.draws.get_state()
        estimates = optim.estimate(again, terms, self.trained, self.optimizer, index)
        if index == 0 and not any(g.any() for found in estimates.values() for g in found.values()):
            raise Unsupported("no term changes with any parameter that may move. Use a wider scope.")
        self.draws.set_state(after)
        if not self.separate:
            estimates = {"total": _sum(estimates.values())}
        for name, gradients in estimates.items():
            total[name] = _sum((total.get(name, {}), gradients))
        return terms

    def _apply(self, terms: dict[str, Gradients], sampled: Gradients, examples: int, index: int) -> None:
        for name, parameter in self.trained.items():
            found = [term[name] for term in terms.values() if name in term]
            parameter.grad = sum(found[1:], found[0]) if found else None
        if self.plan.optim.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.values(), self.plan.optim.clip)
        if isinstance(self.plan.optim, Curved):
            of = {self.trained[name]: gradient for name, gradient in sampled.items()}
            self.plan.optim.observe(self.optimizer, index, examples, of)
        self.optimizer.step()
        for modifier, state in zip(self.plan.modifiers, self.states, strict=True):
            modifier.after_step(self.model, state)

    def _report(self, sums: dict[str, list[Tensor]], epoch: int) -> None:
        means = {name: float(torch.stack(values).mean()) for name, values in sums.items()}
        self.session.emit(Event("evaluated", self.plan.what, epoch + 1, self.plan.epochs, means))

    def _finish(self, index: int) -> nn.Module:
        model = self._left()
        if (name := spoilt(model)) is not None:
            raise self._diverged(f"the weights of '{name}' are no longer finite")
        self.session.emit(Event("finished", self.plan.what, index, self.total))
        return model

    def _left(self) -> nn.Module:
        """The model as it is, out of the scope and in evaluation mode."""
        for parameter in self.trained.values():
            parameter.grad = None
        keep(self.model)
        model = self.scope.leave(self.model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.flags[name])
        return model.eval()

    def _diverged(self, said: str, kept: nn.Module | None = None) -> Diverged:
        """What is raised; it holds the last model whose losses and gradients were finite, if one is left."""
        kept = None if kept is None or spoilt(kept) is not None else kept
        rate = f"Lower the learning rate (now {self.plan.optim.lr}) or set optim.clip."
        return Diverged(f"{self.plan.what}: {said}. {rate}", what=self.plan.what, model=kept)


def _sum(found: Iterable[Gradients]) -> Gradients:
    total: Gradients = {}
    for gradients in found:
        for key, gradient in gradients.items():
            total[key] = total[key] + gradient if key in total else gradient
    return total


def _chunks(batches: dict[Part, Batch], parts: int) -> list[tuple[dict[str, float], dict[Part, Batch]]]:
    """Splits the batches of one step into at most ``parts`` pieces, each with its share of every part."""
    sizes = {part: len(batch["ids"]) for part, batch in batches.items()}
    count = min(parts, *sizes.values())
    pieces = {part: _split(batch, count) for part, batch in batches.items()}
    chunks = [{part: found[i] for part, found in pieces.items()} for i in range(count)]
    return [
        ({part: len(batch["ids"]) / sizes[part] for part, batch in chunk.items()}, chunk) for chunk in chunks
    ]


def _split(batch: Batch, count: int) -> list[Batch]:
    columns = {name: torch.tensor_split(column, count) for name, column in batch.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def _check_still(model: nn.Module, mode: str) -> None:
    """Refuses a model of which two forward passes over one batch differ by more than their weights.

    Raises:
        Unsupported: BatchNorm or dropout in training mode.
    """
    moving = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    if mode == "train" and any(isinstance(module, moving) for module in model.modules()):
        raise Unsupported(
            "an optimiser that compares forward passes needs passes that differ by the weights alone, and "
            "BatchNorm and dropout change from one to the next in training mode. Set mode=eval."
        )
