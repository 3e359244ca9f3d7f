"""Below the averages: the score by class, the examples a model treats least like retraining, its answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from expunge.data.text import TextData
from expunge.errors import ExpungeError
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence

SHOWN = 50
"""At most so many of the worst examples are kept."""

ASKED = 6
"""Forget questions whose answers are kept, evenly spaced over the ids."""


def classes(evidence: Evidence) -> list[dict[str, Any]]:
    """The task's score by part and class: ``{"part", "class", "value", "low", "high", "n"}``.

    Empty where examples belong to no class or the model's answers cannot be used.
    """
    found: list[dict[str, Any]] = []
    for part in ("forget", "retain", "test"):
        if part not in evidence.parts:
            continue
        try:
            groups = evidence.task.groups(evidence.parts[part])
            scores = evidence.subject.read(part).score.double()
        except ExpungeError:
            return []
        for label in groups.unique().tolist():
            values = scores[groups == label]
            low, high = statistics.interval(values.numpy()) or (None, None)
            found.append(
                {
                    "part": part,
                    "class": int(label),
                    "value": float(values.mean()),
                    "low": low,
                    "high": high,
                    "n": len(values),
                }
            )
    return found


def worst(evidence: Evidence) -> list[dict[str, Any]]:
    """The forget examples in the decile furthest from retraining, the furthest first.

    ``z_i = (m_i − mean_r m_ri) / max(sd_r m_ri, pooled sd)`` with ``m`` the logit-scaled confidence:
    positive where the model is surer of the example's label than retrained models are, which is what
    is remembered; negative where forgetting went further than never having seen it. Each is ``{"id",
    "z", "confidence", "retrained"}``. Empty with fewer than two other retrained models.
    """
    others = [other for other in evidence.retrained if other is not evidence.subject]
    if len(others) < 2:
        return []
    try:
        mine = evidence.subject.read("forget")
        margins = torch.stack([other.read("forget").margin for other in others]).double()
        confidences = torch.stack([other.read("forget").confidence for other in others]).double()
    except ExpungeError:
        return []
    z = standardised(mine.margin.double(), margins)
    count = min(max(1, len(z) // 10), SHOWN)
    ids = evidence.parts["forget"].ids
    return [
        {
            "id": int(ids[i]),
            "z": float(z[i]),
            "confidence": float(mine.confidence[i]),
            "retrained": float(confidences[:, i].mean()),
        }
        for i in z.abs().argsort(descending=True, stable=True)[:count].tolist()
    ]


def answers(evidence: Evidence) -> list[dict[str, Any]]:
    """What a language model writes to some forget questions: ``{"id", "question", "truth", "written"}``.

    Greedily, up to 64 tokens. Empty where the data is no text or asks nothing.
    """
    data = evidence.parts["forget"]
    if not isinstance(data, TextData):
        return []
    rows = torch.linspace(0, len(data) - 1, min(ASKED, len(data))).round().long().tolist()
    ids = data.ids[rows].tolist()
    records = [data.record(id_) for id_ in ids]
    if any(record.question is None for record in records):
        return []
    try:
        written = evidence.subject.answers("forget", rows=rows)
    except ExpungeError:
        return []
    return [
        {"id": id_, "question": record.question, "truth": record.answer, "written": said[0]}
        for id_, record, said in zip(ids, records, written, strict=True)
    ]


def standardised(mine: Tensor, others: Tensor) -> Tensor:
    """Distance from the mean of others ``(K, N)`` in standard deviations, ``(N,)``.

    Of a handful of models an example's own deviation can be near zero by chance; it is never taken
    below the root mean square over all examples.
    """
    spread = others.std(0)
    pooled = spread.square().mean().sqrt()
    return (mine - others.mean(0)) / spread.clamp(min=float(pooled) or 1e-6)
