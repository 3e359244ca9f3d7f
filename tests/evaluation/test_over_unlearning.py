"""The signed gap by hand."""

import math

import pytest
import torch
from torch import nn

from expunge.data import ArrayData, Split
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.metrics.over_unlearning import SignedGap
from expunge.tasks import Classification
from expunge.training.session import Session


class Echo(nn.Module):
    """Answers with its inputs times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def score(factor: float, retrained: list[float], subjects: bool = False, part: str = "forget"):
    # the margin of every example is the factor
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 6), torch.arange(12) % 2
    columns = {"inputs": x, "targets": y}
    if subjects:
        columns["subjects"] = torch.arange(12) // 2
    split = Split.from_ids(ArrayData(columns), range(8))
    candidates = [Candidate("original", "original", Echo(9.0)), Candidate("u", "unlearned", Echo(factor))]
    candidates += [Candidate(f"r{i}", "retrained", Echo(f)) for i, f in enumerate(retrained)]
    evaluation = Evaluation(candidates, split, Classification(2), Session(0))
    return SignedGap(part=part)(evaluation.evidence(candidates[1]))


def test_the_gap_is_signed_and_in_standard_deviations() -> None:
    # retrained margins 1 and 3: mean 2, sd √2
    assert score(4.0, [1.0, 3.0]).value == pytest.approx(2 / math.sqrt(2), rel=1e-5)
    assert score(-4.0, [1.0, 3.0]).value == pytest.approx(-6 / math.sqrt(2), rel=1e-5)
    assert score(2.0, [1.0, 3.0]).value == pytest.approx(0, abs=1e-6)


def test_both_signs_are_counted() -> None:
    found = score(-4.0, [1.0, 3.0])
    assert found.details == {"above": 0.0, "below": 1.0}
    assert found.id == "signed gap.forget.margin"


def test_subjects_are_the_unit_of_the_interval() -> None:
    assert score(4.0, [1.0, 3.0], subjects=True).interval == pytest.approx((2**0.5, 2**0.5))


def test_a_spread_needs_two_models_and_the_part_must_exist() -> None:
    assert "at least two (other) retrained models; there is one" in score(4.0, [1.0]).reason
    assert "no (other) retrained model" in score(4.0, []).reason
    assert "no test data" in score(4.0, [1.0, 3.0], part="test").reason
