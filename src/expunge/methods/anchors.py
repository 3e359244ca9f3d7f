"""What a concept turns into: another caption, or another class, of the examples to forget."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.captions import EMPTY, CaptionedImages, concept_words, tokenise, word_positions
from expunge.data.extended import Extended
from expunge.data.split import Split
from expunge.errors import DataError, Unsupported
from expunge.tasks.base import Task
from expunge.tasks.diffusion import Diffusion
from expunge.training.session import Session

Anchor = str | Callable[[Any], Any]
"""How methods name an anchor; ``anchored`` says what the words mean."""

ANCHOR = "anchor"
"""The name under which a step gives it: ``step.forget.instead(ANCHOR)``."""

PROMPT = "prompt:"
"""What a whole caption begins with, as against words that take the concept's place in every caption."""

KINDS = ("next", "random", "nearest")
"""Anchors that are another concept of the same domain."""


def anchored(
    split: Split,
    task: Task,
    session: Session,
    anchor: Anchor = "next",
    *,
    concept: str = "",
    model: nn.Module | None = None,
) -> Split:
    """The split whose forget set says of each example what its concept turns into.

    The forget set gets the further column ``anchor.input_ids`` ``(N, T)``, or ``anchor.targets`` ``(N,)``
    where the condition is a class, so that ``step.forget.instead("anchor")`` works::

        def plan(self, model, split, task, session):
            split = anchored(split, task, session, self.anchor, concept=self.concept, model=model)
            return super().plan(model, split, task, session)

    In captions the concept's words are replaced, the rest stays. The anchor is one of

    - ``next``, ``random``, ``nearest``: another concept of the same domain, of those that are retained: the
      one after it (after the last comes the first), for each example one drawn once from the session's seed,
      or the one whose captions the model reads most alike, which costs a pass of its text encoder;
    - ``empty``: the empty prompt, or of classes the condition "none"; likewise the name of any other caption
      that the data brings;
    - ``prompt: an image in photo style``: this caption, whatever the example's own is;
    - other words (``photo``, ``mobile phone``): they take the concept's place; of classes its name or number;
    - a function of the caption (of classes of the class) that gives the other one. It cannot be written to a
      configuration file.

    Args:
        anchor: see above.
        concept: its words, of a pair both (``mosaic star``); by default those that every caption to forget
            has and no retained caption has. Of no meaning for classes: each example has its own.
        model: needed by ``nearest`` alone.

    Raises:
        DataError: a concept that the tokenizer cannot see or a caption lacks, one that is in no domain where
            another of its domain is wanted, an anchor that changes nothing, or a class that is not there.
        Unsupported: data without captions or classes, or a model that cannot be asked what is nearest.
    """
    forget = split.forget
    if isinstance(forget, CaptionedImages):
        captions = anchor_captions(split, session, anchor, concept=concept, model=model)
        return replace(split, forget=forget.with_captions(ANCHOR, captions))
    classes = task.conditions if isinstance(task, Diffusion) else None
    if classes is None:
        raise Unsupported(
            f"an anchor needs captions or classes to forget, and {type(forget).__name__} under this task has "
            "neither. Give captioned images, or choose a method without an anchor: grad_diff, npo."
        )
    targets = _classes(split, classes, session, anchor, model)
    if bool((targets == forget.column("targets")).all()):
        raise DataError(f"the anchor {anchor!r} leaves every class as it is. Name another class.")
    return replace(split, forget=Extended(forget, {f"{ANCHOR}.targets": targets}))


def anchor_captions(
    split: Split, session: Session, anchor: Anchor, *, concept: str = "", model: nn.Module | None = None
) -> list[str]:
    """The other caption of each example to forget, in the order of its ids: see ``anchored``.

    Raises:
        DataError, Unsupported: as ``anchored``.
    """
    forget = cast(CaptionedImages, split.forget)
    if callable(anchor):
        found = [str(anchor(caption)) for caption in forget.captions]
    elif anchor in forget.names:
        rows = forget.column(f"{anchor}.input_ids")
        said = forget.tokenizer.batch_decode(rows, skip_special_tokens=True)
        found = [" ".join(text.split()) for text in said]
    elif anchor.startswith(PROMPT):
        found = [anchor.removeprefix(PROMPT).strip()] * len(forget)
    elif anchor in KINDS:
        found = _other_concept(split, session, anchor, concept, model)
    else:
        terms = concept_terms(split, concept)
        found = [replaced(caption, terms, _parts(anchor, terms)) for caption in forget.captions]
    if all(new == old for new, old in zip(found, forget.captions, strict=True)):
        raise DataError(f"the anchor {anchor!r} leaves every caption as it is. Name another one.")
    return found


def concept_terms(split: Split, concept: str = "") -> tuple[str, ...]:
    """The concept as the phrases that stand in every caption to forget: one, or each word of several.

    Raises:
        DataError: no captions, no words of their own, words that the tokenizer cannot see, or a caption
            without them.
    """
    forget, retain = split.forget, split.retain
    if not isinstance(forget, CaptionedImages) or not isinstance(retain, CaptionedImages):
        raise DataError("the concept's words are looked for in captions, and there are none.")
    words = tuple(concept.split()) or concept_words(forget, retain)
    phrase = " ".join(words)
    terms = (phrase,) if all(_has(caption, phrase) for caption in forget.captions) else words
    rows = tokenise(forget.tokenizer, forget.captions)
    for term in terms:
        missing = (~word_positions(forget.tokenizer, rows, term).any(1)).nonzero()
        if len(missing) or not all(_has(caption, term) for caption in forget.captions):
            bad = [caption for caption in forget.captions if not _has(caption, term)]
            caption = bad[0] if bad else forget.captions[int(missing[0, 0])]
            raise DataError(
                f"the concept '{term}' is not in the caption '{caption}' of an example to forget. Name the "
                "concept with words that stand in all of them."
            )
    return terms


def replaced(caption: str, terms: Sequence[str], words: Sequence[str]) -> str:
    """The caption with each phrase replaced by the words for it; upper and lower case are one."""
    for term, new in zip(terms, words, strict=True):
        caption = _pattern(term).sub(lambda _, new=new: new, caption)  # type: ignore[misc]
    return caption


def _other_concept(
    split: Split, session: Session, kind: str, concept: str, model: nn.Module | None
) -> list[str]:
    """Captions with other concepts of the same domains."""
    forget = cast(CaptionedImages, split.forget)
    terms = concept_terms(split, concept)
    choices = [_choices(split, term) for term in terms]
    if kind == "next":
        new = [names[0] for names in choices]
        return [replaced(caption, terms, new) for caption in forget.captions]
    if kind == "nearest":
        new = [_nearest(forget, term, names, model) for term, names in zip(terms, choices, strict=True)]
        return [replaced(caption, terms, new) for caption in forget.captions]
    draws = session.generator(ANCHOR)
    found = []
    for caption in forget.captions:
        drawn = [names[int(torch.randint(len(names), (), generator=draws))] for names in choices]
        found.append(replaced(caption, terms, drawn))
    return found


def _choices(split: Split, term: str) -> list[str]:
    """Retained concepts of the same domain, those that follow the concept first."""
    forget, retain = cast(CaptionedImages, split.forget), cast(CaptionedImages, split.retain)
    for domain, names in forget.concepts.items():
        places = [i for i, name in enumerate(names) if name.lower() == term.lower()]
        if places:
            kept = set(retain.column(domain).tolist())
            after = [*range(places[0] + 1, len(names)), *range(places[0])]
            if found := [names[i] for i in after if i in kept]:
                return found
    raise DataError(
        f"the concept '{term}' is in no domain with another retained concept. Name the anchor's words."
    )


@torch.no_grad()
def _nearest(forget: CaptionedImages, term: str, names: list[str], model: nn.Module | None) -> str:
    """The concept in whose place the captions' state at the end of the text turns least, by cosine."""
    encode = getattr(model, "encode_text", None)
    if encode is None:
        raise Unsupported("the model has no text encoder to ask what is nearest. Choose the anchor 'next'.")
    device = next(cast(nn.Module, model).parameters()).device
    captions = sorted(set(forget.captions))

    def states(written: list[str]) -> Tensor:
        ids = tokenise(forget.tokenizer, written).to(device)
        end = (ids == forget.tokenizer.eos_token_id).long().argmax(1)
        return cast(Tensor, encode(ids))[torch.arange(len(ids), device=device), end].double()

    own = states(captions)
    close = [
        float(torch.cosine_similarity(own, states([replaced(c, (term,), (name,)) for c in captions])).mean())
        for name in names
    ]
    return names[close.index(max(close))]


def _classes(split: Split, classes: int, session: Session, anchor: Anchor, model: nn.Module | None) -> Tensor:
    """The other class of each example to forget, ``(N,)``."""
    own = split.forget.column("targets").long()
    if callable(anchor):
        return _checked(torch.tensor([int(anchor(int(c))) for c in own]), classes, anchor)
    if anchor == EMPTY:
        return torch.full_like(own, classes)
    if anchor not in KINDS:
        return torch.full_like(own, _class(split.forget, anchor, classes))
    kept = sorted(set(split.retain.column("targets").tolist()))
    draws, new = session.generator(ANCHOR), torch.empty_like(own)
    chosen = {c: _other_class(c, kept, classes, anchor, model) for c in own.unique().tolist()}
    for row, c in enumerate(own.tolist()):
        choices = chosen[c]
        new[row] = choices[int(torch.randint(len(choices), (), generator=draws)) if anchor == "random" else 0]
    return new


def _other_class(own: int, kept: list[int], classes: int, kind: str, model: nn.Module | None) -> list[int]:
    """Retained classes, those that follow first, or the nearest first."""
    after = [c for c in (*range(own + 1, classes), *range(own)) if c in kept]
    if not after:
        raise DataError(f"there is no retained class besides class {own}. Choose the anchor 'empty'.")
    if kind != "nearest":
        return after
    tables = [m for m in (model.modules() if model is not None else ()) if isinstance(m, nn.Embedding)]
    fitting = [m for m in tables if m.num_embeddings in (classes, classes + 1)]
    if len(fitting) != 1:
        raise Unsupported(
            f"the model has {len(fitting)} embeddings of {classes} classes to ask what is nearest. "
            "Choose the anchor 'next'."
        )
    weight = fitting[0].weight.detach().double().cpu()
    close = torch.cosine_similarity(weight[own][None], weight[after]).tolist()
    return [c for _, c in sorted(zip(close, after, strict=True), key=lambda pair: -pair[0])]


def _class(data: Data, name: str, classes: int) -> int:
    names = getattr(data, "class_names", None) or ()
    if name in names:
        return list(names).index(name)
    if not name.isdecimal():
        known = f" It is one of {', '.join(names)}." if names else ""
        raise DataError(
            f"there is no class '{name}'.{known} Give its number, or next, random, nearest, empty."
        )
    return int(_checked(torch.tensor([int(name)]), classes, name))


def _checked(found: Tensor, classes: int, anchor: object) -> Tensor:
    bad = found[(found < 0) | (found > classes)]
    if len(bad):
        raise DataError(f"the anchor {anchor!r} gives class {int(bad[0])}; there are 0..{classes - 1}.")
    return found


def _parts(words: str, terms: Sequence[str]) -> Sequence[str]:
    """Words for each phrase of the concept."""
    if len(terms) == 1:
        return (words,)
    if len(words.split()) != len(terms):
        raise DataError(
            f"the concept is {len(terms)} phrases ({', '.join(terms)}), so that the anchor '{words}' does "
            "not say what takes the place of which. Give as many words, or a whole caption, 'prompt: …'."
        )
    return words.split()


def _has(caption: str, term: str) -> bool:
    return _pattern(term).search(caption) is not None


def _pattern(term: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(term)}(?!\w)", re.IGNORECASE)
