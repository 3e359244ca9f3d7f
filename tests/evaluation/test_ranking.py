"""Ties, and that a broken model never comes first on any metric."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from expunge import api
from expunge.data import ArrayData, Split
from expunge.evaluation import Candidate, Row, Score, Table, ranking
from expunge.evaluation.controls import CONTROLS, control
from expunge.evaluation.evaluate import DEFAULT, Evaluation
from expunge.evaluation.metric import metrics
from expunge.methods.base import methods
from expunge.tasks import Classification
from expunge.training.models import models
from expunge.training.optim import SGD, AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

TASK = Classification(3)


def score(value: float, name: str = "accuracy", part: str = "test", half: float = 0.01, **fields) -> Score:
    given = {"target": "retrained", "unit": "fraction", "metric": name, "error": half / 1.96, "df": 500.0}
    interval = (value - half, value + half)
    return Score(name=name, part=part, value=value, interval=interval, n=500, **{**given, **fields})


def row(name: str, role: str, *scores: Score) -> Row:
    return Row(name, role, {item.id: item for item in scores})


def table(*rows: Row, floors: dict[str, float] | None = None) -> Table:
    anchors = [row("original", "original", score(0.9), score(1.0, part="forget"))]
    anchors += [
        row(f"retrained {k}", "retrained", score(0.9 + k / 1000), score(0.0 + k / 1000, part="forget"))
        for k in range(3)
    ]
    floors = {"accuracy": 0.1} if floors is None else floors
    return Table("set", "", 500, 5000, (*anchors, *rows), floors=floors)


def test_ranks_are_shared_where_chance_could_reverse_the_order() -> None:
    found = table(
        row("far", "unlearned", score(0.9), score(0.30, part="forget")),
        row("near", "unlearned", score(0.9), score(0.010, part="forget")),
        row("also near", "unlearned", score(0.9), score(0.012, part="forget")),
    )
    places = ranking.ranking(found, "accuracy.forget")
    assert [(place.row.name, place.rank) for place in places] == [("near", 1), ("also near", 1), ("far", 3)]


def test_a_broken_model_is_not_ranked_and_is_told_why() -> None:
    broken = row("broken", "unlearned", score(0.2), score(0.001, part="forget"))
    good = row("good", "unlearned", score(0.89), score(0.2, part="forget"))
    first, last = ranking.ranking(table(broken, good), "accuracy.forget")
    assert (first.row.name, first.rank) == ("good", 1)
    assert last.rank is None
    assert "keeps 12% of the test accuracy" in last.excluded


def test_the_best_control_raises_the_floor() -> None:
    """Where always one answer is right 60 % of the time, 75 % is hardly utility."""
    lucky = row("lucky", "unlearned", score(0.75))
    assert ranking.broken(table(lucky), lucky) is None
    assert ranking.broken(table(lucky, row("constant", "control", score(0.6))), lucky) is not None


def test_without_a_measure_of_the_task_nobody_is_ranked() -> None:
    rows = [row("original", "original", score(1.0, part="forget"))]
    rows += [row(f"retrained {k}", "retrained", score(k / 1000, part="forget")) for k in range(3)]
    rows += [row("model", "unlearned", score(0.0, part="forget"))]
    (place,) = ranking.ranking(Table("set", "", 1, 2, tuple(rows)), "accuracy.forget")
    assert place.rank is None
    assert "no utility" in place.excluded


def test_where_the_score_cannot_tell_the_loss_does() -> None:
    """A regressor of large targets: exp(−loss) is 0 for everyone."""

    def both(name: str, role: str, loss: float) -> Row:
        spread = {"name": "loss", "half": 0.2, "unit": "nats"}
        return row(name, role, score(0.0, half=0.0), score(loss, **spread))

    rows = [both("original", "original", 10.0)]
    rows += [both(f"retrained {k}", "retrained", 10.0 + k / 10) for k in range(3)]
    rows += [both("good", "unlearned", 11.0), both("broken", "unlearned", 90.0)]
    found = Table("set", "", 1, 2, tuple(rows), floors={"accuracy": 0.0, "loss": 100.0})
    assert ranking.utility(found) == "loss.test"
    assert ranking.broken(found, rows[4]) is None
    assert "keeps 11% of the test loss" in ranking.broken(found, rows[5])


def test_a_painter_does_its_task_where_it_draws_what_stays() -> None:
    """Over several runs too; without a control nobody knows what chance is worth."""

    def painter(name: str, role: str, right: float) -> Row:
        drawn = {
            "name": "in-domain accuracy",
            "part": "retain",
            "variant": "over-runs",
            "metric": "over_runs",
        }
        return row(name, role, score(right, **drawn))

    rows = [
        painter("original", "original", 1.0),
        *(painter(f"retrained {k}", "retrained", 0.9) for k in range(3)),
    ]
    rows += [painter("good", "unlearned", 0.8), painter("broken", "unlearned", 0.6)]
    without = Table("set", "", 1, 2, tuple(rows))
    assert ranking.utility(without) is None
    found = Table("set", "", 1, 2, (*rows, painter("collapsed", "control", 0.3)))
    assert ranking.utility(found) == "in-domain accuracy.retain.over-runs"
    assert ranking.broken(found, rows[4]) is None
    assert "keeps 50% of the" in ranking.broken(found, rows[5])
    assert "above the best control" in ranking.broken(found, rows[5])


@functools.cache
def judged() -> Table:
    """Class 0 is forgotten by finetuning; beside it, as if they were methods, the three controls."""
    draws = torch.Generator().manual_seed(0)
    targets = torch.arange(240) % 3
    inputs = torch.randn(240, 4, generator=draws) + 3 * nn.functional.one_hot(targets, 4)
    train = ArrayData({"inputs": inputs[:120], "targets": targets[:120]})
    test = ArrayData({"inputs": inputs[120:], "targets": targets[120:]})
    recipe = Recipe(
        models.get("mlp")(inputs=4, outputs=3, hidden=(16,)), TASK, Training(epochs=12, optim=AdamW(lr=0.02))
    )
    session = Session(0, recipe=recipe)
    split = Split.from_ids(train, range(0, 120, 3), test=test, holdout=test)
    original = recipe.train(train, session)
    candidates = [Candidate("original", "original", original)]
    candidates += api.references(recipe, split, session, 3)
    subject = Evaluation(candidates, split, TASK, session).original
    finetune = methods.get("finetune")(epochs=3, optim=SGD(lr=0.05))
    runs = [finetune.unlearn(original, split, TASK, session.child(i)) for i in range(3)]
    candidates.append(Candidate("finetune", "unlearned", runs[0], siblings=tuple(runs[1:])))
    for name in CONTROLS:
        broken = [control(name, subject, session.child(i)) for i in range(3)]
        candidates.append(Candidate(f"a {name} model", "unlearned", broken[0], siblings=tuple(broken[1:])))
    chosen = [*DEFAULT, *(kind() for name in metrics.names() if _plain(kind := metrics.get(name)))]
    return api.compare("guard", candidates, split, TASK, session, chosen).tables[0]


def _plain(kind: type) -> bool:
    try:
        kind()
    except TypeError:
        return False
    return True


def winners(found: Table) -> dict[str, list[str]]:
    return {
        id_: [place.row.name for place in ranking.ranking(found, id_) if place.rank == 1]
        for id_ in found.columns()
    }


def test_no_broken_model_comes_first_on_any_metric() -> None:
    found = judged()
    assert len(winners(found)) > 15
    for id_, names in winners(found).items():
        assert not any(name.startswith("a ") for name in names), id_
    (finetuned,) = (item for item in found.rows if item.name == "finetune")
    assert ranking.broken(found, finetuned) is None


def test_without_the_guard_a_broken_model_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "broken", lambda table, row: None)
    won = [id_ for id_, names in winners(judged()).items() if any(name.startswith("a ") for name in names)]
    assert len(won) >= 3


def test_the_overall_ranking_has_the_same_guard() -> None:
    from expunge.report import summary

    assert not any(name.startswith("a ") for name in summary.finding(judged()).nearest)


def test_ranks_never_fall_down_the_list() -> None:
    """A wide interval overlaps what a narrow one with a smaller value does not."""
    row = Row("model", "unlearned", {})
    best, narrow, wide = (
        ranking.Place(row, *numbers) for numbers in ((1.0, 0.5, 2.0), (3.0, 2.5, 3.5), (4.0, 1.5, 6.5))
    )
    assert [(place.value, place.rank) for place in ranking.ranked([wide, narrow, best])] == [
        (1.0, 1),
        (3.0, 2),
        (4.0, 2),
    ]
