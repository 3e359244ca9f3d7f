"""Latent adversarial training: unlearn while an adversary perturbs the hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.arrays import Batch, fixed_order
from expunge.data.split import Split
from expunge.data.text import IGNORED
from expunge.errors import ConfigError, Unsupported
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM
from expunge.training.blocks import blocks
from expunge.training.modifier import Modifier, modifiers
from expunge.training.session import Session
from expunge.training.step import Step, View

Changes = dict[str, Tensor]
"""What is added to the output of each module, by its name: ``(N, D)`` or ``(N, T, D)``."""

Objective = Callable[[Step], dict[str, Tensor]]


@dataclass(frozen=True)
class Attack:
    """What the adversary needs of one run: where it acts, and how far it may go there."""

    model: nn.Module
    bounds: dict[str, float]
    task: Task
    session: Session


@modifiers.register("latent_adversary")
@dataclass(frozen=True, kw_only=True)
class LatentAdversary(Modifier):
    """Evaluates the objective on hidden states that an adversary has changed to bring the memory back (LAT).

    ``max_{‖δ_t‖₂ ≤ ε} adv(θ, δ)`` by projected gradient steps from ``δ = 0``, then the objective of the
    method at ``h + δ``, ``h`` the output of the chosen modules for the forget set, ``t`` its tokens (the
    examples, for outputs ``(N, D)``). A step of the adversary is
    ``δ_t ← Π( δ_t + rate · ε · ∇_t / ‖∇_t‖ )``. Its aim is

    - targeted: ``adv = −mean ℓ_i``, the answers that are to be forgotten, and with ``away`` besides
      ``+ mean log(1 − p(y_t))`` over the tokens of that answer, the one that is wanted instead;
    - untargeted: ``adv`` is the objective's own terms: whatever makes the method's task hardest.

    The retain set is seen without ``δ``. Other views of the forget set (``idk``, relabelled) see the
    same ``δ``, cut or extended with zeros to their length.

    Args:
        modules: dotted names of the modules whose outputs change; by default the middle block.
        steps: of the adversary.
        epsilon: ``ε``, the largest length of ``δ_t``.
        relative: whether ``ε`` is a fraction of the mean length of the module's outputs on the forget set
            before the first step; else it is absolute.
        rate: length of a step of the adversary, as a fraction of ``ε``.
        aim: of the adversary, ``targeted`` or ``untargeted``.
        away: name of the answers that a targeted adversary drives away from, for example ``idk``.
        places: which tokens of a text are perturbed: those of the ``prompt``, before the first label, or
            ``all`` but padding. Without a prompt, as in documents, only ``all`` has an effect.

    Raises:
        Unsupported: no block is found where none is named, outputs that are feature maps, answers that
            the data does not have.

    Cost: at each step one forward pass over the forget batch and ``steps`` forward and backward passes (to
        the chosen modules) more; one forward pass over the forget set before the first.
    Differs: ``ε`` scales with the model, where the authors' is an absolute length of 1.5 to 2 in Llama-2-7b
        (``relative=false`` for that); their 16 steps are AdamW's with rate 0.05, ours are of a stated
        length, 8 of a quarter of ``ε``; one step of the model for each search, theirs 4. Terms keep the
        weights that the objective gives them. Their retain term is a term of the objective here.
        Dropout, where there is any, is drawn anew at each of the adversary's passes.
    References: Sheshadri et al., Targeted Latent Adversarial Training, 2024, arXiv:2407.15549; Casper et
        al., Defending Against Unforeseen Failure Modes with LAT, 2024, arXiv:2403.05030 (untargeted).
    """

    modules: tuple[str, ...] = ()
    steps: int = 8
    epsilon: float = 0.1
    relative: bool = True
    rate: float = 0.25
    aim: Literal["targeted", "untargeted"] = "targeted"
    away: str = ""
    places: Literal["prompt", "all"] = "prompt"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"must be at least 1, got {self.steps}.", "steps")
        for name in ("epsilon", "rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"must be above 0, got {getattr(self, name)}.", name)
        if self.away and self.aim == "untargeted":
            raise ConfigError("belongs to a targeted adversary. Set aim=targeted.", "away")

    def prepare(self, model: nn.Module, split: Split, task: Task, session: Session) -> Attack:
        (batch,) = split.forget.batches(fixed_order(1, 1), device=session.engine.torch_device)
        if self.away:
            if not isinstance(task, CausalLM):
                raise Unsupported(f"task '{type(task).__name__}' has no other answers. Set away to nothing.")
            task.instead(batch, self.away)
        adapted = "model." if hasattr(model, "peft_config") else ""
        names = tuple(f"{adapted}{name}" for name in self.modules) or (_middle(model),)
        lengths = _lengths(model, names, split, task, session)
        bounds = {name: self.epsilon * (lengths[name] if self.relative else 1.0) for name in names}
        return Attack(model, bounds, task, session)

    def terms(self, step: Step, objective: Objective, state: Attack) -> dict[str, Tensor]:
        if not step.has("forget"):
            return objective(step)
        changes = self._search(step, objective, state)
        with _changed(state.model, changes, _retained(step)):
            return objective(step.again("forget"))

    def _search(self, step: Step, objective: Objective, state: Attack) -> Changes:
        """``δ``, without gradient."""
        mask, changes = self._mask(step.forget.batch), _zeros(step, state)
        with torch.enable_grad():
            for _ in range(self.steps):
                probes = {name: change.requires_grad_(True) for name, change in changes.items()}
                with _changed(state.model, probes, _retained(step)):
                    gain = self._gain(step.again("forget"), objective, state)
                found = torch.autograd.grad(gain, list(probes.values()), allow_unused=True)
                changes = {
                    name: self._moved(probes[name].detach(), gradient, state.bounds[name], mask)
                    for name, gradient in zip(probes, found, strict=True)
                }
        return changes

    def _gain(self, step: Step, objective: Objective, state: Attack) -> Tensor:
        """What the adversary maximises, summed over the examples where it is its own."""
        if self.aim == "untargeted":
            return torch.stack(list(objective(step).values())).sum()
        gain = -step.forget.loss.sum()
        if self.away:
            gain = gain + _unlikelihood(step.forget.instead(self.away), state.task)
        return gain

    def _moved(self, change: Tensor, gradient: Tensor | None, bound: float, mask: Tensor | None) -> Tensor:
        if gradient is None:
            return change
        if mask is not None and mask.shape == change.shape[:-1]:
            gradient = gradient * mask[..., None]
        change = change + self.rate * bound * F.normalize(gradient.float(), dim=-1).to(change)
        length = change.norm(dim=-1, keepdim=True)
        bounded: Tensor = change * (bound / length.clamp(min=bound))
        return bounded

    def _mask(self, batch: Batch) -> Tensor | None:
        """The tokens that may change, ``(N, T)``; None where examples have no tokens."""
        if "input_ids" not in batch:
            return None
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        if self.places == "prompt":
            mask = mask & ((batch["labels"] != IGNORED).cumsum(1) == 0)
        return mask


@contextmanager
def _changed(model: nn.Module, changes: Changes, retained: Batch | None = None) -> Iterator[None]:
    """Adds each change to the output of its module inside the block, but in passes over ``retained``.

    Such a pass is known by the tensors that the modules around the changed ones are called with.
    """
    places = {value.data_ptr() for value in (retained or {}).values() if value.numel() > 0}
    inside: list[bool] = []

    def look(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = (*arguments, *named.values())
        inside.append(any(isinstance(value, Tensor) and value.data_ptr() in places for value in given))

    def leave(_: nn.Module, __: object, ___: object) -> None:
        inside.pop()

    def add(name: str, _: nn.Module, __: object, output: Any) -> Any:
        if any(inside):
            return output
        value = _first(output)
        changed = value + _fitted(changes[name], value)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    around = {path for name in changes for path in _ancestors(name)}
    handles: list[Any] = []
    for module in (model.get_submodule(path) for path in sorted(around)):
        handles.append(module.register_forward_pre_hook(look, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with _hooked(model, list(changes), add):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _ancestors(name: str) -> list[str]:
    """The dotted names of the modules around a module, the model itself (``""``) included."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def _retained(step: Step) -> Batch | None:
    return step.retain.batch if step.has("retain") else None


def _zeros(step: Step, state: Attack) -> Changes:
    """No change yet, in the shapes of the outputs for the forget batch."""
    found: Changes = {}

    def keep(name: str, _: nn.Module, __: object, output: Any) -> None:
        found[name] = torch.zeros_like(_first(output))

    with torch.no_grad(), _hooked(state.model, list(state.bounds), keep):
        _ = step.again("forget").forget.said
    return found


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _hooked(model: nn.Module, names: Sequence[str], hook: Callable[..., Any]) -> Iterator[None]:
    known = dict(model.named_modules())
    missing = [name for name in names if name not in known]
    if missing:
        raise Unsupported(f"the model has no module '{missing[0]}'. Give dotted names in modules.")
    handles = [known[name].register_forward_hook(partial(hook, name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _fitted(change: Tensor, value: Tensor) -> Tensor:
    """The change for a batch of texts of another length: cut, or zeros behind it."""
    if len(change) != len(value):
        raise Unsupported(
            f"the method sends {len(value)} examples through the model at once, and the change is for "
            f"{len(change)} to forget. Use latent_adversary with a method that keeps the two sets apart."
        )
    if change.ndim == 3 and change.shape[1] != value.shape[1]:
        change = F.pad(change, (0, 0, 0, max(0, value.shape[1] - change.shape[1])))[:, : value.shape[1]]
    return change.to(value)


def _unlikelihood(view: View, task: Task) -> Tensor:
    """``Σ_i mean_t log(1 − p(y_t))``."""
    assert isinstance(task, CausalLM)
    log_probs, mask = task.token_log_probs(view.said, view.batch)
    values = torch.log1p(-log_probs.exp().clamp(max=1 - 1e-6))
    return ((values * mask).sum(1) / mask.sum(1)).sum()


def _middle(model: nn.Module) -> str:
    found = blocks(model)
    return found[(len(found) - 1) // 2][0]


def _lengths(
    model: nn.Module, names: Sequence[str], split: Split, task: Task, session: Session
) -> dict[str, float]:
    """The mean length of what each module returns on the forget set, padding left out."""
    sums, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    mask: Tensor | None = None

    def add(name: str, _: nn.Module, __: object, output: Any) -> None:
        value = _first(output)
        if not isinstance(value, Tensor) or value.ndim not in (2, 3):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise Unsupported(
                f"'{name}' returns {shape}, and latent_adversary perturbs (N, D) or (N, T, D). "
                "Give another module in modules."
            )
        length = value.float().norm(dim=-1)
        if mask is not None and mask.shape == length.shape:
            length = length[mask]
        sums[name] += float(length.sum())
        counts[name] += length.numel()

    engine = session.engine
    order = fixed_order(len(split.forget), task.batch_size(split.forget))
    with engine.frozen(model), _hooked(model, names, add):
        for batch in split.forget.batches(order, device=engine.torch_device):
            mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
            with engine.autocast():
                task.outputs(model, task.prepare(batch, None))
    unused = [name for name in names if not counts[name]]
    if unused:
        raise Unsupported(f"no forward pass goes through '{unused[0]}'. Give other names in modules.")
    return {name: sums[name] / counts[name] for name in names}
