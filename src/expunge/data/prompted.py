"""Prompts for concepts: what a text-to-image model is to forget or to keep where there are no images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from expunge.errors import DataError

CONCEPT = "{}"
"""Where a prompt has the concept."""

STYLE_PROMPTS = (CONCEPT, f"an image in {CONCEPT}", f"a picture in {CONCEPT}")
OTHER_PROMPTS = (CONCEPT, f"an image of {CONCEPT}", f"a picture of {CONCEPT}")


@dataclass(frozen=True)
class Side:
    """What is to be forgotten, or to be kept.

    Attributes:
        captions: one of each example.
        concepts: the number of each example's concept.
        latents: of given images ``(N, C, h, w)``; None where there are only prompts.
    """

    captions: tuple[str, ...]
    concepts: tuple[int, ...]
    latents: Tensor | None = None


def prompted(concepts: Sequence[str], prompts: Sequence[str], examples: int, *, first: int) -> Side:
    """Prompts for concepts by turns; a prompt without a place for one stands as it is."""
    texts = []
    for number, concept in enumerate(concepts, first):
        style = concept.lower().split()[-1:] == ["style"]
        for prompt in prompts or (STYLE_PROMPTS if style else OTHER_PROMPTS):
            texts.append((prompt.replace(CONCEPT, concept), number))
    chosen = [texts[row % len(texts)] for row in range(max(examples, len(texts)))]
    return Side(tuple(text for text, _ in chosen), tuple(number for _, number in chosen))


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one a line.

    Raises:
        DataError: it cannot be read, or is empty.
    """
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is no UTF-8"
        raise DataError(
            f"cannot read '{path}': {said}. Give a file with one prompt a line, or a folder of "
            "captioned images."
        ) from None
    if not found:
        raise DataError(f"'{path}' is empty. Write one prompt a line.")
    return found
