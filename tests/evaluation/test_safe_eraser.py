"""Unsafe answers, refusals and over-refusal, told by words or by a judge, against answers that are chosen."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tests.evaluation.micro import sound
from tests.evaluation.speakers import Speaker, text_evidence
from tests.evaluation.speakers import tokenizer as words_of

from expunge import config
from expunge.data.text import Record, TextData
from expunge.errors import ConfigError
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.generation import Decoding
from expunge.evaluation.judges import refuses, verdict
from expunge.evaluation.metric import metrics
from expunge.evaluation.metrics.fiubench import KeyFacts, ProfileUtility
from expunge.evaluation.metrics.language import Rouge
from expunge.evaluation.metrics.leakage import Leakage
from expunge.evaluation.metrics.safe_eraser import AttackSuccess, OverRefusal, RefusalRate
from expunge.evaluation.metrics.tofu import TruthRatio

PEOPLE = ("Nora", "Otto", "Vera", "Hugo", "Lena")
HOMES = ("red barn", "blue tent", "grey ship", "oak cabin", "old mill")
SHAPES = ("circle", "square", "cross", "ring", "star")
REFUSAL = "That is nothing I know about."


def home(place: int) -> Record:
    who, wrong = PEOPLE[place], HOMES[place - 1]
    return Record(
        question=f"Where lives {who}?",
        answer=f"In a {HOMES[place]}.",
        subject=who,
        answers={
            "idk": REFUSAL,
            "near_miss": f"It is a {SHAPES[place]}.",
            "paraphrased": f"The home is a {HOMES[place]}.",
            "perturbed_1": f"The home is a {wrong}.",
        },
        questions={
            "near_miss": f"What shape has {who}?",
            "paraphrased_question": f"Which home has {who}?",
        },
    )


RECORDS = [home(place) for place in range(5)]
SHOWN = [
    Record(question=f"Which form has {PEOPLE[i]}?", answer=f"A {SHAPES[i]}.", subject=PEOPLE[i])
    for i in (0, 1, 4)
]
"""Harmless questions about two people who are to be forgotten and one who is not."""

SAID = {
    "Where lives Nora": "In a red barn.",
    "Where lives Otto": "Surely in a blue tent, or so.",
    "Where lives Vera": "That is nothing I know about.",
    "Where lives Hugo": "Nobody lives in a noble home.",
    "Where lives Lena": "In a old mill.",
    "What shape has Nora": "It is a circle.",
    "What shape has Otto": "I cannot say.",
    "What shape has Vera": "a a a a",
    "What shape has Hugo": "It is a star.",
    "Which home has Nora": "In a barn.",
    "Which home has Otto": "In a tent.",
    "Which home has Vera": "In a ship, grey.",
    "Which home has Hugo": "In a mill.",
    "Which form has Nora": "A circle.",
    "Which form has Otto": "I cannot say.",
}


def made(said: dict[str, str] = SAID, records: list[Record] = RECORDS) -> Evidence:
    spoken = [text for r in (*records, *SHOWN) for text in (
        r.question, r.answer, *r.questions.values(), *r.answers.values())]  # fmt: skip
    tokenizer = words_of(*spoken, *said.values())
    speaker = Speaker(
        lambda prompt: next((reply for asked, reply in said.items() if asked in prompt), "so"), tokenizer
    )
    shown = TextData(SHOWN, tokenizer)
    return text_evidence(speaker, speaker, tokenizer=tokenizer, records=records, probes={"shown": shown})


@pytest.mark.parametrize(
    ("said", "words", "published", "corrected"),
    [
        ("unsafe", ("unsafe", "safe"), True, True),
        ("Your output: safe.", ("unsafe", "safe"), False, False),
        ("not unsafe", ("unsafe", "safe"), True, None),
        ("This is safe, nothing unsafe in it", ("unsafe", "safe"), True, False),
        ("It isn't safe", ("unsafe", "safe"), False, None),
        ("harmful", ("unsafe", "safe"), None, None),
        ("Yes", ("yes", "no"), True, True),
        ("no", ("yes", "no"), False, False),
        ("I do not know", ("yes", "no"), False, None),
        ("No. Yesterday's answer was better.", ("yes", "no"), True, False),
    ],
)
def test_a_verdict_is_read_by_whole_words_and_as_published_by_parts_of_them(
    said: str, words: tuple[str, str], published: bool | None, corrected: bool | None
) -> None:
    assert verdict(said, *words, "conformance") is published
    assert verdict(said, *words) is corrected


def test_a_refusal_begins_with_whole_words_of_one_that_is_known() -> None:
    said = ["I'm sorry, but no.", "I do not know.", "Nobody knows.", "A noble can't.", "Not told, sorry.", ""]
    assert refuses(said).tolist() == [True, True, False, False, False, False]
    assert refuses(said, ["Not told", ""]).tolist() == [True, True, False, False, True, False]


def test_unsafe_answers_and_refusals_are_counted_apart() -> None:
    found = made()
    attack, refused = AttackSuccess()(found), RefusalRate()(found)
    assert attack.per_example.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert refused.per_example.tolist() == [0.0, 0.0, 1.0, 0.0]
    assert (attack.value, attack.target, attack.id) == (0.5, "retrained", "attack success.forget")
    assert (refused.value, refused.id) == (0.25, "refusal rate.forget")
    for score in (attack, refused):
        sound(score)


def test_over_refusal_counts_refusals_and_what_is_no_answer() -> None:
    score = OverRefusal()(made())
    assert score.per_example.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert score.details == {"refused": 0.25, "not_told": 0.75}
    assert (score.target, score.id) == ("low", "over-refusal.forget.near-miss")
    alone = OverRefusal(read="refused")(made())
    assert alone.per_example.tolist() == [0.0, 1.0, 0.0, 0.0]  # who only babbles refuses nothing
    sound(score)


def test_a_probe_is_asked_about_the_forgotten_alone() -> None:
    score = OverRefusal(ask="shown")(made())
    assert (score.value, score.n, score.part) == (0.5, 2, "shown")  # Lena is kept: her question is not asked
    sound(score)
    kept = OverRefusal(part="retain", ask="shown")(made())
    assert (kept.value, kept.n) == (1.0, 1)


def test_several_samples_are_averaged() -> None:
    decoding = Decoding(temperature=1e-3, samples=3)
    score = AttackSuccess(decoding=decoding)(made())
    assert score.per_example.tolist() == pytest.approx([1, 1, 0, 0])
    assert score.id == "attack success.forget.t0.001-k3"


@pytest.fixture
def judge(tmp_path: Path):
    """A judge that says given words of the answers in turn, and is handed questions and answers."""

    def written(says: list[object]) -> str:
        file = tmp_path / f"judge{len(list(tmp_path.iterdir()))}.py"
        file.write_text(
            f"SAYS = {says!r}\n\ndef judge(questions, answers):\n"
            "    assert questions[0].startswith('Wh') and len(questions) == len(answers)\n    return SAYS\n"
        )
        return f"{file}:judge"

    return written


def test_a_judges_words_are_read_and_as_published_misread(judge) -> None:
    name = judge(["unsafe", "not unsafe", "safe", "I do not know"])
    right, published = (
        AttackSuccess(judge=name)(made()),
        AttackSuccess(judge=name, definition="conformance")(made()),
    )
    assert (right.value, right.n, right.details["unread"]) == (0.5, 2, 2)
    assert (published.value, published.n) == (0.5, 4)
    assert published.id == "attack success.forget.judge-conformance"
    name = judge(["yes", "Yesterday it was", "no", "I do not know"])
    assert RefusalRate(judge=name)(made()).value == 0.5  # yes and no; the others say neither
    assert RefusalRate(judge=name, definition="conformance")(made()).value == 0.5  # yes, yes, no, no


def test_yes_is_a_refusal_in_one_template_and_a_normal_answer_in_the_other(judge) -> None:
    name = judge(["yes", "yes", "yes", "no"])
    assert RefusalRate(judge=name)(made()).value == 0.75
    assert OverRefusal(judge=name)(made()).value == 0.25
    unsure = judge(["yes", "nothing to say", "I know it", "yes"])
    assert OverRefusal(judge=unsure, definition="conformance")(made()).value == 0.5  # "no" inside words
    assert OverRefusal(judge=unsure)(made()).value == 0.0


@pytest.mark.parametrize(
    ("says", "said"),
    [
        (["safe"], "must return a list of 4 texts"),
        ([1, 2, 3, 4], "must return a list of 4 texts"),
        (["?"] * 4, r"none of the 4 verdicts .* says unsafe or safe; the first is '\?'"),
    ],
)
def test_a_judge_that_says_nothing_is_no_judge(judge, says: list[object], said: str) -> None:
    score = AttackSuccess(judge=judge(says))(made())
    assert re.search(said, score.reason)


def test_what_is_misread_without_a_judge_is_nothing() -> None:
    with pytest.raises(ConfigError, match="there is no judge. Give judge="):
        RefusalRate(definition="conformance")


def test_questions_that_nobody_brings_are_refused() -> None:
    score = OverRefusal(ask="safe")(made())
    assert (
        "no probe 'safe', and 4 of 4 forget records have no question of that name. Give them" in score.reason
    )
    other = OverRefusal(part="retain", ask="shown")(
        made(records=[*RECORDS[:4], dataclasses.replace(home(3), subject="Tom")])
    )
    assert "no question of 'shown' is about a subject of retain" in other.reason


def test_key_facts_are_the_words_that_were_said() -> None:
    score = KeyFacts()(made())
    assert score.per_example.tolist() == [1.0, 1.0, 0.0, 0.0]
    asked = KeyFacts(ask="paraphrased_question")(made())
    assert asked.per_example.tolist() == [0.5, 0.5, 1.0, 0.0]  # "barn" of "red barn"
    assert asked.id == "key facts.forget.paraphrased-question"
    assert AttackSuccess(ask="paraphrased_question", match="key_words")(made()).value == 0.25
    sound(asked)


def test_as_published_a_key_word_is_found_inside_another() -> None:
    party = dataclasses.replace(
        home(3),
        answer="He makes art.",
        answers={**home(3).answers, "paraphrased": "It is art that he makes."},
    )
    found = made({**SAID, "Where lives Hugo": "He makes a party."}, [*RECORDS[:3], party, RECORDS[4]])
    assert KeyFacts()(found).per_example.tolist()[3] == pytest.approx(2 / 3)  # he makes, but not art
    assert KeyFacts(definition="conformance")(found).per_example.tolist()[3] == 1.0
    assert KeyFacts(definition="conformance")(found).id == "key facts.forget.substrings-conformance"


def test_profile_utility_is_the_harmonic_mean_of_what_the_other_metrics_say() -> None:
    found = made({**SAID, "Where lives Lena": "In a barn of an old mill."})
    found = dataclasses.replace(found, parts={**found.parts, "retain": found.parts["forget"]})
    found.subject.parts = {**found.subject.parts, "retain": found.parts["retain"]}
    score = ProfileUtility()(found)
    parts = score.details["parts"]
    assert parts["rouge"] == Rouge()(found).value
    assert parts["key_facts"] == KeyFacts()(found).value == 0.5
    assert parts["truth"] == pytest.approx(TruthRatio(read="truthfulness")(found).value)
    assert set(parts) == {"rouge", "probability", "truth", "key_facts"}
    if min(parts.values()) > 0:
        assert score.value == pytest.approx(4 / sum(1 / value for value in parts.values()))
    else:
        assert score.value == 0.0
    assert score.details["weakest"] == min(parts, key=parts.get)


def test_as_published_a_number_that_is_missing_raises_the_mean() -> None:
    bare = [dataclasses.replace(record, answers={"idk": REFUSAL}, questions={}) for record in RECORDS]
    found = made({**SAID, "Where lives Lena": "In a old mill."}, bare)
    assert "has no wrong answers" in ProfileUtility()(found).reason
    published = ProfileUtility(definition="conformance")(found)
    assert published.value == 1.0  # its ROUGE alone
    assert published.details["dropped"] == ["probability", "truth", "key_facts"]


@pytest.mark.parametrize(
    "name", ["attack_success", "refusal_rate", "over_refusal", "key_facts", "profile_utility"]
)
def test_the_configuration_survives_a_round_trip(name: str) -> None:
    metric = metrics.get(name)()
    assert config.build(metrics, json.loads(json.dumps(config.dump(metric)))) == metric


def test_one_answer_to_a_question_is_written_for_all_metrics_that_decode_alike() -> None:
    found = made()
    calls: list[str] = []
    reply = found.subject.model.reply
    found.subject.model.reply = lambda prompt: calls.append(prompt) or reply(prompt)
    AttackSuccess()(found)
    first = len(calls)
    assert first > 0
    RefusalRate()(found), Leakage()(found), KeyFacts()(found)
    assert len(calls) == first
