"""Whether what a step has computed is made of numbers, and whether a model is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from expunge.training.modifier import Gradients


def unsound(terms: Mapping[str, Tensor], gradients: Mapping[str, Gradients]) -> str | None:
    """What of a step is NaN or infinite, in words; None where nothing is.

    Cost: a sum over every gradient, and one wait for the device.
    """
    values = [*terms.values(), *(value.sum() for found in gradients.values() for value in found.values())]
    if not values or bool(torch.isfinite(torch.stack([value.detach().float() for value in values])).all()):
        return None
    for name, value in terms.items():
        if not torch.isfinite(value):
            return f"the term '{name}' became {float(value)}"
    return "the gradient became NaN or infinite"


def spoilt(model: nn.Module) -> str | None:
    """The name of the first weight or statistic of a model that is not finite, if there is one."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            return name
    return None
