"""The last blocks of a transformer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from expunge.errors import ConfigError, Unsupported
from expunge.training.blocks import blocks
from expunge.training.scope import Scope, scopes


@scopes.register("last_blocks")
@dataclass(frozen=True, kw_only=True)
class LastBlocks(Scope):
    """The last ``count`` blocks of a transformer, each with its attention, feed-forward layer and norms.

    The scope ``last_layers`` counts weight matrices, of which a block has several, from the output layer
    on; where that shares its weight with the embedding, its last layer is the embedding.

    Args:
        count: how many blocks.
        rest: whether what comes after the blocks may move too: the last norm and an output layer with a
            weight of its own.

    Raises:
        Unsupported: the model has no list of blocks of one class, or fewer of them.
    """

    count: int = 1
    rest: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"must be at least 1, got {self.count}.", "count")

    def names(self, model: nn.Module) -> list[str]:
        found = [name for name, _ in blocks(model)]
        if self.count > len(found):
            raise Unsupported(
                f"asked for the last {self.count} blocks of a model that has {len(found)}. Set count lower."
            )
        prefixes = tuple(f"{name}." for name in found[-self.count :])
        ordered = [name for name, _ in model.named_parameters()]
        inside = [i for i, name in enumerate(ordered) if name.startswith(prefixes)]
        chosen = {ordered[i] for i in inside} | set(ordered[inside[-1] + 1 :] if self.rest else ())
        names = [name for name, p in model.named_parameters() if name in chosen and p.requires_grad]
        if not names:
            raise Unsupported(
                f"no parameter of the last {self.count} blocks requires a gradient. Choose another scope."
            )
        return names
