"""The feed-forward layers of a transformer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from expunge.errors import Unsupported
from expunge.training.blocks import feed_forwards
from expunge.training.scope import Scope, scopes


@scopes.register("feed_forward")
@dataclass(frozen=True, kw_only=True)
class FeedForward(Scope):
    """The feed-forward layer of every block: the parts that hold an activation function.

    They are found by structure. In a mixture of experts all experts and the router belong to it; attention,
    norms, embedding and output layer do not.

    Raises:
        Unsupported: the model has no blocks of one class, or none with such a part.
    """

    def names(self, model: nn.Module) -> list[str]:
        prefixes = tuple(f"{name}." for name, _ in feed_forwards(model))
        names = [n for n, p in model.named_parameters() if n.startswith(prefixes) and p.requires_grad]
        if not names:
            raise Unsupported("no feed-forward layer requires a gradient. Choose another scope.")
        return names
