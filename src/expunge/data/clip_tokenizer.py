"""A CLIP tokenizer made from captions: byte pairs merged until every word of theirs is one token."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from expunge.errors import ConfigError, DataError, MissingExtra

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
"""The last two tokens of the vocabulary; the second also pads, as in CLIP."""

BASE = 2 * 256
"""Tokens that every vocabulary begins with: each byte, inside a word and at its end."""

_SUFFIX = "</w>"
_PIECES = re.compile(r"[^\W\d_]+|\d|(?:[^\w\s]|_)+")

Pair = tuple[str, str]


def clip_tokenizer(captions: Iterable[str], *, max_length: int = 16) -> Any:
    """A ``CLIPTokenizer`` for captions of ``max_length`` tokens, start and end included.

    The pair of tokens that occurs most often becomes one, ties broken in alphabetical order, until every
    word of the captions is a single token. Other words are spelt in smaller pieces: no text is unknown.
    Nothing is downloaded or drawn; the same words as often always give the same tokenizer.

    Raises:
        ConfigError: captions of fewer than 3 tokens.
        DataError: no word in the captions.
        MissingExtra: transformers is not installed.
    """
    try:
        from tokenizers import pre_tokenizers
        from transformers import CLIPTokenizer
    except ImportError:
        raise MissingExtra("a CLIP tokenizer", "diffusion") from None
    if max_length < 3:
        raise ConfigError(f"must be at least 3: start, one token, end; got {max_length}.", "max_length")
    counts = Counter(piece for text in captions for piece in _PIECES.findall(text.lower()))
    if not counts:
        raise DataError("there is no text to make a tokenizer of. Give captions with at least one word.")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelt = {to_bytes.pre_tokenize_str(word)[0][0]: count for word, count in counts.items()}
    merges = _merges(spelt)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [*alphabet, *(letter + _SUFFIX for letter in alphabet), *(a + b for a, b in merges), BEGIN, END]
    vocabulary = {token: number for number, token in enumerate(known)}
    options = {"model_max_length": max_length}
    if "vocab" in inspect.signature(CLIPTokenizer.__init__).parameters:
        return CLIPTokenizer(vocab=vocabulary, merges=merges, **options)
    return _from_files(CLIPTokenizer, vocabulary, merges, options)


def _merges(words: dict[str, int]) -> list[Pair]:
    """Pairs to merge, in order, until each word (letters, the last with ``</w>``) is one token."""
    pieces = {word: [*word[:-1], word[-1] + _SUFFIX] for word in words}
    merges: list[Pair] = []
    while True:
        counts: Counter[Pair] = Counter()
        for word, parts in pieces.items():
            for pair in itertools.pairwise(parts):
                counts[pair] += words[word]
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = {word: _merged(parts, best) for word, parts in pieces.items()}


def _merged(parts: list[str], pair: Pair) -> list[str]:
    found: list[str] = []
    place = 0
    while place < len(parts):
        both = tuple(parts[place : place + 2]) == pair
        found.append("".join(pair) if both else parts[place])
        place += 2 if both else 1
    return found


def _from_files(kind: Any, vocabulary: dict[str, int], merges: list[Pair], options: dict[str, int]) -> Any:
    """The same for transformers 4, which reads the vocabulary from files."""
    with TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab_file.write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
        merges_file.write_text("\n".join(lines), encoding="utf-8")
        return kind(vocab_file=str(vocab_file), merges_file=str(merges_file), **options)
