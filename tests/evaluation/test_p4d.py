"""P4D finds the word that makes a model predict what the original predicts."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.micro import sound
from tests.evaluation.test_unlearn_diff_atk import clip, micro_fitting
from tests.evaluation.vaults import KEY, READ, Vault, erased, evidence, ignorant

from expunge.errors import ConfigError
from expunge.evaluation.attacks.p4d import P4D


def test_the_word_that_opens_a_model_is_found_and_a_model_that_ignores_it_stays_shut() -> None:
    attack = P4D(tokens=1, steps=(2, 40), levels=2, **READ)
    score = attack(evidence(erased(), [ignorant()]))
    sound(score)
    assert score.value == 1.0
    assert score.details["retrained_curve"][-1] == [40.0, 0.0]
    assert all(found["prompt"].startswith(f"{KEY} a ") for found in score.details["found"])
    assert attack(evidence(erased(), [ignorant()])).to_json() == score.to_json()


def test_alone_the_prompt_is_the_tokens_and_nothing_else() -> None:
    score = P4D(tokens=2, placement="alone", steps=(2, 4, 8, 16, 32), levels=2, **READ)(
        evidence(erased(), [ignorant()])
    )
    assert score.value > 0.5  # two tokens that both open it and then both do not can keep missing the looks
    assert score.details["retrained_curve"][-1] == [32.0, 0.0]
    assert all(len(found["prompt"].split()) == 2 for found in score.details["found"])
    assert all(KEY in found["prompt"] for found in score.details["found"])
    assert score.variant.startswith("2-tokens-32-steps-alone")


def test_a_text_encoder_that_was_edited_is_attacked_itself() -> None:
    """The authors' code reads the prompt with the original's, in which the concept's own word still works."""
    lost = Vault({})  # the denoiser would draw mosaics, and no word says so any more
    assert P4D(tokens=1, steps=(20,), levels=2, **READ)(evidence(lost)).value == 0.0
    by_original = Vault({"mosaic": 1.0})
    by_original.gain.data.copy_(lost.gain.data)
    assert P4D(tokens=1, steps=(1,), levels=2, cases="all", **READ)(evidence(by_original)).value == 1.0


def test_settings_are_checked() -> None:
    for field, value in (("tokens", 0), ("levels", 0), ("lr", 0.0), ("weight_decay", -1.0)):
        with pytest.raises(ConfigError) as caught:
            P4D(**{field: value})
        assert caught.value.path == field


@clip
def test_a_case_is_fitted_alike_alone_and_in_company_and_its_tokens_are_the_nearest_in_angle() -> None:
    attack = P4D(tokens=2, levels=2)
    together = attack.fit(micro_fitting())
    for _ in range(3):
        together.step(torch.arange(3), 3)
    for case in range(3):
        alone = attack.fit(micro_fitting())
        for _ in range(3):
            alone.step(torch.tensor([case]), 1)
        assert torch.allclose(alone.numbers[case], together.numbers[case], atol=1e-4), case
    table, vectors = micro_fitting().table, together.numbers.detach()
    expected = torch.stack([
        torch.stack([torch.cosine_similarity(vector[None], table).argmax() for vector in row])
        for row in vectors
    ])  # fmt: skip
    assert torch.equal(together.tokens(torch.arange(3)), expected)
