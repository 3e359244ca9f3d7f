"""Parameters chosen by the name of their module."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from expunge.errors import ConfigError, Unsupported
from expunge.training.scope import Scope, scopes


@scopes.register("modules")
@dataclass(frozen=True, kw_only=True)
class Modules(Scope):
    """The parameters whose names match a pattern, shell style: ``"layer4.*"``, ``"*.bias"``.

    A pattern without a wildcard names a module: ``"head"`` is ``"head.*"``, or one parameter.
    """

    patterns: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.patterns:
            raise ConfigError("give at least one pattern, for example ['head'].", "patterns")

    def names(self, model: nn.Module) -> list[str]:
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        chosen = [n for n in names if any(_matches(n, pattern) for pattern in self.patterns)]
        for pattern in self.patterns:
            if not any(_matches(name, pattern) for name in names):
                some = ", ".join(names[:3])
                raise Unsupported(f"no parameter matches '{pattern}'. The model's begin with: {some}.")
        return chosen


def _matches(name: str, pattern: str) -> bool:
    if any(mark in pattern for mark in "*?["):
        return fnmatchcase(name, pattern)
    return name == pattern or name.startswith(pattern + ".")
