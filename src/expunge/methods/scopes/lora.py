"""Low-rank adapters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

from torch import nn

from expunge.errors import ConfigError, MissingExtra, Unsupported
from expunge.training.scope import Scope, scopes


@scopes.register("lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(Scope):
    """Trains low-rank adapters ``W + (α / r) B A`` and merges them into the weights at the end.

    A module that shares its weight with another, as the output layer of many language models does with the
    embedding, is left as it is: the merged weight would change the other as well, which was not trained so.

    Args:
        rank: ``r``.
        alpha: ``α``.
        targets: endings of the names of the modules to adapt; by default every linear layer and
            convolution. One whose weight is frozen, though it could be trained, is left as it is.
        head: whether the last linear layer may be among them.

    Raises:
        MissingExtra: peft is not installed.
        Unsupported: nothing to adapt, or used with a method that edits weights in one shot.
    References: Hu et al., LoRA, ICLR 2022, arXiv:2106.09685.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    head: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"must be at least 1, got {self.rank}.", "rank")

    def names(self, model: nn.Module) -> list[str]:
        raise Unsupported(
            "LoRA adds parameters to train; a method that edits weights cannot use it. Choose another."
        )

    def layers(self, model: nn.Module) -> list[str]:
        """The names of the modules to adapt.

        Raises:
            Unsupported: there are none.
        """
        kinds = (nn.Linear, nn.Conv2d, nn.Embedding) if self.targets else (nn.Linear, nn.Conv2d)
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        left_out = () if self.head else linear[-1:]
        tied = _tied(model)
        found = [
            name
            for name, module in model.named_modules()
            if name and isinstance(module, kinds) and (not self.targets or name.endswith(self.targets))
            if name not in left_out and name not in tied and not _held(cast(nn.Parameter, module.weight))
        ]
        if not found:
            wanted = list(self.targets) or "a linear layer"
            raise Unsupported(
                f"no module to adapt: none that is not frozen or tied to another ends with {wanted}. "
                "Give other targets, or choose another scope."
            )
        return found

    def enter(self, model: nn.Module) -> nn.Module:
        try:
            from peft import LoraConfig
            from peft.tuners.lora import LoraModel
        except ImportError:
            raise MissingExtra("The scope 'lora'", "llm") from None
        found = self.layers(model)
        exactly = "|".join(map(re.escape, found))  # in a list, "0" would also stand for "body.0"
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=exactly)
        return cast(nn.Module, LoraModel(model, config, "default"))

    def leave(self, model: nn.Module) -> nn.Module:
        return cast(nn.Module, model.merge_and_unload())  # type: ignore[operator]


def _held(weight: nn.Parameter) -> bool:
    """Whether the caller froze it; quantised weights never require a gradient, so that says nothing."""
    return weight.is_floating_point() and not weight.requires_grad


def _tied(model: nn.Module) -> set[str]:
    """The names of the modules whose weight is that of another module too."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners.setdefault(id(weight), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}
