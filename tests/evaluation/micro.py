"""Micro settings with everything that any metric asks for, and what every score keeps to."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import typing

import pytest
import torch
from tests.conftest import _setting
from torch import nn

from expunge.data import ArrayData, Data, Split
from expunge.data.poison import Patch
from expunge.errors import ConfigError
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score, Unit
from expunge.evaluation.shadows import ShadowPlan, train_shadows, treat
from expunge.methods.base import methods
from expunge.training.optim import SGD

QUICK = {"budget": 6, "repeats": 2, "optim": SGD(lr=1.0)}
LIGHT: dict[str, dict[str, object]] = {
    "relearn_time": QUICK,
    "anamnesis": QUICK,
    "relearn_facts": {"steps": (1, 2)},
    "interclass_confusion": {"classes": (0, 1)},
    "backdoor_test": {"queries": 4, "q": 0.3, "p": 0.9},
}
"""Settings under which a metric is quick, and fits the data below."""


def variants(name: str) -> list[Metric]:
    """The metric as it comes, and with every other choice of every field that has a list of them."""
    plain = metrics.get(name)(**LIGHT.get(name, {}))
    found = [plain]
    for field in dataclasses.fields(plain):
        hint = typing.get_type_hints(type(plain))[field.name]
        if typing.get_origin(hint) is typing.Literal:
            others = [value for value in typing.get_args(hint) if value != getattr(plain, field.name)]
            found += [made for value in others if (made := _replaced(plain, field.name, value)) is not None]
    return found


def _replaced(metric: Metric, field: str, value: object) -> Metric | None:
    changes = {field: value}
    if metrics.name_of(metric) == "svc" and field == "definition":
        changes["feature"] = "modified_entropy"  # the only feature with two definitions
    try:
        return dataclasses.replace(metric, **changes)
    except (ValueError, ConfigError):  # a choice that does not go with the others
        return None


def _columns(name: str, data: Data) -> Data:
    """The data itself; of images, some with a trigger and everything with its clean labels."""
    if name != "classification":
        return data
    inputs, targets = data.column("inputs").clone(), data.column("targets")
    manipulated = (torch.arange(len(data)) < 6).long()
    inputs[:6] = Patch().on(inputs[:6], float(inputs.max()))
    return ArrayData({
        "inputs": inputs,
        "targets": torch.where(manipulated == 1, 0, targets),
        "clean_targets": targets,
        "manipulated": manipulated,
        "affected": (targets < 2).long(),
    })  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """Everything that an evaluation of one micro setting is made of."""

    candidates: list[Candidate]
    split: Split
    evaluation: Evaluation

    @property
    def models(self) -> list[nn.Module]:
        found = [c.model for c in self.candidates if c.model is not None]
        shadows = self.evaluation.shadows
        return found + list(self.candidates[-1].siblings) + list(shadows.models if shadows else ())


@functools.cache
def made(name: str) -> Made:
    """One method with four runs, four retrained models and four shadow models of a micro setting."""
    setting = _setting(name)
    train = setting.split.train()
    cut = len(train) * 3 // 4
    data, test = (_columns(name, train.subset(ids)) for ids in (train.ids[:cut], train.ids[cut:]))
    split = Split.from_ids(data, data.ids[::4], test=test, holdout=test)
    recipe = dataclasses.replace(
        setting.recipe, training=dataclasses.replace(setting.recipe.training, epochs=3)
    )
    session = setting.session
    original = setting.recipe.train(data, session.child("original"))
    retrained = [recipe.train(split.retain, session.child("retrain", i)) for i in range(4)]
    method = methods.get("finetune")(epochs=1)
    runs = [method.unlearn(original, split, setting.task, session.child(i)) for i in range(4)]
    short = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, epochs=1))
    shadows = train_shadows(short, data, test, ShadowPlan(count=4, how="sequential"), session)
    treated = treat(shadows, method, split.forget.ids, data, test, setting.task, session)
    shadows = dataclasses.replace(shadows, treated={"finetune": treated})
    candidates = [
        Candidate("original", "original", original),
        *(Candidate(f"retrained {i + 1}", "retrained", model) for i, model in enumerate(retrained)),
        Candidate("finetune", "unlearned", runs[0], siblings=tuple(runs[1:]), cost={"seconds": 1.0}),
    ]
    return Made(candidates, split, Evaluation(candidates, split, setting.task, session, shadows))


def unmeasured(found: Evaluation) -> Evidence:
    """The evidence about the method, nothing of it remembered but what the models answered."""
    for subject in (*found.subjects.values(), *sum(found.further.values(), ())):
        subject.scores.clear()
        subject.kept.clear()
    return found.evidence(found.candidates[-1])


def sound(score: Score) -> None:
    """A finite number with a finite interval that holds it, or a sentence; and it survives JSON."""
    text = json.dumps(score.to_json(), allow_nan=False)
    again = Score.from_json(json.loads(text))
    assert again.to_json() == score.to_json()
    assert again.id == score.id
    assert score.unit in typing.get_args(Unit)
    if score.reason is not None:
        assert score.reason[-1] == "."
        assert "\n" not in score.reason
        return
    assert math.isfinite(score.value)
    assert score.n >= 1
    if score.unit == "fraction" and score.name != "head-only forgetting":
        low = -1.0 if score.name == "CKA" else 0.0  # the unbiased estimate of no similarity is about 0
        assert low - 1e-9 <= score.value <= 1 + 1e-9
    if score.interval is not None:
        low, high = score.interval
        assert math.isfinite(low)
        assert math.isfinite(high)
        assert low - 1e-9 <= score.value <= high + 1e-9, score.id
    for extra in (score.perfect, score.error, score.df):
        assert extra is None or math.isfinite(extra)
    if score.per_example is not None:
        assert score.per_example.shape == (score.n,)
        assert float(score.per_example.double().mean()) == pytest.approx(score.value, abs=1e-6)
