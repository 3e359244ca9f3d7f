"""Language models under guard: the frozen model with hooks, and what was learnt in a module beside it.

Whatever goes through the model goes through its guard: a forward pass, ``generate`` with or without a
cache, batches padded on either side, and the scores of a task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.data.text import IGNORED
from expunge.errors import Unsupported
from expunge.methods.base import Guard, methods
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.vision_language import VisionLanguage
from expunge.training.session import Session

GUARD = "guard"
"""The module of a guarded language model that holds what was learnt."""

KEPT = "_kept_by_guard"
"""What a key-value cache remembers of the prompt that it began with."""


@dataclass
class Call:
    """One forward pass.

    Args:
        ids: the tokens given, ``(N, T)``.
        start: tokens that are in the cache already.
        attended: ``(N, T)``, False at padding.
        position: of each token in its own sequence, padding not counted, ``(N, T)``.
        prompt: whether a token belongs to the prompt, ``(N, T)``. With labels the prompt is all before the
            first one; inside ``generate`` what it was given; else all tokens of a call without a cache.
        answer: the number of the answer's token that is predicted there, from 0; negative before.
        kept: what later calls with the same cache need.
        arguments: those of the model's ``forward``, by name.
    """

    ids: Tensor
    start: int
    attended: Tensor
    position: Tensor
    prompt: Tensor
    answer: Tensor
    kept: dict[str, Tensor]
    arguments: dict[str, Any]
    labels: Tensor | None = None

    def columns(self) -> Any:
        """Which of the ``T`` positions the logits are of."""
        keep = self.arguments.get("logits_to_keep", 0)
        if isinstance(keep, Tensor):
            return keep
        return slice(-keep, None) if keep else slice(None)

    def last(self) -> Tensor:
        """The place of each prompt's last token among the ``T``, ``(N,)``."""
        return self.answer.eq(0).long().argmax(1)


class Watch(nn.Module):
    """What stands beside a guarded language model: tensors that were learnt, and what they do.

    The tensors are buffers, so that they move with the model and stay out of every optimiser.
    """

    scores: ClassVar[str] = ""
    """Why nothing but ``generate`` has a meaning, and no given answer a score; empty where it has."""

    needs_prompt: ClassVar[bool] = False
    """Whether a prompt must be seen whole, so that none may begin in a cache made elsewhere."""

    def __init__(self, method: Guard, learned: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.method: Any = method
        self.call: Call | None = None
        self.length: int | None = None
        for name, value in learned.items():
            self.register_buffer(name.replace(".", "/"), value.detach().clone())

    def learned(self) -> dict[str, Tensor]:
        """The tensors as ``Guard.learn`` gave them, by name."""
        return {name.replace("/", "."): value for name, value in self.named_buffers()}

    def adopt(self, learned: Mapping[str, Tensor], method: Guard | None = None) -> None:
        """Takes tensors, named as ``learned`` or as the state dict does, in place of those it has."""
        fresh = type(self)(method or self.method, learned)
        where = next((value.device for value in self.buffers()), None)
        self.__dict__.update((fresh if where is None else fresh.to(where)).__dict__)

    def opened(self, model: nn.Module) -> None:
        """Registers hooks on modules inside; they may act only while ``self.call`` is not None."""

    def before(self, model: nn.Module, call: Call) -> None:
        """Looks at the prompt, before the forward pass."""

    def after(self, model: nn.Module, call: Call, logits: Tensor, output: Any) -> Tensor:
        """The logits in place of those of the model, ``(N, K, V)`` at ``call.columns()``."""
        return logits

    def settings(self, model: nn.Module, settings: dict[str, Any], ids: Tensor | None) -> dict[str, Any]:
        """The arguments of ``generate``, to which a guard may add."""
        return settings

    @contextmanager
    def generating(self, length: int) -> Iterator[None]:
        """Inside, prompts are ``length`` tokens, padding on the left included."""
        self.length = length
        try:
            yield
        finally:
            self.length = None

    def enter(self, model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Before the model's forward pass."""
        self.call = None
        order = ("input_ids", "attention_mask", "position_ids", "past_key_values")
        named = {**dict(zip(order, arguments, strict=False)), **named}
        call = self._call(named)
        if self.scores and (call.labels is not None or self.length is None):
            raise Unsupported(self.scores)
        if self.needs_prompt and call.start and call.prompt.any():
            raise Unsupported(
                f"{methods.name_of(self.method)} must see a prompt whole, and part of it is in a cache. "
                "Give all turns at once, without past_key_values."
            )
        self.before(model, call)
        self.call = call
        return (), named

    def leave(self, model: nn.Module, arguments: Any, named: dict[str, Any], output: Any) -> Any:
        """After it, also where it failed: then there is no output."""
        call, self.call = self.call, None
        if output is None or call is None:
            return None
        if not hasattr(output, "logits"):
            raise Unsupported("a guarded model answers by name. Use return_dict=True.")
        output.logits = self.after(model, call, output.logits, output)
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            setattr(cache, KEPT, call.kept)
        if call.labels is not None:
            owner = cast(Any, model)
            output.loss = owner.loss_function(
                logits=output.logits, labels=call.labels, vocab_size=output.logits.shape[-1]
            )
        return output

    def _call(self, named: dict[str, Any]) -> Call:
        ids, cache = named.get("input_ids"), named.get("past_key_values")
        if ids is None:
            raise Unsupported("a guard reads tokens, and was given embeddings. Give input_ids.")
        start = cache.get_seq_length() if cache is not None else 0
        mask = named.get("attention_mask")
        mask = torch.ones(len(ids), start + ids.shape[1]).to(ids) if mask is None else mask
        if mask.ndim != 2 or mask.shape[1] < start + ids.shape[1]:
            raise Unsupported(f"a guard reads attention masks (N, T), got {tuple(mask.shape)}. Give one so.")
        mask = mask[:, : start + ids.shape[1]] != 0
        labels, kept = named.pop("labels", None), dict(getattr(cache, KEPT, {}))
        kept["ends"] = ends = self._ends(mask, labels, kept)
        columns = torch.arange(start, mask.shape[1], device=ids.device)
        attended = mask[:, start:]
        return Call(
            ids=ids,
            start=start,
            attended=attended,
            position=(mask.long().cumsum(1) - 1).clamp(min=0)[:, start:],
            prompt=attended & (columns < ends[:, None]),
            answer=columns - ends[:, None] + 1,
            kept=kept,
            arguments=named,
            labels=labels,
        )

    def _ends(self, mask: Tensor, labels: Tensor | None, kept: Mapping[str, Tensor]) -> Tensor:
        """The place after each prompt's last token, padding and cache included, ``(N,)``."""
        places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        whole = (mask * places).amax(1)
        if labels is not None:
            given = labels != IGNORED
            first = given.long().argmax(1).clamp(min=1)
            return torch.where(given.any(1), first, whole)
        if self.length is not None:
            return torch.full_like(whole, self.length)
        return kept.get("ends", whole)


class LanguageGuard(Guard):
    """A guard of a causal language model of transformers."""

    watch: ClassVar[type[Watch]]
    """What acts at inference."""

    stacks: ClassVar[bool] = False
    """Whether another request may be made on the result."""

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        if not isinstance(task, CausalLM):
            raise Unsupported(
                f"{methods.name_of(self)} guards language models, not the task '{type(task).__name__}'. "
                "Use it with causal_lm, or another method."
            )
        if isinstance(task, VisionLanguage):
            raise Unsupported(
                f"{methods.name_of(self)} looks at the words of a prompt alone, and here a picture belongs "
                "to it. Use a method that trains: grad_diff, idk."
            )

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        body_and_head(model)
        if hasattr(model, GUARD) and not (self.stacks and isinstance(guard_of(model), self.watch)):
            raise Unsupported(
                f"the model is guarded by {methods.name_of(guard_of(model).method)} already. Give the model "
                "that it was made from, or use o3, which takes one request after another."
            )
        return super().unlearn(model, split, task, session)

    def attach(self, model: nn.Module, learned: Mapping[str, Tensor]) -> nn.Module:
        body_and_head(model)
        if hasattr(model, GUARD):
            if not isinstance(guard_of(model), self.watch):
                raise Unsupported("the model has a guard of another kind already. Give it without that one.")
            guard_of(model).adopt(learned, self)
            return model
        watch = self.watch(self, learned).to(next(model.parameters()).device)
        model.add_module(GUARD, watch)
        model.register_forward_pre_hook(watch.enter, with_kwargs=True)
        model.register_forward_hook(watch.leave, with_kwargs=True, always_call=True)
        model.generate = MethodType(_generate, model)  # type: ignore[assignment]
        model.reads_logits = True  # type: ignore[assignment]
        watch.opened(model)
        return model


def guard_of(model: nn.Module) -> Watch:
    """What stands beside a guarded language model."""
    return cast(Watch, getattr(model, GUARD))


def body_and_head(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The blocks with their norm, and the output layer.

    Raises:
        Unsupported: not a causal language model of transformers.
    """
    owner: Any = model
    head = owner.get_output_embeddings() if hasattr(owner, "get_output_embeddings") else None
    body = getattr(owner, getattr(owner, "base_model_prefix", "") or " ", None)
    if not (isinstance(head, nn.Module) and isinstance(body, nn.Module) and hasattr(owner, "generate")):
        raise Unsupported(
            f"a guard of language models reads layers by their place in transformers' models, and got "
            f"{type(model).__name__}. Give a causal language model of transformers."
        )
    return body, head


def blocks(body: nn.Module) -> str:
    """The name of the list of blocks in a body."""
    count = cast(Any, body).config.num_hidden_layers
    for name, module in body.named_children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name
    raise Unsupported(f"no list of the {count} blocks in {type(body).__name__}. Use a guard without blocks.")


def _generate(model: Any, inputs: Tensor | None = None, *arguments: Any, **named: Any) -> Any:
    """``generate`` of transformers, which tells the guard where prompts end."""
    ids, watch = named.get("input_ids") if inputs is None else inputs, guard_of(model)
    named = watch.settings(model, named, ids)
    with watch.generating(1 if ids is None else ids.shape[1]):
        return type(model).generate(model, inputs, *arguments, **named)


@dataclass
class Table:
    """Draws that are a fixed function of a seed and of a position: ``(T, width)``, whatever ``T`` is."""

    seed: int
    width: int
    normal: bool = True
    rows: Tensor = field(default_factory=lambda: torch.empty(0))

    def at(self, positions: Tensor) -> Tensor:
        """The rows of positions ``(N, T)``: ``(N, T, width)``."""
        wanted = int(positions.max()) + 1
        if len(self.rows) < wanted:
            draws = torch.Generator().manual_seed(self.seed)
            draw = torch.randn if self.normal else torch.rand
            count = -(-wanted // 64)  # whole blocks, so that more rows do not change those before
            self.rows = torch.cat([draw(64, self.width, generator=draws) for _ in range(count)])
        self.rows = self.rows.to(positions.device)
        return self.rows[positions]
