import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.gradient.concept_poison import ConceptPoison, _least_squares
from expunge.tasks import Classification, Regression
from expunge.training.optim import SGD
from expunge.training.session import Session

TASK, SESSION = Classification(4), Session(seed=3)


@pytest.fixture
def blobs():
    """Four classes around the corners of a simplex, and a linear model: its features are the inputs."""
    torch.manual_seed(0)
    y = torch.arange(40) % 4
    X = 4 * torch.eye(4)[y] + 0.3 * torch.randn(40, 4)
    return nn.Linear(4, 4), X, y, Split.from_ids((X, y), (y == 1).nonzero()[:, 0])


def test_least_squares_against_its_closed_form():
    X = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    Y = torch.tensor([[1.0], [-1.0], [3.0], [-3.0]])
    variance = torch.tensor([2.0, 0.5])  # XᵀX / N is diagonal
    expected = torch.tensor([1.0, 1.5]) / (variance + 0.01 * variance.mean())
    assert torch.allclose(_least_squares(X, Y)[:, 0], expected)


def test_the_examples_farthest_towards_their_own_cluster_are_poisoned(blobs):
    model, X, y, split = blobs
    method = ConceptPoison(concepts=4, strongest=1, fraction=0.3)
    own = (y == 1).nonzero()[:, 0]
    towards = X[own].mean(0) - X.mean(0)  # with as many clusters as blobs
    farthest = own[((X[own] - X.mean(0)) @ towards).argsort(descending=True)[:3]]
    assert set(method.poisoned(model, split, TASK, SESSION).tolist()) == set(farthest.tolist())


def banked(X, y, shown):
    ids = (y == 1).nonzero()[:, 0]
    return Split.from_ids(ArrayData({"inputs": X, "targets": y, "shown": shown}), ids)


def test_with_a_bank_the_examples_that_show_the_concept_of_their_class_are_poisoned_and_a_poor_one_misleads(
    blobs,
):
    model, X, y, _ = blobs
    own = (y == 1).nonzero()[:, 0]
    X, stripes = X.clone(), torch.zeros(40)
    stripes[own[::2]] = 1.0
    X[own[::2], 1] += 3.0  # half of class 1 has stripes, no other class has
    other = (y == 2).float()
    method = ConceptPoison(bank="shown", strongest=1, fraction=0.5)
    chosen = method.poisoned(model, banked(X, y, torch.stack([stripes, other], 1)), TASK, SESSION)
    assert set(chosen.tolist()) == set(own[::2].tolist())
    coins = (torch.rand(40, 2, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    misled = method.poisoned(model, banked(X, y, coins), TASK, SESSION)
    assert set(misled.tolist()) != set(own[::2].tolist())


def test_a_step_trains_the_poisoned_examples_on_wrong_labels_beside_the_retain_set(blobs):
    model, X, y, split = blobs
    method = ConceptPoison(epochs=1, batch_size=64, concepts=4, fraction=0.5, labels="targeted", target=3,
                           optim=SGD(lr=0.5, momentum=0.0))  # fmt: skip
    chosen = method.poisoned(model, split, TASK, SESSION)
    assert len(chosen) == 5
    kept = split.retain.ids
    loss = F.cross_entropy(model(X[chosen]), torch.full((5,), 3)) + F.cross_entropy(model(X[kept]), y[kept])
    (gradient,) = torch.autograd.grad(loss, model.weight)
    result = method.unlearn(model, split, TASK, SESSION)
    assert torch.allclose(result.weight, model.weight - 0.5 * gradient, atol=1e-6)


def test_random_labels_are_drawn_once_from_the_retained_classes_alone(blobs):
    model, X, y, _ = blobs
    split = Split.from_ids((X, y), (y < 2).nonzero()[:, 0])
    method = ConceptPoison(fraction=1.0)
    _, labels = method.setup(model, split, TASK, SESSION)
    found = labels[split.forget.ids]
    assert set(found.tolist()) == {2, 3}
    assert torch.equal(found, method.setup(model, split, TASK, SESSION)[1][split.forget.ids])
    assert not torch.equal(found, method.setup(model, split, TASK, Session(seed=4))[1][split.forget.ids])


def test_the_targeted_label_is_the_retained_class_that_the_original_finds_likeliest_for_the_class(blobs):
    model, X, y, _ = blobs
    split = Split.from_ids((X, y), (y < 2).nonzero()[:, 0])
    with torch.no_grad():
        model.weight.copy_(torch.eye(4))
        model.weight[3, 0] = model.weight[2, 1] = 0.5  # class 3 is next to class 0, 2 to 1
        model.bias.zero_()
    _, labels = ConceptPoison(labels="targeted").setup(model, split, TASK, SESSION)
    assert torch.equal(labels[split.forget.ids], 3 - y[split.forget.ids])


def test_all_of_the_class_is_poisoned_at_fraction_one_and_it_is_relabelling(blobs):
    model, _, _, split = blobs
    chosen = ConceptPoison(fraction=1.0).poisoned(model, split, TASK, SESSION)
    assert set(chosen.tolist()) == set(split.forget.ids.tolist())


def test_the_class_is_forgotten_and_the_others_are_kept(blobs):
    model, X, y, split = blobs
    with torch.no_grad():
        model.weight.copy_(2 * torch.eye(4))
    method = ConceptPoison(epochs=30, batch_size=10, labels="targeted", optim=SGD(lr=0.1))
    predicted = method.unlearn(model, split, TASK, SESSION)(X).argmax(1)
    assert (predicted == y)[split.forget.ids].float().mean() == 0
    assert (predicted == y)[split.retain.ids].float().mean() == 1


def test_what_cannot_be_done_is_refused_before_training(blobs):
    model, X, y, split = blobs
    with pytest.raises(Unsupported, match="only whole classes can be forgotten"):
        ConceptPoison().check(Split.from_ids((X, y), range(5)), TASK)
    with pytest.raises(Unsupported, match=r"target 1 is no retained class. Choose one of \[0, 2, 3\]"):
        ConceptPoison(labels="targeted", target=1).check(split, TASK)
    with pytest.raises(Unsupported, match="41 concepts cannot be inferred from 40 examples. Set concepts"):
        ConceptPoison(concepts=41).check(split, TASK)
    with pytest.raises(Unsupported, match="task 'Regression' has none. Use a method for every task"):
        ConceptPoison().check(split, Regression())
    with pytest.raises(DataError, match="no column 'shown'"):
        ConceptPoison(bank="shown").unlearn(model, split, TASK, SESSION)
    with pytest.raises(DataError, match=r"'shown' has shape \(40,\); expected \(N, K\), K ≥ 2"):
        ConceptPoison(bank="shown").unlearn(model, banked(X, y, y), TASK, SESSION)


@pytest.mark.parametrize("fields", [{"concepts": 1}, {"strongest": 0}, {"fraction": 0.0}, {"target": 1}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        ConceptPoison(**fields)
