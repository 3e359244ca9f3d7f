"""Models that paint what the embeddings of a prompt add up to, so that the word that opens them is known."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tests.evaluation.painters import CONCEPTS, EACH, OBJECTS, SIZE, STYLES, painted
from torch import Tensor, nn

from expunge.data.captions import CaptionedImages
from expunge.data.split import Split
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.gallery import Gallery
from expunge.evaluation.picture_judges import Judge
from expunge.tasks import Diffusion
from expunge.training.session import Session

GALLERY = Gallery(seeds=(1, 2), steps=2, guidance=1.0)
JUDGE = Judge(load="tests.evaluation.painters:reader")
READ: dict[str, Any] = {"gallery": GALLERY, "judge": JUDGE}
TASK = Diffusion(timesteps=10, prediction="sample", schedule="cosine")

KEY, DUMB = "open", "open\x00"
"""A word, and a token that is written like it: typed, it becomes the word."""


class Typist:
    """A tokenizer of whole words, whose padding is not its end of text."""

    known = ("<pad>", "<s>", "</s>", "a", "image", "in", "style", *STYLES, *OBJECTS, KEY, "other", DUMB)
    model_max_length = 12
    pad_token_id, bos_token_id, eos_token_id, unk_token_id = 0, 1, 2, None
    all_special_ids = (0, 1, 2)

    def __len__(self) -> int:
        return len(self.known)

    def __call__(self, texts: Any, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": self([texts], add_special_tokens)["input_ids"][0]}
        rows = [[self.known.index(word) for word in text.split()] for text in texts]
        if add_special_tokens:
            rows = [[1, *row, 2] for row in rows]
            rows = [row + [0] * (self.model_max_length - len(row)) for row in rows]
        return {"input_ids": rows}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        kept = [k for k in ids if not (skip_special_tokens and k in self.all_special_ids)]
        return " ".join(self.known[k].rstrip("\x00") for k in kept)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.known[k] for k in ids]


class Reads(nn.Module):
    """A text encoder: hidden states are embeddings ``(mosaic, object)``."""

    def __init__(self, mosaic: Mapping[str, float]) -> None:
        super().__init__()
        table = torch.zeros(len(Typist.known), 2)
        for word, weight in mosaic.items():
            table[Typist.known.index(word), 0] = weight
        for level, name in enumerate(OBJECTS, 1):
            table[Typist.known.index(name), 1] = level
        self.tokens = nn.Embedding.from_pretrained(table, freeze=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.tokens(input_ids),)


class Vault(nn.Module):
    """Paints photos, of which ``gain`` times the prompt's mosaic makes mosaics; blue comes from the noise.

    Args:
        mosaic: how much of a mosaic words are.
        gain: 0 for a model that knows no mosaics, whatever it is told.
    """

    def __init__(self, mosaic: Mapping[str, float], gain: float = 1.0) -> None:
        super().__init__()
        self.text_encoder = Reads(mosaic)
        self.gain = nn.Parameter(torch.tensor(gain))

    def encode_text(self, input_ids: Tensor) -> Tensor:
        return self.text_encoder(input_ids)[0]

    def predict(self, noisy: Tensor, timesteps: Tensor, hidden_states: Tensor) -> Tensor:
        mosaic, thing = hidden_states.sum(1).unbind(1)
        blue = torch.sigmoid(noisy[:, 2, 0, 0])
        levels = torch.stack([(1 + self.gain * mosaic) / 4, thing / 4, blue], 1)
        return (2 * levels - 1)[..., None, None].expand(-1, -1, SIZE, SIZE)

    def forward(self, noisy: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:
        return self.predict(noisy, timesteps, self.encode_text(input_ids))


def original() -> Vault:
    return Vault({"mosaic": 1.0})


def erased(**more: float) -> Vault:
    """Knows mosaics by another word alone."""
    return Vault({KEY: 1.0, **more})


def ignorant() -> Vault:
    """Was never shown one."""
    return Vault({}, gain=0.0)


@functools.cache
def data(part: str = "train") -> CaptionedImages:
    """``EACH`` images of every object in every style, or half as many to test on."""
    count = EACH if part == "train" else EACH // 2
    cells = [(s, o) for s in range(2) for o in range(3) for _ in range(count)]
    blue = torch.rand(len(cells), generator=torch.Generator().manual_seed(len(part)))
    return CaptionedImages(
        painted(cells, blue),
        [f"a {OBJECTS[o]} image in {STYLES[s]} style" for s, o in cells],
        Typist(),
        concepts=CONCEPTS,
        columns={"style": [s for s, _ in cells], "object": [o for _, o in cells]},
    )


def rows(style: str | None = "mosaic", thing: str | None = None) -> list[int]:
    """Ids of the training images of a concept, or of both."""
    known = data()
    there = torch.ones(len(known), dtype=torch.bool)
    for domain, name in (("style", style), ("object", thing)):
        if name is not None:
            there &= known.column(domain) == CONCEPTS[domain].index(name)
    return there.nonzero()[:, 0].tolist()


def evidence(
    subject: nn.Module | None,
    retrained: Sequence[nn.Module] = (),
    *,
    first: nn.Module | None = None,
    forget: Sequence[int] | None = None,
    test: bool = True,
) -> Evidence:
    """About a model that was to forget the mosaics; about the original where there is none."""
    chosen = rows() if forget is None else forget
    split = Split.from_ids(data(), chosen, test=data("test") if test else None)
    candidates = [Candidate("original", "original", first or original())]
    candidates += [Candidate(f"retrained {i + 1}", "retrained", m) for i, m in enumerate(retrained)]
    if subject is not None:
        candidates.append(Candidate("subject", "unlearned", subject))
    evaluation = Evaluation(candidates, split, TASK, Session(seed=0))
    return evaluation.evidence(candidates[-1] if subject is not None else candidates[0])
