"""Captions with free places, and the tokens or vectors that are put there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.data.captions import tokenise
from expunge.errors import DataError
from expunge.training.denoisers import token_table


def words(tokenizer: Any) -> Tensor:
    """The tokens that can be typed: whose text by itself is tokenised to that one token again, ``(V,)``.

    Special tokens, parts of words and bytes that no text has are left out.

    Raises:
        DataError: there is none.
    """
    special = set(tokenizer.all_special_ids)
    tokens = [token for token in range(len(tokenizer)) if token not in special]
    texts = [tokenizer.decode([token]).strip() for token in tokens]
    plain = [(k, text) for k, text in zip(tokens, texts, strict=True) if text and text.isprintable()]
    again = tokenizer([text for _, text in plain], add_special_tokens=False)["input_ids"] if plain else []
    found = [k for (k, _), row in zip(plain, again, strict=True) if list(row) == [k]]
    if not found:
        raise DataError("the tokenizer has no token that is a word by itself. Give one with whole words.")
    return torch.tensor(found)


@dataclass(frozen=True, eq=False)
class Slots:
    """Captions with ``K`` free places each.

    Args:
        input_ids: the captions, with any token in the free places, ``(N, T)``.
        places: the columns of the free places, in order, ``(N, K)``.
    """

    tokenizer: Any
    input_ids: Tensor
    places: Tensor

    def among(self, rows: Tensor) -> Slots:
        """Those of some captions."""
        return replace(self, input_ids=self.input_ids[rows], places=self.places[rows])

    def filled(self, tokens: Tensor) -> Tensor:
        """The captions with tokens ``(N, K)`` in the free places, ``(N, T)``."""
        return self.input_ids.scatter(1, self.places, tokens.to(self.input_ids))

    def typed(self, tokens: Tensor) -> tuple[list[str], Tensor]:
        """The filled captions as texts, and what the tokenizer makes of these, ``(N, T)``.

        Raises:
            DataError: a text is too long.
        """
        rows = self.filled(tokens).tolist()
        texts = [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
        return texts, tokenise(self.tokenizer, texts)

    def encoded(self, model: nn.Module, tokens: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Hidden states of the filled captions, ``(N, T, D)``.

        The text encoder runs as it always does, with its own positions, mask and norm.

        Args:
            vectors: ``(N, K, D)``, in place of the embeddings of the tokens.
        """
        device = next(model.parameters()).device
        ids, places = self.filled(tokens).to(device), self.places.to(device)

        def put(_: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
            if vectors is None or output.shape[:2] != ids.shape:
                return None
            where = places[..., None].expand(-1, -1, output.shape[-1])
            return output.scatter(1, where, vectors.to(output))

        handle = token_table(model).register_forward_hook(put)
        try:
            return cast(Tensor, cast(Any, model).encode_text(ids))
        finally:
            handle.remove()


def ahead(tokenizer: Any, input_ids: Tensor, count: int) -> Slots:
    """Captions with ``count`` free places before their first word.

    Raises:
        DataError: a caption without an end, or without room.
    """
    return _opened(tokenizer, input_ids, lambda length: [0] * count)


def spread(tokenizer: Any, input_ids: Tensor, count: int) -> Slots:
    """Captions with ``count`` free places at equal distances, the first before their first word."""
    return _opened(tokenizer, input_ids, lambda length: [j * length // count for j in range(count)])


def alone(tokenizer: Any, input_ids: Tensor, count: int) -> Slots:
    """Captions of ``count`` free places and nothing else."""
    empty = torch.stack([_emptied(tokenizer, row) for row in input_ids])
    return ahead(tokenizer, empty, count)


def _opened(tokenizer: Any, input_ids: Tensor, where: Any) -> Slots:
    """Captions with free places before the words ``where(number of words)``."""
    rows, places = [], []
    for ids in input_ids.tolist():
        first, end = _bounds(tokenizer, ids)
        before: Sequence[int] = where(end - first)
        row = ids[:first]
        columns = []
        for number in range(end - first + 1):
            for _ in range(before.count(number)):
                columns.append(len(row))
                row.append(ids[end])
            row.append(ids[first + number])
        if len(row) > len(ids):
            raise DataError(
                f"a caption of {end - first} tokens has no room for {len(before)} more, of {len(ids)} with "
                "start and end. Lower tokens, or shorten the captions."
            )
        rows.append(row + [tokenizer.pad_token_id] * (len(ids) - len(row)))
        places.append(columns)
    return Slots(tokenizer, torch.tensor(rows), torch.tensor(places))


def _emptied(tokenizer: Any, row: Tensor) -> Tensor:
    ids = row.tolist()
    first, end = _bounds(tokenizer, ids)
    kept = [*ids[:first], ids[end]]
    return torch.tensor(kept + [tokenizer.pad_token_id] * (len(ids) - len(kept)))


def _bounds(tokenizer: Any, ids: list[int]) -> tuple[int, int]:
    """The columns of a caption's first word and of its end."""
    first = int(bool(ids) and ids[0] == getattr(tokenizer, "bos_token_id", None))
    end = tokenizer.eos_token_id
    if end not in ids[first:]:
        raise DataError("a caption has no end-of-text token, so that nothing can be put before it.")
    return first, ids.index(end, first)
