"""The forensic detector on answers that are drawn: honest, too sure, and not sure enough."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from expunge.data import ArrayData, Split
from expunge.evaluation.attacks.forensic import Detector, Forensic
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.tasks import Classification
from expunge.training.session import Session

N = 120


class Drawn(nn.Module):
    """Answers example ``i`` with logits drawn once; ``shift`` is added to the true class 0."""

    def __init__(self, seed: int, shift: float = 0.0, spread: float = 1.0) -> None:
        super().__init__()
        logits = spread * torch.randn(2 * N, 3, generator=torch.Generator().manual_seed(seed))
        logits[:, 0] += shift
        self.logits = nn.Parameter(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[x[:, 0].long()]


def evidence(subject: nn.Module, retrained: int = 4, n: int = N, subjects: torch.Tensor | None = None):
    columns = {"inputs": torch.arange(2 * N).float()[:, None], "targets": torch.zeros(2 * N).long()}
    if subjects is not None:
        columns["subjects"] = subjects
    split = Split.from_ids(ArrayData(columns), range(n))
    candidates = [Candidate("original", "original", Drawn(0)), Candidate("u", "unlearned", subject)]
    candidates += [Candidate(f"r{i}", "retrained", Drawn(10 + i)) for i in range(retrained)]
    return Evaluation(candidates, split, Classification(3), Session(0)).evidence(candidates[1])


def test_an_honest_model_is_not_told_apart() -> None:
    scores = [Forensic()(evidence(Drawn(seed))) for seed in range(100, 110)]
    values = np.array([score.value for score in scores])
    assert abs(values.mean() - 0.5) < 0.03
    assert sum(s.interval[0] <= 0.5 <= s.interval[1] for s in scores) >= 9
    assert scores[0].n == N
    assert scores[0].id == "forensic.forget.auc"


@pytest.mark.parametrize("shift", [-2.0, 2.0])
def test_a_shift_is_found_in_either_direction(shift) -> None:
    # one Gaussian feature, the margin's main part: AUC near Φ(2/√2) = 0.92 or below
    score = Forensic()(evidence(Drawn(100, shift)))
    assert 0.8 < score.value < 0.95
    assert score.interval[0] > 0.7


def test_a_change_of_spread_alone_is_found() -> None:
    assert Forensic()(evidence(Drawn(100, spread=4.0))).value > 0.7


def test_the_same_seed_gives_the_same_number() -> None:
    found = evidence(Drawn(100, 1.0))
    assert Forensic().measure(found).value == Forensic().measure(evidence(Drawn(100, 1.0))).value
    assert Forensic().measure(found).value != Forensic(seed=1).measure(found).value


def test_the_halves_never_share_a_subject() -> None:
    people = torch.arange(2 * N) // 5
    found = evidence(Drawn(100), subjects=people)
    first, second = Forensic()._halves(found, N)
    assert len(first) + len(second) == N
    assert not set(people[first].tolist()) & set(people[second].tolist())


def test_subjects_do_not_leak_into_the_judged_half() -> None:
    # answers that are equal within a subject: a detector that saw half of each would look better than it is
    class Personal(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.logits = nn.Parameter(
                torch.randn(2 * N, 3, generator=torch.Generator().manual_seed(seed)) * 2
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.logits[x[:, 0].long() // 20]

    def value(seed: int, subjects: torch.Tensor | None) -> float:
        found = evidence(Personal(seed), subjects=subjects)
        for i, other in enumerate(found.retrained):
            other.model = Personal(1000 * seed + i)
        return Forensic()(found).value

    people = torch.arange(2 * N) // 20
    split = np.mean([value(seed, people) for seed in range(1, 5)])
    leaked = np.mean([value(seed, None) for seed in range(1, 5)])
    assert leaked > split + 0.1


def test_a_detector_of_constant_answers_knows_nothing() -> None:
    same = np.ones((6, 3))
    assert len(set(Detector(same, same)(same))) == 1


def test_it_says_what_it_lacks() -> None:
    assert "learns from one retrained model" in Forensic()(evidence(Drawn(1), retrained=1)).reason
    assert "at least 4 forget examples" in Forensic()(evidence(Drawn(1), n=3)).reason
    score = Forensic(part="test")(evidence(Drawn(1)))
    assert math.isnan(score.value)
    assert "no test data" in score.reason
