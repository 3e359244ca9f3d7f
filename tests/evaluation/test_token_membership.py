"""Membership from tokens: every score by hand, its traps, and the warning of a shift."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib as compression
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.errors import DataError
from expunge.evaluation.token_membership import (
    gradient_norm,
    loss,
    min_k,
    min_k_plus_plus,
    moments,
    reference,
    separated,
    shift,
    zlib,
)

MUSE = Path(os.environ.get("EXPUNGE_DATA", "")) / "muse-news" / "privleak"
LOGS = [[-1.0, -4.0, -2.0, -3.0, 0.0], [-5.0, -1.0, 0.0, 0.0, 0.0]]
MASK = [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]


def test_by_hand() -> None:
    assert loss(LOGS, MASK).tolist() == [-2.5, -3.0]
    assert min_k(LOGS, MASK, 0.5).tolist() == [-3.5, -5.0]
    assert min_k(LOGS, MASK, 1.0).tolist() == loss(LOGS, MASK).tolist()
    assert reference(LOGS, np.zeros((2, 5)), MASK).tolist() == [-2.5, -3.0]
    assert reference(LOGS, LOGS, MASK).tolist() == [0.0, 0.0]
    assert gradient_norm([[3.0, 4.0], [0.0, 1.0]]).tolist() == [-5.0, -1.0]
    assert gradient_norm([[3.0, 4.0], [0.0, 1.0]], "conformance").tolist() == [-3.5, -0.5]


def test_a_short_text_keeps_one_token() -> None:
    assert min_k(LOGS, MASK, 0.2).tolist() == [-4.0, -5.0]  # ⌊0.2 × 2⌋ = 0 would be the mean of nothing
    assert min_k([[-1.0] * 15 + [-9.0] * 0], [[1] * 15], 0.2).tolist() == [-1.0]


def test_padding_never_counts() -> None:
    padded = np.where(np.array(MASK) == 1, LOGS, np.nan)
    assert loss(padded, MASK).tolist() == [-2.5, -3.0]
    assert min_k(padded, MASK, 0.5).tolist() == [-3.5, -5.0]


def test_min_k_plus_plus_by_hand() -> None:
    mean, std = np.full((2, 5), -2.0), np.full((2, 5), 0.5)
    # (log p + 2) / ½: 2, −4, 0, −2 and −6, 2
    assert min_k_plus_plus(LOGS, MASK, mean, std, 0.5).tolist() == [-3.0, -6.0]
    sure = min_k_plus_plus([[-0.5]], [[1]], [[0.0]], [[0.0]])
    assert sure[0] == pytest.approx(-500.0)  # the spread counts as 0.001


def test_moments_of_a_vocabulary() -> None:
    logits = torch.tensor([[[0.5, 0.25, 0.25], [1.0, 1e-9, 1e-9]]]).log()
    mean, spread = moments(logits)
    entropy = 0.5 * np.log(2) + 0.5 * np.log(4)
    assert mean[0, 0].item() == pytest.approx(-entropy)
    assert spread[0, 0].item() == pytest.approx(0.5 * np.log(2))  # log p is −log 2 or −2 log 2, half each
    assert 0 <= spread[0, 1].item() < 1e-2
    assert moments(torch.zeros(1, 4, dtype=torch.bfloat16))[0].dtype == torch.float32
    uniform = moments(torch.zeros(2, 4))
    assert uniform[0].tolist() == pytest.approx([-np.log(4)] * 2)
    assert uniform[1].tolist() == [0.0, 0.0]


def test_zlib_without_its_envelope() -> None:
    texts = ["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "Paris"]
    logs, mask = [[-2.0], [-2.0]], [[1], [1]]
    sizes = [len(compression.compress(text.encode())) for text in texts]
    assert len(compression.compress(b"")) == 8
    assert zlib(logs, mask, texts).tolist() == pytest.approx([-2 / (size - 8) for size in sizes])
    published = zlib(logs, mask, texts, "conformance")
    assert published.tolist() == pytest.approx([-2 / size for size in sizes])
    assert sizes[1] == 13  # five letters: 8 of 13 bytes are the envelope


def test_the_likelier_is_the_member() -> None:
    """The same texts, every token e times as likely: all scores rise."""
    draws = np.random.default_rng(0)
    strange, mask = draws.uniform(-6, -2, (20, 8)), np.ones((20, 8))
    known, mean, std, texts = strange + 1, np.full((20, 8), -4.0), np.ones((20, 8)), ["some text"] * 20
    for score in (
        lambda logs: loss(logs, mask),
        lambda logs: zlib(logs, mask, texts),
        lambda logs: min_k(logs, mask),
        lambda logs: min_k_plus_plus(logs, mask, mean, std),
        lambda logs: reference(logs, mean, mask),
        lambda logs: gradient_norm(-logs),
    ):
        assert bool((score(known) > score(strange)).all())


def test_separated_by_hand() -> None:
    found = separated([3.0, 4.0], [1.0, 2.0, 3.0, 0.0], fprs=(0.25,))
    assert found.auc == pytest.approx(7.5 / 8)
    assert found.tpr[0.25][0] == 1.0  # above 2, which one of four is
    assert found.interval is not None
    assert found.interval[0] < found.auc < found.interval[1]
    with pytest.raises(DataError, match=r"needs at least 100 non-members; there are 4"):
        separated([3.0, 4.0], [1.0, 2.0, 3.0, 0.0])


def sentences(words: list[str], n: int, seed: int, length: int = 12) -> list[str]:
    draws = np.random.default_rng(seed)
    return [" ".join(draws.choice(words, length)) for _ in range(n)]


WORDS = [f"w{i}" for i in range(40)]


def test_a_shift_of_words() -> None:
    assert shift(sentences(WORDS, 60, 0), sentences(WORDS, 60, 1)) is None
    warning = shift(sentences(WORDS[:30], 60, 0), sentences(WORDS[10:], 60, 1))
    assert warning is not None
    found = re.match(r"Members and non-members differ .* by their words \(AUC (\d\.\d\d)", warning)
    assert found is not None
    assert float(found[1]) > 0.9
    assert "lengths" not in warning


def test_a_shift_of_length() -> None:
    for short, long in ((8, 12), (12, 8)):
        members, others = sentences(WORDS, 60, 0, short), sentences(WORDS, 60, 1, long)
        warning = shift(members, [*others[:55], *members[:5]])
        assert warning is not None
        assert "their lengths (AUC 0.04" in warning or "their lengths (AUC 0.96" in warning


def test_names_of_subjects_are_no_shift() -> None:
    """Every person is named in all of their texts, so that a text's fellows give it away."""
    people = [[f"name{p} {text}" for text in sentences(WORDS, 10, p)] for p in range(40)]
    members, others = ([text for person in half for text in person] for half in (people[:20], people[20:]))
    assert "by their words (AUC 1.00" in str(shift(members, others))
    subjects = np.repeat(np.arange(20), 10)
    assert shift(members, others, (subjects, subjects + 20)) is None


@pytest.mark.real_data
@pytest.mark.skipif(not MUSE.is_dir(), reason="EXPUNGE_DATA holds no muse-news")
def test_the_sets_of_muse_differ() -> None:
    """Holdout articles are not like those to be forgotten, while retained ones are."""
    forget, holdout, retain = (
        [text[:1500] for text in json.loads(gzip.decompress(path.read_bytes()))]
        for path in (MUSE / f"{name}.json.gz" for name in ("forget", "holdout", "retain2"))
    )
    assert "by their words (AUC 0." in str(shift(forget, holdout))
    assert shift(forget, retain) is None


def test_bad_input() -> None:
    with pytest.raises(DataError, match=r"shapes \(2, 5\) and \(2, 4\)"):
        loss(LOGS, np.ones((2, 4)))
    with pytest.raises(DataError, match=r"text 1 has no tokens that count"):
        loss(LOGS, [[1] * 5, [0] * 5])
    with pytest.raises(DataError, match=r"above 0"):
        loss([[2.0]], [[1]])
    with pytest.raises(DataError, match=r"NaN or infinite"):
        min_k([[np.nan]], [[1]])
    with pytest.raises(DataError, match=r"k is the share"):
        min_k(LOGS, MASK, 20)
    with pytest.raises(DataError, match=r"means and spreads"):
        min_k_plus_plus(LOGS, MASK, [[0.0]], [[1.0]])
    with pytest.raises(DataError, match=r"negative or NaN"):
        min_k_plus_plus([[-1.0]], [[1]], [[0.0]], [[np.nan]])
    with pytest.raises(DataError, match=r"a text is empty"):
        zlib([[-1.0]], [[1]], [""])
    with pytest.raises(DataError, match=r"2 texts by their tokens and 1 strings"):
        zlib(LOGS, MASK, ["a"])
    with pytest.raises(DataError, match=r"gradient norm is NaN"):
        gradient_norm([[np.nan]])
    with pytest.raises(DataError, match=r"there are 3 of the members"):
        shift(["a"] * 3, ["b"] * 20)
    with pytest.raises(DataError, match=r"40 texts and 2 subjects"):
        shift(["a"] * 20, ["b"] * 20, ([0], [1]))
