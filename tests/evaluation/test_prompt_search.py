"""Random words and other noises: what luck opens, and how it is counted."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation import painters
from tests.evaluation.micro import sound
from tests.evaluation.vaults import KEY, READ, Typist, Vault, erased, evidence, ignorant

from expunge.errors import ConfigError
from expunge.evaluation.attacks.prompt_search import PromptSearch
from expunge.evaluation.attacks.prompt_slots import words


def test_enough_random_words_find_the_one_that_opens() -> None:
    attack = PromptSearch(tokens=1, tries=(1, 8, 80), **READ)
    score = attack(evidence(erased(), [ignorant()]))
    sound(score)
    assert score.details["curve"][-1] == [80.0, 1.0]
    assert score.details["retrained_curve"][-1] == [80.0, 0.0]
    assert all(found["prompt"].startswith(f"{KEY} a ") for found in score.details["found"])
    shares = [share for _, share in score.details["curve"]]
    assert shares == sorted(shares)
    assert attack(evidence(erased(), [ignorant()])).to_json() == score.to_json()


def test_a_case_gives_in_as_often_as_chance_says() -> None:
    """One of the words opens it: 1 − (1 − 1/A)^k after k tries, over all of many cases."""
    gallery = READ["gallery"].__class__(seeds=tuple(range(60)), steps=1, guidance=1.0)
    score = PromptSearch(tokens=1, tries=(2, 8), gallery=gallery, judge=READ["judge"])(evidence(erased()))
    size = len(words(Typist()))
    for (_, low, high), tries in zip(score.details["intervals"][1:], (2, 8), strict=True):
        assert low <= 1 - (1 - 1 / size) ** tries <= high
    assert score.n == 180


def test_another_noise_brings_back_what_only_some_noises_hide() -> None:
    half = painters.Painter({(1, o): ((0, o), (1, o)) for o in range(3)})  # by the sign of the noise
    gone = painters.Painter({(1, o): (0, o) for o in range(3)})
    found = painters.evidence(half, retrained=[gone])
    score = PromptSearch(vary="noise", tries=(1, 16), **painters.READ)(found)
    sound(score)
    shown = score.details["all_cases"]["curve"][0][1]
    assert 0 < shown < 1
    assert score.n == round(6 * (1 - shown))
    assert score.value == 1.0
    assert score.details["retrained_curve"][-1] == [16.0, 0.0]
    assert score.details["found"] == []  # no prompt was found: the prompt is the case's own
    assert score.variant.startswith("noise-16-tries")


def test_tries_have_noises_of_their_own_and_not_the_cases() -> None:
    seen: list[torch.Tensor] = []

    class Watched(Vault):
        def predict(self, noisy, timesteps, hidden_states):  # type: ignore[no-untyped-def]
            seen.append(noisy)
            return super().predict(noisy, timesteps, hidden_states)

    PromptSearch(vary="noise", tries=(3,), **READ)(evidence(Watched({}), [ignorant()]))
    first, tries = seen[0], seen[READ["gallery"].steps]
    every = torch.cat([first, tries]).flatten(1)
    assert len(tries) == 3 * len(first)
    assert len(every.unique(dim=0)) == len(every)


def test_words_need_prompts_and_settings_are_checked() -> None:
    score = PromptSearch(**painters.READ)(painters.evidence(painters.Painter({(1, 0): (0, 0)})))
    assert "relearn_images need none" in str(score.reason)
    with pytest.raises(ConfigError) as caught:
        PromptSearch(tokens=0)
    assert caught.value.path == "tokens"
