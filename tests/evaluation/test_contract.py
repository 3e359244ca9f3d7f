"""What every metric keeps to, whatever it measures, on every kind of task and on spoilt models."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import random
import typing

import numpy as np
import pytest
import torch
from tests.conftest import NAMES, _setting
from torch import nn

from expunge.data import Split
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score, Unit
from expunge.evaluation.shadows import ShadowPlan, train_shadows, treat
from expunge.methods.base import methods


def variants(name: str) -> list[Metric]:
    """The metric as it comes, and with every other choice of every field that has a list of them."""
    plain = metrics.get(name)()
    found = [plain]
    for field in dataclasses.fields(plain):
        hint = typing.get_type_hints(type(plain))[field.name]
        if typing.get_origin(hint) is typing.Literal:
            others = [value for value in typing.get_args(hint) if value != getattr(plain, field.name)]
            found += [made for value in others if (made := _replaced(plain, field.name, value)) is not None]
    return found


def _replaced(metric: Metric, field: str, value: object) -> Metric | None:
    try:
        return dataclasses.replace(metric, **{field: value})
    except ValueError:  # a choice that does not go with the others
        return None


@functools.cache
def evaluation(name: str) -> tuple[Evaluation, list[nn.Module]]:
    """One method with three runs, three retrained models and four shadow models of a micro setting."""
    setting = _setting(name)
    train = setting.split.train()
    cut = len(train) * 3 // 4
    data, test = train.subset(train.ids[:cut]), train.subset(train.ids[cut:])
    split = Split.from_ids(data, data.ids[::4], test=test, holdout=test)
    recipe = dataclasses.replace(
        setting.recipe, training=dataclasses.replace(setting.recipe.training, epochs=3)
    )
    session = setting.session
    retrained = [recipe.train(split.retain, session.child("retrain", i)) for i in range(3)]
    method = methods.get("finetune")(epochs=1)
    runs = [method.unlearn(setting.original, split, setting.task, session.child(i)) for i in range(3)]
    short = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, epochs=1))
    shadows = train_shadows(short, data, test, ShadowPlan(count=4, how="sequential"), session)
    treated = treat(shadows, method, split.forget.ids, data, test, setting.task, session)
    candidates = [
        Candidate("original", "original", setting.fresh()),
        *(Candidate(f"retrained {i + 1}", "retrained", model) for i, model in enumerate(retrained)),
        Candidate("finetune", "unlearned", runs[0], siblings=tuple(runs[1:]), cost={"seconds": 1.0}),
    ]
    everything = [candidate.model for candidate in candidates] + runs[1:] + list(shadows.models)
    shadows = dataclasses.replace(shadows, treated={"finetune": treated})
    return Evaluation(candidates, split, setting.task, session, shadows), everything


def unmeasured(found: Evaluation) -> Evidence:
    """The evidence about the method, nothing of it remembered but what the models answered."""
    for subject in (*found.subjects.values(), *sum(found.further.values(), ())):
        subject.scores.clear()
        subject.kept.clear()
    return found.evidence(found.candidates[-1])


def state(models: list[nn.Module]) -> list[bytes | bool | None]:
    """Everything about models that a metric might change: values, modes and gradients."""
    found: list[bytes | bool | None] = []
    for model in models:
        found += [value.numpy().tobytes() for value in model.state_dict().values()]
        found += [module.training for module in model.modules()]
        for parameter in model.parameters():
            found += [parameter.requires_grad, parameter.grad is None]
    return found


def draws() -> tuple[object, ...]:
    """The states of all global generators."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), kind, keys.tobytes(), *rest


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
        assert -1e-9 <= score.value <= 1 + 1e-9
    if score.interval is not None:
        low, high = score.interval
        assert low - 1e-9 <= score.value <= high + 1e-9, score.id
    for extra in (score.perfect, score.error, score.df):
        assert extra is None or math.isfinite(extra)
    if score.per_example is not None:
        assert score.per_example.shape == (score.n,)
        assert float(score.per_example.double().mean()) == pytest.approx(score.value, abs=1e-6)


@pytest.mark.parametrize("name", metrics.names())
@pytest.mark.parametrize("kind", NAMES)
def test_a_metric_measures_and_changes_nothing(kind: str, name: str) -> None:
    found, models = evaluation(kind)
    before, generators = state(models), draws()
    scores = [metric(unmeasured(found)) for metric in variants(name)]
    assert state(models) == before
    assert draws() == generators
    for score in scores:
        sound(score)
    torch.manual_seed(12345)  # a metric that draws from the global generator differs now
    for metric, score in zip(variants(name), scores, strict=True):
        assert metric(unmeasured(found)).to_json() == score.to_json()
    ids = [score.id for score in scores]
    assert len(set(ids)) == len(ids), "two definitions share an id"


@pytest.mark.parametrize("name", metrics.names())
def test_a_metric_says_what_it_needs_to_say(name: str) -> None:
    text = inspect.getdoc(metrics.get(name)) or ""
    for section in ("Ideal:", "Cost:"):
        assert f"\n{section}" in text
    for metric in variants(name):
        score = metric(
            evaluation("classification")[0].evidence(evaluation("classification")[0].candidates[-1])
        )
        assert score.target == metric.target
        assert score.unit == metric.counts()
        assert (score.name, score.part, score.variant) == metric.labels(
            unmeasured(evaluation("classification")[0])
        )
        if getattr(metric, "definition", "corrected") == "conformance" and name != "svc":
            assert score.variant.endswith("-conformance")


def test_most_metrics_have_a_value_on_a_classifier() -> None:
    """So that the tests above do not hold by refusing everything."""
    found, _ = evaluation("classification")
    reasons = {name: metrics.get(name)()(unmeasured(found)).reason for name in metrics.names()}
    print({k: v for k, v in reasons.items() if v})
    assert sum(reason is None for reason in reasons.values()) >= 22
