"""Below the averages: the score by class, the examples a model treats least like retraining, what it says
and what it draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.data.pictures import png
from expunge.data.text import TextData
from expunge.errors import ExpungeError
from expunge.evaluation import gallery as galleries
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.gallery import Gallery

SHOWN = 50
"""At most so many of the worst examples are kept."""

ASKED = 6
"""Forget questions whose answers are kept, evenly spaced over the ids."""

FORGOTTEN, OTHERS, EACH = 4, 6, 2
"""At most so many prompts of forgotten and of other concepts are shown, and images of each."""

SIDE = 64
"""Larger images are made smaller to so many pixels before they are kept."""


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


def gallery(evidence: Evidence) -> list[dict[str, Any]]:
    """What a generative model draws: ``{"prompt", "seed", "forgotten", "png"}``, PNG in base64.

    The same prompts, seeds and noise for every model, those of the metrics where they draw. Empty where the
    model draws no images.
    """
    shown = evidence.subject.once(galleries.SHOWN, Gallery)
    if not evidence.subject.has(("pictures", shown)):
        shown = replace(shown, seeds=shown.seeds[:EACH])
    try:
        asked = galleries.prompts(evidence)
        forgotten = _forgotten(evidence, asked.cells)
        gone, kept = forgotten.nonzero()[:, 0], (~forgotten).nonzero()[:, 0]
        chosen = [*_spaced(gone, FORGOTTEN), *_spaced(kept, OTHERS)]
        drawn = galleries.pictures(evidence, shown, chosen)
    except ExpungeError:
        return []
    seeds = shown.seeds * len(chosen)
    return [
        {
            "prompt": asked.texts[row],
            "seed": seed,
            "forgotten": bool(forgotten[row]),
            "png": png(_small(image)),
        }
        for row, seed, image in zip(drawn.rows.tolist(), seeds, drawn.images, strict=True)
        if seed in shown.seeds[:EACH]
    ]


def _forgotten(evidence: Evidence, cells: Tensor) -> Tensor:
    """Which prompts name what is to be forgotten; none where the forget set is no concept."""
    try:
        return galleries.target(evidence).among(cells)
    except ExpungeError:
        return torch.zeros(len(cells), dtype=torch.bool)


def _spaced(rows: Tensor, count: int) -> list[int]:
    """At most so many of them, evenly spaced."""
    if not len(rows):
        return []
    places = torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()
    return [int(row) for row in rows[places]]


def _small(image: Tensor) -> Tensor:
    side = max(image.shape[1:])
    if side <= SIDE:
        return image
    size = [max(1, round(length * SIDE / side)) for length in image.shape[1:]]
    return F.interpolate(image[None].float(), size, mode="area")[0].round().to(torch.uint8)


def standardised(mine: Tensor, others: Tensor) -> Tensor:
    """Distance from the mean of others ``(K, N)`` in standard deviations, ``(N,)``.

    Of a handful of models an example's own deviation can be near zero by chance; it is never taken
    below the root mean square over all examples.
    """
    spread = others.std(0)
    pooled = spread.square().mean().sqrt()
    return (mine - others.mean(0)) / spread.clamp(min=float(pooled) or 1e-6)
