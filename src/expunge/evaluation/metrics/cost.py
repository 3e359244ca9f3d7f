"""What a model cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.errors import MissingEvidence
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score, Unit

_UNITS: dict[str, Unit] = {"seconds": "seconds", "ratio": "ratio", "memory": "MiB", "storage": "MiB"}


@metrics.register("cost")
@dataclass(frozen=True, kw_only=True)
class Cost(Metric):
    """Wall-clock seconds, their ratio to one retraining, the peak of extra memory, or extra storage.

    ``seconds`` is the time from the model handed in to the model handed back; ``ratio`` divides it by
    the mean of the retrainings of the same table; ``memory`` is the largest resident (on a GPU:
    allocated) memory during the run above that at its start, in MiB; ``storage`` is the size, in MiB, of the
    weights and buffers that differ from the original's or that it lacks: what has to be kept beside it. Each
    is measured once, so there is no interval. Lower is better.

    Ideal: 0, what doing nothing costs; a method whose ratio is near 1 could as well have retrained.
    Cost: none, it is measured while the model is made.
    """

    measure_of: Literal["seconds", "ratio", "memory", "storage"] = "seconds"
    target = "low"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "cost", "", self.measure_of

    def counts(self) -> Unit:
        return _UNITS[self.measure_of]

    def measure(self, evidence: Evidence) -> Score:
        cost = dict(evidence.cost)
        if self.measure_of == "storage":
            cost = {"seconds": 0.0, "storage": changed(evidence.original.model, evidence.subject.model)}
        if "seconds" not in cost:
            raise MissingEvidence("this model's cost was not measured: it was not made here.")
        if self.measure_of == "ratio":
            if not cost.get("retraining"):
                raise MissingEvidence("no retraining was timed to compare with.")
            value = cost["seconds"] / cost["retraining"]
        elif self.measure_of not in cost:
            raise MissingEvidence(f"{self.measure_of} cannot be measured on this system.")
        else:
            value = cost[self.measure_of]
        return Score(
            name="cost",
            variant=self.measure_of,
            value=value,
            n=1,
            target="low",
            unit=self.counts(),
        )


def changed(original: nn.Module, model: nn.Module) -> float:
    """MiB of a model's weights and buffers that are not the original's, by name and value."""
    known = original.state_dict()
    sizes = [
        value.numel() * value.element_size()
        for name, value in model.state_dict().items()
        if name not in known or not _same(value, known[name])
    ]
    return float(sum(sizes)) / 2**20


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first.cpu(), second.cpu())
