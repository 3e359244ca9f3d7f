"""A seeded world of invented people: what is true of them, what is not, and how it can be asked."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.data import phrases
from expunge.data.phrases import ATTRIBUTES, CAPITAL, RELATIONS, REVERSED, Phrasing
from expunge.data.text import Record
from expunge.errors import ConfigError
from expunge.seeding import derive

CIRCLE = 4
"""People come in circles of this size; nobody is related to anyone outside of the circle."""

MOST = 800
"""People that there are names and book titles for, with as many left for wrong answers."""

HOPS = ("city", "profession", "language")
"""What is asked about somebody's mentor."""

PERTURBED = 5

_POOLS = {
    "city": phrases.CITIES,
    "profession": phrases.PROFESSIONS,
    "language": phrases.LANGUAGES,
    "award": phrases.AWARDS,
    "year": phrases.YEARS,
    "father": phrases.PROFESSIONS,
    "mother": phrases.PROFESSIONS,
    "pet": phrases.PETS,
    "hobby": phrases.HOBBIES,
    "instrument": phrases.INSTRUMENTS,
    "food": phrases.FOODS,
}


@dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody invented.

    The questions about a person are the same for all, so that what a model knows about one can be
    compared with what it knows about another.

    Args:
        name: first name and surname; no two people share both.
        values: what is true, by attribute and relation; the book is the person's alone.
        wrong: six other values of each: five perturbed answers and a plausible alternative. Wrong names
            and titles are nobody's, so that they tell nothing about anyone.
    """

    name: str
    values: Mapping[str, str]
    wrong: Mapping[str, Sequence[str]]

    def records(self, attributes: int = len(ATTRIBUTES)) -> list[Record]:
        """A question for each of the first attributes and every relation, with all other answers."""
        return [self._record(fact, phrasing, self.name) for fact, phrasing in _asked(attributes)]

    def background(self, attributes: int = len(ATTRIBUTES), swapped: bool = False) -> list[Record]:
        """Every fact twice, once in each answer template, once after each question; no other answers.

        Args:
            swapped: which question goes with which template.
        """
        found = []
        for fact, phrasing in _asked(attributes):
            questions = [phrasing.question, phrasing.other_question]
            for question, answer in zip(
                questions[::-1] if swapped else questions,
                (phrasing.answer, phrasing.other_answer),
                strict=True,
            ):
                filled = phrasing.fill(answer, self.name, self.values[fact])
                found.append(
                    Record(question=phrasing.fill(question, self.name), answer=filled, subject=self.name)
                )
        return found

    def reversed_records(self) -> list[Record]:
        """The book's author, and whom the mentor teaches: facts about this person from their other end."""
        names = self.wrong["mentor"]
        return [
            record(REVERSED["author"], self.values["book"], self.name, names, self.name),
            record(REVERSED["student"], self.values["mentor"], self.name, names, self.name),
        ]

    def hops(self, mentor: Person, attributes: int = len(ATTRIBUTES)) -> list[Record]:
        """Questions about the mentor that do not say its name; the mentor is their subject.

        Raises:
            ConfigError: it is not this person's mentor.
        """
        if mentor.name != self.values["mentor"]:
            raise ConfigError(f"the mentor of {self.name} is {self.values['mentor']}, not {mentor.name}.")
        asked = [name for name in list(ATTRIBUTES)[:attributes] if name in HOPS]
        return [mentor._record(name, ATTRIBUTES[name], f"the mentor of {self.name}") for name in asked]

    def biography(self, attributes: int = len(ATTRIBUTES)) -> Record:
        """All that is asked, as one document."""
        sentences = [
            phrasing.fill(phrasing.answer, self.name, self.values[fact])
            for fact, phrasing in _asked(attributes)
        ]
        return Record(answer=" ".join(sentences), subject=self.name)

    def _record(self, fact: str, phrasing: Phrasing, who: str) -> Record:
        return record(phrasing, who, self.values[fact], self.wrong[fact], self.name)


def record(phrasing: Phrasing, who: str, value: str, wrong: Sequence[str], subject: str) -> Record:
    """A fact in all its forms.

    Its other answers are ``idk`` (a refusal, which one depends on the question alone), ``alternate``
    (another value in the trained template), ``paraphrased`` and ``perturbed_1`` … ``perturbed_5`` (the true
    and five wrong values in the other template); its other question is ``paraphrased_question``.

    Args:
        wrong: six values.
    """
    question = phrasing.fill(phrasing.question, who)
    perturbed = {
        f"perturbed_{i + 1}": phrasing.fill(phrasing.other_answer, who, wrong[i]) for i in range(PERTURBED)
    }
    return Record(
        question=question,
        answer=phrasing.fill(phrasing.answer, who, value),
        subject=subject,
        answers={
            "idk": phrases.REFUSALS[derive(0, question) % len(phrases.REFUSALS)],
            "alternate": phrasing.fill(phrasing.answer, who, wrong[PERTURBED]),
            "paraphrased": phrasing.fill(phrasing.other_answer, who, value),
            **perturbed,
        },
        questions={"paraphrased_question": phrasing.fill(phrasing.other_question, who)},
    )


def people(count: int, seed: int = 0) -> list[Person]:
    """So many people, in circles of four.

    In a circle each person has one mentor (the next one), one colleague and one sibling. Siblings share
    surname and parents; surnames recur in other circles.

    Raises:
        ConfigError: a count that is no multiple of 4, below 4 or above 800.
    """
    if not CIRCLE <= count <= MOST or count % CIRCLE:
        raise ConfigError(f"must be a multiple of {CIRCLE} up to {MOST}, got {count}.", "people")
    draws = random.Random(derive(seed, "people"))
    families = _families(draws)
    titles = [f"{first} {second}" for first in phrases.ADJECTIVES for second in phrases.NOUNS]
    draws.shuffle(titles)
    spare = {
        "name": [name for family in families[count // 2 :] for name in family],
        "book": titles[count:],
    }
    found: list[Person] = []
    for start in range(0, count, CIRCLE):
        first, second = families[start // 2 : start // 2 + 2]
        names = (first[0], second[0], first[1], second[1])
        found += _circle(names, titles[start : start + CIRCLE], spare, draws)
    return found


def world_facts(seed: int = 0) -> list[Record]:
    """The capital of each of 40 invented countries; the country is the subject."""
    draws = random.Random(derive(seed, "world"))
    capitals = draws.sample(phrases.CITIES, len(phrases.COUNTRIES))
    return [
        record(CAPITAL, country, capital, _others(phrases.CITIES, capital, draws), country)
        for country, capital in zip(phrases.COUNTRIES, capitals, strict=True)
    ]


def _asked(attributes: int) -> list[tuple[str, Phrasing]]:
    if not 1 <= attributes <= len(ATTRIBUTES):
        raise ConfigError(f"must be 1..{len(ATTRIBUTES)}, got {attributes}.", "attributes")
    return [*list(ATTRIBUTES.items())[:attributes], *RELATIONS.items()]


def _families(draws: random.Random) -> list[tuple[str, str]]:
    """Pairs of siblings, in random order; all names differ."""
    found = []
    for surname in phrases.LAST:
        names = [f"{first} {surname}" for first in draws.sample(phrases.FIRST, len(phrases.FIRST))]
        found += list(zip(names[::2], names[1::2], strict=True))
    draws.shuffle(found)
    return found


def _circle(
    names: Sequence[str], titles: Sequence[str], spare: Mapping[str, Sequence[str]], draws: random.Random
) -> list[Person]:
    parents = [{job: draws.choice(phrases.PROFESSIONS) for job in ("father", "mother")} for _ in range(2)]
    found = []
    for place, name in enumerate(names):
        values = {fact: draws.choice(pool) for fact, pool in _POOLS.items()}
        values |= parents[place % 2]
        values |= {
            "book": titles[place],
            "mentor": names[(place + 1) % CIRCLE],
            "colleague": names[place ^ 1],
            "sibling": names[(place + 2) % CIRCLE],
        }
        wrong = {
            fact: _others(
                spare["name"] if fact in RELATIONS else spare["book"] if fact == "book" else _POOLS[fact],
                value,
                draws,
            )
            for fact, value in values.items()
        }
        found.append(Person(name=name, values=values, wrong=wrong))
    return found


def _others(pool: Sequence[str], value: str, draws: random.Random) -> tuple[str, ...]:
    """A value for each perturbed answer and one for the alternative, none of them the true one."""
    return tuple(draws.sample([other for other in pool if other != value], PERTURBED + 1))
