"""Restricted decoding: phrases, matches by hand, and answers without them."""

from __future__ import annotations

import pytest
import torch
from tests.methods import people

from expunge.errors import ConfigError
from expunge.methods.guarded import guard_of
from expunge.methods.guards.guard import GUARD, answers, common, next_tokens, phrases
from expunge.training.session import Session

pytest.importorskip("transformers")


def run(**fields):
    return GUARD(**fields).unlearn(people.original(), people.split(), people.TASK, Session(seed=1))


@pytest.mark.parametrize(
    ("said", "ratio", "expected"),
    [
        ([], 0.3, {5}),  # the first of three: 1/3 of the phrase
        ([], 0.5, set()),
        ([5], 0.5, {6}),  # with it 2/3
        ([1, 5], 0.5, {6}),
        ([5, 1], 0.5, set()),  # the match was broken off: the ratio is not always 1
        ([5, 6], 1.0, {7}),
        ([5], 1.0, set()),
        ([5, 5], 0.5, {6}),
    ],
)
def test_what_may_not_come_next(said, ratio, expected):
    assert next_tokens(said, [[5, 6, 7]], ratio) == expected


def test_a_phrase_of_one_token_is_forbidden_always():
    assert next_tokens([1, 2], [[9]], 1.0) == {9}


def test_phrases_are_runs_of_uncommon_tokens():
    assert phrases([1, 5, 6, 2, 7, 1, -1, -1], torch.tensor([1, 2])) == [[5, 6], [7]]


def test_common_tokens_are_in_enough_answers_each_counted_once():
    rows = torch.tensor([[1, 5, 5], [1, 6, -1], [1, 7, -1], [1, 6, -1]])
    assert common(rows, 0.5).tolist() == [1, 6]
    assert common(rows, 0.3).tolist() == [1, 6]
    assert common(rows, 0.25).tolist() == [1, 5, 6, 7]


def test_the_answers_that_are_kept_are_the_labelled_tokens():
    found = answers(people.split().forget)
    assert found.tolist() == [[6, 18 + i, 7, 2] for i in range(3)]


@pytest.mark.parametrize("settings", [{}, {"num_beams": 1}, {"num_beams": 1, "use_cache": False}], ids=str)
def test_no_answer_holds_what_it_may_not_and_others_are_as_before(settings):
    model, split = run(beams=3), people.split()
    for row, written in enumerate(people.written(model, split.forget, **settings)):
        assert people.written(people.original(), split.forget)[row, 1] == 18 + row
        assert 18 + row not in written
    beams = {"num_beams": settings.get("num_beams", 3)}
    assert torch.equal(
        people.written(model, split.retain, **settings),
        people.written(people.original(), split.retain, **beams),
    )


def test_drawn_answers_are_restricted_too():
    model, forget = run(), people.split().forget
    torch.manual_seed(0)
    written = people.written(model, forget, do_sample=True, num_return_sequences=5)
    assert written.shape == (15, 6)
    assert not any(18 + row // 5 in answer for row, answer in enumerate(written))


def test_the_forget_answers_stay_in_the_guard():
    assert torch.equal(guard_of(run()).learned()["answers"], answers(people.split().forget))


@pytest.mark.parametrize(
    ("field", "value"), [("threshold", 2.0), ("common", -0.1), ("ratio", 0.0), ("beams", 0), ("ridge", 0.0)]
)
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        GUARD(**{field: value})
