"""Text-to-image models under guard: what was learnt stands beside the model, and acts in its text encoder.

Whatever encodes a caption goes through the guard: a prediction, a sampler and the model's pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data.captions import CaptionedImages
from expunge.data.split import Split
from expunge.errors import Unsupported
from expunge.methods.base import Guard, methods
from expunge.methods.conditions import conditional
from expunge.methods.guarded import GUARD
from expunge.tasks.base import Task


class Beside(nn.Module):
    """What stands beside a guarded text-to-image model: tensors that were learnt, and what they do.

    The tensors are buffers, so that they move with the model and stay out of every optimiser.
    """

    def __init__(self, method: Guard, learned: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.method: Any = method
        self.adopt(learned)

    def learned(self) -> dict[str, Tensor]:
        """The tensors as ``Guard.learn`` gave them, by name."""
        return dict(self.named_buffers())

    def adopt(self, learned: Mapping[str, Tensor]) -> None:
        """Takes these tensors in place of those it has."""
        where = next((value.device for value in self.buffers()), None)
        for name, value in learned.items():
            self.register_buffer(name, value.detach().clone().to(where or value.device))

    def opened(self, text_encoder: nn.Module) -> None:
        """Registers hooks in the text encoder; they must do nothing while nothing has been learnt."""


class CaptionGuard(Guard):
    """A guard of a text-to-image model that changes how captions are read."""

    beside: ClassVar[type[Beside]]
    """What acts at inference."""

    def reads_inputs(self) -> tuple[str, ...]:
        return ()

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        name = methods.name_of(self)
        conditional(split, task, name)
        if not (isinstance(split.forget, CaptionedImages) and isinstance(split.retain, CaptionedImages)):
            raise Unsupported(f"{name} changes how captions are read, and there are none. Use esd or sa.")

    def attach(self, model: nn.Module, learned: Mapping[str, Tensor]) -> nn.Module:
        encoder = text_encoder_of(model, methods.name_of(self))
        if hasattr(model, GUARD):
            other = methods.name_of(cast(Beside, getattr(model, GUARD)).method)
            raise Unsupported(
                f"the model is guarded by {other} already. Give the model that it was made from."
            )
        guard = self.beside(self, learned).to(next(model.parameters()).device)
        model.add_module(GUARD, guard)
        guard.opened(encoder)
        return model


def text_encoder_of(model: nn.Module, what: str) -> nn.Module:
    """The text encoder of a text-to-image model.

    Raises:
        Unsupported: it has none; ``what`` is the name of the method that needs it.
    """
    encoder = getattr(model, "text_encoder", None)
    if not isinstance(encoder, nn.Module):
        raise Unsupported(f"{what} needs the model's text encoder. Use a text-to-image model.")
    return encoder


def given_tokens(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The captions' tokens ``(N, T)`` among the arguments of a text encoder.

    Raises:
        Unsupported: it was given embeddings.
    """
    ids = named.get("input_ids", arguments[0] if arguments else None)
    if not isinstance(ids, Tensor):
        raise Unsupported("a guard reads tokens, and was given embeddings. Give input_ids.")
    return ids


def with_states(output: Any, states: Tensor) -> Any:
    """The output of a text encoder with other states ``(N, T, D)`` in the first place."""
    if isinstance(output, tuple):
        return (states, *output[1:])
    output[next(iter(output))] = states
    return output


def token_ends(tokenizer: Any) -> Tensor:
    """Whether a word may begin after a token, for each token of the vocabulary, ``(V,)``.

    So after a token that ends a word, where tokens tell (as CLIP's do), and after special ones.
    """
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    ends = torch.tensor([str(name).endswith("</w>") for name in names])
    if not ends.any():
        return torch.ones_like(ends)
    ends[tokenizer.all_special_ids] = True
    return ends


def phrase_positions(ids: Tensor, phrase: Tensor, ends: Tensor, end: int) -> Tensor:
    """As ``data.captions.word_positions``, from tensors that can be saved: no tokenizer is at hand.

    Shapes:
        ``ids`` ``(N, T)``, ``phrase`` ``(L,)`` filled up with −1, ``ends`` ``(V,)`` to booleans ``(N, T)``.
    """
    wanted = phrase[phrase >= 0]
    found = torch.zeros_like(ids, dtype=torch.bool)
    if len(wanted) > ids.shape[1]:
        return found
    starts = (ids.unfold(1, len(wanted), 1) == wanted).all(2)
    free = torch.cat([torch.ones_like(found[:, :1]), ends[ids][:, :-1]], 1)
    starts = starts & free[:, : starts.shape[1]]
    for offset in range(len(wanted)):
        found[:, offset : offset + starts.shape[1]] |= starts
    return found & ((ids == end).cumsum(1) == 0)
