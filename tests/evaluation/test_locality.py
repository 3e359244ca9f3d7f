"""The change from the forgotten subjects to their neighbours."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from tests.evaluation.micro import sound
from tests.evaluation.speakers import FACTS, Speaker, text_evidence, tokenizer

from expunge.data.text import Record, TextData
from expunge.errors import ConfigError
from expunge.evaluation.metrics.locality import Locality

NEAR = [
    Record(question=f"{ask} is near {who}?", answer=f"{name} Ardmor.", subject=who)
    for ask, who, name in (("Who", "Nora", "Otto"), ("What", "Nora", "Vera"), ("Who", "Vera", "Hugo"))
]
TRUTH = {record.question: record.answer for record in (*FACTS[:4], *NEAR)}


def made(silent: tuple[str, ...]):
    """A model that is silent on questions with these words, and an original that knows all."""
    words = tokenizer(*(text for r in NEAR for text in (r.question, r.answer)))

    def says(prompt: str) -> str:
        asked = next(question for question in TRUTH if question in prompt)
        return "I know not." if any(word in asked for word in silent) else TRUTH[asked]

    probes = {"self": TextData(FACTS[:4], words), "near": TextData(NEAR, words)}
    original = Speaker(lambda prompt: TRUTH[next(q for q in TRUTH if q in prompt)], words)
    return text_evidence(Speaker(says, words), tokenizer=words, probes=probes, original=original)


LOCAL = Locality(parts=("self", "near"))


def test_the_change_by_distance_and_the_worst_subject_first() -> None:
    score = LOCAL(made(("Which", "near Nora")))
    assert score.per_example.tolist() == [-1.0, -1.0, 0.0]
    assert score.value == pytest.approx(-2 / 3)
    assert score.details["curve"] == [[0, -1.0], [1, pytest.approx(-2 / 3)]]
    assert score.details["subjects"] == [
        {"subject": "Nora", "value": -1.0, "questions": 2},
        {"subject": "Vera", "value": 0.0, "questions": 1},
    ]
    assert score.id == "locality.near.30-tokens"
    sound(score)


def test_forgetting_that_stays_local_changes_nothing_near() -> None:
    score = LOCAL(made(("Which",)))
    assert (score.value, score.details["parts"][0]["value"]) == (0.0, -1.0)


def test_the_probability_is_another_definition() -> None:
    score = Locality(parts=("self", "near"), read="probability")(made(("Which", "near Nora")))
    assert score.variant == "probability"
    assert score.value < -0.3
    assert score.per_example[2] == pytest.approx(0.0, abs=1e-6)


def test_missing_probes_and_one_part_are_refused() -> None:
    assert "there is no 'forget_level2' data" in str(Locality()(made(())).reason)
    with pytest.raises(ConfigError, match="two or more parts"):
        Locality(parts=("near",))
