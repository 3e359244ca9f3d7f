"""The gradient of DP-SGD: units drawn independently, each one's gradient clipped, noise on the sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge import seeding
from expunge.data.arrays import Batch, Data, batch_count
from expunge.errors import DataError, Unsupported
from expunge.training.modifier import Gradients, Modifier
from expunge.training.optim import Curved, ForwardOnly, Optim
from expunge.training.session import Event, Session

UNIT = "unit"
"""The column that holds the unit of each example of a batch; −1 for one that only fills an empty batch."""

Loss = Callable[[Batch], Tensor]
"""The mean over the examples of a batch; a scalar."""


@dataclass(frozen=True, kw_only=True)
class Private:
    """Clips the gradient of each unit, so that none changes the sum by more than the noise can hide.

    ``g = (Σ_u min(1, C / ‖g_u‖) g_u + σ C z) / (q U)``, ``z ~ N(0, I)``, with ``g_u`` the gradient of the
    mean loss of the examples of unit ``u``. In each step every one of the ``U`` units is drawn with
    probability ``q = batch size / examples``, all its examples together; the sum is divided by the expected
    number of units, not by the one that was drawn, which would depend on the data. A step without any unit
    is one of noise alone.

    Args:
        clip: ``C``.
        noise: ``σ``.
        unit: what is protected: each example, or all examples of a subject (column ``subjects``) at once.
    """

    clip: float
    noise: float
    unit: Literal["record", "subject"] = "record"

    def units(self, data: Data) -> Tensor:
        """The unit of each example, ``(N,)``, from 0.

        Raises:
            Unsupported: the data name no subjects.
        """
        if self.unit == "record":
            return torch.arange(len(data))
        try:
            subjects = data.column("subjects")
        except DataError:
            raise Unsupported(
                "the data do not say whose each example is. Give them a column 'subjects' (records: the "
                "field subject), or use unit=record."
            ) from None
        units: Tensor = subjects.unique(return_inverse=True)[1]
        return units

    def rate(self, data: Data, batch_size: int) -> float:
        """``q``: the expected number of examples in a batch is ``batch_size``."""
        return min(1.0, batch_size / len(data))

    def check(self, model: nn.Module, optim: Optim, modifiers: Sequence[Modifier] = ()) -> None:
        """Refuses what would let more of the data through than the noised sum.

        Raises:
            Unsupported: layers that mix examples or keep statistics of them, an optimiser or modifier that
                reads the data itself.
        """
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and (
                module.track_running_stats or isinstance(module, nn.modules.batchnorm._BatchNorm)
            ):
                raise Unsupported(
                    f"'{name}' ({type(module).__name__}) mixes examples or keeps their statistics without "
                    "noise, so that no example has a gradient of its own to be clipped. Use GroupNorm or "
                    "LayerNorm in the model, or another method."
                )
        if isinstance(optim, Curved | ForwardOnly) or modifiers:
            what = "a modifier" if modifiers else f"the optimiser {type(optim).__name__}"
            raise Unsupported(f"{what} reads the data past the noise. Use sgd or adamw, and no modifiers.")

    def batches(
        self, data: Data, batch_size: int, device: torch.device, draws: torch.Generator
    ) -> Iterator[Batch]:
        """An epoch of batches with the column ``UNIT``; as many as there are without privacy."""
        units, rate = self.units(data), self.rate(data, batch_size)
        order, kept = [], []
        for _ in range(batch_count(len(data), batch_size)):
            drawn = torch.rand(int(units.max()) + 1, generator=draws, dtype=torch.float64) < rate
            rows = drawn[units].nonzero()[:, 0]
            order.append(rows if len(rows) else torch.zeros(1, dtype=torch.long))
            kept.append(units[rows] if len(rows) else torch.tensor([-1]))
        for batch, unit in zip(data.batches(order, device=device, generator=draws), kept, strict=True):
            yield {**batch, UNIT: unit.to(device)}


class PrivateGradient:
    """The noised gradients of one run; units at once by ``torch.vmap``, or one after another where it cannot.

    At once costs memory for the gradients of a batch (``Engine.accumulate`` divides it), one after another a
    backward pass for each unit.
    """

    def __init__(
        self,
        private: Private,
        model: nn.Module,
        trained: dict[str, nn.Parameter],
        data: Data,
        batch_size: int,
        session: Session,
    ) -> None:
        self.private, self.model, self.trained, self.session = private, model, trained, session
        self.expected = private.rate(data, batch_size) * (int(private.units(data).max()) + 1)
        device = session.engine.torch_device
        self.draws = torch.Generator(device).manual_seed(seeding.derive(session.seed, "noise"))
        self.at_once: bool | None = None

    def noised(self, loss: Loss, batch: Batch) -> Gradients:
        """The gradient of a step."""
        total, private = self.clipped(loss, batch), self.private
        for name, value in total.items():
            z = torch.randn(value.shape, generator=self.draws, device=value.device)
            total[name] = (value + private.noise * private.clip * z) / self.expected
        return {name: value.to(self.trained[name].dtype) for name, value in total.items()}

    def clipped(self, loss: Loss, batch: Batch) -> Gradients:
        """``Σ_u min(1, C / ‖g_u‖) g_u`` over the units in the batch, in float32."""
        total = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in self.trained.items()}
        units = batch[UNIT]
        there = units[units >= 0].unique()
        for piece in there.tensor_split(self.session.engine.accumulate):
            rows = torch.isin(units, piece)
            examples = {name: column[rows] for name, column in batch.items() if name != UNIT}
            for found in self._each(loss, examples, units[rows]) if len(piece) else ():
                norms = torch.stack([g.flatten(1).square().sum(1) for g in found.values()]).sum(0).sqrt()
                factors = self.private.clip / norms.clamp(min=self.private.clip)
                for name, gradients in found.items():
                    total[name] += torch.tensordot(factors, gradients, dims=1)
        return total

    def _each(self, loss: Loss, examples: Batch, units: Tensor) -> Iterator[Gradients]:
        """The gradients of the units, stacked: ``(units, …)``, or ``(1, …)`` each."""
        if self.at_once is None:
            self.at_once = self._can(loss, examples)
        if self.at_once:
            yield _means(self._stacked(loss, examples), units)
            return
        for unit in units.unique():
            own = {name: column[units == unit] for name, column in examples.items()}
            found = torch.autograd.grad(loss(own), list(self.trained.values()), allow_unused=True)
            pairs = zip(self.trained, found, strict=True)
            yield {name: g.float().unsqueeze(0) for name, g in pairs if g is not None}

    def _can(self, loss: Loss, examples: Batch) -> bool:
        """Whether ``torch.vmap`` takes the model and its loss; listeners hear where it does not."""
        try:
            self._stacked(loss, {name: column[:2] for name, column in examples.items()})
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            said = " ".join(str(error).split())[:80]
            self.session.emit(Event("started", f"private gradients one by one: torch.vmap refuses ({said})"))
            return False
        return True

    def _stacked(self, loss: Loss, examples: Batch) -> Gradients:
        """The gradient of each example, ``(N, …)``."""
        held = _Held(self.model, loss)

        def one(parameters: dict[str, Tensor], example: Batch) -> Tensor:
            found = functional_call(held, parameters, (example,))
            assert isinstance(found, Tensor)
            return found

        parameters = {f"model.{name}": value.detach() for name, value in self.trained.items()}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels would be called once for each example
            found = vmap(grad(one), in_dims=(None, 0), randomness="different")(parameters, examples)
        return {name.removeprefix("model."): value.float() for name, value in found.items()}


class _Held(nn.Module):
    """A loss of one example as a module, so that the parameters of the model in it can be swapped."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, example: Batch) -> Tensor:
        return self.loss({name: value.unsqueeze(0) for name, value in example.items()})


def _means(gradients: Gradients, units: Tensor) -> Gradients:
    """The means over the examples of each unit."""
    there, places, counts = units.unique(return_inverse=True, return_counts=True)
    if len(there) == len(units):
        return gradients
    return {
        name: value.new_zeros(len(there), *value.shape[1:]).index_add(0, places, value)
        / counts.view(-1, *[1] * (value.ndim - 1))
        for name, value in gradients.items()
    }
