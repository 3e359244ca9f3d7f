"""The five features of an answer, by hand and at the edge of what floats can hold."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from expunge.evaluation.attacks import signals

P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]], dtype=torch.float64)
Y = torch.tensor([0, 2])


def test_each_signal_by_hand() -> None:
    logits = P.log() + 3.0  # a constant changes nothing
    assert signals.correctness(logits, Y).tolist() == [1, 0]
    assert signals.confidence(logits, Y).tolist() == pytest.approx([0.5, 0.2])
    by_hand = [-sum(p * math.log(p) for p in row) for row in P.tolist()]
    assert signals.entropy(logits).tolist() == pytest.approx(by_hand)
    log = math.log
    first = -0.5 * log(0.5) - 0.3 * log(0.7) - 0.2 * log(0.8)
    second = -0.8 * log(0.2) - 0.1 * log(0.9) - 0.7 * log(0.3)
    assert signals.modified_entropy(logits, Y).tolist() == pytest.approx([first, second])
    assert torch.allclose(signals.probabilities(logits), P)


def test_published_modified_entropy_changes_the_columns_of_all_rows_and_takes_log_p() -> None:
    log = math.log
    # the labels 0 and 2 occur in the part: these columns of both rows get 1 − p, column 1 keeps p
    by_hand = [-(1 - a) * log(a) - b * log(b) - (1 - c) * log(c) for a, b, c in P.tolist()]
    assert signals.published_modified_entropy(P.log(), Y).tolist() == pytest.approx(by_hand, rel=1e-6)
    swapped = signals.published_modified_entropy(P.log(), Y.flip(0))
    assert swapped.tolist() == pytest.approx(by_hand, rel=1e-6)  # the own label does not enter


def test_published_modified_entropy_has_the_opposite_sign() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(10, (2000,), generator=generator)
    logits = torch.randn(2000, 10, generator=generator)
    logits[torch.arange(2000), targets] += 2 + 3 * torch.randn(2000, generator=generator).abs()
    true = signals.modified_entropy(logits, targets)
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    published = signals.published_modified_entropy(logits, targets)
    assert spearmanr(true, loss).statistic > 0.95
    assert spearmanr(published, true).statistic < -0.9


def test_answers_sure_to_the_last_bit_still_differ_and_stay_finite() -> None:
    logits = torch.tensor([[40.0, 0.0, 0.0], [60.0, 0.0, 0.0], [2000.0, 0.0, 0.0]])
    right, wrong = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)
    # sure and right: 1 − p_y = 2e^−40, log p_y = −2e^−40; the others give −2 p log(1 − p) ≈ 2e^−80
    found = signals.modified_entropy(logits, right)
    assert found[0].item() == pytest.approx(6 * math.exp(-80), rel=1e-3, abs=1e-30)
    assert found.isfinite().all()
    # sure and wrong: −log p_y − log(1 − p_0) = 40 + (40 − log 2)
    found = signals.modified_entropy(logits, wrong)
    assert found[:2].tolist() == pytest.approx([80 - math.log(2), 120 - math.log(2)], rel=1e-9)
    assert found[2].item() == pytest.approx(4000, rel=1e-3)
    entropies = signals.entropy(logits)
    assert entropies[0] > entropies[1] > 0 == entropies[2]
    assert signals.published_modified_entropy(logits, right).isfinite().all()
