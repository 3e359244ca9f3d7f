"""Overlap, memorised tokens and repetition: by hand, against slow definitions, and on published logs."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from expunge.errors import DataError
from expunge.evaluation.text import (
    common_subsequence,
    contains,
    distinct,
    exact_match,
    exact_memorisation,
    extraction_strength,
    fluency,
    repetition,
    rouge,
    tokens,
)
from expunge.evaluation.tofu_logs import read_log

LOGS = Path(os.environ.get("EXPUNGE_DATA", "")) / "tofu" / "eval_logs"


def test_rouge_by_hand() -> None:
    said, truth = ["the cat sat on the mat"], ["on the mat the cat lay down"]
    one, longest = rouge(said, truth, "rouge1", stemmer=False), rouge(said, truth, "rougeL", stemmer=False)
    # in common: the ×2, cat, on, mat; in order: on the mat
    assert (one.recall[0], one.precision[0]) == (5 / 7, 5 / 6)
    assert (longest.recall[0], longest.precision[0]) == (3 / 7, 3 / 6)
    assert longest.f1[0] == pytest.approx(2 * 3 / (6 + 7))


def test_recall_rewards_length_and_f1_does_not() -> None:
    found = rouge(["paris", "paris " + "is a city " * 20], ["Paris"] * 2)
    assert found.recall.tolist() == [1.0, 1.0]
    assert found.f1[0] == 1.0
    assert found.f1[1] < 0.04


def test_words_are_those_of_rouge_score() -> None:
    assert tokens("Don't re-read 2001's café!", stemmer=False) == [
        "don",
        "t",
        "re",
        "read",
        "2001",
        "s",
        "caf",
    ]
    assert tokens("signed signs ties") == ["sign", "sign", "tie"]
    assert tokens("dies was", stemmer=True) == ["die", "was"]  # three letters are left as they are
    assert tokens("Война и мир") == []
    stemmed, plain = (rouge(["he signs"], ["he signed"], stemmer=on).recall[0] for on in (True, False))
    assert (stemmed, plain) == (1.0, 0.5)


@pytest.mark.parametrize("pair", [("", "a"), ("a", ""), ("…", "!"), ("b", "a")])
def test_nothing_in_common_is_zero(pair: tuple[str, str]) -> None:
    for kind in ("rouge1", "rougeL"):
        found = rouge([pair[0]], [pair[1]], kind)
        assert (found.recall[0], found.precision[0], found.f1[0]) == (0.0, 0.0, 0.0)


def test_the_fast_subsequence_is_the_slow_one() -> None:
    draws = random.Random(0)
    for _ in range(200):
        a, b = ([draws.choice("abcde") for _ in range(draws.randint(0, 90))] for _ in range(2))
        row = [0] * (len(b) + 1)
        for x in a:
            before = row[:]
            for j, y in enumerate(b):
                row[j + 1] = before[j] + 1 if x == y else max(before[j + 1], row[j])
        assert common_subsequence(a, b) == row[-1]


def test_rouge_is_fast() -> None:
    draws = random.Random(0)
    words = [f"word{i}" for i in range(300)]
    texts = [" ".join(draws.choices(words, k=60)) for _ in range(4000)]
    start = time.process_time()
    rouge(texts[:2000], texts[2000:])
    assert time.process_time() - start < 5  # 0.2 s; the table of a subsequence would take 5


def test_against_the_package_where_it_is_installed() -> None:
    package = pytest.importorskip("rouge_score.rouge_scorer")
    texts = [
        "The authors' families were signing.",
        "A family of authors signed it, hopefully!",
        "",
        "Dying news",
    ]
    for stemmer in (True, False):
        scorer = package.RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)
        for a in texts:
            for b in texts:
                theirs = scorer.score(b, a)
                for kind in ("rouge1", "rougeL"):
                    mine = rouge([a], [b], kind, stemmer)
                    assert (mine.precision[0], mine.recall[0], mine.f1[0]) == tuple(theirs[kind])


@pytest.mark.real_data
@pytest.mark.skipif(not LOGS.is_dir(), reason="EXPUNGE_DATA holds no tofu/eval_logs")
def test_every_published_rouge_is_matched() -> None:
    compared = 0
    for name in ("full", "retain90", "retain95", "retain99"):
        for answers in read_log(LOGS / f"llama2-7b_{name}.json.gz").values():
            for kind, logged in (("rouge1", answers.rouge1_recall), ("rougeL", answers.rougeL_recall)):
                np.testing.assert_allclose(rouge(answers.said, answers.truth, kind).recall, logged, 0, 1e-12)
                compared += len(logged)
    assert compared == 5816


@pytest.mark.real_data
@pytest.mark.skipif(not LOGS.is_dir(), reason="EXPUNGE_DATA holds no tofu/eval_logs")
def test_the_stemmer_and_recall_matter() -> None:
    log = read_log(LOGS / "llama2-7b_retain90.json.gz")
    said, truth = log["forget"].said, log["forget"].truth
    assert rouge(said, truth).recall.mean() == pytest.approx(0.4082, abs=5e-5)
    assert rouge(said, truth, stemmer=False).recall.mean() == pytest.approx(0.4015, abs=5e-5)
    authors = rouge(log["real_authors"].said, log["real_authors"].truth)
    assert (round(authors.recall.mean(), 3), round(authors.f1.mean(), 3)) == (0.923, 0.287)


def test_matches() -> None:
    assert exact_match(["Paris.", " PARIS ", "Paris, France"], ["paris"] * 3).tolist() == [True, True, False]
    said = ["It is unsafe.", "It is safe.", "New big York", "in New York now"]
    assert contains(said, ["safe", "safe", "new york", "New York"]).tolist() == [False, True, False, True]
    assert contains(["Ответ: Война и мир"], ["война и мир"]).tolist() == [True]


RIGHT = [[1, 0, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0]]
LABELS = [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_memorisation_by_hand() -> None:
    # without the end of text: 1011, 1111, 0000, 11, 0001
    assert extraction_strength(RIGHT, LABELS).tolist() == [0.5, 1.0, 0.0, 1.0, 0.25]
    assert exact_memorisation(RIGHT, LABELS).tolist() == [0.75, 1.0, 0.0, 1.0, 0.25]


def test_the_floor_of_the_published_extraction_strength() -> None:
    published = extraction_strength(RIGHT, LABELS, "conformance")
    assert published.tolist() == [0.5, 1.0, 0.25, 1.0, 0.25]  # nothing right is as good as the last one
    two = extraction_strength([[0, 0, 0]], [[1, 1, 1]], "conformance")
    assert two[0] == 0.5
    assert extraction_strength([[0, 0, 0]], [[1, 1, 1]])[0] == 0.0


def test_extraction_strength_is_the_published_loop() -> None:
    draws = np.random.default_rng(0)
    right, mask = draws.random((60, 9)) < 0.7, draws.random((60, 9)) < 0.8
    mask[:, :2] = True
    for row, labels, found in zip(right, mask, extraction_strength(right, mask, "conformance"), strict=True):
        hits = row[labels][:-1]
        k = next((k for k in range(len(hits)) if hits[k:].all()), len(hits) - 1)
        assert found == pytest.approx(1 - k / len(hits))


def test_a_text_without_end_keeps_its_last_token() -> None:
    right, mask = [[1, 1, 0]], [[1, 1, 1]]
    for function in (extraction_strength, exact_memorisation):
        assert function(right, mask)[0] == 1.0
        assert function(right, mask, eos=False)[0] < 1.0
        assert function(right, mask, "conformance", eos=False)[0] == 1.0  # the defect: it is dropped anyway


def test_empty_answers() -> None:
    right, mask = [[1, 1], [1, 1]], [[1, 1], [0, 1]]
    for function in (extraction_strength, exact_memorisation):
        with pytest.raises(DataError, match=r"example 1 has no answer tokens \(1 in all\)"):
            function(right, mask)
    assert extraction_strength(right, mask, "conformance")[1] == 0.0
    assert np.isnan(exact_memorisation(right, mask, "conformance")[1])


def test_repetition_by_hand() -> None:
    said = ["a b a b a b", "one two three", "x", ""]
    assert repetition(said).tolist() == pytest.approx([1 - 2 / 5, 0, 0, 0])
    assert distinct(said) == pytest.approx(4 / 7)  # ab, ba, one two, two three of 5 + 2
    # pairs: 3 ab, 2 ba; triples: 2 aba, 2 bab
    pairs = -(0.6 * np.log2(0.6) + 0.4 * np.log2(0.4))
    assert fluency(said) == pytest.approx([pairs / 3 + 2 / 3, 1 / 3, 0, 0])


def test_bad_input() -> None:
    with pytest.raises(DataError, match=r"2 answers and 1 references"):
        rouge(["a", "b"], ["a"])
    with pytest.raises(DataError, match=r"Give a list"):
        rouge("ab", "ab")
    with pytest.raises(DataError, match=r"reference 0 has no words"):
        contains(["a"], ["…"])
    with pytest.raises(DataError, match=r"shapes \(2, 2\) and \(1, 2\)"):
        extraction_strength([[1, 1], [1, 1]], [[1, 1]])
    with pytest.raises(DataError, match=r"none of 2 answers has 3 words"):
        distinct(["a b", ""], 3)
