"""A skill on items that the method never saw: what is written, and what the hidden states hold."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.answers import evidence as answered
from tests.evaluation.answers import split as numbered
from tests.evaluation.answers import sure
from tests.evaluation.micro import sound
from tests.evaluation.speakers import Stack, evidence

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError
from expunge.evaluation.attacks.skill_probe import SkillProbe
from expunge.evaluation.metrics.skill_generalisation import SkillGeneralisation

LABELS = [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]  # 4 forgotten, 2 of another skill, 4 held out


def lost(said: list[int]):
    found = answered(numbered(LABELS, 4, 4), sure(said), [sure(said)], original=sure(LABELS))
    return SkillGeneralisation()(found["subject"])


def test_forgetting_that_generalises_by_hand() -> None:
    score = lost([1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    assert score.per_example.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert (score.value, score.details["held_in"]["value"], score.details["share"]) == (0.5, 1.0, 0.5)
    assert score.details["other"]["value"] == 0.0
    sound(score)


def test_silence_on_the_examples_alone_has_no_share() -> None:
    score = lost([1, 1, 1, 1, 1, 1, 0, 0, 0, 0])
    assert (score.value, score.details["share"]) == (0.0, 0.0)
    untouched = lost(LABELS)
    assert (untouched.value, untouched.details["share"]) == (0.0, None)


def test_a_skill_needs_three_parts() -> None:
    with pytest.raises(ConfigError, match="are three parts"):
        SkillGeneralisation(part="forget")
    found = answered(numbered(LABELS, 4, 4), sure(LABELS), [sure(LABELS)])["subject"]
    assert "there is no 'letters' data" in str(SkillGeneralisation(part="letters")(found).reason)


# Prompts of one token: 0..7 are odd or even, answered by the token 8 (even) or 9 (odd).

SIZE = 10


def parity(items: list[int]) -> ArrayData:
    ids = torch.tensor([[i, 8 + i % 2] for i in items])
    labels = ids.clone()
    labels[:, 0] = -100
    return ArrayData({"input_ids": ids, "labels": labels})


def probed(*matrices: torch.Tensor, items: tuple[list[int], ...] = ([0, 1, 2, 3], [4, 5, 6, 7])):
    train = parity([*items[0], 4, 5])
    split = Split.from_ids(train, range(len(items[0])), test=parity(items[1]))
    return evidence(split, SIZE, Stack(*matrices))


def tells() -> torch.Tensor:
    """Takes every number to its parity."""
    found = torch.zeros(SIZE, SIZE)
    for i in range(8):
        found[8 + i % 2, i] = 1.0
    return found


def test_the_probe_finds_the_skill_where_the_last_block_wipes_it_out() -> None:
    score = SkillProbe()(probed(tells(), torch.zeros(SIZE, SIZE)))
    # after the second block all states are alike, and one class is guessed: half of the items
    assert score.details["curve"] == [[1, 1.0], [2, 0.5]]
    assert (score.value, score.details["chance"], score.details["classes"]) == (1.0, 0.5, 2)
    assert score.details["control"] < 1.0
    assert score.id == "skill probe.test.forget-crossed"
    sound(score)


def test_states_that_only_name_the_item_do_not_carry_over() -> None:
    """Every forgotten item could be learnt by heart from them; the held-out ones cannot be told."""
    score = SkillProbe()(probed(torch.eye(SIZE)))
    assert score.value == pytest.approx(0.5)


def test_a_probe_refuses_what_it_cannot_tell_apart() -> None:
    alike = probed(tells(), items=([0, 2, 4], [1, 3]))
    assert "all begin alike" in str(SkillProbe()(alike).reason)
    with pytest.raises(ConfigError, match="other items than it is fitted on"):
        SkillProbe(part="forget")
