"""O3: orthogonal adapters, the router by hand, and a stream of requests."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.methods import people

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods import prompts
from expunge.methods.guarded import guard_of
from expunge.methods.guards.o3 import O3, of_request, one_class, routed, svm_score
from expunge.training.optim import AdamW
from expunge.training.session import Session

pytest.importorskip("transformers")

METHOD = O3(rank=4, epochs=20, optim=AdamW(lr=1e-2), answers="idk")
REQUESTS = ([0, 1], [2], [5, 6])


@functools.cache
def stream(count):
    """The model after so many requests."""
    model = stream(count - 1) if count else people.original()
    if not count:
        return model
    split = Split.from_ids(people.data(), REQUESTS[count - 1])
    return METHOD.unlearn(model, split, people.TASK, Session(seed=count))


def test_each_request_is_forgotten_and_the_earlier_stay_forgotten():
    before = people.score(people.original(), people.data())
    gone = []
    for number, request in enumerate(REQUESTS, 1):
        gone += request
        fall = before - people.score(stream(number), people.data())
        assert (fall[gone] > 3).all()
        kept = [i for i in range(8) if i not in gone]
        assert fall[kept].abs().max() < 1e-5


def test_a_request_leaves_the_earlier_adapters_and_the_weights_as_they_were():
    first, third = guard_of(stream(1)).learned(), guard_of(stream(3)).learned()
    assert all(torch.equal(value, third[name]) for name, value in first.items())
    assert {name.split(".")[0] for name in third} == {"0", "1", "2"}
    original = people.original().state_dict()
    assert all(torch.equal(value, stream(3).state_dict()[name]) for name, value in original.items())
    assert len(stream(3)._forward_hooks) == 1


def test_the_new_adapter_turns_away_from_the_earlier():
    """``Σ ‖A_j A_kᵀ‖²`` is what it is penalised for; without the penalty it is larger."""
    split = Split.from_ids(people.data(), REQUESTS[1])

    def overlap(weight):
        model = replace(METHOD, orthogonal=weight).unlearn(stream(1), split, people.TASK, Session(seed=2))
        first, second = (of_request(guard_of(model).learned(), k, "A") for k in (0, 1))
        return sum(float((value @ second[name].T).square().sum()) for name, value in first.items())

    assert overlap(1.0) < 0.2 * overlap(0.0)


def test_the_penalty_by_hand():
    """``A_1 = (1, 2)``, ``A_2 = (3, 1)``: ``λ (1 · 3 + 2 · 1)² = 0.5 · 25``."""
    adapter = SimpleNamespace(factor=lambda which, layer: torch.tensor([[3.0, 1.0]]))
    view = SimpleNamespace(instead=lambda name: SimpleNamespace(loss=torch.tensor([1.0, 3.0])))
    step = SimpleNamespace(
        forget=view,
        model=SimpleNamespace(get_submodule=lambda name: adapter),
        state=[{"layer": torch.tensor([[1.0, 2.0]])}],
    )
    terms = replace(METHOD, orthogonal=0.5).objective(step)
    assert {name: float(value) for name, value in terms.items()} == {"forget": 2.0, "orthogonal": 12.5}


def test_the_first_request_has_nothing_to_turn_away_from():
    view = SimpleNamespace(relabelled=SimpleNamespace(loss=torch.tensor([1.0])))
    step = SimpleNamespace(forget=view, model=SimpleNamespace(get_submodule=lambda name: None), state=[])
    assert list(replace(METHOD, answers="").objective(step)) == ["forget"]


def test_the_score_is_that_of_the_support_vector_machine():
    from sklearn.svm import OneClassSVM

    torch.manual_seed(0)
    x, other = torch.randn(30, 4) * 3 + 1, torch.randn(5, 4) * 9
    router = one_class(x, 0.1)
    mean, scale = x.mean(0), x.std(0, correction=0)
    fit = OneClassSVM(kernel="rbf", gamma=0.25, nu=0.1).fit(((x - mean) / scale).numpy())
    expected = torch.tensor(fit.decision_function(((other - mean) / scale).numpy())).float()
    torch.testing.assert_close(svm_score(other, router), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_handful_of_prompts_are_all_taken(count):
    """Each is a support vector, and what the solver leaves over of its score says nothing."""
    x = torch.randn(count, 24, generator=torch.Generator().manual_seed(count))
    router = one_class(x, 0.1)
    assert len(router["vectors"]) == count
    assert (routed(x, router, cut=0.01) > 0.95).all()
    far = torch.randn(8, 24, generator=torch.Generator().manual_seed(9)) * 3
    assert (routed(far, router, cut=0.01) == 0).all()


def test_the_weight_by_hand(monkeypatch):
    """``z = 0 → p = 1, w = σ(8)``; ``z = −1 → p = 0.3173, w = σ(1.173)``; ``z = −3 → p < cut, w = 0``."""
    scores = torch.tensor([0.0, 5.0, -1.0, -3.0])
    monkeypatch.setattr("expunge.methods.guards.o3.svm_score", lambda x, router: scores)
    found = routed(torch.zeros(4, 1), {"moments": torch.tensor([0.0, 1.0])}, cut=0.01)
    p = 2 * 0.158655
    expected = torch.sigmoid(torch.tensor([8.0, 8.0, 10 * p - 2, -torch.inf]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_prompts_that_are_of_no_request_get_the_model_itself_bit_by_bit():
    rows = people.batch(people.split().retain)
    model = METHOD.unlearn(people.original(), people.split(), people.TASK, Session(seed=1))
    with torch.no_grad():
        assert torch.equal(people.TASK.outputs(model, rows), people.TASK.outputs(people.original(), rows))


def test_a_router_with_retained_prompts():
    method = replace(METHOD, router="logistic")
    model = method.unlearn(people.original(), people.split(), people.TASK, Session(seed=1))
    router = of_request(guard_of(model).learned(), 0, "router")
    assert set(router) == {"weight", "bias"}
    x = prompts.features(people.original(), people.data(), people.TASK, Session(), "hidden")
    weights, likely = routed(x, router, method.cut), prompts.probability(router, x)
    assert torch.equal(weights, torch.where(likely > 0.5, likely, 0.0))
    assert (weights > 0).tolist() == [i in people.FORGET for i in range(8)]
    assert (
        people.score(people.original(), people.split().forget) - people.score(model, people.split().forget)
        > 1
    ).all()


def test_a_request_of_another_size_is_refused():
    method = replace(METHOD, rank=2)
    with pytest.raises(ConfigError, match="rank: earlier requests have 4, this one 2. Use theirs"):
        method.unlearn(stream(1), people.split(), people.TASK, Session())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("alpha", 0.0),
        ("epochs", 0),
        ("batch_size", 0),
        ("orthogonal", -1.0),
        ("nu", 0.0),
        ("cut", 1.0),
    ],
)
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        O3(**{field: value})
