"""Images with captions, as what a denoiser works on and tokens, on one device."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from expunge.data.arrays import ArrayData, digest
from expunge.errors import DataError

EMPTY = "empty"
"""The name of the empty prompt among the other captions: every data set has its column."""

PROMPTS = "prompts"
"""The column that says which images share a caption."""

_END_OF_WORD = "</w>"
_LONGEST = 100_000
"""Above this a tokenizer's ``model_max_length`` means that it was never set."""


class CaptionedImages(ArrayData):
    """Images with captions. A batch holds ``inputs``, ``input_ids`` and one integer column for each domain.

    ``inputs`` ``(N, C, H, W)`` float32 is what the denoiser works on: latents, or pixels in [−1, 1].
    ``input_ids`` ``(N, T)`` int64 are the caption's tokens. Other captions of the same image stand in the
    columns ``<name>.input_ids``; ``empty.input_ids``, the empty prompt, is always there. The column
    ``prompts``, in no batch, has the number of each caption among all of them in alphabetical order.

    Args:
        inputs: ``(N, C, H, W)``.
        captions: one of each image.
        tokenizer: of Hugging Face, with a ``model_max_length``.
        concepts: names of the concepts by domain, in the order of the integers in the domain's column.
        columns: further columns, those of the domains among them.
        others: other captions of the images, by name.

    Attributes:
        tokenizer: the same for all subsets.
        concepts: likewise.

    Raises:
        DataError: as ``ArrayData``; inputs that are no images, another number of captions, a caption that
            is too long, a domain without a column, or a concept without a name.
    """

    def __init__(
        self,
        inputs: Tensor,
        captions: Sequence[str],
        tokenizer: Any,
        *,
        concepts: Mapping[str, Sequence[str]] = MappingProxyType({}),
        columns: Mapping[str, Any] = MappingProxyType({}),
        others: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self.tokenizer = tokenizer
        self.concepts = {domain: tuple(names) for domain, names in concepts.items()}
        self._captions = tuple(captions)
        if inputs.ndim != 4 or not inputs.is_floating_point():
            raise DataError(
                "captioned images need inputs (N, C, H, W) of floating type, latents or pixels in [−1, 1]; "
                f"got {tuple(inputs.shape)} of {inputs.dtype}."
            )
        texts = {"": self._captions, EMPTY: [""] * len(inputs), **others}
        tokens = {}
        for name, written in texts.items():
            if len(written) != len(inputs):
                raise DataError(
                    f"there are {len(inputs)} images, but {len(written)} captions {name}".rstrip()
                )
            tokens[_column(name)] = tokenise(tokenizer, written)
        super().__init__({"inputs": inputs, **tokens, **columns})
        self._check_concepts()

    @property
    def captions(self) -> tuple[str, ...]:
        """One caption of each example, in the order of ``ids``."""
        return tuple(self._captions[id_] for id_ in self.ids.tolist())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the other captions."""
        return tuple(name.removesuffix(".input_ids") for name in self._storage.columns if "." in name)

    def column(self, name: str) -> Tensor:
        if name != PROMPTS or name in self._storage.columns:
            return super().column(name)
        place = {caption: number for number, caption in enumerate(sorted(set(self._captions)))}
        return torch.tensor([place[caption] for caption in self.captions])

    def with_captions(self, name: str, captions: Sequence[str]) -> Self:
        """The same examples with a further column ``<name>.input_ids``; a column of that name is replaced.

        The result is a data set of its own: it cannot be joined with a part that lacks the column.

        Args:
            captions: one of each example, in the order of ``ids``.

        Raises:
            DataError: another number of captions, or one that is too long.
        """
        if len(captions) != len(self):
            raise DataError(f"there are {len(self)} examples, but {len(captions)} captions '{name}'.")
        storage = self._storage
        rows = storage.columns[_column(EMPTY)].clone()
        rows[self.ids.to(rows.device)] = tokenise(self.tokenizer, captions).to(rows.device)
        view = self._with_ids(self.ids)
        view._storage = type(storage)({**storage.columns, _column(name): rows})
        return view

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            names = sorted(self._storage.columns)
            columns = [("ids", self.ids), *((name, self.column(name)) for name in names)]
            extra = json.dumps([self.captions, self.concepts], sort_keys=True)
            self._fingerprint = digest(columns, extra)
        return self._fingerprint

    def shown(self, id_: int) -> str:
        """One example as it reaches the model: the shape of its inputs, its caption and every token."""
        row = self.subset([id_])
        ids = row.column("input_ids")[0].tolist()
        tokens = self.tokenizer.convert_ids_to_tokens(ids[: _length(ids, self.tokenizer.eos_token_id)])
        shape = " × ".join(str(size) for size in row.column("inputs").shape[1:])
        return f"inputs: {shape}\ncaption: {row.captions[0]}\ntokens: {' '.join(tokens)}"

    def _check_concepts(self) -> None:
        for domain, names in self.concepts.items():
            if domain not in self._storage.columns:
                raise DataError(f"domain '{domain}' has concepts, but no column. Give columns['{domain}'].")
            values = self.column(domain)
            bad = ((values < 0) | (values >= len(names))).nonzero()
            if len(bad):
                row = int(bad[0, 0])
                raise DataError(
                    f"column '{domain}' holds {int(values[row])} in row {row}, but there are {len(names)} "
                    "names. Name every concept."
                )


def tokenise(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Tokens of captions, ``(N, T)`` int64, padded by the tokenizer to its ``model_max_length``.

    Raises:
        DataError: a tokenizer that does not say how long captions are or cannot pad, or a caption with
            more tokens.
    """
    length = tokenizer.model_max_length
    if length is None or length > _LONGEST:
        raise DataError("the tokenizer does not say how long a caption is. Set its model_max_length.")
    if tokenizer.pad_token_id is None:
        raise DataError("the tokenizer cannot pad. Set its pad_token, for CLIP the end-of-text token.")
    known = sorted(set(captions))
    rows = tokenizer(known, padding="max_length", max_length=length, truncation=False)["input_ids"]
    for caption, row in zip(known, rows, strict=True):
        if len(row) > length:
            raise DataError(
                f"the caption '{caption[:60]}' has {len(row)} tokens, more than the {length} of the "
                "tokenizer. Shorten it."
            )
    place = {caption: row for row, caption in enumerate(known)}
    found = torch.tensor(rows, dtype=torch.long).view(len(known), length)
    return found[[place[caption] for caption in captions]]


def word_positions(tokenizer: Any, input_ids: Tensor, word: str) -> Tensor:
    """Where the tokens of a word (or of words that follow each other) stand in captions.

    Shapes:
        ``input_ids`` ``(N, T)`` to booleans ``(N, T)``, on the same device; a row without the word is
        False throughout, and so is everything from the first end-of-text token on.

    Raises:
        DataError: a word that the tokenizer cannot see.
    """
    tokens = tokenizer(word, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    if not tokens or (unknown is not None and unknown in tokens):
        raise DataError(
            f"the tokenizer cannot see the concept '{word}': it has no tokens for it. Name the concept with "
            "words of the captions."
        )
    found: Tensor = torch.zeros_like(input_ids, dtype=torch.bool)
    if len(tokens) > input_ids.shape[1]:
        return found
    wanted = torch.tensor(tokens, device=input_ids.device)
    starts = (input_ids.unfold(1, len(tokens), 1) == wanted).all(2)
    starts &= _word_starts(tokenizer, input_ids, tokens[-1])[:, : starts.shape[1]]
    for offset in range(len(tokens)):
        found[:, offset : offset + starts.shape[1]] |= starts
    found &= (input_ids == tokenizer.eos_token_id).cumsum(1) == 0
    return found


def concept_words(
    forget: CaptionedImages | Iterable[str], retain: CaptionedImages | Iterable[str]
) -> tuple[str, ...]:
    """The words that all captions to forget have in common and no retained caption has, in their order.

    Raises:
        DataError: there is none.
    """
    gone, kept = (
        {*(data.captions if isinstance(data, CaptionedImages) else data)} for data in (forget, retain)
    )
    others = {word for caption in kept for word in _words(caption)}
    first, *rest = (_words(caption) for caption in sorted(gone))
    shared = [word for word in dict.fromkeys(first) if word not in others and all(word in r for r in rest)]
    if not shared:
        raise DataError(
            "no word stands in every caption to forget and in no retained one, so the captions do not say "
            "which concept this is. Name the concept."
        )
    return tuple(shared)


def _words(caption: str) -> list[str]:
    stripped = (word.strip(".,;:!?()\"'") for word in caption.lower().split())
    return [word for word in stripped if word]


def _word_starts(tokenizer: Any, input_ids: Tensor, last: int) -> Tensor:
    """Where a word may begin, ``(N, T)``: after a token that ends one, where tokens tell (as CLIP's do)."""
    known = input_ids.unique()
    names = tokenizer.convert_ids_to_tokens([*known.tolist(), last])
    if not names.pop().endswith(_END_OF_WORD):
        return torch.ones_like(input_ids, dtype=torch.bool)
    special = set(tokenizer.all_special_ids)
    ends = [
        name.endswith(_END_OF_WORD) or id_ in special for name, id_ in zip(names, known.tolist(), strict=True)
    ]
    ended = torch.tensor(ends, device=input_ids.device)[torch.searchsorted(known, input_ids)]
    return torch.cat([torch.ones_like(ended[:, :1]), ended[:, :-1]], 1)


def _column(name: str) -> str:
    return f"{name}.input_ids" if name else "input_ids"


def _length(ids: list[int], end: int) -> int:
    """Tokens up to the first end-of-text, which is counted."""
    return ids.index(end) + 1 if end in ids else len(ids)
