"""Where and in which precision a model computes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from expunge.config import later
from expunge.errors import ConfigError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Device, precision and memory layout: one object, used by training and evaluation alike.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, … or ``"auto"``: the first GPU, else the CPU.
        dtype: ``"bfloat16"`` runs forward passes under autocast; weights and losses stay float32.
        channels_last: store images and convolutions channel by channel, faster with bfloat16.
        accumulate: split each batch into this many parts and add up their gradients: the same step
            (BatchNorm's statistics aside) for less memory.
        activation_checkpointing: while training keep the inputs of a transformer's blocks alone, and compute
            what happens inside them again in the backward pass: the same gradients for less memory and about
            a third more time.
    """

    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    accumulate: int = 1
    activation_checkpointing: bool = later(False)

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ConfigError(f"must be at least 1, got {self.accumulate}.", "accumulate")
        if self.device == "auto":
            return
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise ConfigError(f"'{self.device}' is not a device. Use auto, cpu or cuda.", "device") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError("no CUDA device is available. Use device=cpu.", "device")

    @property
    def caution(self) -> str | None:
        """What will go slowly, and what to set instead; None where nothing does."""
        if self.dtype == "float32" or self.torch_device.type != "cpu" or computes_bfloat16():
            return None
        return (
            "this CPU has no instructions for bfloat16, so that training can take 10 times as long as in "
            "float32, or more. Set engine.dtype=float32."
        )

    @property
    def torch_device(self) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def place(self, model: nn.Module) -> nn.Module:
        """Moves a model (in place, as torch does) to the device and memory layout."""
        model = model.to(self.torch_device)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def placed(self, model: nn.Module) -> nn.Module:
        """The model itself where it already is on the device and in the layout, else a placed copy."""
        device = self.torch_device
        here = all(tensor.device.type == device.type for tensor in model.parameters())
        return model if here and not self.channels_last else self.copy(model)

    def copy(self, model: nn.Module) -> nn.Module:
        """A placed deep copy; the model passed in is left as it is, device and layout included."""
        return self.place(copy.deepcopy(model))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Runs the block in the engine's precision."""
        enabled = self.dtype != "float32"
        with torch.autocast(self.torch_device.type, dtype=_DTYPES[self.dtype], enabled=enabled):
            yield

    @contextmanager
    def frozen(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model in evaluation mode without gradients; every module's own mode comes back after."""
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad():
                yield model
        finally:
            for module, training in modes.items():
                module.training = training


def computes_bfloat16() -> bool:
    """Whether torch's CPU kernels (oneDNN) take bfloat16, as they do with AVX-512 and some of ARM's cores."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
