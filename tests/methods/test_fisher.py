import pytest
import torch
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.edits.fisher import Fisher
from expunge.tasks import Classification, Regression
from expunge.training.session import Session

TASK = Classification(2)


def _variance(model, split, seed=0, **fields):
    """By name, the square of what is added over the standard normal draws of that seed."""
    result = Fisher(**fields).unlearn(model, split, TASK, Session(seed))
    found = {}
    for (name, after), before in zip(result.named_parameters(), model.parameters(), strict=True):
        draws = torch.randn(before.shape, generator=Session(seed).generator("fisher", name))
        found[name] = ((after - before).detach() / draws).square()
    return found


def _two_layers(first, second):
    """A hidden layer as wide as there are classes, and the head."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(first))
        model[1].weight.copy_(torch.tensor(second))
    return model


def _repeated(x):
    """Three times the same example, one of them to forget."""
    columns = {"inputs": torch.tensor([x] * 3), "targets": torch.tensor([0, 1, 1])}
    return Split.from_ids(ArrayData(columns), [0])


def test_the_variance_is_the_bounded_inverse_information_averaged_over_a_weights_inputs():
    # h = x = (0, 4), logits ±h_1 = 0, p = ½. Hidden: ∂log p/∂h = (±1, 0), so F is (0, 16) and (0, 0): the
    # inverses are (10³, 1/16), (10³, 10³). Head: ∂log p/∂w = ±½ h, so F is (0, 4) in both rows: (10², 1/4).
    model = _two_layers([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [-1.0, 0.0]])
    found = _variance(model, _repeated([0.0, 4.0]), alpha=1e-4)
    hidden, head = 1e-4 * torch.tensor([(1e3 + 1 / 16) / 2, 1e3]), 1e-4 * 10 * (1e2 + 1 / 4) / 2
    assert torch.allclose(found["0.weight"], hidden[:, None].expand(2, 2), rtol=1e-3)
    assert torch.allclose(found["1.weight"], torch.full((2, 2), head), rtol=1e-3)


def test_a_hidden_layer_as_wide_as_the_number_of_classes_is_not_taken_for_the_head():
    # h = 0 at x = (4, 4), so p = ½ and F = 16 in the hidden layer: variance α / 16, and not ten times that.
    model = _two_layers([[1.0, -1.0], [1.0, -1.0]], [[1.0, 1.0], [-1.0, -1.0]])
    found = _variance(model, _repeated([4.0, 4.0]), alpha=1e-2)
    assert torch.allclose(found["0.weight"], torch.full((2, 2), 1e-2 / 16), rtol=1e-2)


def test_a_vector_has_ten_times_the_variance_of_its_information():
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[0].bias.fill_(0.0)
        model[1].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    found = _variance(model, _repeated([0.0, 0.0]), alpha=1e-2)  # p = ½, ∂log p/∂b = ±1: F = 1
    assert float(found["0.bias"]) == pytest.approx(0.1, rel=1e-4)


def test_the_information_is_of_single_examples_and_not_of_their_mean():
    # x = ±(0, 4): the gradients of the two examples have opposite signs and cancel in a batch of both.
    columns = {
        "inputs": torch.tensor([[4.0, 4.0], [-4.0, -4.0], [0.0, 0.0]]),
        "targets": torch.tensor([0, 0, 1]),
    }
    model = _two_layers([[1.0, -1.0], [1.0, -1.0]], [[1.0, 1.0], [-1.0, -1.0]])
    split = Split.from_ids(ArrayData(columns), [2])
    for size in (1, 2):
        found = _variance(model, split, alpha=1e-2, batch_size=size)
        assert torch.allclose(found["0.weight"], torch.full((2, 2), 1e-2 / 16), rtol=1e-2)


def test_noise_follows_the_information_of_the_retain_set_alone():
    X = torch.tensor([[0.0, 4.0], [1.0, 1.0], [0.0, 4.0], [0.0, 4.0]])
    data = ArrayData({"inputs": X, "targets": torch.tensor([0, 1, 0, 1])})
    model = _two_layers([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [-1.0, 0.0]])

    def hidden(forget, retain):
        split = Split(data.subset(forget), data.subset(retain))
        return Fisher().unlearn(model, split, TASK, Session())[0].weight

    assert torch.equal(hidden([1], [2, 3]), hidden([0], [2, 3]))
    assert not torch.equal(hidden([0], [1, 2]), hidden([0], [2, 3]))


CLASSES = ArrayData({"inputs": torch.randn(9, 2), "targets": torch.arange(9) % 2})


def test_the_rows_of_forgotten_classes_start_from_zero():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(50.0), model.bias.fill_(50.0)
    split = Split.from_ids(CLASSES, range(1, 9, 2))
    result = Fisher(zero_rows=True, alpha=1e-9).unlearn(model, split, TASK, Session())
    assert result.weight[1].abs().max() < 0.2  # variance 10⁻³
    assert 0 < result.bias[1].abs() < 0.2
    assert (result.weight[0] - 50).abs().max() < 0.1
    kept = Fisher(alpha=1e-9).unlearn(model, split, TASK, Session())
    assert (kept.weight - 50).abs().max() < 0.1


def test_rows_can_be_zeroed_for_whole_classes_alone():
    with pytest.raises(Unsupported, match=r"only whole classes can be forgotten.*Use"):
        Fisher(zero_rows=True).unlearn(nn.Linear(2, 2), Split.from_ids(CLASSES, [1, 3]), TASK, Session())


def test_a_task_without_classes_is_refused_before_anything_is_computed():
    data = ArrayData({"inputs": torch.randn(6, 2), "targets": torch.randn(6, 1)})
    events = []
    with pytest.raises(Unsupported, match=r"task 'Regression' has none. Use influence or ssd"):
        Fisher().unlearn(
            nn.Linear(2, 1), Split.from_ids(data, [0]), Regression(), Session(callbacks=(events.append,))
        )
    assert not events


@pytest.mark.parametrize("fields", [{"alpha": 0.0}, {"batch_size": 0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Fisher(**fields)


def test_a_sample_of_the_retain_set_gives_the_information_of_its_examples():
    model = nn.Linear(1, 2)
    columns = {"inputs": torch.tensor([[1.0], [1.0], [1.0], [9.0]]), "targets": torch.tensor([0, 1, 1, 0])}
    data = ArrayData(columns)
    one = Fisher(alpha=1e-4, samples=1).unlearn(model, Split.from_ids(data, [3]), TASK, Session(0))
    all_ = Fisher(alpha=1e-4).unlearn(model, Split.from_ids(data, [3]), TASK, Session(0))
    assert torch.allclose(one.weight, all_.weight)  # the retained examples are equal
    other = Fisher(alpha=1e-4, samples=1).unlearn(model, Split.from_ids(data, [0]), TASK, Session(0))
    whole = Fisher(alpha=1e-4).unlearn(model, Split.from_ids(data, [0]), TASK, Session(0))
    assert not torch.allclose(other.weight, whole.weight)
    with pytest.raises(ConfigError, match="samples: must be at least 1, got 0"):
        Fisher(samples=0)
