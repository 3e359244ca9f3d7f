"""Painted images whose colours say what they show, models that paint what they are told, and judges that
read one pixel. No training, no tokenizer of a library."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data.captions import CaptionedImages
from expunge.data.split import Split
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.evidence import Evidence, Keep
from expunge.evaluation.gallery import Gallery
from expunge.evaluation.picture_judges import Judge
from expunge.tasks import Diffusion
from expunge.training.session import Session

STYLES, OBJECTS = ("photo", "mosaic"), ("star", "cross", "moon")
CONCEPTS = {"style": STYLES, "object": OBJECTS}
SIZE, EACH = 8, 4
Cell = tuple[int, int]
Shows = Mapping[Cell, Cell | Sequence[Cell]]

GALLERY = Gallery(seeds=(1, 2), steps=2, guidance=1.0)
JUDGE = Judge(load="tests.evaluation.painters:reader")
READ = {"gallery": GALLERY, "judge": JUDGE}
TASK = Diffusion(timesteps=10, prediction="sample", schedule="cosine")


class Words:
    """A tokenizer that knows whole words."""

    model_max_length, pad_token_id, eos_token_id, unk_token_id = 8, 0, 1, None
    known = ("", "</s>", "a", "image", "in", "style", *STYLES, *OBJECTS)

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        rows = [[*map(self.known.index, text.split()), 1] for text in texts]
        return {"input_ids": [row + [0] * (self.model_max_length - len(row)) for row in rows]}


def cells_of(tokens: Tensor) -> list[Cell]:
    """What captions name; −1 where they name nothing."""
    found = []
    for row in tokens.tolist():
        words = {Words.known[k] for k in row}
        style = next((k for k, name in enumerate(STYLES) if name in words), -1)
        found.append((style, next((k for k, name in enumerate(OBJECTS) if name in words), -1)))
    return found


def painted(cells: Sequence[Cell], blue: Tensor) -> Tensor:
    """Images in [−1, 1]: red is ``(style + 1) / 4``, green ``(object + 1) / 4``; blue is given, ``(N,)``."""
    images = torch.zeros(len(cells), 3, SIZE, SIZE)
    for row, (style, thing) in enumerate(cells):
        levels = torch.tensor([(style + 1) / 4, (thing + 1) / 4, float(blue[row])])
        images[row] = (2 * levels - 1)[:, None, None]
    return images


@functools.cache
def data(part: str = "train") -> CaptionedImages:
    """``EACH`` images of every object in every style, or half as many to test on."""
    count = EACH if part == "train" else EACH // 2
    cells = [(s, o) for s in range(2) for o in range(3) for _ in range(count)]
    blue = torch.rand(len(cells), generator=torch.Generator().manual_seed(len(part)))
    return CaptionedImages(
        painted(cells, blue),
        [f"a {OBJECTS[o]} image in {STYLES[s]} style" for s, o in cells],
        Words(),
        concepts=CONCEPTS,
        columns={"style": [s for s, _ in cells], "object": [o for _, o in cells]},
    )


class Painter(nn.Module):
    """Paints what its captions name, or what ``shows`` says instead; of several the first for one half of all
    noises (whose first number is below 0), the second for the others. Blue comes from the noise too."""

    def __init__(self, shows: Shows | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.shows, self.calls = dict(shows or {}), 0

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        self.calls += 1
        chosen = []
        for cell, image in zip(cells_of(condition), noisy, strict=True):
            shown = self.shows.get(cell, cell)
            several = shown if isinstance(shown[0], tuple) else (shown, shown)
            chosen.append(several[int(image[0, 0, 0] >= 0)])
        return painted(chosen, torch.sigmoid(noisy[:, 2, 0, 0])) + 0 * self.weight


class Reader(nn.Module):
    """The concept whose level ``a_k`` is nearest to a pixel's red or green: ``2 a_k v − a_k²``."""

    def __init__(self, channel: int, count: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, count)
        levels = (torch.arange(count) + 1) / 4
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.weight[:, channel] = 2 * levels
            self.head.bias.copy_(-levels.square())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images[:, :, 0, 0])


def reader(domain: str, concepts: Sequence[str]) -> nn.Module:
    """What ``load`` of a judge names."""
    return Reader(list(CONCEPTS).index(domain), len(concepts))


def blind(domain: str, concepts: Sequence[str]) -> nn.Module:
    """A judge that reads the styles from the blue, which says nothing."""
    return Reader(2 if domain == "style" else 1, len(concepts))


def short(domain: str, concepts: Sequence[str]) -> nn.Module:
    """A judge that knows fewer concepts than there are."""
    return Reader(0, len(concepts) - 1)


def rows(style: str | None = None, thing: str | None = None) -> list[int]:
    """Ids of the training images of a concept, or of both."""
    known = data()
    there = torch.ones(len(known), dtype=torch.bool)
    for domain, name in (("style", style), ("object", thing)):
        if name is not None:
            there &= known.column(domain) == CONCEPTS[domain].index(name)
    return there.nonzero()[:, 0].tolist()


def evidence(
    subject: nn.Module,
    forget: Sequence[int] | None = None,
    retrained: Sequence[nn.Module] = (),
    *,
    train: CaptionedImages | None = None,
    keep: Keep | None = None,
) -> Evidence:
    """About a model that was to forget the mosaics, or other images."""
    chosen = rows("mosaic") if forget is None else forget
    split = Split.from_ids(data() if train is None else train, chosen, test=data("test"))
    candidates = [Candidate("original", "original", Painter())]
    candidates += [Candidate(f"retrained {i + 1}", "retrained", m) for i, m in enumerate(retrained)]
    candidates.append(Candidate("subject", "unlearned", subject))
    evaluation = Evaluation(candidates, split, TASK, Session(seed=0), keep=keep)
    return evaluation.evidence(candidates[-1])
