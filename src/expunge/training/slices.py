"""Training parts of parameters: some rows, columns or experts, and nothing beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import Unsupported
from expunge.training.scope import Scope

PART = "_part"
"""What follows a parameter's name in the name of the part of it that is trained."""


@dataclass
class Cut:
    """One parameter of which a part is trained: ``parameter.index_select(dim, indices)``."""

    module: nn.Module
    key: str
    parameter: nn.Parameter
    dim: int
    indices: Tensor
    handles: list[Any] = field(default_factory=list)

    @property
    def part(self) -> nn.Parameter:
        found: nn.Parameter = self.module._parameters[f"{self.key}{PART}"]  # type: ignore[assignment]
        return found

    def open(self) -> None:
        """Puts the part in the parameter's place; the whole is put together at each forward pass.

        Between passes the module's attribute is the whole as it was.
        """
        part = self.parameter.detach().index_select(self.dim, self.indices).clone()
        self.module._parameters[self.key] = None  # keeps its place in the order
        self.module.__dict__[self.key] = self.parameter.detach()
        self.module.register_parameter(f"{self.key}{PART}", nn.Parameter(part))
        self.handles = [
            self.module.register_forward_pre_hook(self._assemble),
            self.module.register_forward_hook(self._forget, always_call=True),
        ]

    @torch.no_grad()
    def close(self) -> None:
        """The parameter in its place again, with the part as it is now."""
        self.parameter.index_copy_(self.dim, self.indices, self.part.to(self.parameter.dtype))
        for handle in self.handles:
            handle.remove()
        del self.module.__dict__[self.key]
        del self.module._parameters[f"{self.key}{PART}"]
        self.module._parameters[self.key] = self.parameter

    def _assemble(self, module: nn.Module, _: object) -> None:
        whole = self.parameter.detach().index_copy(self.dim, self.indices, self.part)
        module.__dict__[self.key] = whole

    def _forget(self, module: nn.Module, _: object, __: object) -> None:
        module.__dict__[self.key] = self.parameter.detach()


class Slices(Scope):
    """A scope for one run, in which of some parameters only certain rows, columns or experts may move.

    A part is a parameter of its own, so that the optimiser's memory is that of the part, and weight decay
    and momentum know of nothing else. All other elements keep every bit.

    Args:
        parts: for each parameter's name the dimension and the indices that may move.
        whole: names of parameters that may move as a whole.

    Cost: one copy of each cut parameter for the length of a forward pass of its module.
    """

    def __init__(self, parts: Mapping[str, tuple[int, list[int]]], whole: tuple[str, ...] = ()) -> None:
        self.parts, self.whole = dict(parts), whole
        self.cuts: list[Cut] = []

    def names(self, model: nn.Module) -> list[str]:
        raise Unsupported("it trains parts of parameters, not parameters. Choose another scope.")

    def enter(self, model: nn.Module) -> nn.Module:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.whole)
        for name, (dim, indices) in self.parts.items():
            path, _, key = name.rpartition(".")
            parameter = model.get_parameter(name)
            chosen = torch.tensor(indices, device=parameter.device)
            self.cuts.append(Cut(model.get_submodule(path), key, parameter, dim, chosen))
            self.cuts[-1].open()
        return model

    def leave(self, model: nn.Module) -> nn.Module:
        for cut in self.cuts:
            cut.close()
        self.cuts.clear()
        return model
