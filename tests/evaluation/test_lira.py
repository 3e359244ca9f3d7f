"""LiRA and U-LiRA against closed forms and cases worked by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from expunge.errors import ConfigError, MissingEvidence
from expunge.evaluation import statistics
from expunge.evaluation.attacks.lira import LiRA
from expunge.evaluation.attacks.ulira import ULiRA
from expunge.evaluation.shadows import ShadowPlan, Shadows, halves


def evidence(own, margins, members, n, name="subject", **fields):
    """Of a subject with these margins ``(P,)``: the first ``n`` examples are the forget set."""
    margins, total = torch.as_tensor(margins).double(), len(own)
    shadows = Shadows(
        members=members,
        margin=margins,
        loss=torch.nn.functional.softplus(-margins),
        train_ids=torch.arange(n),
        test_ids=torch.arange(total - n),
        parts={"forget": torch.arange(n), "test": torch.arange(n, total)},
        **fields,
    )
    own = torch.as_tensor(own).double()
    read = {
        part: SimpleNamespace(margin=own[rows], loss=torch.nn.functional.softplus(-own[rows]))
        for part, rows in shadows.parts.items()
    }
    return SimpleNamespace(shadows=shadows, subject=SimpleNamespace(read=read.__getitem__, name=name))


def gaussian(seed, gap, count=32, n=1000, difficulty=3.0):
    """Margins ``N(d_x + gap · [x was trained on], 1)`` with a difficulty ``d_x`` of each example."""
    draws = torch.Generator().manual_seed(seed)
    members = halves(2 * n, ShadowPlan(count=count), draws)
    d = difficulty * torch.randn(2 * n, generator=draws)
    margins = d + gap * members + torch.randn(count, 2 * n, generator=draws)
    truth = torch.arange(2 * n) < n
    own = d + gap * truth + torch.randn(2 * n, generator=draws)
    return evidence(own, margins, members, n)


def test_the_score_of_a_tiny_case_is_the_log_ratio_of_the_two_gaussians() -> None:
    members = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]]).bool()
    margins = [[2.0, 0.0], [4.0, 1.0], [-1.0, 3.0], [1.0, 7.0]]
    e = evidence([2.5, 1.0], margins, members, 1)
    # within examples: in (2, 4), (3, 7): variances 2 and 8; out (-1, 1), (0, 1): variances 2 and 0.5
    own = [
        [norm(3, math.sqrt(5)).logpdf(2.5) - norm(0, math.sqrt(1.25)).logpdf(2.5)],
        [norm(5, math.sqrt(5)).logpdf(1.0) - norm(0.5, math.sqrt(1.25)).logpdf(1.0)],
    ]
    for found, expected in zip(LiRA().scores(e), own, strict=True):
        assert found.tolist() == pytest.approx(expected)
    each = LiRA(variance="per_example").scores(e)
    assert each[0].tolist() == pytest.approx([norm(3, 2**0.5).logpdf(2.5) - norm(0, 2**0.5).logpdf(2.5)])
    assert each[1].tolist() == pytest.approx([norm(5, 8**0.5).logpdf(1) - norm(0.5, 0.5**0.5).logpdf(1)])
    offline = LiRA(mode="offline").scores(e)
    probability = [norm.cdf(float(values)) for values in offline]
    assert probability == pytest.approx([norm(0, 1.25**0.5).cdf(2.5), norm(0.5, 1.25**0.5).cdf(1.0)])


def test_offline_scores_do_not_become_equal_where_the_probability_rounds_to_one() -> None:
    members = torch.tensor([[0, 0], [0, 0]]).bool()
    e = evidence([40.0, 50.0], [[0.0, 0.0], [1.0, 1.0]], members, 1)
    low, high = (float(values) for values in LiRA(mode="offline").scores(e))
    assert norm.cdf(low) == norm.cdf(high) == 1.0
    assert low < high


@pytest.mark.parametrize("attack", [LiRA(), LiRA(mode="offline"), LiRA(variance="per_example")])
def test_models_that_all_agree_leave_a_finite_ratio(attack) -> None:
    """A spread of 0 is taken for the least one there is; it is not divided by."""
    members = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]]).bool()
    e = evidence([2.5, 1.0], [[2.0, 0.0], [2.0, 0.0], [1.0, 3.0], [1.0, 3.0]], members, 1)
    found = torch.cat(attack.scores(e))
    assert found.isfinite().all()
    if attack.mode == "online":  # 2.5 is nearer to 2 than to 1, 1 nearer to 0 than to 3
        assert found[0] > 0 > found[1]


def test_auc_of_gaussian_margins_is_the_closed_form_and_the_loss_threshold_is_weaker() -> None:
    gap = 1.5
    e = gaussian(1, gap, count=64)
    score = LiRA().measure(e)
    # with d_x known the log ratio is linear in φ − d_x and the AUC Φ(gap / √2); 32 models on a side
    # know d_x to ± 1/√64, and their noisy slopes cost a little more
    expected = norm.cdf(gap / math.sqrt(2 + 1 / 64))
    assert score.value == pytest.approx(expected, abs=0.015)
    assert score.interval[0] < expected < score.interval[1]
    tpr = LiRA(read="tpr").measure(e)
    assert tpr.value == pytest.approx(norm.cdf(gap - norm.ppf(0.99)), abs=0.05)
    loss = [-e.subject.read(part).loss.numpy() for part in ("forget", "test")]
    weak = statistics.auc(*loss)[0]
    assert weak == pytest.approx(norm.cdf(gap / math.sqrt(2 * (1 + 9))), abs=0.04)
    assert statistics.tpr_at(*loss, 0.01)[1][1] < tpr.interval[0]


def test_nothing_is_found_where_training_changes_nothing() -> None:
    for seed in (0, 1):
        for attack in (LiRA(), LiRA(mode="offline"), LiRA(variance="per_example")):
            low, high = attack.measure(gaussian(seed, 0.0, count=16, n=500)).interval
            assert low < 0.5 < high


def test_one_variance_serves_members_and_non_members() -> None:
    """Forget examples whose margins vary more must not be told apart by that alone."""
    draws = torch.Generator().manual_seed(0)
    n, members = 1000, halves(2000, ShadowPlan(count=16), draws)
    wide = torch.where(torch.arange(2 * n) < n, 3.0, 1.0)
    margins, own = wide * torch.randn(16, 2 * n, generator=draws), torch.randn(2 * n, generator=draws)
    e = evidence(own, margins, members, n)
    swapped = replace(e.shadows, margin=torch.cat([margins[:, n:], margins[:, :n]], 1).double())
    found = torch.cat(LiRA(mode="offline").judge(e, e.shadows))
    alone = torch.cat(LiRA(mode="offline").judge(e, swapped))
    spread = [float((values - values.mean()).square().mean()) for values in (found, alone)]
    assert spread[0] == pytest.approx(spread[1], rel=0.1)  # the same σ whichever side is the wide one


def test_fewer_reference_models_widen_the_interval_and_too_few_for_it_give_none() -> None:
    widths = []
    for count in (4, 8, 32):
        found = [LiRA().measure(gaussian(seed, 1.0, count=count, n=300)).interval for seed in range(4)]
        widths.append(float(np.mean([high - low for low, high in found])))
    plain = statistics.auc(*(s.numpy() for s in LiRA().scores(gaussian(0, 1.0, 32, 300))))[1]
    assert widths[0] > 1.2 * widths[2] > 1.2 * (plain[1] - plain[0])
    assert widths[0] > widths[1] > widths[2]
    score = LiRA(variance="per_example").measure(gaussian(0, 1.0, count=4, n=300))
    assert score.interval is None
    assert "Too few reference models" in score.details["note"]


def test_too_few_models_are_an_error_that_says_how_many_are_needed() -> None:
    with pytest.raises(MissingEvidence, match="Train at least 4"):
        LiRA().measure(gaussian(0, 1.0, count=2, n=50))
    with pytest.raises(MissingEvidence, match="some have 1 of 2 shadow models. Train at least 4"):
        LiRA(variance="per_example").measure(gaussian(0, 1.0, count=2, n=50))
    none = replace(gaussian(0, 1.0, count=4, n=50).shadows, members=torch.ones(4, 100).bool())
    e = gaussian(0, 1.0, count=4, n=50)
    with pytest.raises(MissingEvidence, match="without it for every example; some have 0 of 4"):
        LiRA().judge(e, none)
    with pytest.raises(MissingEvidence, match="no shadow models"):
        LiRA().measure(SimpleNamespace(shadows=None, subject=e.subject))


def test_each_variant_has_a_name_of_its_own() -> None:
    attacks = [LiRA(), LiRA(mode="offline"), LiRA(variance="per_example"), LiRA(read="tpr"), ULiRA(),
               ULiRA(method="salun")]  # fmt: skip
    variants = [attack.labels(None)[2] for attack in attacks]
    assert variants == ["lira-auc", "lira-offline-auc", "lira-per-example-auc", "lira-tpr@0.01", "ulira-auc",
                        "ulira-salun-auc"]  # fmt: skip


def treated(left: float):
    """Unlearning takes all but ``left`` of a gap of 3 away, and adds nothing to others."""
    e = gaussian(3, left, n=1000)
    audited = torch.ones(2000).bool()
    audited[1800:] = False
    trained = gaussian(3, 3.0, n=1000).shadows
    shadows = replace(trained, treated={"subject": replace(e.shadows, audited=audited)})
    return SimpleNamespace(shadows=shadows, subject=e.subject)


def test_ulira_sees_the_over_unlearned_example_that_lira_takes_for_unseen() -> None:
    e = treated(-0.8)
    found, lira = ULiRA().measure(e), LiRA().measure(e)
    # the closed form holds for any number of models; 16 on a side lose about 0.015 of it
    assert found.value == pytest.approx(norm.cdf(0.8 / math.sqrt(2)), abs=0.05)
    assert lira.interval[1] < 0.5 < 0.6 < found.interval[0]
    assert [len(scores) for scores in ULiRA().scores(e)] == [1000, 800]
    low, high = ULiRA().measure(treated(0.0)).interval
    assert low < 0.5 < high


def test_ulira_needs_treated_models_and_is_about_the_forget_set() -> None:
    with pytest.raises(MissingEvidence, match="treated with 'salun'"):
        ULiRA(method="salun").measure(treated(0.8))
    with pytest.raises(MissingEvidence, match="treated: none"):
        ULiRA().measure(gaussian(0, 1.0, count=4, n=50))
    with pytest.raises(ConfigError, match="unlearned"):
        ULiRA(part="retain")
