import math
import re

import pytest
import torch
from scipy import stats

from expunge.data import ArrayData
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.tasks import Regression


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3), (5, 2, 2)])
def test_the_loss_is_half_the_squared_error_summed_over_outputs(shape):
    targets, predictions = torch.randn(shape), torch.randn(shape)
    batch = {"inputs": predictions, "targets": targets}
    outputs = Regression().outputs(lambda x: x, batch)
    expected = 0.5 * (predictions - targets).reshape(5, -1).square().sum(1)
    assert torch.allclose(Regression().loss(outputs, batch), expected)


def test_a_column_of_predictions_meets_a_vector_of_targets_row_by_row():
    batch = {"inputs": torch.tensor([[1.0], [2.0]]), "targets": torch.tensor([1.0, 4.0])}
    outputs = Regression().outputs(lambda x: x, batch)
    assert Regression().loss(outputs, batch).tolist() == [0.0, 2.0]


def test_the_log_likelihood_is_the_gaussians_up_to_a_constant():
    outputs, targets = torch.randn(6, 1), torch.randn(6)
    expected = stats.norm.logpdf(targets.numpy(), loc=outputs[:, 0].numpy()) + 0.5 * math.log(2 * math.pi)
    measured = Regression().log_likelihood(outputs, {"targets": targets})
    assert torch.allclose(measured.double(), torch.from_numpy(expected).double(), atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_that_of_gaussians_whose_variance_is_the_temperature(temperature):
    first, second = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 4.0]])
    # log(σ/σ) + (σ² + (a − b)²) / (2σ²) − ½ for each of two outputs
    expected = (temperature + 1) / (2 * temperature) - 0.5 + (temperature + 4) / (2 * temperature) - 0.5
    measured = Regression().divergence(first, second, {}, temperature)
    assert float(measured) == pytest.approx(expected)


def test_uninformative_targets_are_uniform_in_the_range():
    batch = {"targets": torch.zeros(4000, 1)}
    drawn = Regression(low=-2.0, high=3.0).relabel(batch, torch.Generator().manual_seed(0))["targets"]
    assert drawn.shape == (4000, 1)
    assert stats.kstest(drawn[:, 0].numpy(), stats.uniform(-2, 5).cdf).pvalue > 1e-4


def test_without_a_range_relabelling_says_what_to_give():
    with pytest.raises(Unsupported, match=r"Give Regression\(low=…, high=…\), or use a method"):
        Regression().relabel({"targets": torch.zeros(2)}, None)


def test_there_is_no_jensen_shannon_divergence():
    with pytest.raises(Unsupported, match="'Regression' has no Jensen-Shannon"):
        Regression().jensen_shannon(torch.zeros(1, 1), torch.zeros(1, 1), {})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"low": 1.0}, "low: give both low and high, or neither"),
        ({"high": 1.0}, "low: give both low and high, or neither"),
        ({"low": 2.0, "high": 1.0}, "low: low=2.0 must be below high=1.0"),
    ],
)
def test_half_a_range_or_an_empty_one_is_refused(fields, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        Regression(**fields)


def test_integer_targets_are_refused():
    data = ArrayData({"inputs": torch.zeros(3, 1), "targets": torch.tensor([1, 2, 3])})
    with pytest.raises(DataError, match=r"retain targets must be floating-point numbers, got torch.int64"):
        Regression().check(data, "retain")


def test_a_model_of_another_width_is_refused():
    with pytest.raises(DataError, match="the model predicts 2 values, the targets have 1"):
        Regression().outputs(lambda x: x, {"inputs": torch.zeros(4, 2), "targets": torch.zeros(4)})
