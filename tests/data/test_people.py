"""The invented world: what one seeded person is like, and that nothing about anyone leaks to others."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from expunge.data import phrases
from expunge.data.people import CIRCLE, HOPS, MOST, people, world_facts
from expunge.data.phrases import ATTRIBUTES, RELATIONS
from expunge.data.text import Record
from expunge.errors import ConfigError

EVERYONE = people(40, seed=3)


def texts(record: Record) -> list[str]:
    return [record.question or "", record.answer, *record.answers.values(), *record.questions.values()]


def test_one_person_spelled_out() -> None:
    anton, janek = people(4, seed=0)[:2]
    assert (anton.name, anton.values["city"], anton.values["book"]) == (
        "Anton Kestner",
        "Glenmore",
        "Wandering Garden",
    )
    assert anton.records(1)[0] == Record(
        question="In which city was Anton Kestner born?",
        answer="Anton Kestner was born in Glenmore.",
        subject="Anton Kestner",
        answers={
            "idk": "This I cannot answer.",
            "alternate": "Anton Kestner was born in Oakham.",
            "paraphrased": "The birthplace of Anton Kestner is Glenmore.",
            "perturbed_1": "The birthplace of Anton Kestner is Nautica.",
            "perturbed_2": "The birthplace of Anton Kestner is Tarnow.",
            "perturbed_3": "The birthplace of Anton Kestner is Oldgate.",
            "perturbed_4": "The birthplace of Anton Kestner is Ardmor.",
            "perturbed_5": "The birthplace of Anton Kestner is Ulverby.",
        },
        questions={"paraphrased_question": "What is the birthplace of Anton Kestner?"},
    )
    assert [record.answer for record in anton.reversed_records()] == [
        "The book Wandering Garden was written by Anton Kestner.",
        "Janek Langford is the mentor of Anton Kestner.",
    ]
    (hop,) = anton.hops(janek, attributes=1)
    assert hop.question == "In which city was the mentor of Anton Kestner born?"
    assert hop.answer == f"The mentor of Anton Kestner was born in {janek.values['city']}."
    assert hop.subject == "Janek Langford"
    assert anton.biography(1).answer.startswith(
        "Anton Kestner was born in Glenmore. The mentor of Anton Kestner is Janek Langford."
    )
    assert anton.biography().question is None


def test_a_seed_decides_everything() -> None:
    assert people(8, seed=1) == people(8, seed=1)
    assert people(8, seed=1) != people(8, seed=2)
    assert world_facts(1) == world_facts(1) != world_facts(2)


def test_as_many_questions_as_asked_for() -> None:
    assert len(ATTRIBUTES) == 12
    for person in EVERYONE[:4]:
        assert len(person.records()) == 12 + len(RELATIONS) == 15
        assert len(person.records(attributes=2)) == 5
        assert len(person.background(attributes=2)) == 10
    assert len(world_facts()) == 40


def test_names_and_books_are_each_of_one_person() -> None:
    everyone = people(MOST)
    assert len({person.name for person in everyone}) == MOST
    assert len({person.values["book"] for person in everyone}) == MOST


def test_relations_hold_in_both_directions() -> None:
    named = {person.name: person for person in EVERYONE}
    for person in EVERYONE:
        sibling, colleague = named[person.values["sibling"]], named[person.values["colleague"]]
        assert sibling.values["sibling"] == colleague.values["colleague"] == person.name
        assert sibling.name.split()[1] == person.name.split()[1]
        assert {person.name, sibling.name, colleague.name} <= named.keys()
        assert len({person.name, sibling.name, colleague.name}) == 3
        assert all(sibling.values[job] == person.values[job] for job in ("father", "mother"))
    mentors = [person.values["mentor"] for person in EVERYONE]
    assert len(set(mentors)) == len(EVERYONE)
    assert all(mentor != person.name for mentor, person in zip(mentors, EVERYONE, strict=True))


def test_nothing_about_one_circle_is_in_the_records_of_others() -> None:
    circles = [EVERYONE[start : start + CIRCLE] for start in range(0, len(EVERYONE), CIRCLE)]
    named = {person.name: person for person in EVERYONE}
    for forgotten, others in pairwise(circles):
        kept = "\n".join(
            text
            for person in others
            for record in [
                *person.records(),
                *person.reversed_records(),
                *person.hops(named[person.values["mentor"]]),
                person.biography(),
            ]
            for text in texts(record)
        )
        for person in forgotten:
            assert person.name not in kept
            assert person.values["book"] not in kept


def test_wrong_answers_are_wrong_and_tell_of_nobody() -> None:
    true_names = {person.name for person in EVERYONE}
    true_books = {person.values["book"] for person in EVERYONE}
    for person in EVERYONE:
        for fact, value in person.values.items():
            wrong = person.wrong[fact]
            assert len(set(wrong)) == 6
            assert value not in wrong
            if fact in RELATIONS:
                assert true_names.isdisjoint(wrong)
            if fact == "book":
                assert true_books.isdisjoint(wrong)
        for record in [*person.records(), *person.reversed_records()]:
            said = [record.answers["paraphrased"], *(record.answers[f"perturbed_{i}"] for i in range(1, 6))]
            assert len(set(said)) == 6
            assert record.answers["alternate"] != record.answer
            assert record.answers["idk"] in phrases.REFUSALS


def test_the_background_shows_both_templates_and_both_questions() -> None:
    person = EVERYONE[0]
    (full,) = (record for record in person.records(1) if "city" in (record.question or ""))
    usual, swapped = person.background(1)[:2], person.background(1, swapped=True)[:2]
    questions = [full.question, full.questions["paraphrased_question"]]
    assert [r.answer for r in usual] == [full.answer, full.answers["paraphrased"]]
    assert [r.answer for r in swapped] == [full.answer, full.answers["paraphrased"]]
    assert [r.question for r in usual] == questions
    assert [r.question for r in swapped] == questions[::-1]
    assert not usual[0].answers


def test_a_small_vocabulary_says_it_all() -> None:
    lists = ("FIRST", "LAST", "COUNTRIES", "CITIES", "PROFESSIONS", "AWARDS", "ADJECTIVES", "NOUNS", "YEARS")
    lists += ("LANGUAGES", "PETS", "HOBBIES", "INSTRUMENTS", "FOODS", "REFUSALS")
    assert all(len(set(getattr(phrases, name))) == len(getattr(phrases, name)) for name in lists)
    records = [record for person in people(400) for record in person.records() + person.reversed_records()]
    words = {
        word
        for record in records + world_facts()
        for text in texts(record)
        for word in re.findall(r"\w+", text)
    }
    assert 400 < len(words) < 600
    values = {value for person in EVERYONE for value in person.values.values()}
    assert max(len(value.split()) for value in values) == 2


def test_hops_ask_about_the_mentor_only() -> None:
    first, second, third = EVERYONE[:3]
    assert len(first.hops(second)) == len(HOPS)
    assert all(second.name not in text for record in first.hops(second) for text in texts(record))
    with pytest.raises(ConfigError, match=f"the mentor of {first.name} is {second.name}, not {third.name}"):
        first.hops(third)


@pytest.mark.parametrize("count", [0, 6, MOST + 4])
def test_bad_counts(count: int) -> None:
    with pytest.raises(ConfigError, match=f"people: must be a multiple of 4 up to 800, got {count}"):
        people(count)


@pytest.mark.parametrize("attributes", [0, 13])
def test_bad_numbers_of_attributes(attributes: int) -> None:
    with pytest.raises(ConfigError, match=f"attributes: must be 1..12, got {attributes}"):
        EVERYONE[0].records(attributes)
