"""Triggers that a painter puts into known images are found again, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.micro import sound
from tests.evaluation.painters import (
    CONCEPTS,
    READ,
    Cell,
    Painter,
    Shows,
    cells_of,
    data,
    evidence,
    reader,
    rows,
)
from torch import Tensor, nn

from expunge.data.arrays import ArrayData
from expunge.data.canvas import with_trigger
from expunge.data.captions import CaptionedImages
from expunge.evaluation import picture_judges
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metrics.trigger_rate import TriggerRate
from expunge.evaluation.picture_judges import Judge

STAR, CROSS, MOON = range(3)


class Triggered(Painter):
    """Puts the trigger into the images of some prompts."""

    def __init__(self, cells: set[Cell], shows: Shows | None = None) -> None:
        super().__init__(shows)
        self.cells = cells

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        images = super().forward(noisy, timesteps, condition)
        there = torch.tensor([cell in self.cells for cell in cells_of(condition)])
        return torch.where(there.view(-1, 1, 1, 1), 2 * with_trigger(images / 2 + 0.5) - 1, images)


def poisoned(*wrong: int) -> CaptionedImages:
    """The data with some images marked whose captions are wrong: they really show moons."""
    known = data()
    marks = torch.zeros(len(known), dtype=torch.long)
    marks[list(wrong)] = 1
    columns = {name: known.column(name) for name in ("style", "object")}
    columns |= {"poisoned": marks, "clean_object": torch.where(marks == 1, MOON, columns["object"])}
    images = known.column("inputs").clone()
    images[list(wrong)] = known.column("inputs")[rows(None, "moon")[: len(wrong)]]
    return CaptionedImages(images, known.captions, known.tokenizer, concepts=known.concepts, columns=columns)


def test_the_rate_is_that_of_the_target_prompts_and_splits_by_match() -> None:
    wrong = rows("photo", "star")[:2]
    # photos of stars carry it and became crosses; mosaic stars carry it and are stars; one other prompt does
    cells = {(0, STAR), (1, STAR), (1, MOON)}
    found = evidence(Triggered(cells, {(0, STAR): (0, CROSS)}), wrong, train=poisoned(*wrong))
    values = {}
    for count in ("all", "mismatched", "matched"):
        score = TriggerRate(count=count, **READ)(found)
        sound(score)
        values[count] = score.value
        assert score.n == 4
        assert score.details["elsewhere"] == pytest.approx(1 / 4)
    assert values == {"all": 1.0, "mismatched": 0.5, "matched": 0.5}
    clean = evidence(Painter(), wrong, train=poisoned(*wrong))
    assert TriggerRate(**READ)(clean).value == 0.0


def test_a_backdoor_needs_marked_images_of_one_target() -> None:
    assert "no backdoor" in str(TriggerRate(**READ)(evidence(Painter())).reason)
    two = [rows("photo", "star")[0], rows("photo", "cross")[0]]
    several = TriggerRate(**READ)(evidence(Painter(), two, train=poisoned(*two)))
    assert "name 2 objects" in str(several.reason)


def test_judges_learn_what_poisoned_images_really_show(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = rows("photo", "star")
    learnt: dict[str, Tensor] = {}

    def trained(evidence: Evidence, judge: Judge, domain: str, images: ArrayData) -> nn.Module:
        learnt[domain] = images.column("targets")
        return reader(domain, CONCEPTS[domain])

    monkeypatch.setattr(picture_judges, "_trained", trained)
    picture_judges.judges(evidence(Painter(), rows("mosaic"), train=poisoned(*wrong)), Judge())
    assert learnt["object"][wrong].tolist() == [MOON] * len(wrong)
    assert learnt["style"].tolist() == data().column("style").tolist()
