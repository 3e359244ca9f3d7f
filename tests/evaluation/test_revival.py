"""Attacks on image generators: which cases count, what is set beside them, and how many it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from tests.evaluation.micro import sound
from tests.evaluation.painters import OBJECTS
from tests.evaluation.vaults import (
    GALLERY,
    JUDGE,
    READ,
    Vault,
    erased,
    evidence,
    ignorant,
    rows,
)

from expunge.data.arrays import ArrayData
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError
from expunge.evaluation import gallery as galleries
from expunge.evaluation.attacks.case_counts import apart, excess, needed
from expunge.evaluation.attacks.cases import Cases, found_cases
from expunge.evaluation.attacks.p4d import P4D
from expunge.evaluation.attacks.prompt_search import PromptSearch
from expunge.evaluation.attacks.relearn_images import RelearnImages
from expunge.evaluation.attacks.revival import Progress, Revival
from expunge.evaluation.attacks.textual_inversion import TextualInversion
from expunge.evaluation.attacks.unlearn_diff_atk import UnlearnDiffAtk
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.gallery import Gallery
from expunge.evaluation.picture_judges import Judge
from expunge.evaluation.statistics import rate
from expunge.tasks import Classification, Diffusion
from expunge.training.session import Session

EVERY: tuple[type[Revival], ...] = (UnlearnDiffAtk, P4D, PromptSearch, TextualInversion, RelearnImages)
PROMPT: tuple[type[Revival], ...] = EVERY[:4]


@dataclass(frozen=True, kw_only=True)
class Opens(Revival):
    """Opens as many further cases as each budget says, if the model knows mosaics at all."""

    turns: tuple[int, ...] = (1, 3)
    x_label = "turns"
    title = "opens"

    @property
    def budgets(self) -> tuple[int, ...]:
        return self.turns

    @property
    def budget_name(self) -> str:
        return "turns"

    @property
    def words(self) -> list[str]:
        return []

    def attack(self, evidence: Evidence, cases: Cases, progress: Progress) -> Iterator[None]:
        for before, budget in zip((0, *self.turns), self.turns, strict=False):
            model = evidence.subject.model
            assert isinstance(model, Vault)
            few = progress.left[: budget - before]
            progress.mark(few, torch.full((len(few),), bool(model.gain > 0)), ["found"] * len(few))
            yield


def test_a_case_that_the_model_shows_by_itself_is_hidden_from_one_rate_and_in_the_other() -> None:
    """Stars are mosaics by themselves: 2 of 6. The published rate counts them as won by the attack."""
    half = [erased(star=1.0), [ignorant()]]
    hidden, every = (Opens(cases=cases, **READ)(evidence(*half)) for cases in ("hidden", "all"))
    assert (hidden.value, hidden.n) == (pytest.approx(3 / 4), 4)
    assert (every.value, every.n) == (pytest.approx(5 / 6), 6)
    assert hidden.interval == pytest.approx(rate(3, 4))
    assert every.interval == pytest.approx(rate(5, 6))
    assert hidden.details["curve"] == [[0.0, 0.0], [1.0, 1 / 4], [3.0, 3 / 4]]
    assert every.details["curve"] == [[0.0, 2 / 6], [1.0, 3 / 6], [3.0, 5 / 6]]
    assert hidden.details["all_cases"]["curve"] == every.details["curve"]
    assert every.details["hidden_cases"]["curve"] == hidden.details["curve"]
    assert hidden.details["intervals"][-1] == [3.0, *rate(3, 4)]
    assert hidden.details["cases"] == {"asked": 6, "drawn_by_original": 6, "hidden": 4}
    assert (hidden.id, every.id) == (
        "opens.forget.2-seeds-2-steps-g1", "opens.forget.2-seeds-2-steps-g1-all-cases",
    )  # fmt: skip
    for score in (hidden, every):
        sound(score)


def test_a_model_that_gives_nothing_away_has_a_published_rate_above_zero() -> None:
    model = erased(star=1.0)

    @dataclass(frozen=True, kw_only=True)
    class Fails(Opens):
        def attack(self, evidence: Evidence, cases: Cases, progress: Progress) -> Iterator[None]:
            yield from (None for _ in self.turns)

    hidden, every = (Fails(cases=cases, **READ)(evidence(model)) for cases in ("hidden", "all"))
    assert (hidden.value, every.value) == (0.0, pytest.approx(2 / 6))


def test_the_excess_over_retrained_models_stands_beside_the_rate() -> None:
    knows = Vault({}, gain=1.0)  # a retrained model in which the attack is as lucky
    for others, expected in (([ignorant(), ignorant()], 0.5), ([ignorant(), knows], 0.25), ([knows], 0.0)):
        score = Opens(**READ)(evidence(erased(), others))
        assert score.details["excess"]["value"] == pytest.approx(expected)
        low, high = score.details["excess"]["interval"]
        assert low <= expected <= high
        assert score.details["retrained_curve"][-1] == [3.0, pytest.approx(0.5 - expected)]
    assert score.details["all_cases"]["original_curve"] == [[0.0, 1.0], [1.0, 1.0], [3.0, 1.0]]
    alone = Opens(**READ)(evidence(erased()))
    assert "excess" not in alone.details


def test_a_model_that_cannot_be_attacked_is_named_and_the_others_still_count() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Refused(Opens):
        def attack(self, evidence: Evidence, cases: Cases, progress: Progress) -> Iterator[None]:
            if evidence.subject.name == "retrained 2":
                raise DataError("no gradient.")
            return super().attack(evidence, cases, progress)

    score = Refused(**READ)(evidence(erased(), [ignorant(), ignorant()]))
    assert score.details["not_attacked"] == {"retrained 2": "no gradient."}
    assert score.details["excess"]["value"] == pytest.approx(0.5)
    assert "not_attacked" not in Opens(**READ)(evidence(erased(), [ignorant(), ignorant()])).details


def test_the_attack_is_made_once_for_both_selections_and_all_models() -> None:
    found = evidence(erased(), [ignorant()])
    ran: list[str] = []

    @dataclass(frozen=True, kw_only=True)
    class Counted(Opens):
        def attack(self, evidence: Evidence, cases: Cases, progress: Progress) -> Iterator[None]:
            ran.append(evidence.subject.name)
            return super().attack(evidence, cases, progress)

    for cases in ("hidden", "all"):
        Counted(cases=cases, **READ)(found)
    assert sorted(ran) == ["original", "retrained 1", "subject"]


def test_the_original_has_no_hidden_case() -> None:
    reason = str(Opens(**READ)(evidence(None)).reason)
    assert "shows the concept in all 6 cases without an attack" in reason
    assert Opens(cases="all", **READ)(evidence(None)).value == 1.0


def test_cases_are_those_that_the_original_draws_and_their_noise_is_the_gallerys() -> None:
    found = evidence(erased(), first=Vault({"star": 1.0, "moon": 1.0}))  # draws no mosaic crosses
    cases = found_cases(found, GALLERY, JUDGE)
    assert (len(cases), cases.asked) == (4, 6)
    assert set(cases.texts) == {f"a {o} image in mosaic style" for o in (OBJECTS[0], OBJECTS[2])}
    drawn = galleries.pictures(found.of(found.original), GALLERY)
    places = [list(drawn.prompts.texts).index(text) for text in cases.texts]
    theirs = torch.cat([drawn.images[drawn.rows == k] for k in dict.fromkeys(places)])
    assert torch.equal(galleries.decoded(found, cases.latents), theirs)
    score = Opens(**READ)(evidence(erased(), first=ignorant()))
    assert "shows 'mosaic' in none of 6 images" in str(score.reason)


def test_of_a_pair_both_must_be_right() -> None:
    found = evidence(erased(), forget=rows("mosaic", "cross"))
    cases = found_cases(found, GALLERY, JUDGE)
    assert len(cases) == 2
    right = torch.tensor([[1, 1], [1, 0]])
    assert cases.shows(right, torch.arange(2)).tolist() == [True, False]


def test_a_judge_who_errs_is_named_with_its_errors() -> None:
    good = Opens(**READ)(evidence(erased()))
    assert good.details["judge_mistakes"] == {"false": 0.0, "missed": 0.0}
    assert "note" not in good.details
    blind = Judge(load="tests.evaluation.painters:blind")  # reads styles from the noise
    many = Gallery(seeds=tuple(range(8)), steps=2, guidance=1.0)
    bad = Opens(gallery=many, judge=blind, cases="all")(evidence(erased()))
    assert "cannot be trusted" in bad.details["note"]
    assert bad.details["judge_mistakes"]["false"] > 0
    assert bad.details["curve"][0] == [0.0, 1.0]  # what it takes for the concept without an attack
    assert 0 < bad.details["cases"]["drawn_by_original"] < 24


@pytest.mark.parametrize("attack", EVERY)
def test_bad_input_is_refused_in_a_sentence(attack: type[Revival]) -> None:
    mixed = attack(**READ)(evidence(erased(), forget=range(0, 24, 5)))
    assert "does not say which concept to forget" in str(mixed.reason)
    assert "Give the split test=" in str(attack(**READ)(evidence(erased(), test=False)).reason)
    with pytest.raises(ConfigError, match="above 0"):
        attack(gallery=Gallery(guidance=0.0))
    with pytest.raises(ConfigError, match="below 0.5"):
        attack(precision=0.5)
    name = attack(**READ).budget_name
    with pytest.raises(ConfigError, match="grow") as caught:
        attack(**{**READ, name: (4, 2)})
    assert caught.value.path == name
    classes = ArrayData({"inputs": torch.zeros(6, 4), "targets": torch.arange(6) % 3})
    candidate = Candidate("original", "original", torch.nn.Linear(4, 3))
    found = Evaluation([candidate], Split.from_ids(classes, [0, 3]), Classification(3), Session(seed=0))
    assert str(attack()(found.evidence(candidate)).reason).startswith("only a model that draws")


@pytest.mark.parametrize("attack", PROMPT)
def test_models_of_classes_have_no_prompts_and_nothing_is_drawn_of_them(attack: type[Revival]) -> None:
    images = ArrayData({"inputs": torch.zeros(6, 3, 4, 4), "targets": torch.arange(6) % 3})
    candidate = Candidate("original", "original", torch.nn.Linear(4, 3))  # which cannot draw
    split = Split.from_ids(images, [1, 4], test=images)
    task = Diffusion(timesteps=10, conditions=3, prediction="sample", schedule="cosine")
    found = Evaluation([candidate], split, task, Session(seed=0)).evidence(candidate)
    assert "no prompts to search among. Use relearn_images" in str(attack()(found).reason)


def test_the_cases_for_an_interval_are_counted() -> None:
    # the sheet's rule of thumb: 142 prompts are good for about ± 8 points
    count = needed(0.5, 0.085)
    assert count is not None
    assert abs(count - 142) < 6
    low, high = rate(round(count / 2), count)
    assert max(0.5 - low, high - 0.5) == pytest.approx(0.085, abs=0.003)
    assert needed(1.0, 0.1) == 36  # 1 − 0.025^(1/n) ≤ 0.1 from n = ln 0.025 / ln 0.9 = 35.01
    assert needed(0.5, 1e-4) is None
    # 6 of 6 against 0 of 6: 0.025^(1/6) = 0.541 and 1 − 0.541
    assert apart(1.0, 0.0) == 6
    assert apart(0.2, 0.2) is None
    few, many = apart(0.6, 0.2), apart(0.6, 0.5)
    assert few is not None
    assert many is not None
    assert 10 < few < 40 < many


def test_the_interval_of_an_excess_is_newcombes() -> None:
    (low, high), (least, most) = rate(8, 10), rate(2, 10)
    expected = (
        0.6 - ((0.8 - low) ** 2 + (most - 0.2) ** 2) ** 0.5,
        0.6 + ((high - 0.8) ** 2 + (0.2 - least) ** 2) ** 0.5,
    )
    assert excess(0.8, 10, 0.2, 10) == pytest.approx(expected)
    mean = excess(0.8, 10, 0.25, 10)  # of two retrained models with 2 and 3: no narrower than either
    assert mean[0] <= excess(0.8, 10, 0.3, 10)[0] + 0.05
    assert mean[1] <= 1.0
