"""What a language model says, without its logits: hidden states where a token is to be predicted."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from expunge.data.arrays import Batch
from expunge.tasks.label_log_probs import label_log_probs, serves

CHUNK = 2**22
"""Logits that exist at once: tokens of a chunk times the vocabulary."""

_NOTHING: Mapping[str, Tensor] = MappingProxyType({})

_ROUTES: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class TokenStates:
    """The input of the output layer at every position before a label.

    Args:
        hidden: ``(M, D)``, the labelled tokens of all examples one after the other.
        head: the output layer, ``(…, D)`` to ``(…, V)``.
        labels: the tokens to predict, ``(M,)``.
        where: for each its example and position, ``(M,)`` each.
        shape: ``(N, T − 1)``.
    """

    hidden: Tensor
    head: Callable[[Tensor], Tensor]
    labels: Tensor
    where: tuple[Tensor, Tensor]
    shape: tuple[int, int]
    vocabulary: int

    def log_probs(self) -> Tensor:
        """``log p(y_t | y_<t)`` of every label, ``(M,)``; a chunk of logits at a time."""
        if "details" in self.__dict__ and not torch.is_grad_enabled():
            return self.details["log_probs"]
        size = max(1, CHUNK // self.vocabulary)
        if len(self.hidden) <= size or not torch.is_grad_enabled():
            chunks = zip(self.hidden.split(size), self.labels.split(size), strict=True)
            return torch.cat([self._chunk(hidden, labels) for hidden, labels in chunks])
        if serves(self.head, self.hidden):
            return label_log_probs(self.hidden, cast(nn.Linear, self.head), self.labels, size)
        found = [
            checkpoint(self._chunk, hidden, labels, use_reentrant=False)
            for hidden, labels in zip(self.hidden.split(size), self.labels.split(size), strict=True)
        ]
        return torch.cat(found)

    @cached_property
    def details(self) -> dict[str, Tensor]:
        """``log_probs``, their ``mean`` and ``deviation`` over the vocabulary under the model's own
        distribution, and whether the label is the likeliest token (``right``); ``(M,)`` each."""
        found: dict[str, list[Tensor]] = {"log_probs": [], "mean": [], "deviation": [], "right": []}
        size = max(1, CHUNK // self.vocabulary)
        for hidden, labels in zip(self.hidden.detach().split(size), self.labels.split(size), strict=True):
            with torch.no_grad():
                logs = self.head(hidden).float().log_softmax(-1)
            found["log_probs"].append(logs.gather(-1, labels[:, None])[:, 0])
            found["right"].append((logs.argmax(-1) == labels).float())
            chances = logs.exp()
            mean = (chances * logs).sum(-1)
            found["mean"].append(mean)
            found["deviation"].append(logs.sub_(mean[:, None]).square_().mul_(chances).sum(-1).sqrt())
        return {name: torch.cat(values) for name, values in found.items()}

    def _chunk(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return -F.cross_entropy(self.head(hidden).float(), labels, reduction="none")

    def logits(self) -> Tensor:
        """``(N, T, V)``, zeros where nothing is to be predicted."""
        values = self.head(self.hidden)
        rows, places = self.where
        return values.new_zeros((self.shape[0], self.shape[1] + 1, self.vocabulary)).index_put(
            (rows, places), values
        )

    def spread(self, values: Tensor) -> Tensor:
        """Values of labelled tokens ``(M,)`` in their places, ``(N, T − 1)``; 0 elsewhere."""
        return values.new_zeros(self.shape).index_put(self.where, values)

    def summed(self, values: Tensor) -> Tensor:
        """Values of labelled tokens summed over each example, ``(N,)``."""
        return values.new_zeros(self.shape[0]).index_add(0, self.where[0], values)


def from_logits(logits: Tensor, batch: Batch, mask: Tensor) -> TokenStates:
    """The same of logits ``(N, T, V)`` that are there already."""
    where = mask.nonzero(as_tuple=True)
    labels = batch["labels"][:, 1:][where]
    shape = (mask.shape[0], mask.shape[1])
    return TokenStates(
        logits[:, :-1][where], torch.nn.Identity(), labels, (where[0], where[1]), shape, logits.shape[-1]
    )


def states(
    model: nn.Module, batch: Batch, mask: Tensor, vocabulary: int, beside: Mapping[str, Tensor] = _NOTHING
) -> TokenStates | None:
    """The hidden states of a transformers model where ``mask`` ``(N, T − 1)`` says; None for others.

    ``beside`` is what the model is given beside tokens and their mask.

    A model whose logits are not its output layer of its last hidden state (a cap or scale follows) counts
    as another: that is tried once on a few tokens.
    """
    parts = _parts(model)
    if getattr(model, "reads_logits", False):  # a guard stands between the output layer and the answer
        return None
    if parts is None or not _plain(model, *parts, batch):
        return None
    body, head = parts
    hidden = _hidden(body, batch["input_ids"], batch.get("attention_mask"), beside)[:, :-1]
    where = mask.nonzero(as_tuple=True)
    labels = batch["labels"][:, 1:][where]
    shape = (mask.shape[0], mask.shape[1])
    return TokenStates(hidden[where], head, labels, (where[0], where[1]), shape, vocabulary)


def _hidden(
    body: nn.Module, ids: Tensor, mask: Tensor | None, beside: Mapping[str, Tensor] = _NOTHING
) -> Tensor:
    answer = body(ids, **beside) if mask is None else body(input_ids=ids, attention_mask=mask, **beside)
    found: Tensor = answer.last_hidden_state
    return found


def _parts(model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The body and the output layer of a transformers model, adapters included."""
    inner: Any = model.model if hasattr(model, "peft_config") else model
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    body = getattr(inner, getattr(inner, "base_model_prefix", "") or " ", None)
    if isinstance(head, nn.Module) and isinstance(body, nn.Module) and body is not inner:
        return body, head
    return None


def _plain(model: nn.Module, body: nn.Module, head: nn.Module, batch: Batch) -> bool:
    if model not in _ROUTES:
        modes = {module: module.training for module in model.modules()}
        ids = batch["input_ids"][:1, :4]
        try:
            model.eval()
            with torch.no_grad():
                logits = model(ids).logits
                _ROUTES[model] = torch.allclose(logits, head(_hidden(body, ids, None)), atol=1e-4)
        finally:
            for module, mode in modes.items():
                module.training = mode
    return _ROUTES[model]
