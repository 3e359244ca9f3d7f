from dataclasses import replace

import pytest
import torch
from torch import nn

from expunge.data import Split
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.guards.forget_vector import ForgetVector, added, load
from expunge.tasks import Classification, Regression
from expunge.training import features, parameters
from expunge.training.checkpoint import load_weights, save_weights
from expunge.training.optim import SGD
from expunge.training.session import Session

ETA = 0.1
TASK = Classification(3)


@pytest.fixture
def problem():
    """A linear classifier of three classes, right about all of its 12 examples; class 0 is to go."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 3
    inputs = 2 * torch.eye(3, 4)[labels] + 0.2 * torch.randn(12, 4, generator=draws)
    model = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3, 4) + 0.1 * torch.randn(3, 4, generator=draws))
        model[0].bias.zero_()
    return model, inputs, labels, Split.from_ids((inputs, labels), [0, 3, 6, 9])


def _step(**fields):
    """One step of one batch."""
    defaults = {"epochs": 1, "batch_size": 16, "optim": SGD(lr=ETA, momentum=0.0)}
    return ForgetVector(**{**defaults, **fields})


def _vector(method, problem, model=None):
    result = method.unlearn(model or problem[0], problem[3], TASK, Session())
    return result.get_buffer("forget_vector")


def _gradient(problem, alpha, beta, margin=100.0):
    """``Σ_r α ∇ℓ / N + Σ_f β ∇max(f_y − max f_k, −τ) / N`` at ``δ = 0``, from ``f(x) = W x``."""
    model, inputs, labels, _ = problem
    W = model[0].weight.detach()
    logits = inputs @ W.T
    total = torch.zeros(4)
    for x, y in zip(logits, labels.tolist(), strict=True):
        if y == 0:
            other = 1 + int(x[1:].argmax())
            total += beta * (W[0] - W[other]) * float(x[0] - x[other] > -margin)
        else:
            total += alpha * (x.softmax(0) - torch.eye(3)[y]) @ W
    return total / len(labels)


def test_the_first_step_is_the_one_written_on_paper(problem):
    found = _vector(_step(alpha=0.6, beta=2.0, norm=5.0), problem)  # the norm has no gradient at 0
    torch.testing.assert_close(found, -ETA * _gradient(problem, 0.6, 2.0))


def test_the_norm_is_divided_by_the_batch(problem):
    """At ``δ₁`` the norm adds ``λ δ₁ / (B ‖δ₁‖)`` to the gradient of the second step, and nothing else."""
    first = _vector(_step(norm=0.0), problem)
    without, with_norm = (_vector(_step(epochs=2, norm=norm), problem) for norm in (0.0, 6.0))
    torch.testing.assert_close(with_norm - without, -ETA * 6.0 / 12 * first / first.norm())


def test_an_example_past_the_margin_is_left_alone(problem):
    """Every forgotten example is mistaken by far more than ``τ`` already: only the others pull."""
    model, inputs, labels, _ = problem
    swapped = torch.where(labels == 0, 1, torch.where(labels == 1, 0, labels))
    wrong = Split.from_ids((inputs, swapped), (swapped == 0).nonzero()[:, 0])
    runs = [
        _step(beta=beta, margin=margin).unlearn(model, wrong, TASK, Session()).get_buffer("forget_vector")
        for beta, margin in ((1.0, 0.5), (9.0, 0.5), (9.0, 50.0))
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[1], runs[2], atol=1e-3)


def test_the_class_is_forgotten_on_perturbed_inputs_and_the_weights_know_it_still(problem):
    model, inputs, labels, split = problem
    result = ForgetVector(batch_size=6).unlearn(model, split, TASK, Session())
    right = result(inputs).argmax(1) == labels
    assert not right[labels == 0].any()
    assert right[labels != 0].float().mean() >= 0.75
    assert parameters.distance(result, model) == 0.0
    torch.testing.assert_close(result(inputs), model(inputs + result.get_buffer("forget_vector")))
    assert (result(inputs - result.get_buffer("forget_vector")).argmax(1) == labels).all()


def test_modules_keep_their_names_so_that_features_can_be_read(problem):
    result = _step().unlearn(problem[0], problem[3], TASK, Session())
    assert [name for name, _ in result.named_modules()] == [n for n, _ in problem[0].named_modules()]
    with features.captured(result, "0") as found:
        result(problem[1])
    assert torch.equal(found[0], problem[1] + result.get_buffer("forget_vector"))


def test_it_is_saved_and_loaded_into_a_blank(problem, tmp_path):
    model, inputs, _, split = problem
    method = ForgetVector(epochs=3, bounds=(0.0, 1.0))
    result = method.unlearn(model, split, TASK, Session())
    assert result.state_dict().keys() - model.state_dict().keys() == {"forget_vector"}
    save_weights(result, tmp_path / "guarded.safetensors")
    blank = method.blank(nn.Sequential(nn.Linear(4, 3)), split)
    load_weights(blank, tmp_path / "guarded.safetensors")
    assert torch.equal(blank(inputs), result(inputs))
    assert not torch.allclose(result(inputs), model(inputs))


def test_weight_decay_pulls_on_the_vector_a_second_time(problem):
    """Why it is 0: the norm's weight is 0 here, and yet the vector is held back."""
    optims = SGD(lr=0.2), SGD(lr=0.2, weight_decay=0.05)
    free, held = (_vector(_step(epochs=30, norm=0.0, optim=optim), problem).norm() for optim in optims)
    assert held < 0.98 * free
    assert ForgetVector().optim.weight_decay == 0


def test_nothing_is_clipped_unless_asked(problem):
    model, inputs, _, split = problem
    seen = []
    for bounds in (None, (0.0, 0.5)):
        result = replace(_step(), bounds=bounds).unlearn(model, split, TASK, Session())
        with features.captured(result, "0") as found:
            result(10 * inputs)
        seen.append(found[0])
    assert seen[0].max() > 10
    assert seen[1].min() >= 0.0
    assert seen[1].max() <= 0.5


def test_the_number_of_retained_examples_in_a_batch_divides_nothing(problem):
    """Batches of one example hold no forgotten or no retained ones, and the loss is a number."""
    assert torch.isfinite(_vector(_step(batch_size=1, epochs=2), problem)).all()


def test_a_second_request_adds_a_vector_to_the_first(problem):
    model, inputs, _, split = problem
    first = _step().unlearn(model, split, TASK, Session())
    left = split.retain
    second_split = Split.from_ids(left, left.ids[left.column("targets") == 1])
    second = _step().unlearn(first, second_split, TASK, Session())
    both = second.get_buffer("forget_vector")
    assert not torch.equal(both, first.get_buffer("forget_vector"))
    torch.testing.assert_close(second(inputs), model(inputs + both))


def test_vectors_of_classes_combine_with_learned_weights(problem, tmp_path):
    model, inputs, labels, split = problem
    method = ForgetVector(batch_size=16)
    vectors = []
    for label in range(3):
        one = Split.from_ids((inputs, labels), (labels == label).nonzero()[:, 0])
        vectors.append(method.unlearn(model, one, TASK, Session()).get_buffer("forget_vector"))
    result, weights = replace(method, norm=0.01).combine(model, vectors, split, TASK, Session())
    combined = sum(w * vector for w, vector in zip(weights, vectors, strict=True))
    torch.testing.assert_close(result.get_buffer("forget_vector"), combined)
    assert not (result(inputs).argmax(1) == labels)[labels == 0].any()
    save_weights(result, tmp_path / "combined.safetensors")
    blank = method.blank(nn.Sequential(nn.Linear(4, 3)), split)
    load_weights(blank, tmp_path / "combined.safetensors")
    assert torch.equal(blank(inputs), result(inputs))


def test_the_first_step_of_a_combination_is_the_one_written_on_paper(problem):
    """``w₁ = −η (δ_c · ∇_δ)_c``."""
    model, _, _, split = problem
    vectors = [torch.tensor([1.0, 0.0, 0.0, 2.0]), torch.tensor([0.0, -1.0, 1.0, 0.0])]
    _, weights = _step(beta=2.0).combine(model, vectors, split, TASK, Session())
    torch.testing.assert_close(weights, -ETA * torch.stack(vectors) @ _gradient(problem, 1.0, 2.0))


@pytest.mark.parametrize("vectors", [[], [torch.zeros(3)]])
def test_vectors_of_another_shape_do_not_combine(problem, vectors):
    model, _, _, split = problem
    with pytest.raises(DataError, match=r"must be shaped like one input, \(4,\)"):
        _step().combine(model, vectors, split, TASK, Session())


def test_a_task_without_classes_is_refused(linear):
    with pytest.raises(Unsupported, match="'Regression' has no classes .* Use it with the task classif"):
        ForgetVector().unlearn(linear.model, linear.split, Regression(), Session())


def test_inputs_that_are_no_numbers_are_refused():
    split = Split.from_ids((torch.arange(12).view(6, 2), torch.arange(6) % 3), [0])
    with pytest.raises(Unsupported, match="Give floating-point inputs"):
        ForgetVector().unlearn(nn.Linear(2, 3), split, TASK, Session())


def test_a_second_request_that_would_clip_twice_is_refused(problem):
    method = _step(bounds=(0.0, 1.0))
    first = method.unlearn(problem[0], problem[3], TASK, Session())
    with pytest.raises(Unsupported, match="would clip twice. Set bounds to null"):
        method.unlearn(first, problem[3], TASK, Session())


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("batch_size", 0), ("alpha", -1.0), ("beta", 0.0), ("margin", -1.0), ("norm", -1.0)],
)
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        ForgetVector(**{field: value})


def test_bounds_the_wrong_way_round_are_refused():
    with pytest.raises(ConfigError, match="bounds: the lower must be below the upper"):
        ForgetVector(bounds=(1.0, 0.0))


def test_states_are_added_vector_by_vector():
    frozen = {"weight": torch.eye(2)}
    states = [{**frozen, "forget_vector": torch.tensor(v)} for v in ([1.0, 2.0], [0.5, -1.0])]
    found = added(states, [2.0, -4.0])
    assert found["forget_vector"].tolist() == [0.0, 8.0]
    assert found["weight"] is frozen["weight"]
    with pytest.raises(DataError, match="got 1 weights for 2 vectors"):
        added(states, [1.0])
    with pytest.raises(DataError, match="files 1 and 2 are not of one model: 'weight' differs"):
        added([states[0], {**states[1], "weight": torch.ones(2, 2)}], [1.0, 1.0])


def test_a_file_with_a_vector_makes_a_network_one_that_adds_it(problem, tmp_path):
    model, inputs, _, split = problem
    result = _step().unlearn(model, split, TASK, Session())
    save_weights(result, tmp_path / "guarded.safetensors")
    save_weights(model, tmp_path / "plain.safetensors")
    guarded, plain = (nn.Sequential(nn.Linear(4, 3)) for _ in range(2))
    load(guarded, tmp_path / "guarded.safetensors")
    load(plain, tmp_path / "plain.safetensors")
    assert torch.equal(guarded(inputs), result(inputs))
    assert torch.equal(plain(inputs), model(inputs))
    assert not torch.equal(guarded(inputs), plain(inputs))
