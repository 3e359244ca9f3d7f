"""RMIA against cases worked by hand, and its traps."""

import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from expunge.errors import ConfigError, MissingEvidence
from expunge.evaluation.attacks.rmia import RMIA, shares, shares_among
from expunge.evaluation.shadows import ShadowPlan, Shadows, halves


def evidence(own, probabilities, members, n):
    """Of a subject that gives the true label ``own`` ``(P,)``; the first ``n`` are the forget set."""
    loss = -torch.tensor(probabilities, dtype=torch.float64).log()
    total = len(own)
    shadows = Shadows(
        members=torch.as_tensor(members).bool(),
        loss=loss,
        margin=torch.zeros_like(loss),
        train_ids=torch.arange(n),
        test_ids=torch.arange(total - n),
        parts={"forget": torch.arange(n), "test": torch.arange(n, total)},
    )
    own = -torch.tensor(own, dtype=torch.float64).log()
    read = {part: SimpleNamespace(loss=own[rows]) for part, rows in shadows.parts.items()}
    return SimpleNamespace(shadows=shadows, subject=SimpleNamespace(read=read.__getitem__))


def worked():
    """Two members and three others; four models, two with and two without each."""
    members = [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0], [1, 0, 0, 1, 1], [0, 1, 1, 0, 0]]
    p = [
        [0.9, 0.2, 0.8, 0.5, 0.7],
        [0.4, 0.6, 0.6, 0.9, 0.1],
        [0.7, 0.4, 0.4, 0.8, 0.5],
        [0.2, 0.8, 0.9, 0.3, 0.3],
    ]
    return evidence([0.9, 0.6, 0.55, 0.5, 0.15], p, members, 2)


def test_offline_and_online_scores_of_a_worked_case() -> None:
    e = worked()
    # mean out: (.4 + .2)/2 = .3, (.2 + .4)/2 = .3, (.6 + .4)/2 = .5, (.5 + .3)/2 = .4, (.1 + .3)/2 = .2
    # ½ (1.3 out + .7): .545, .545, .675, .61, .48; ratios: 1.651, 1.101, .815, .820, .3125
    members, others = RMIA().scores(e)
    assert members.tolist() == pytest.approx([1.0, 1.0])
    assert others.tolist() == pytest.approx([1 / 2, 1.0, 0.0])
    # online, mean in: .8, .7, .85, .85, .6; ratios: 1.636, 1.2, .815, .8, .375
    members, others = RMIA(mode="online", gamma=1.5).scores(e)
    assert members.tolist() == pytest.approx([1.0, 1 / 3])  # 1.2 / .8 is not above 1.5
    assert others.tolist() == pytest.approx([1 / 2, 1 / 2, 0.0])
    found = RMIA().log_ratio(torch.tensor([-math.log(0.9)]), e.shadows.losses("forget")[:, :1],
                             e.shadows.inside("forget")[:, :1])  # fmt: skip
    assert math.exp(float(found)) == pytest.approx(0.9 / 0.545)


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_the_offline_correction_goes_from_no_model_at_all_to_the_mean_alone(a) -> None:
    e = worked()
    found = RMIA(a=a).log_ratio(torch.zeros(2), e.shadows.losses("forget"), e.shadows.inside("forget"))
    expected = 1 / (0.5 * ((1 + a) * 0.3 + 1 - a))
    assert found.exp().tolist() == pytest.approx([expected, expected])


def test_an_example_without_reference_models_is_an_error_and_zeros_never_enter() -> None:
    e = worked()
    mean = RMIA(a=1.0).log_ratio(torch.zeros(2), e.shadows.losses("forget"), e.shadows.inside("forget"))
    assert mean.exp().tolist() == pytest.approx([1 / 0.3] * 2)  # not 1 / 0.15, with two zeros among four
    assert RMIA(references=2).scores(e)  # one model without each example
    with pytest.raises(MissingEvidence, match="without it for every example; some have 0 of 1"):
        RMIA(references=1).scores(e)
    with pytest.raises(MissingEvidence, match="8 shadow models are asked for, there are 4"):
        RMIA(references=8).scores(e)
    everywhere = replace(e.shadows, members=torch.ones(4, 5).bool())
    with pytest.raises(MissingEvidence, match="Train at least 2"):
        RMIA().judge(e, everywhere)
    with pytest.raises(MissingEvidence, match="trained with it"):
        RMIA(mode="online").judge(e, replace(e.shadows, members=~everywhere.members))


def test_only_the_first_references_are_read() -> None:
    e = worked()
    spoilt = e.shadows.loss.clone()
    spoilt[2:] = 99.0
    other = SimpleNamespace(shadows=replace(e.shadows, loss=spoilt), subject=e.subject)
    for a, b in zip(RMIA(references=2).scores(e), RMIA(references=2).scores(other), strict=True):
        assert torch.equal(a, b)
    assert RMIA(references=4).labels(None)[2] == "rmia-4-auc"


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_shares_are_those_of_a_table_of_all_pairs(gamma) -> None:
    draws = torch.Generator().manual_seed(0)
    x, z = (torch.randn(n, generator=draws).double().round(decimals=1) for n in (40, 30))
    log_gamma = torch.tensor(gamma).double().log()
    assert torch.equal(shares(x, z, gamma), (z < (x - log_gamma)[:, None]).double().mean(1))
    table = (z < (z - log_gamma)[:, None]).double()
    table.fill_diagonal_(0)
    torch.testing.assert_close(shares_among(z, gamma), table.sum(1) / 29)


def gaussian(gap, count, n=1000):
    draws = torch.Generator().manual_seed(0)
    members = halves(2 * n, ShadowPlan(count=count), draws)
    d = 2 * torch.randn(2 * n, generator=draws)
    margins = d + gap * members + torch.randn(count, 2 * n, generator=draws)
    own = d + gap * (torch.arange(2 * n) < n) + torch.randn(2 * n, generator=draws)
    return evidence(torch.sigmoid(own).tolist(), torch.sigmoid(margins).tolist(), members, n)


def test_members_are_found_with_four_models_and_nothing_where_there_is_nothing() -> None:
    few, many = (RMIA().measure(gaussian(1.5, count)) for count in (4, 32))
    assert few.interval[0] > 0.65
    assert few.value - 0.5 > 0.8 * (many.value - 0.5)
    assert few.interval[1] - few.interval[0] > many.interval[1] - many.interval[0]
    for attack in (RMIA(), RMIA(mode="online"), RMIA(gamma=2.0)):
        low, high = attack.measure(gaussian(0.0, 8)).interval
        assert low < 0.5 < high


def test_ten_thousand_against_ten_thousand_take_no_table_of_pairs() -> None:
    draws = torch.Generator().manual_seed(0)
    x, z = torch.randn(10_000, generator=draws).double(), torch.randn(10_000, generator=draws).double()
    start = time.perf_counter()
    shares(x, z, 1.0), shares_among(z, 1.0)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("fields", [{"a": 1.5}, {"gamma": 0.0}, {"references": 0}])
def test_settings_outside_their_range_are_refused(fields) -> None:
    with pytest.raises(ConfigError):
        RMIA(**fields)
