"""UnlearnCanvas's accuracies on painters whose every image is known, by judges that read a pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.evaluation.micro import sound
from tests.evaluation.painters import GALLERY, READ, Cell, Painter, data, evidence, rows

from expunge.evaluation import picture_judges
from expunge.evaluation.metrics.unlearn_canvas import (
    ConditionedAccuracy,
    CrossDomainAccuracy,
    InDomainAccuracy,
    Pictured,
    UnlearningAccuracy,
)
from expunge.evaluation.picture_judges import Judge

EVERY: tuple[type[Pictured], ...] = (
    UnlearningAccuracy, InDomainAccuracy, CrossDomainAccuracy, ConditionedAccuracy,
)  # fmt: skip
STAR, CROSS, MOON = range(3)
ERASED: dict[Cell, Cell] = {(1, STAR): (0, STAR), (1, CROSS): (0, MOON), (0, MOON): (1, STAR)}
"""Mosaic stars became photos of stars, mosaic crosses photos of moons; photos of moons mosaic stars."""


def measured(model: torch.nn.Module, forget: list[int] | None = None, **fields: Any) -> dict[str, float]:
    found = evidence(model, forget)
    scores = {kind.__name__: kind(**{**READ, **fields})(found) for kind in EVERY}
    for score in scores.values():
        sound(score)
    return {name: score.value for name, score in scores.items()}


def test_a_style_by_hand() -> None:
    # 3 mosaic prompts of 2 images: 2 of 3 no longer mosaic, the object right in 2 of 3 (crosses are moons);
    # 3 photo prompts: style and object right in 2 of 3 (moons went).
    assert measured(Painter(ERASED)) == pytest.approx({
        "UnlearningAccuracy": 2 / 3, "InDomainAccuracy": 2 / 3, "CrossDomainAccuracy": 2 / 3,
        "ConditionedAccuracy": 2 / 3,
    })  # fmt: skip
    assert list(measured(Painter()).values()) == [0.0, 1.0, 1.0, 1.0]


def test_an_object_by_hand() -> None:
    # crosses: photo ones stay, mosaic ones became photos of moons
    found = measured(Painter(ERASED), rows(None, "cross"))
    assert found == pytest.approx({
        "UnlearningAccuracy": 1 / 2, "InDomainAccuracy": 3 / 4, "CrossDomainAccuracy": 2 / 4,
        "ConditionedAccuracy": 1 / 2,
    })  # fmt: skip


def test_a_pair_has_all_pairs_for_its_domain_and_no_other() -> None:
    found = evidence(Painter(ERASED), rows("mosaic", "cross"))
    values = {kind.__name__: kind(**READ)(found) for kind in EVERY}
    assert values["UnlearningAccuracy"].value == 1.0
    assert values["InDomainAccuracy"].value == pytest.approx(3 / 5)  # stars of mosaic and moons of photo went
    # mosaic star, mosaic moon and photo cross have one of the two
    assert values["ConditionedAccuracy"].value == pytest.approx(2 / 3)
    assert "one concept of each domain" in str(values["CrossDomainAccuracy"].reason)


def test_half_of_the_images_count_half_and_the_interval_is_that_of_images() -> None:
    model = Painter({(1, o): ((0, o), (1, o)) for o in range(3)})  # by the sign of the noise
    found = evidence(model)
    score = UnlearningAccuracy(**READ)(found)
    assert score.n == 6
    assert score.per_example is not None
    assert score.value == pytest.approx(float(score.per_example.mean()))
    assert 0 < score.value < 1
    assert score.interval is not None
    assert score.interval[0] < score.value < score.interval[1]
    assert set(score.details["prompts"]) == {
        f"a {o} image in mosaic style" for o in ("star", "cross", "moon")
    }


def test_the_published_cross_domain_accuracy_counts_the_erased_style_too() -> None:
    # all mosaics became photos of moons: the retained style is drawn as well as ever
    model = Painter({(1, o): (0, MOON) for o in range(3)})
    found = evidence(model)
    corrected, published = (
        CrossDomainAccuracy(**READ, definition=definition)(found)
        for definition in ("corrected", "conformance")
    )
    assert corrected.value == 1.0
    assert published.value == pytest.approx((3 + 1) / 6)
    assert published.id.endswith("-conformance")
    assert ConditionedAccuracy(**READ)(found).value == pytest.approx(1 / 3)


def test_a_collapsed_model_forgets_perfectly_and_keeps_nothing() -> None:
    found = measured(Painter({(s, o): (-1, -1) for s in range(2) for o in range(3)}))
    # level 0 is nearest to the first concept of each domain
    assert found["UnlearningAccuracy"] == 1.0
    assert found["CrossDomainAccuracy"] == found["ConditionedAccuracy"] == pytest.approx(1 / 3)


def test_all_metrics_share_one_gallery_and_one_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    model, looks = Painter(), []
    found = evidence(model, retrained=[Painter()])
    plain = picture_judges.Judges.look
    monkeypatch.setattr(
        picture_judges.Judges, "look", lambda self, *rest: looks.append(1) or plain(self, *rest)
    )
    scores = [kind(**READ)(found) for kind in EVERY]
    assert len(looks) == 2  # the subject's images and the retrained model's
    assert model.calls == GALLERY.steps
    assert all(score.error is not None for score in scores)  # paired with the retrained model's images


def test_every_score_has_the_judges_accuracy_and_says_where_it_cannot_be_trusted() -> None:
    good = UnlearningAccuracy(**READ)(evidence(Painter()))
    assert good.details["judges"] == {"style": 1.0, "object": 1.0}
    assert "note" not in good.details
    blind = Judge(load="tests.evaluation.painters:blind")
    bad = UnlearningAccuracy(gallery=GALLERY, judge=blind)(evidence(Painter()))
    assert bad.details["judges"]["style"] < 0.9
    assert "cannot be trusted" in bad.details["note"]
    assert "of the styles" in bad.details["note"]
    assert "of the objects" not in bad.details["note"]


def test_a_judge_of_other_concepts_or_without_test_images_is_refused() -> None:
    score = UnlearningAccuracy(gallery=GALLERY, judge=Judge(load="tests.evaluation.painters:short"))(
        evidence(Painter())
    )
    assert "1 logits for 2 concepts" in str(score.reason)
    found = evidence(Painter())
    parts = {name: part for name, part in found.parts.items() if name != "test"}
    object.__setattr__(found, "parts", parts)
    assert "Give the split test=" in str(UnlearningAccuracy(**READ)(found).reason)


def test_judges_are_trained_once_and_kept_beyond_the_evaluation() -> None:
    """The colours are flat, so that a handful of steps separates them."""
    store: dict[str, Any] = {}

    def keep(name: str, depends: tuple[Any, ...], compute: Any) -> Any:
        key = f"{name} {depends}"
        if key not in store:
            store[key] = compute()[1]
        return store[key]

    judge = Judge(width=4, epochs=12, batch_size=6)
    first = picture_judges.judges(evidence(Painter(), keep=keep), judge)
    assert len(store) == 2
    other = evidence(Painter(ERASED), rows(None, "star"), keep=keep)  # another forget set, the same data
    second = picture_judges.judges(other, judge)
    assert len(store) == 2
    images = (data("test").column("inputs") / 2 + 0.5).mul(255).to(torch.uint8)
    engine = other.session.engine
    assert torch.equal(first.look(images, engine).features, second.look(images, engine).features)
    assert first.accuracy["style"] > 0.7  # chance is a half


def test_few_images_are_seen_more_often() -> None:
    assert picture_judges.epochs(Judge(), 1800) == 5  # 29 steps an epoch
    assert picture_judges.epochs(Judge(), 288) == 20  # 5 of them, where 100 are wanted
    assert picture_judges.epochs(Judge(steps=1), 1) == 5
