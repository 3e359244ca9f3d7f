"""KLoM: hand-binned margins, the published defects, and what a perfect unlearner scores."""

import math

import numpy as np
import pytest
from scipy.stats import entropy
from tests.evaluation.answers import evidence, margins, split

from expunge.errors import ConfigError, DataError
from expunge.evaluation.metrics.klom import CLIP, FLOOR, KLoM, klom, perfect

PARTS = split([0] * 6, forget=2, test=2)

UNLEARNED = np.array([[0.0], [1.0], [1.0], [4.0]])
RETRAINED = np.array([[0.0], [1.0], [3.0], [3.0]])


def test_four_bins_by_hand() -> None:
    # bins [0,1) [1,2) [2,3) [3,4]: p = (1/4, 1/2, 0, 1/4), q = (1/4, 1/4, 0, 1/2)
    expected = math.log(2) / 2 - math.log(2) / 4
    assert klom(UNLEARNED, RETRAINED, bins=4) == pytest.approx([expected])


def test_the_published_one_drops_the_maximum_and_exchanges_the_arguments() -> None:
    # without the 4: q = (1/3, 2/3, 0, 0), at least 1e-5 where the retrained p = (1/4, 1/4, 0, 1/2) is not 0
    p, q = np.array([1 / 4, 1 / 4, 1 / 2]), np.array([1 / 3, 2 / 3, FLOOR])
    expected = (p * np.log(p / q)).sum() + math.log(1 + FLOOR)
    assert klom(UNLEARNED, RETRAINED, bins=4, definition="conformance") == pytest.approx([expected])
    assert expected > 4  # 0.17 nats where nothing is dropped
    # the other way round nothing of the retrained margins is lost, yet the unlearned maximum is
    turned = klom(RETRAINED, UNLEARNED, bins=4, definition="conformance")
    assert turned == pytest.approx([(1 / 3) * math.log(4 / 3) + (2 / 3) * math.log(8 / 3)])


def published(p: np.ndarray, q: np.ndarray, bins: int) -> float:
    """``KL(p ‖ q)`` of one example with numpy's ``digitize`` and scipy's ``entropy``."""
    edges = np.linspace(min(p.min(), q.min()), max(p.max(), q.max()), bins + 1)
    first, second = (np.bincount(np.digitize(x, edges), minlength=bins + 2)[1:-1] for x in (p, q))
    first, second = first / first.sum(), second / second.sum()
    return float(entropy(first, np.where(first > 0, np.maximum(second, FLOOR), second)))


def test_conformance_is_digitize_and_entropy_on_random_margins() -> None:
    generator = np.random.default_rng(0)
    mine, theirs = generator.normal(size=(40, 25)), generator.normal(0.5, 2, size=(60, 25))
    expected = [published(theirs[:, i], mine[:, i], 20) for i in range(25)]
    assert klom(mine, theirs, definition="conformance") == pytest.approx(expected, rel=1e-6)


def test_it_is_zero_for_equal_and_at_its_ceiling_for_separated_margins() -> None:
    same = np.random.default_rng(0).normal(size=(30, 4))
    assert klom(same, same) == pytest.approx(np.zeros(4))
    assert klom(np.zeros((5, 1)), np.ones((5, 1))) == pytest.approx([-math.log(FLOOR)], abs=1e-4)
    assert klom(np.ones((5, 1)), np.ones((5, 1))) == pytest.approx([0.0])  # a range of no width


def test_margins_are_clipped() -> None:
    assert klom(np.full((3, 1), 1e6), np.full((3, 1), CLIP)) == pytest.approx([0.0])


def test_a_side_of_which_the_published_one_drops_everything_is_refused() -> None:
    with pytest.raises(DataError, match="not defined for 1 of 1 examples"):
        klom(np.ones((5, 1)), np.zeros((5, 1)), definition="conformance")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), "of the same examples"),
        (np.zeros(3), np.zeros(3), "shape \\(models, examples\\)"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), "NaN"),
    ],
)
def test_margins_that_cannot_be_compared(first: np.ndarray, second: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        klom(first, second)


@pytest.mark.parametrize(("models", "mean"), [(10, 5.65), (30, 1.83), (100, 0.355), (1000, 0.0233)])
def test_a_perfect_unlearner_does_not_score_zero(models: int, mean: float) -> None:
    """Published simulations: 5.78, 1.85, 0.33 to 0.35, 0.023."""
    assert perfect(models, models, 100) == pytest.approx(mean, rel=0.05)


def test_the_95th_percentile_of_a_perfect_unlearner() -> None:
    assert perfect(100, 100, 2000, statistic="p95") == pytest.approx(0.67, rel=0.05)
    assert perfect(100, 100, 2000, statistic="p95") > 1.5 * perfect(100, 100, 2000)


def ensemble(count: int, shift: float, seed: int) -> list:
    drawn = np.random.default_rng(seed).normal(shift, size=(count, 6))
    return [margins(row.tolist()) for row in drawn]


def test_the_metric_reads_the_models_siblings_and_the_retrained_ones() -> None:
    unlearned, retrained = ensemble(8, 0.0, 0), ensemble(12, 0.0, 1)
    found = evidence(PARTS, unlearned[0], retrained, siblings=unlearned[1:])["subject"]
    mine, theirs = (
        np.stack([m.table.detach().double().numpy()[:2, 0] for m in side]) for side in (unlearned, retrained)
    )
    score = KLoM()(found)
    assert score.value == pytest.approx(klom(mine, theirs).mean(), rel=1e-6)
    assert score.per_example.numpy() == pytest.approx(klom(mine, theirs), rel=1e-6)
    assert score.perfect == pytest.approx(perfect(8, 12, 2))
    assert score.details["models"] == {"unlearned": 8, "retrained": 12}
    assert score.details["retrained"]["value"] == pytest.approx(klom(theirs[:6], theirs[6:]).mean(), rel=1e-6)
    assert score.details["retrained"]["perfect"] == pytest.approx(perfect(6, 6, 2))
    assert "mostly noise" in score.details["note"]
    assert score.error is not None
    few = KLoM(models=6)(found)
    assert few.value == pytest.approx(klom(mine[:6], theirs[:6]).mean(), rel=1e-6)
    assert [few.id, score.id] == ["KLoM.forget.mean-6-models", "KLoM.forget.mean"]


def test_a_retrained_model_stands_for_its_half() -> None:
    retrained = ensemble(5, 0.0, 1)
    found = evidence(PARTS, retrained[0], retrained)
    table = np.stack([m.table.detach().double().numpy()[:2, 0] for m in retrained])
    score = KLoM()(found["retrained 5"])  # itself and the first, against the second to fourth
    assert score.value == pytest.approx(klom(table[[4, 0]], table[1:4]).mean(), rel=1e-6)
    assert score.perfect == pytest.approx(perfect(2, 3, 2))


def test_a_shift_of_the_margins_is_seen_and_equal_ones_score_as_a_perfect_unlearner() -> None:
    equal, shifted, retrained = ensemble(60, 0.0, 2), ensemble(60, 2.0, 3), ensemble(60, 0.0, 4)
    same = evidence(PARTS, equal[0], retrained, siblings=equal[1:])["subject"]
    moved = evidence(PARTS, shifted[0], retrained, siblings=shifted[1:])["subject"]
    score = KLoM(part="retain")(same)
    assert abs(score.value - score.perfect) < 0.6
    assert KLoM(part="retain")(moved).value > 3
    assert "note" not in score.details
    tail = KLoM(part="retain", statistic="p95")(same)
    assert tail.value >= score.value
    assert tail.interval[0] <= tail.value


def test_a_single_model_is_refused_and_told_how_many_are_needed() -> None:
    retrained = ensemble(3, 0.0, 1)
    found = evidence(PARTS, retrained[0], retrained, original=ensemble(1, 0.0, 5)[0])
    reason = KLoM()(found["original"]).reason
    assert "at least 2 of each" in reason
    assert "fewer than 50" in reason
    assert "there are 1 of 'original' and 3 retrained" in reason
    assert "3 retrained models make 1 and 2" in KLoM()(found["retrained 1"]).reason


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="bins: must be at least 2"):
        KLoM(bins=1)
    with pytest.raises(ConfigError, match="models: must be at least 2"):
        KLoM(models=1)
