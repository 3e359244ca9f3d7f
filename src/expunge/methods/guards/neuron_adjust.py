"""Neuron adjustment: feed-forward inputs that look like the forgotten skill are mapped to the kept one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods import prompts
from expunge.methods.base import Guard, methods
from expunge.methods.guarded import LanguageGuard, Table, Watch
from expunge.tasks.base import Task
from expunge.training.session import Session

GATES = ("gate_proj", "dense_h_to_4h", "fc1", "fc_in", "c_fc", "w1")
"""Names of the matrix whose output goes into the activation, in the models of transformers."""


class Adjusted(Watch):
    """The chosen neurons of every layer, adjusted as they pass."""

    def __init__(self, method: Guard, learned: Mapping[str, Tensor]) -> None:
        super().__init__(method, learned)
        self.table: Table | None = None

    def opened(self, model: nn.Module) -> None:
        for number, name in enumerate(gates(model, cast(NeuronAdjust, self.method).modules)):
            model.get_submodule(name).register_forward_hook(partial(self.adjust, number))

    def adjust(self, layer: int, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Changes the output of the matrix before the activation; its forward hook."""
        if self.call is None or "layer" not in self._buffers:
            return None
        mine = (self.get_buffer("layer") == layer).nonzero()[:, 0]
        if len(mine) == 0:
            return None
        if self.table is None:
            self.table = Table(int(self.get_buffer("seed")), len(self.get_buffer("layer")), normal=False)
        where, moments = self.get_buffer("neuron")[mine], self.get_buffer("moments")[:, mine]
        drawn = self.table.at(self.call.position)[..., mine]
        changed = output.clone()
        changed[..., where] = adjusted(output[..., where].float(), moments, drawn).to(output.dtype)
        return changed


@methods.register("neuron_adjust")
@dataclass(frozen=True, kw_only=True)
class NeuronAdjust(LanguageGuard):
    """Maps the inputs of feed-forward activations from their distribution on the forget set to the retained.

    Of all neurons the ``fraction`` with the largest ``|μ_f − μ_r|`` is chosen, the moments being over all
    tokens. At inference, where ``N(x; μ_r, σ_r) ≤ N(x; μ_f, σ_f)``, with probability ``p_f / (p_f + p_r)``,
    ``x ← μ_r − σ_r (x − μ_f) / σ_f``. The draw is a fixed function of a token's position and of the neuron.

    Args:
        fraction: of all neurons; 0 is the model itself.
        probes: examples of each part that are looked at.
        modules: endings of the names of the matrices before the activation; the usual ones by default.

    Shapes: a causal language model of transformers with dense feed-forward layers; any forget set.
    Cost: two forward passes over the probes, no gradient. At inference one draw and one map a chosen neuron.
    Guarantee: empirical; about what is said, and never about the weights.
    Differs: in the authors' code ``σ_f`` is computed from the tensor of ``μ_f``, the running deviation is a
        variance, and one draw decides for a whole batch; here each is as in the paper. A fixed draw makes
        scores and answers be of the same model. ``σ`` is at least 1e-6.
    References: Li et al., Effective Skill Unlearning through Intervention and Abstention, NAACL 2025,
        arXiv:2503.21730.
    """

    fraction: float = 0.03
    probes: int = 200
    modules: tuple[str, ...] = GATES

    watch = Adjusted

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"is a fraction of all neurons, got {self.fraction}.", "fraction")
        if self.probes < 1:
            raise ConfigError(f"must be at least 1, got {self.probes}.", "probes")
        if not self.modules:
            raise ConfigError("give at least one ending, for example ['gate_proj'].", "modules")

    def learn(self, model: nn.Module, split: Split, task: Task, session: Session) -> dict[str, Tensor]:
        names, copied = gates(model, self.modules), session.engine.copy(model)
        forget, retain = (
            self._moments(copied, names, d, task, session) for d in (split.forget, split.retain)
        )
        sizes = torch.tensor([cast(nn.Linear, model.get_submodule(name)).out_features for name in names])
        layers = torch.arange(len(names)).repeat_interleave(sizes)
        neurons = torch.cat([torch.arange(int(size)) for size in sizes])
        count = round(self.fraction * len(layers))
        order = (forget[0] - retain[0]).abs().argsort(descending=True, stable=True)[:count]
        return {
            "layer": layers[order],
            "neuron": neurons[order],
            "moments": torch.cat([forget, retain])[:, order],
            "seed": torch.tensor(seeding.derive(session.seed, "draws") % 2**62),
        }

    def _moments(
        self, model: nn.Module, names: list[str], data: Data, task: Task, session: Session
    ) -> Tensor:
        """Mean and deviation of every neuron over all tokens, ``(2, neurons)``."""
        sums, found = list[Tensor](), dict[str, Tensor]()
        handles = [
            model.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: found.__setitem__(name, output)
            )
            for name in names
        ]
        try:
            with session.engine.frozen(model) as still:
                for batch in prompts.batches(data, task, session, self.probes):
                    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])) != 0
                    prompts.hidden(still, batch["input_ids"], mask)
                    x = torch.cat([found[name][mask] for name in names], -1).double().cpu()
                    sums.append(torch.stack([torch.ones_like(x).sum(0), x.sum(0), x.square().sum(0)]))
        finally:
            for handle in handles:
                handle.remove()
        n, first, second = torch.stack(sums).sum(0)
        mean = first / n
        return torch.stack([mean, (second / n - mean.square()).clamp(min=1e-12).sqrt()]).float()


def adjusted(x: Tensor, moments: Tensor, drawn: Tensor) -> Tensor:
    """``x`` ``(…, k)`` after the map, for moments ``μ_f, σ_f, μ_r, σ_r`` ``(4, k)`` and draws from [0, 1)."""
    mean_f, std_f, mean_r, std_r = moments
    log_f, log_r = _log_normal(x, mean_f, std_f), _log_normal(x, mean_r, std_r)
    moved = (log_r <= log_f) & (drawn < torch.sigmoid(log_f - log_r))
    return torch.where(moved, mean_r - std_r * (x - mean_f) / std_f, x)


def _log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)


def gates(model: nn.Module, endings: tuple[str, ...]) -> list[str]:
    """The matrices whose outputs go into an activation, by name.

    Raises:
        Unsupported: none.
    """
    named = model.named_modules()
    found = [name for name, module in named if name.endswith(endings) and isinstance(module, nn.Linear)]
    if not found:
        raise Unsupported(
            f"{type(model).__name__} has no linear layer whose name ends with {list(endings)}. "
            "Give modules=…, or use key_space."
        )
    return found
