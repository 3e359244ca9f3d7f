import pytest
import torch
from torch import nn

from expunge.data import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.boundary_shrink import BoundaryShrink
from expunge.tasks import Classification, Regression
from expunge.training.optim import SGD
from expunge.training.session import Session

WEIGHT = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
X = torch.tensor([[1.0, 0.9], [1.0, -2.0], [0.2, 3.0], [-3.0, -1.0], [0.5, 0.5], [-1.0, 2.0]])
Y = torch.tensor([0, 0, 1, 2, 0, 1])


@pytest.fixture
def linear3():
    model = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(WEIGHT)
    return model, Split.from_ids((X, Y), [0, 1])


def _across(x, y, step, bounds=None):
    """The logits after the step, by hand: ``∇_x ℓ = Wᵀ(p − e_y)``."""
    p = (WEIGHT @ x).softmax(0)
    gradient = WEIGHT.T @ (p - nn.functional.one_hot(torch.tensor(y), 3))
    moved = x + step * gradient.sign()
    return WEIGHT @ (moved if bounds is None else moved.clamp(*bounds))


def targets(method, model, split):
    return method.setup(model, split, Classification(3), Session())[1]


def test_the_target_is_the_nearest_other_class_of_the_perturbed_example(linear3):
    model, split = linear3
    for step in (0.1, 2.0):
        found = targets(BoundaryShrink(step=step), model, split)
        for i in (0, 1):
            logits = _across(X[i], 0, step)
            logits[0] = -torch.inf
            assert found[i] == logits.argmax()
    assert targets(BoundaryShrink(), model, split).tolist() == [1, 2]


def test_under_the_authors_rule_an_example_that_does_not_cross_is_trained_to_stay(linear3):
    model, split = linear3
    assert targets(BoundaryShrink(may_stay=True, step=0.1), model, split).tolist() == [0, 0]
    assert targets(BoundaryShrink(may_stay=True, step=2.0), model, split)[0] != 0
    optim = SGD(lr=0.5, momentum=0.0)
    for may_stay, falls in ((True, False), (False, True)):
        method = BoundaryShrink(epochs=3, optim=optim, may_stay=may_stay)
        result = method.unlearn(model, split, Classification(3), Session())
        own = [m(X[:2]).log_softmax(1)[:, 0].mean() for m in (model, result)]
        assert (own[1] < own[0]) == falls


def test_inputs_are_clipped_only_where_bounds_are_given():
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.bias.copy_(torch.tensor([0.1, 0.0]))
    split = Split.from_ids((torch.tensor([[0.0], [1.0], [-1.0]]), torch.tensor([0, 0, 1])), [0])
    free = BoundaryShrink(step=0.2, may_stay=True)
    clipped = BoundaryShrink(step=0.2, may_stay=True, bounds=(0.0, 1.0))
    assert free.setup(model, split, Classification(2), Session())[1].tolist() == [1]
    assert clipped.setup(model, split, Classification(2), Session())[1].tolist() == [0]


def test_a_step_is_cross_entropy_on_the_found_targets_and_the_retain_set_is_not_used(linear3):
    model, split = linear3
    wrong = torch.tensor([1, 2])
    p = (X[:2] @ WEIGHT.T).softmax(1)
    gradient = (p - nn.functional.one_hot(wrong, 3)).T @ X[:2] / 2
    method = BoundaryShrink(epochs=1, optim=SGD(lr=0.5, momentum=0.0))
    result = method.unlearn(model, split, Classification(3), Session())
    assert torch.allclose(result.weight, WEIGHT - 0.5 * gradient, atol=1e-6)
    other = Split.from_ids((torch.cat([X[:2], 9 * X[2:]]), Y), [0, 1])
    assert torch.equal(result.weight, method.unlearn(model, other, Classification(3), Session()).weight)


def test_the_targets_are_the_originals_in_every_epoch(linear3):
    model, split = linear3
    W, wrong = WEIGHT.clone(), nn.functional.one_hot(torch.tensor([1, 2]), 3)
    for _ in range(4):
        W = W - 3.0 * ((X[:2] @ W.T).softmax(1) - wrong).T @ X[:2] / 2
    method = BoundaryShrink(epochs=4, optim=SGD(lr=3.0, momentum=0.0))
    assert torch.allclose(method.unlearn(model, split, Classification(3), Session()).weight, W, atol=1e-5)


def test_integer_inputs_and_tasks_without_classes_are_refused(linear3):
    model, split = linear3
    with pytest.raises(Unsupported, match="task 'Regression' has none. Use a method for every task"):
        BoundaryShrink().check(split, Regression())
    tokens = Split.from_ids((torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([0, 1, 2])), [0])
    with pytest.raises(Unsupported, match=r"they are torch.int64. Give floating-point ones"):
        BoundaryShrink().unlearn(model, tokens, Classification(3), Session())


@pytest.mark.parametrize("fields", [{"step": 0.0}, {"bounds": (1.0, 0.0)}, {"epochs": 0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        BoundaryShrink(**fields)
