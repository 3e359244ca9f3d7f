"""RMU: representation misdirection for unlearning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data
from expunge.data.split import Split
from expunge.data.text import IGNORED
from expunge.errors import ConfigError, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.methods.scopes.modules import Modules
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM
from expunge.training.blocks import blocks
from expunge.training.engine import Engine
from expunge.training.loop import Pass
from expunge.training.optim import AdamW, Optim
from expunge.training.scope import Everything
from expunge.training.session import Session
from expunge.training.step import Step


@dataclass(frozen=True)
class Steering:
    """One run: where activations are read, the original they are compared with, where they are driven to."""

    original: nn.Module
    layer: int
    positions: Literal["answer", "text"]
    task: Task
    engine: Engine
    target: Tensor

    def activations(self, model: nn.Module, batch: Batch) -> Tensor:
        """The output ``(N, T, D)`` of the layer; the layers after it are not run."""

        def stop(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            raise _Reached(output if isinstance(output, Tensor) else output[0])

        handle = blocks(model)[self.layer][1].register_forward_hook(stop)
        try:
            with self.engine.autocast():
                self.task.outputs(model, batch)
        except _Reached as reached:
            return reached.hidden.float()
        finally:
            handle.remove()
        raise Unsupported("the model's answer does not pass its blocks one after another. Use npo.")

    def of_original(self, batch: Batch) -> Tensor:
        with self.engine.frozen(self.original) as model:
            return self.activations(model, batch)

    def counted(self, batch: Batch) -> Tensor:
        """Which positions count, ``(N, T)``: never padding."""
        if self.positions == "answer":
            return batch["labels"] != IGNORED
        return batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()

    def distance(self, hidden: Tensor, target: Tensor, batch: Batch) -> Tensor:
        """The mean square of the difference over the positions that count, of each example. ``(N,)``."""
        counted = self.counted(batch)
        squares = (hidden - target).square().mean(-1)
        return (squares * counted).sum(-1) / counted.sum(-1)

    def norm(self, data: Data) -> float:
        """The mean norm of the original's activations on a data set, the first token of each text apart."""
        total, count = 0.0, 0
        order = data.fixed_order(self.task.batch_size(data))
        for batch in data.batches(order, device=self.engine.torch_device):
            counted = self.counted(batch)[:, 1:]
            norms = self.of_original(batch)[:, 1:].norm(dim=-1)
            total += float((norms * counted).sum())
            count += int(counted.sum())
        return total / count


class _Reached(Exception):
    """Ends a forward pass where nothing after it is needed."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@methods.register("rmu")
@dataclass(frozen=True, kw_only=True)
class RMU(GradientMethod):
    """Drives a layer's activations on the forget set to one random direction, and keeps them on the rest.

    ``min_θ  mean_{i∈D_f} mean_t (1/d) ‖h_t(θ) − c u‖² + α mean_{i∈D_r} mean_t (1/d) ‖h_t(θ) − h_t(θ_o)‖²``
    with ``h`` the output of block ``l`` of width ``d`` and ``u = v / ‖v‖``, ``v`` drawn once, uniformly from
    ``[0, 1]^d``. Means over ``t`` are of each example and leave out padding, so that its value depends on
    no other example of the batch.

    Args:
        layer: ``l``, counted from 0; by default ``⌊7 L / 32⌋`` of ``L`` blocks, 7 of the paper's 32.
        coefficient: ``c``.
        relative: whether ``c`` is in units of the mean norm of the original's activations on the forget
            set, the first token of each text left out; else it is the norm of the target itself.
        retain_weight: ``α``.
        positions: ``answer``, the tokens with a label, all of a document; or ``text``, all that are no
            padding.
        matrices: endings of the names of what moves in blocks ``l − depth + 1`` to ``l``, where the
            scope is ``everything``; biases stay. Any other scope, or none given here, decides alone.
        depth: number of these blocks.

    Shapes: language models made of blocks. Unsupported for other tasks.
    Cost: ``epochs`` passes over the forget set with a retain batch beside each batch, and a forward pass
        of the original for the latter, all of them only up to block ``l``. No copy of the model; with
        ``relative`` one pass over the forget set before.
    Guarantee: empirical.
    Differs: the authors' mean squares count padding, and choose matrices by their number in the layer (6,
        another one in other architectures). Open-unlearning divides sums of shape ``(b,)`` by token counts
        of shape ``(b, 1)``: each example is weighted by the batch's mean inverse length. It also gives
        every parameter a gradient again after the optimiser is made. The relative ``c``, its 5 and the
        default layer are ours, as no absolute ``c`` suits two models: the authors take 20 with ``α = 100``
        by default, 6.5 and 1,200 for Zephyr-7B. The first token is left out of the norm because its
        activation is far larger than the others' in many models. One forget set has one direction; the
        authors draw one for each of two topics, whose batches alternate. They stop after 80 batches of 4.
    References: Li et al., The WMDP Benchmark, ICML 2024, arXiv:2403.03218.
    """

    batch_size: int = 4
    optim: Optim = AdamW(lr=5e-5)
    mode: Literal["train", "eval"] = "eval"
    layer: int | None = None
    coefficient: float = 5.0
    relative: bool = True
    retain_weight: float = 100.0
    positions: Literal["answer", "text"] = "answer"
    matrices: tuple[str, ...] = ("down_proj", "dense_4h_to_h", "mlp.c_proj", "fc2", "w2", "mlp.2")
    depth: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None and self.layer < 0:
            raise ConfigError(f"blocks are counted from 0, got {self.layer}.", "layer")
        if not self.coefficient > 0:
            raise ConfigError(f"must be above 0, got {self.coefficient}.", "coefficient")
        if self.retain_weight < 0:
            raise ConfigError(f"must not be negative, got {self.retain_weight}.", "retain_weight")
        if self.depth < 1:
            raise ConfigError(f"must be at least 1, got {self.depth}.", "depth")

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        if not isinstance(task, CausalLM):
            raise Unsupported(
                f"rmu steers activations at tokens, and task '{type(task).__name__}' has none. "
                "Use a method for every task: npo, grad_diff."
            )

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget", beside="retain" if self.retain_weight > 0 else None),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Steering:
        engine = session.engine
        original, layer = engine.placed(model), self._layer(model)
        nowhere = torch.zeros(1, device=engine.torch_device)
        steering = Steering(original, layer, self.positions, task, engine, nowhere)
        (batch,) = split.forget.subset(split.forget.ids[:1]).batches(
            [torch.tensor([0])], device=engine.torch_device
        )
        drawn = torch.rand(steering.of_original(batch).shape[-1], generator=session.generator("direction"))
        length = self.coefficient * (steering.norm(split.forget) if self.relative else 1.0)
        return replace(steering, target=(length * drawn / drawn.norm()).to(engine.torch_device))

    def objective(self, step: Step) -> dict[str, Tensor]:
        steering: Steering = step.state
        batch = step.forget.batch
        hidden = steering.activations(step.model, batch)
        terms = {"forget": steering.distance(hidden, steering.target, batch).mean()}
        if self.retain_weight > 0:
            batch = step.retain.batch
            hidden = steering.activations(step.model, batch)
            drift = steering.distance(hidden, steering.of_original(batch), batch)
            terms["retain"] = self.retain_weight * drift.mean()
        return terms

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        if self.matrices and self.scope == Everything():
            chosen = replace(self, scope=Modules(patterns=self.moving(model)))
            return super(RMU, chosen).unlearn(model, split, task, session)
        return super().unlearn(model, split, task, session)

    def moving(self, model: nn.Module) -> tuple[str, ...]:
        """The names of the matrices of blocks ``l − depth + 1`` to ``l``.

        Raises:
            Unsupported: none ends as ``matrices`` say, or there is no such block.
        """
        layer = self._layer(model)
        found = [
            f"{path}.{name}"
            for path, block in blocks(model)[max(0, layer - self.depth + 1) : layer + 1]
            for name, parameter in block.named_parameters()
            if parameter.ndim > 1 and parameter.requires_grad
            if any(f".{name.removesuffix('.weight')}".endswith(f".{end}") for end in self.matrices)
        ]
        if not found:
            raise Unsupported(
                f"no matrix of block {layer} ends with one of {', '.join(self.matrices)}. Set matrices to "
                "the endings of its feed-forward outputs, or choose another scope."
            )
        return tuple(found)

    def _layer(self, model: nn.Module) -> int:
        count = len(blocks(model))
        layer = 7 * count // 32 if self.layer is None else self.layer
        if layer >= count:
            raise Unsupported(f"the model has no block {layer}. Choose a layer from 0 to {count - 1}.")
        return layer
