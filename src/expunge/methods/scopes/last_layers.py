"""The last layers of a network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from expunge.errors import ConfigError, Unsupported
from expunge.training.scope import Scope, scopes


@scopes.register("last_layers")
@dataclass(frozen=True, kw_only=True)
class LastLayers(Scope):
    """The last ``count`` layers, in the order in which the model registers them.

    A layer is a module that owns a weight matrix or kernel (two or more dimensions); normalisation
    layers registered after the first chosen one belong to the choice.
    """

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"must be at least 1, got {self.count}.", "count")

    def names(self, model: nn.Module) -> list[str]:
        owners = [(name, m) for name, m in model.named_modules() if any(True for _ in m.parameters(False))]
        layers = [i for i, (_, m) in enumerate(owners) if any(p.ndim > 1 for p in m.parameters(False))]
        if self.count > len(layers):
            raise Unsupported(f"asked for the last {self.count} layers of a model that has {len(layers)}.")
        chosen = {id(p) for _, m in owners[layers[-self.count] :] for p in m.parameters(False)}
        names = [name for name, p in model.named_parameters() if id(p) in chosen and p.requires_grad]
        if not names:
            raise Unsupported(f"no parameter of the last {self.count} layers requires a gradient.")
        return names
