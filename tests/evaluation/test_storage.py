"""What has to be kept of a model beside the original."""

from __future__ import annotations

import copy

import torch
from tests.evaluation.painters import Painter, evidence
from torch import nn

from expunge.evaluation.metrics.cost import Cost, changed


def test_only_what_differs_is_counted() -> None:
    original = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    model = copy.deepcopy(original)
    assert changed(original, model) == 0
    with torch.no_grad():
        model[1].weight[0, 0] += 1
    assert changed(original, model) == 16 * 4 / 2**20  # the whole weight, 8 × 2 numbers of 4 bytes
    model.add_module("guard", nn.Linear(2, 2))
    assert changed(original, model) == (16 + 6) * 4 / 2**20


def test_it_is_known_without_a_measured_cost() -> None:
    found = evidence(Painter())
    score = Cost(measure_of="storage")(found)
    assert (score.value, score.unit, score.id) == (0.0, "MiB", "cost.storage")
    assert Cost(measure_of="memory")(found).reason is not None
