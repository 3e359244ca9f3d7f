"""Whether rounding the weights, as serving does, undoes the unlearning."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge.errors import ConfigError, DataError, Unsupported
from expunge.evaluation.attacks.budget import Attack, Tried, confidence
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score, Unit
from expunge.evaluation.subject import Subject

Format = Literal["absmax", "normal"]

FULL = 32
"""Bits of a weight that is left as it is, for the curve."""


@metrics.register("quantise")
@dataclass(frozen=True, kw_only=True)
class Quantise(Attack):
    """How likely the forgotten answers are once the weights are rounded to a few bits.

    Unlearning with small steps can move every weight by less than the distance of two levels; rounding then
    gives the original back. On a copy of the model every weight matrix ``W`` outside of embeddings and the
    output layer of a language model is replaced by its nearest level:

    - ``absmax``: ``s · round(W/s)`` with ``s = max|W| / (2^{b−1} − 1)`` of each output channel;
    - ``normal``: the ``2^b`` levels of NormalFloat, quantiles of the normal distribution, scaled by the
      largest absolute value of each ``block`` of 64 weights; NF4 for 4 bits.

    The value is the mean ``exp(−ℓ)`` over the forget set at ``bits``, of an answer its length-normalised
    probability; ``details["curve"]`` has all of ``tried_bits`` and, at 32, the model as it is.

    Interval: over questions, or over data subjects.

    Ideal: the value of the retrained models after the same rounding.

    Args:
        bits: at which the value is read.
        tried_bits: of the curve.
        levels: how weights are rounded.
        block: weights that share a scale (``normal``).
        of: what is measured instead of the answers' probability, a metric that does not itself compare with
            the retrained models, since those stay as they are within it.

    Differs: computed in the weights' own precision, where bitsandbytes multiplies in 16 bits and, at 8 bits,
        rounds activations too; its 4-bit default is FP4, not NF4. Experts that are kept in one tensor are
        rounded here, and there are not. Outliers are treated as all other weights.
    Cost: a copy of the model, and a forward pass over the forget set for each number of bits.
    References: Zhang et al., Catastrophic Failure of LLM Unlearning via Quantization, ICLR 2025,
        arXiv:2410.16454; Dettmers et al., QLoRA, NeurIPS 2023, arXiv:2305.14314.
    """

    bits: int = 4
    tried_bits: tuple[int, ...] = (8, 4, 3)
    levels: Format = "absmax"
    block: int = 64
    of: Metric | None = None
    x_label = "bits of a weight"

    def __post_init__(self) -> None:
        for bits in (self.bits, *self.tried_bits):
            if not 2 <= bits <= 16:
                raise ConfigError(f"a weight is rounded to 2..16 bits, got {bits}.", "bits")
        if self.bits not in self.tried_bits:
            raise ConfigError(f"must be one of tried_bits {self.tried_bits}, got {self.bits}.", "bits")
        if self.block < 1:
            raise ConfigError(f"must be at least 1, got {self.block}.", "block")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        variant = f"{self.levels}-{self.bits}-bit"
        if self.of is None:
            return "quantised probability", "forget", variant
        name, part, inner = self.of.labels(evidence)
        return f"quantised {name}", part, "-".join(word for word in (inner, variant) if word)

    def counts(self) -> Unit:
        return "fraction" if self.of is None else self.of.counts()

    def tried(self, evidence: Evidence) -> Tried:
        rows = []
        for bits in self._bits:
            at = evidence if bits == FULL else self._rounded(evidence, bits)
            rows.append(confidence(at) if self.of is None else np.array([at.score(self.of).value]))
        return Tried(tuple(map(float, self._bits)), np.stack(rows))

    def chosen(self, evidence: Evidence, found: Tried) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.asarray(found.success[self._bits.index(self.bits)], np.float64)

    def details(self, evidence: Evidence, found: Tried) -> dict[str, Any]:
        return {"before": float(found.success[0].mean())}

    def measure(self, evidence: Evidence) -> Score:
        if self.of is None:
            return super().measure(evidence)
        found = self.found(evidence)
        score = self._rounded(evidence, self.bits).score(self.of)
        name, part, variant = self.labels(evidence)
        shown = self.curves(evidence, found) | self.details(evidence, found)
        shown["y_label"] = self.of.labels(evidence)[0]
        return replace(
            score,
            name=name,
            part=part,
            variant=variant,
            target=self.target,
            unit=self.counts(),
            details=shown,
        )

    @property
    def _bits(self) -> tuple[int, ...]:
        return (FULL, *self.tried_bits)

    def _rounded(self, evidence: Evidence, bits: int) -> Evidence:
        """The evidence about a rounded copy."""
        subject = evidence.subject
        model = evidence.session.engine.copy(subject.model)
        round_weights(model, bits, self.levels, self.block)
        name = f"{subject.name} at {bits} bits"
        return evidence.of(Subject(name, model, evidence.parts, evidence.task, evidence.session))


@torch.no_grad()
def round_weights(model: nn.Module, bits: int, levels: Format = "absmax", block: int = 64) -> None:
    """Rounds the weight matrices of a model in place, embeddings and language models' output layers aside.

    Raises:
        Unsupported: there is no such weight in floating point.
        DataError: a weight that is not finite.
    """
    owners = matrices(model)
    if not owners:
        raise Unsupported(
            "the model has no weight matrices in floating point beside its embeddings, so there is nothing "
            "to round. Give the model as it was before it was quantised."
        )
    for name, weight, rows in owners:
        if not torch.isfinite(weight).all():
            raise DataError(f"'{name}' is not finite and cannot be rounded. Train the model again.")
        values = rows(weight)
        found = absmax(values, bits) if levels == "absmax" else normal_float(values, bits, block)
        rows(weight).copy_(found.to(weight.dtype))


def matrices(model: nn.Module) -> list[tuple[str, Tensor, Any]]:
    """Name and values of each weight to be rounded, and a view of it with a row for each output channel."""
    owner: Any = model
    head = owner.get_output_embeddings() if hasattr(owner, "get_output_embeddings") else None
    left_out: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if isinstance(head, nn.Module):
        left_out.append(head)
    shared = {id(parameter) for module in left_out for parameter in module.parameters()}
    found: list[tuple[str, Tensor, Any]] = []
    for path, module in model.named_modules():
        for key, weight in module.named_parameters(recurse=False):
            if id(weight) in shared or weight.ndim < 2 or not weight.is_floating_point():
                continue
            shared.add(id(weight))
            found.append((f"{path}.{key}".lstrip("."), weight.data, _channels(module)))
    return found


def _channels(module: nn.Module) -> Any:
    """How a weight of this module is seen as ``(channels, inputs)``; a view, also of experts' tensors."""
    if type(module).__name__ == "Conv1D":  # GPT-2's layers are transposed
        return lambda weight: weight.t()
    if isinstance(module, nn.modules.conv._ConvNd):
        return lambda weight: weight.view(len(weight), -1)
    return lambda weight: weight.view(-1, weight.shape[-1])


def absmax(rows: Tensor, bits: int) -> Tensor:
    """``s · round(w/s)`` with ``s = max|w| / (2^{b−1} − 1)`` of each row, ``(C, I)``."""
    values = rows.double()
    scale = values.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, (values / scale).round() * scale, values)


def normal_float(values: Tensor, bits: int, block: int = 64) -> Tensor:
    """The nearest NormalFloat level of each value, scaled by the absolute maximum of its block.

    Blocks are ``block`` numbers one after the other in the order of the tensor.
    """
    flat = values.reshape(-1).double()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scale = padded.abs().amax(1, keepdim=True)
    levels = normal_levels(bits).to(flat.device)
    middle = (levels[1:] + levels[:-1]) / 2
    nearest = levels[torch.bucketize(padded / scale.clamp(min=torch.finfo(torch.float64).tiny), middle)]
    return (nearest * scale).reshape(-1)[: len(flat)].view_as(values)


def normal_levels(bits: int) -> Tensor:
    """The ``2^b`` levels of NormalFloat in [−1, 1], 0 and ±1 among them; float64, ascending.

    Quantiles of the normal distribution at evenly spaced probabilities, ``2^{b−1}`` below and
    ``2^{b−1} + 1`` above 0 that share the 0, each side scaled to 1.

    References: Dettmers et al., QLoRA, NeurIPS 2023, appendix E.
    """
    from scipy.special import ndtri

    half = 2 ** (bits - 1)
    top = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    above = ndtri(np.linspace(top, 0.5, half + 1)[:-1])
    below = -ndtri(np.linspace(top, 0.5, half)[:-1])
    found = np.sort(np.concatenate([above, below, [0.0]]))
    assert math.isclose(above.max(), -below.min())
    return torch.from_numpy(found / above.max())
