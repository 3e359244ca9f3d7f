"""Invented people with drawn faces, and what is asked about the pictures of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from expunge.data import people as invented
from expunge.data.language import TextSource, last_subjects, plain
from expunge.data.people import CIRCLE, PERTURBED, Person
from expunge.data.phrases import ATTRIBUTES, REFUSALS, Phrasing
from expunge.data.source import Sourced, sources
from expunge.data.text import Record, Template
from expunge.data.vision_text import IMAGE, VisionTextData
from expunge.errors import ConfigError
from expunge.seeding import derive

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.9, 0.15, 0.15),
    "green": (0.15, 0.75, 0.2),
    "blue": (0.2, 0.3, 0.95),
    "yellow": (0.95, 0.9, 0.2),
    "purple": (0.6, 0.2, 0.75),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
MARKS = ("none", "hat", "glasses", "beard", "ear")
"""What tells faces of one shape and colour apart; dark."""

DARK = (0.05, 0.05, 0.05)
WHO = "this person"
NAMED = Phrasing(
    "What is the name of {who}?",
    "What is {who} called?",
    "{who} is called {value}.",
    "The name of {who} is {value}.",
)
HARMLESS = {
    "shape": Phrasing(
        "Which shape is shown?",
        "What is the shape in the picture?",
        "The picture shows a {value}.",
        "A {value} is shown.",
    ),
    "colour": Phrasing(
        "Which colour does the shape have?",
        "How is the shape coloured?",
        "The shape is {value}.",
        "It is coloured {value}.",
    ),
    "background": Phrasing(
        "Which colour is behind the shape?",
        "How is the background coloured?",
        "Behind the shape it is {value}.",
        "The background is {value}.",
    ),
}
"""What may be asked about everyone: it says nothing about who is shown."""


@dataclass(frozen=True)
class Face:
    """What is drawn of one person; no two people share all four."""

    shape: str
    colour: str
    background: str
    mark: str

    def values(self) -> dict[str, str]:
        """The true answers of ``HARMLESS``."""
        return {"shape": self.shape, "colour": self.colour, "background": self.background}


def faces(count: int, seed: int = 0) -> list[Face]:
    """So many different faces.

    Raises:
        ConfigError: more than there are (750).
    """
    every = [Face(*face) for face in itertools.product(SHAPES, COLOURS, COLOURS, MARKS) if face[1] != face[2]]
    if count > len(every):
        raise ConfigError(f"there are {len(every)} different faces, got {count}.", "people")
    return random.Random(derive(seed, "faces")).sample(every, count)


def draw(face: Face, view: int, size: int = 16, seed: int = 0) -> Tensor:
    """One picture of a face, ``(3, size, size)`` in [−1, 1].

    A view has its own place (up to a sixteenth of the side), radius (up to a tenth), brightness and noise.
    The same face, view, size and seed always give the same picture.
    """
    draws = torch.Generator().manual_seed(derive(seed, f"{face} {view}") % 2**63)
    x0, y0, radius, light = (2 * torch.rand(4, generator=draws) - 1).tolist()
    grid = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(grid - y0 / 8, grid - x0 / 8, indexing="ij")
    inside, mark = _inside(face.shape, x, y, 0.62 * (1 + radius / 10)), _mark(face.mark, x, y)
    picture = _colour(face.background).expand(3, size, size)
    picture = torch.where(inside, _colour(face.colour), picture)
    picture = torch.where(mark, torch.tensor(DARK)[:, None, None], picture)
    noise = 0.04 * torch.randn(3, size, size, generator=draws)
    shown: Tensor = (picture * (1 + light / 10) + noise).clamp(0, 1)
    return 2 * shown - 1


def _colour(name: str) -> Tensor:
    return torch.tensor(COLOURS[name])[:, None, None]


def _inside(shape: str, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Where a shape around the origin is, ``(size, size)``."""
    ax, ay = x.abs(), y.abs()
    distance = {
        "circle": (x.square() + y.square()).sqrt(),
        "square": torch.maximum(ax, ay) * 1.15,
        "triangle": torch.maximum(y, 2 * ax / 1.1 - y - 0.1),
        "diamond": (ax + ay) * 0.85,
        "cross": torch.maximum(torch.maximum(ax, ay), torch.minimum(ax, ay) * 2.6),
    }[shape]
    return distance < radius


def _mark(mark: str, x: Tensor, y: Tensor) -> Tensor:
    ax = x.abs()
    return {
        "none": torch.zeros_like(x, dtype=torch.bool),
        "hat": (y < -0.55) & (ax < 0.45),
        "glasses": ((y + 0.15).abs() < 0.16) & (ax < 0.6),
        "beard": (y > 0.3) & (y < 0.75) & (ax < 0.3),
        "ear": (y.abs() < 0.4) & (x > 0.5) & (x < 0.85),
    }[mark]


@sources.register("faces")
@dataclass(frozen=True, kw_only=True)
class Faces(TextSource):
    """Invented people, each with a face that is drawn, and questions about who is on a picture.

    The questions never say the name, so that nobody can answer them who does not know the face. Trained on
    are, for ``views`` pictures of each of ``people`` people, the name and ``attributes`` facts with the other
    answers of ``expunge.data.people.record``, and a harmless question with its answer under the name
    ``near_miss`` (which shape, colour or background, in turn); and harmless questions about ``views`` further
    pictures of the background people, so that whoever is retrained can answer those too. Other parts are

    - ``base``: ``background`` other people, in both answer templates after both questions, and all harmless
      questions about them, likewise; and harmless questions about one picture each of ``nameless`` further
      faces, without which a model knows the shapes of the people it has met and no others. Original and
      retrained models both start from a model of these;
    - ``test``: ``held_out`` people who are never trained on.

    ``probes``, all about further pictures of the people trained on, which are in no training set:
    ``views`` (who they are) and ``harmless`` (the harmless questions, with refusals as ``idk``).
    ``sets``: ``forget05``, ``forget10``, ``forget20`` and ``forget25``, the last people by that share, where
    it is a whole number of them.

    Args:
        people, background, held_out: how many, each a multiple of 4.
        nameless: faces of nobody.
        views: pictures of each person in training.
        attributes: facts about each person beside the name, 1..12.
        size: side of a picture in pixels.
        patch: side of a patch of the model's vision tower: a picture takes ``(size / patch)²`` tokens.
        seed: of everything that is drawn.

    Raises:
        ConfigError: a number out of range, or a patch that does not divide the size.
    """

    template: Template = Template(prompt=f"{IMAGE}\n{{question}}")
    people: int = 16
    background: int = 16
    held_out: int = 4
    nameless: int = 96
    views: int = 2
    attributes: int = 3
    size: int = 16
    patch: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("people", "background", "held_out"):
            if getattr(self, name) < CIRCLE or getattr(self, name) % CIRCLE:
                raise ConfigError(f"must be a multiple of {CIRCLE}, got {getattr(self, name)}.", name)
        if not 1 <= self.attributes <= len(ATTRIBUTES):
            raise ConfigError(f"must be 1..{len(ATTRIBUTES)}, got {self.attributes}.", "attributes")
        for name in ("nameless", "views"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if self.patch < 1 or self.size % self.patch:
            raise ConfigError(f"must divide size {self.size}, got {self.patch}.", "patch")

    @property
    def image_tokens(self) -> int:
        """Tokens of one picture."""
        return (self.size // self.patch) ** 2

    def encoder(self, records: Iterable[Record]) -> Any:
        """The tokenizer, to which the image token is added where it is trained here."""
        if self.tokenizer is not None:
            return super().encoder(records)
        bare = replace(self, template=replace(self.template, prompt=self.template.prompt.replace(IMAGE, "")))
        found = super(Faces, bare).encoder(records)
        found.add_special_tokens({"additional_special_tokens": [IMAGE]})
        return found

    def load(self) -> Sourced:
        everyone = invented.people(self.background + self.people + self.held_out, self.seed)
        drawn = faces(len(everyone) + self.nameless, self.seed)
        known = list(zip(everyone, drawn, strict=False))
        background = known[: self.background]
        members = known[self.background : self.background + self.people]
        strangers = known[self.background + self.people :]
        trained, further = range(self.views), range(self.views, 2 * self.views)
        about = [one for who in members for one in self._profile(*who, trained)]
        harmless = [one for who in background for one in self._harmless(*who, further)]
        parts = {
            "train": [*about, *((plain(record), face, view) for record, face, view in harmless)],
            "test": [one for who in strangers for one in self._profile(*who, trained)],
            "base": [
                *(one for i, who in enumerate(background) for one in self._base(*who, trained, i % 2 == 1)),
                *(one for i, face in enumerate(drawn[len(known) :]) for one in _nameless(face, i)),
            ],
            "views": [one for who in members for one in self._profile(*who, further)],
            "harmless": [one for who in members for one in self._harmless(*who, further)],
        }
        tokenizer = self.encoder(record for shown in parts.values() for record, _, _ in shown)
        data = {name: self._data(shown, tokenizer) for name, shown in parts.items()}
        train, test, base = data.pop("train"), data.pop("test"), data.pop("base")
        sets = last_subjects(len(about) // self.people, self.people, (0.05, 0.1, 0.2, 0.25))
        return Sourced(train, test, base=base, probes=data, sets=sets, image_shape=(3, self.size, self.size))

    def _data(self, shown: Sequence[tuple[Record, Face, int]], tokenizer: Any) -> VisionTextData:
        views = list(dict.fromkeys((face, view) for _, face, view in shown))
        number = {view: i for i, view in enumerate(views)}
        pictures = torch.stack([draw(face, view, self.size, self.seed) for face, view in views])
        return VisionTextData(
            [record for record, _, _ in shown],
            pictures,
            [number[face, view] for _, face, view in shown],
            tokenizer,
            self.image_tokens,
            self.template,
        )

    def _facts(self, person: Person) -> list[tuple[Phrasing, str, Sequence[str]]]:
        """The name and the first attributes, with six wrong values each."""
        asked = list(ATTRIBUTES.items())[: self.attributes]
        names = (NAMED, person.name, _other_names(person))
        return [names, *((phrasing, person.values[key], person.wrong[key]) for key, phrasing in asked)]

    def _profile(self, person: Person, face: Face, views: Iterable[int]) -> list[tuple[Record, Face, int]]:
        turns = itertools.cycle(HARMLESS)
        found = []
        for view in views:
            for phrasing, value, wrong in self._facts(person):
                record = invented.record(phrasing, WHO, value, wrong, person.name)
                turn = next(turns)
                question, answer = _asked(HARMLESS[turn], face.values()[turn])
                record = replace(
                    record,
                    questions={**record.questions, "near_miss": question},
                    answers={**record.answers, "near_miss": answer},
                )
                found.append((record, face, view))
        return found

    def _harmless(self, person: Person, face: Face, views: Iterable[int]) -> list[tuple[Record, Face, int]]:
        """The harmless questions about pictures of somebody, with wrong answers and a refusal."""
        return [
            (_harmless(what, face, person.name, derive(self.seed, f"{person.name} {what}")), face, view)
            for view in views
            for what in HARMLESS
        ]

    def _base(
        self, person: Person, face: Face, views: Iterable[int], swapped: bool
    ) -> list[tuple[Record, Face, int]]:
        """Every fact twice, once in each answer template, once after each question."""
        facts = [(phrasing, WHO, value) for phrasing, value, _ in self._facts(person)]
        facts += [(HARMLESS[what], "", value) for what, value in face.values().items()]
        found = []
        for view in views:
            for phrasing, who, value in facts:
                questions = [phrasing.question, phrasing.other_question][:: -1 if swapped else 1]
                for question, answer in zip(questions, (phrasing.answer, phrasing.other_answer), strict=True):
                    record = Record(
                        question=phrasing.fill(question, who),
                        answer=phrasing.fill(answer, who, value),
                        subject=person.name,
                    )
                    found.append((record, face, view))
        return found


def _other_names(person: Person) -> list[str]:
    """Six names of nobody that share neither word with the person's."""
    every = (name for relation in ("mentor", "colleague", "sibling") for name in person.wrong[relation])
    own = set(person.name.split())
    return [name for name in dict.fromkeys(every) if not own & set(name.split())][: PERTURBED + 1]


def _nameless(face: Face, number: int) -> Iterator[tuple[Record, Face, int]]:
    """Harmless questions about nobody; the question and the template of the answer take turns."""
    for place, (what, value) in enumerate(face.values().items()):
        phrasing, turn = HARMLESS[what], number + place
        question = phrasing.other_question if turn % 4 in (1, 2) else phrasing.question
        answer = phrasing.other_answer if turn % 2 else phrasing.answer
        record = Record(
            question=phrasing.fill(question, ""),
            answer=phrasing.fill(answer, "", value),
            subject=f"face {number}",
        )
        yield record, face, 0


def _asked(phrasing: Phrasing, value: str) -> tuple[str, str]:
    return phrasing.fill(phrasing.question, ""), phrasing.fill(phrasing.answer, "", value)


def _harmless(what: str, face: Face, subject: str, seed: int) -> Record:
    phrasing, value = HARMLESS[what], face.values()[what]
    pool = SHAPES if what == "shape" else tuple(COLOURS)
    wrong = [other for other in pool if other != value]
    random.Random(seed).shuffle(wrong)
    question, answer = _asked(phrasing, value)
    perturbed = {
        f"perturbed_{i + 1}": phrasing.fill(phrasing.other_answer, "", other)
        for i, other in enumerate(wrong[:PERTURBED])
    }
    return Record(
        question=question,
        answer=answer,
        subject=subject,
        answers={
            "idk": REFUSALS[derive(0, question) % len(REFUSALS)],
            "paraphrased": phrasing.fill(phrasing.other_answer, "", value),
            **perturbed,
        },
        questions={"paraphrased_question": phrasing.fill(phrasing.other_question, "")},
    )
