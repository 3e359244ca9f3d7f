"""Low-rank adapters that stay beside a frozen language model, and models of its first blocks."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.errors import ConfigError, Unsupported
from expunge.methods.guarded import Call, Watch, blocks, body_and_head
from expunge.methods.scopes.modules import Modules
from expunge.tasks.base import Task
from expunge.training.loop import Plan, optimise
from expunge.training.scope import Scope
from expunge.training.session import Session

ADAPTER = "adapter"


def check_rank(rank: int, alpha: float) -> None:
    """Refuses ranks below 1 and scales that are not above 0."""
    if rank < 1:
        raise ConfigError(f"must be at least 1, got {rank}.", "rank")
    if not alpha > 0:
        raise ConfigError(f"must be above 0, got {alpha}.", "alpha")


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside the blocks, by their names in the model.

    Raises:
        Unsupported: there are none.
    """
    body, _ = body_and_head(model)
    prefix = f"{cast(Any, model).base_model_prefix}.{blocks(body)}."
    named = model.named_modules()
    found = {name: m for name, m in named if name.startswith(prefix) and isinstance(m, nn.Linear)}
    if not found:
        raise Unsupported(f"{type(model).__name__} has no linear layers to adapt. Choose another guard: eco.")
    return found


def low_rank(x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``s B A x`` for inputs ``(…, D_in)``, in float32 unless autocast says otherwise."""
    return scale * ((x.to(a.dtype) @ a.T) @ b.T)


class Adapter(nn.Module):
    """The factors of every adapted layer while they are trained: ``A`` ``(r, D_in)``, ``B`` ``(D_out, r)``.

    ``A`` starts as linear layers do, ``B`` at 0.
    """

    def __init__(self, model: nn.Module, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = scale
        self.layers = list(linear_layers(model))
        for name, layer in linear_layers(model).items():
            bound = layer.in_features**-0.5
            a = (2 * torch.rand(rank, layer.in_features, generator=generator) - 1) * bound
            self.register_parameter(_plain(f"A.{name}"), nn.Parameter(a.to(layer.weight.device)))
            zeros = torch.zeros(layer.out_features, rank, device=layer.weight.device)
            self.register_parameter(_plain(f"B.{name}"), nn.Parameter(zeros))
            layer.register_forward_hook(partial(self.beside, name))

    def factor(self, which: str, layer: str) -> Tensor:
        """``A`` or ``B`` of a layer."""
        return self.get_parameter(_plain(f"{which}.{layer}"))

    def beside(self, layer: str, _: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Adds to the output of a layer; its forward hook."""
        found = low_rank(arguments[0], self.factor("A", layer), self.factor("B", layer), self.scale)
        return output + found.to(output.dtype)


def trained(
    model: nn.Module, rank: int, alpha: float, plan: Plan, task: Task, session: Session
) -> dict[str, Tensor]:
    """The factors that minimise the plan's objective beside ``model``, a copy that may be changed.

    ``A.<layer>`` and ``B.<layer>``; the weights of the model are frozen.
    """
    adapter = Adapter(model, rank, alpha / rank, session.generator("adapter"))
    model.add_module(ADAPTER, adapter)
    scope: Scope = Modules(patterns=(ADAPTER,))
    found = optimise(model, replace(plan, scope=scope), task, session)
    learned = cast(Adapter, getattr(found, ADAPTER))
    return {
        f"{which}.{name}": learned.factor(which, name).detach() for name in learned.layers for which in "AB"
    }


def shortened(model: nn.Module, count: int) -> nn.Module:
    """``model`` itself, of which only the first blocks are left."""
    body = cast(Any, body_and_head(model)[0])
    setattr(body, blocks(body), getattr(body, blocks(body))[:count])
    for config in {id(c): c for c in (body.config, cast(Any, model).config)}.values():
        _shorten(config, count)
    return model


def first_blocks(body: nn.Module, count: int) -> nn.Module:
    """The body with its first blocks alone; every module in it is the body's own."""
    shell: Any = copy.copy(body)
    name = blocks(body)
    shell._modules = {**body._modules, name: cast(nn.ModuleList, getattr(body, name))[:count]}
    shell.config = copy.copy(cast(Any, body).config)
    _shorten(shell.config, count)
    return cast(nn.Module, shell)


def _shorten(config: Any, count: int) -> None:
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = list(config.layer_types)[:count]


def _plain(name: str) -> str:
    return name.replace(".", "/")


class Assisted(Watch, ABC):
    """A second model beside the first: its first blocks and output layer with an adapter.

    Both share every weight and one key-value cache, in which the assistant's layers follow the model's; so
    beams that are reordered or repeated take them along.
    """

    assisting: bool = False

    def opened(self, model: nn.Module) -> None:
        for name, layer in linear_layers(model).items():
            layer.register_forward_hook(partial(self.beside, _plain(name)))

    def beside(
        self, layer: str, _: nn.Module, arguments: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        """Adds to the output of a layer while the assistant is asked; its forward hook."""
        a = self._buffers.get(f"A/{layer}")
        if not self.assisting or a is None:
            return None
        b, scale = self.get_buffer(f"B/{layer}"), self.method.alpha / self.method.rank
        return output + low_rank(arguments[0], a, b, scale).to(output.dtype)

    def count(self, body: nn.Module) -> int:
        """How many of the blocks the assistant has."""
        return int(cast(Any, body).config.num_hidden_layers)

    @abstractmethod
    def combined(self, target: Tensor, assistant: Tensor) -> Tensor:
        """The logits in place of the target's, of ``(N, K, V)`` each, in float32."""

    def after(self, model: nn.Module, call: Call, logits: Tensor, output: Any) -> Tensor:
        body, head = body_and_head(model)
        shell = cast(Any, first_blocks(body, self.count(body)))
        given = {k: v for k, v in call.arguments.items() if k in ("attention_mask", "position_ids")}
        cache = self._cache(getattr(output, "past_key_values", None), body, shell, call.ids.shape[1])
        self.assisting = True
        try:
            answer = shell(input_ids=call.ids, past_key_values=cache, use_cache=cache is not None, **given)
        finally:
            self.assisting = False
        said = head(answer.last_hidden_state[:, call.columns()])
        return self.combined(logits.float(), said.float()).to(logits.dtype)

    def _cache(self, cache: Any, body: Any, shell: Any, tokens: int) -> Any:
        """A view of the assistant's layers in the model's cache."""
        from transformers import DynamicCache

        if cache is None:
            return None
        if not isinstance(cache, DynamicCache):
            raise Unsupported(f"a guard cannot share a {type(cache).__name__}. Use a dynamic cache.")
        own, view = int(body.config.num_hidden_layers), DynamicCache(config=shell.config)
        if len(cache.layers) == own:
            if cache.get_seq_length() > tokens:
                raise Unsupported(
                    "the cache was made by a model without this guard. Give all tokens at once."
                )
            cache.layers.extend(view.layers)
        view.layers = cache.layers[own:]
        return view
