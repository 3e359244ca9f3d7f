"""What every metric keeps to, whatever it measures, on every kind of task."""

from __future__ import annotations

import inspect
import random

import numpy as np
import pytest
import sklearn.svm  # noqa: F401 - its import draws from Python's generator
import torch
from tests.conftest import NAMES
from tests.evaluation.micro import made, sound, unmeasured, variants
from torch import nn

from expunge.evaluation.evaluate import Evaluation
from expunge.evaluation.metric import metrics
from expunge.evaluation.metrics.utility import Accuracy


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


def seen(found: Evaluation) -> list[bytes]:
    """The data, and all that models have been read to answer so far."""
    tensors = []
    for data in found.parts.values():
        (batch,) = data.batches([torch.arange(len(data))], device="cpu")
        tensors += list(batch.values())
    for subject in found.subjects.values():
        for part in found.parts:
            reading = subject.read(part)
            tensors += [reading.outputs, reading.loss, reading.score, reading.log_likelihood, reading.margin]
    return [tensor.numpy().tobytes() for tensor in tensors]


@pytest.mark.parametrize("name", metrics.names())
@pytest.mark.parametrize("kind", NAMES)
def test_a_metric_measures_and_changes_nothing(kind: str, name: str) -> None:
    found = made(kind).evaluation
    before, known, generators = state(made(kind).models), seen(found), draws()
    scores = [metric(unmeasured(found)) for metric in variants(name)]
    assert state(made(kind).models) == before
    assert seen(found) == known
    assert draws() == generators
    for score in scores:
        sound(score)
    torch.manual_seed(12345)  # a metric that draws from the global generator differs now
    again = scores if kind == "classification" else scores[:1]
    for metric, score in zip(variants(name), again, strict=False):
        assert metric(unmeasured(found)).to_json() == score.to_json()
    ids = [score.id for score in scores]
    assert len(set(ids)) == len(ids), "two definitions share an id"


@pytest.mark.parametrize("name", metrics.names())
def test_a_metric_says_what_it_needs_to_say(name: str) -> None:
    text = inspect.getdoc(metrics.get(name)) or ""
    for section in ("Ideal:", "Cost:"):
        assert f"\n{section}" in text
    evidence = unmeasured(made("classification").evaluation)
    for metric in variants(name):
        score = metric(evidence)
        assert score.target == metric.target
        assert score.unit == metric.counts()
        assert (score.name, score.part, score.variant) == metric.labels(evidence)
        if getattr(metric, "definition", "corrected") == "conformance":
            assert score.variant.endswith("-conformance")


def test_metrics_have_a_value_on_a_classifier() -> None:
    """So that the tests above do not hold by refusing everything."""
    evidence = unmeasured(made("classification").evaluation)
    reasons = {name: variants(name)[0](evidence).reason for name in metrics.names()}
    refused = {name for name, reason in reasons.items() if reason is not None}
    others = ("only a language model", "only a model that draws")
    elsewhere = {name for name in refused if str(reasons[name]).startswith(others)}
    assert refused - elsewhere == {"head_only", "loss_svc", "mae", "wasserstein"}, reasons


def test_metrics_have_a_value_on_a_language_model_without_text() -> None:
    evidence = unmeasured(made("causal_lm").evaluation)
    names = ("answer_probability", "exact_memorisation", "extraction_strength", "privleak", "text_membership")
    assert {name: variants(name)[0](evidence).reason for name in names} == dict.fromkeys(names)


def test_doing_nothing_leaves_the_original_right_on_everything_it_was_trained_on() -> None:
    """So the split that is judged is the one that the original was trained on."""
    found = made("classification").evaluation
    evidence = found.evidence(found.candidates[0])
    assert [Accuracy(part=part)(evidence).value for part in ("forget", "retain")] == [1.0, 1.0]


@pytest.mark.parametrize("kind", NAMES)
def test_a_retrained_model_shares_no_weight_with_the_original(kind: str) -> None:
    original, *others = [c.model for c in made(kind).candidates if c.role != "unlearned"]
    for other in others:
        pairs = zip(original.parameters(), other.parameters(), strict=True)
        assert not any(torch.equal(a, b) for a, b in pairs)
