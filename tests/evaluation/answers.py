"""Models whose answers are chosen, one row of logits for each example, and evidence about them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from expunge.data import ArrayData, Split
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.evidence import Evidence
from expunge.tasks import Classification
from expunge.training.session import Session


class Answers(nn.Module):
    """Gives the input ``i`` the logits ``table[i]``, ``(N, C)``."""

    def __init__(self, table: Tensor | Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.as_tensor(table, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x[:, 0].long()]


def sure(labels: Sequence[int], classes: int = 2) -> Answers:
    """Sure of one class for each example."""
    return Answers(10.0 * torch.eye(classes)[list(labels)])


def margins(values: Sequence[float]) -> Answers:
    """Of two classes, the true one of each example being class 0: the margin is what is given."""
    return Answers(torch.stack([torch.tensor(values, dtype=torch.float32), torch.zeros(len(values))], 1))


def split(targets: Sequence[int], forget: int, test: int) -> Split:
    """Examples ``0, 1, …``: the first ``forget`` are forgotten, the last ``test`` are the test data."""
    inputs, labels = torch.arange(len(targets)).float()[:, None], torch.tensor(targets)
    cut = len(targets) - test
    train = ArrayData({"inputs": inputs[:cut], "targets": labels[:cut]})
    return Split.from_ids(
        train, range(forget), test=ArrayData({"inputs": inputs[cut:], "targets": labels[cut:]})
    )


def evidence(
    parts: Split,
    subject: nn.Module,
    retrained: Sequence[nn.Module],
    *,
    original: nn.Module | None = None,
    siblings: Sequence[nn.Module] = (),
    classes: int = 2,
) -> dict[str, Evidence]:
    """The evidence about ``original``, ``subject`` and ``retrained 1``, ``retrained 2``, …"""
    candidates = [
        Candidate("original", "original", original or subject),
        *(Candidate(f"retrained {i + 1}", "retrained", model) for i, model in enumerate(retrained)),
        Candidate("subject", "unlearned", subject, siblings=tuple(siblings)),
    ]
    evaluation = Evaluation(candidates, parts, Classification(classes), Session(0))
    return {candidate.name: evaluation.evidence(candidate) for candidate in candidates}
