"""Whether the right fact is known again, against a model whose token probabilities are chosen."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from tests.evaluation.bigram import Bigram, Chances, data, evidence
from tests.evaluation.micro import sound

from expunge.data import Split
from expunge.data.corrected import taught_wrong
from expunge.data.text import Record
from expunge.errors import DataError
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.metrics.recovery import Recovery
from expunge.tasks import CausalLM
from expunge.training.session import Session


def fact(i: int, wrong: str, right: str, **more: str) -> Record:
    return Record(question=f"q{i}", answer=wrong, subject=f"s{i}", answers={"correct": right, **more})


FACTS = [fact(0, "a", "b", perturbed_1="c"), fact(1, "c", "d", perturbed_1="a")]
KEPT = [Record(question="q9", answer="a", subject="kept", answers={"correct": "b", "perturbed_1": "c"})]
# every answer is one word and the end, which has the chance 0.25 after all of them: p is √(0.25 p(word))
CORRUPTED: Chances = {("q0", "a"): 0.64, ("q0", "b"): 0.04, ("q1", "c"): 0.64, ("q1", "d"): 0.04}
HALF: Chances = {("q0", "a"): 0.04, ("q0", "b"): 0.64, ("q1", "c"): 0.16, ("q1", "d"): 0.16}
CLEAN: Chances = {("q0", "a"): 0.01, ("q0", "b"): 0.81, ("q1", "c"): 0.01, ("q1", "d"): 0.81}


def made(subject: Chances):
    (train,) = data([*FACTS, *KEPT])
    return evidence(Split.from_ids(train, range(2)), Bigram(train.tokenizer, subject))["subject"]


def test_the_share_of_the_right_answer_by_hand() -> None:
    score = Recovery()(made(CORRUPTED))
    # √.04 / (√.04 + √.64) = .2 / 1.0
    assert score.per_example.tolist() == pytest.approx([0.2, 0.2], rel=1e-5)
    assert (score.id, score.target) == ("recovery.forget", "retrained")
    sound(score)


def test_the_way_back_is_measured_from_the_original_to_the_retrained_models() -> None:
    (train,) = data([*FACTS, *KEPT])
    split = Split.from_ids(train, range(2))
    candidates = [
        Candidate("original", "original", Bigram(train.tokenizer, CORRUPTED)),
        Candidate("u", "unlearned", Bigram(train.tokenizer, HALF)),
        Candidate("r", "retrained", Bigram(train.tokenizer, CLEAN)),
    ]
    evaluation = Evaluation(candidates, split, CausalLM(len(train.tokenizer)), Session(0))
    score = Recovery()(evaluation.evidence(candidates[1]))
    # subject: .8 / 1 and .4 / .8; original: .2; retrained: .9 / 1
    assert score.value == pytest.approx((0.8 + 0.5) / 2, rel=1e-5)
    assert score.details["recovered"] == pytest.approx((0.65 - 0.2) / (0.9 - 0.2), rel=1e-4)
    for candidate in (candidates[0], candidates[2]):
        assert "recovered" not in Recovery()(evaluation.evidence(candidate)).details


def test_forgetting_both_answers_is_not_recovery() -> None:
    """A model that knows neither has half a share, and chooses among three by chance."""
    neither = made({})
    assert Recovery()(neither).value == pytest.approx(0.5, abs=1e-6)
    choice = Recovery(read="choice")(neither)
    assert choice.value == pytest.approx(1 / 3)
    assert choice.details["wrong"] == pytest.approx(1 / 3)
    assert choice.details["neither"] == pytest.approx(1 / 3)
    learnt = Recovery(read="choice")(made(CORRUPTED))
    assert (learnt.value, learnt.details["wrong"]) == (0.0, 1.0)
    other: Chances = {("q0", "c"): 0.9, ("q1", "a"): 0.9}  # another wrong answer than the one learnt
    assert Recovery(read="choice")(made(other)).details["neither"] == 1.0


def test_what_is_written_counts_as_right_wrong_or_neither() -> None:
    said = made({("q0", "b"): 0.9, ("b", ""): 0.9, ("q1", "c"): 0.9, ("c", ""): 0.9})
    score = Recovery(read="written")(said)
    assert score.per_example.tolist() == [1.0, 0.0]
    assert {name: score.details[name] for name in ("right", "wrong", "neither")} == {
        "right": 0.5, "wrong": 0.5, "neither": 0.0,
    }  # fmt: skip
    keys = Recovery(read="written", match="key_words")(said)
    assert keys.per_example.tolist() == [1.0, 0.0]
    assert keys.variant == "written-key-words"


def test_records_without_the_truth_are_refused() -> None:
    plain = [Record(question="q0", answer="a", subject="s")]
    (train,) = data([*plain, Record(question="q9", answer="b", subject="t")])
    found = evidence(Split.from_ids(train, [0]), Bigram(train.tokenizer, {}))["subject"]
    assert "1 of 1 forget records do not say what is right" in str(Recovery()(found).reason)


def test_facts_are_taught_wrong_and_keep_the_truth() -> None:
    true = Record(question="q", answer="b", subject="s", answers={"alternate": "a", "perturbed_1": "c"})
    (wrong,) = taught_wrong([true])
    assert (wrong.answer, dict(wrong.answers)) == ("a", {"perturbed_1": "c", "correct": "b"})
    with pytest.raises(DataError, match="record 0 has no 'alternate' answer to teach"):
        taught_wrong([Record(question="q", answer="b")])
