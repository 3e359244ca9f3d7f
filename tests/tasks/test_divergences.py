import math

import pytest
import torch
import torch.nn.functional as F
from scipy import special, stats
from scipy.spatial import distance

from expunge.tasks import divergences

DRAWS = torch.Generator().manual_seed(0)
MILD = torch.randn(50, 2, 7, generator=DRAWS)
WILD = 30 * torch.randn(50, 2, 7, generator=DRAWS)
EXTREME = torch.tensor(
    [
        [[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]],
        [[1e4, 1e4, 0.0], [1e4, 0.0, 0.0]],
        [[0.0, 0.0, 0.0], [1e30, 0.0, -1e30]],
    ]
)


def _softmax(logits):
    return special.softmax(logits.double().numpy(), axis=-1)


@pytest.mark.parametrize("logits", [MILD, WILD, EXTREME], ids=["mild", "wild", "extreme"])
def test_jensen_shannon_is_the_square_of_scipys_distance(logits):
    first, second = logits[:, 0], logits[:, 1]
    expected = distance.jensenshannon(_softmax(first), _softmax(second), axis=-1) ** 2
    measured = divergences.jensen_shannon(first, second)
    assert torch.allclose(measured.double(), torch.from_numpy(expected), atol=1e-6)


@pytest.mark.parametrize("logits", [MILD, WILD, EXTREME], ids=["mild", "wild", "extreme"])
def test_jensen_shannon_is_symmetric_and_between_zero_and_log_two(logits):
    first, second = logits[:, 0], logits[:, 1]
    measured = divergences.jensen_shannon(first, second)
    assert ((measured >= 0) & (measured <= math.log(2) + 1e-6)).all()
    assert torch.allclose(measured, divergences.jensen_shannon(second, first), atol=1e-7)
    assert (divergences.jensen_shannon(first, first) == 0).all()


def test_jensen_shannon_of_disjoint_distributions_is_log_two():
    measured = divergences.jensen_shannon(EXTREME[:1, 0], EXTREME[:1, 1])
    assert float(measured) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_is_the_entropy_of_tempered_softmaxes(temperature):
    first, second = MILD[:, 0], MILD[:, 1]
    expected = stats.entropy(_softmax(first / temperature), _softmax(second / temperature), axis=-1)
    measured = divergences.kl(first, second, temperature)
    assert torch.allclose(measured.double(), torch.from_numpy(expected), atol=1e-6)


def test_kl_is_summed_over_classes_and_not_divided_by_their_number():
    first, second = MILD[:, 0], MILD[:, 1]
    summed = F.kl_div(second.log_softmax(-1), first.softmax(-1), reduction="none").sum(-1)
    mean = F.kl_div(second.log_softmax(-1), first.softmax(-1), reduction="none").mean(-1)
    assert torch.allclose(divergences.kl(first, second), summed, atol=1e-6)
    assert not torch.allclose(divergences.kl(first, second), mean, atol=1e-2)


def test_classes_that_nobody_expects_do_not_change_kl():
    first, second = MILD[:, 0], MILD[:, 1]
    padding = torch.full((50, 100), -1e4)
    wide = divergences.kl(torch.cat([first, padding], -1), torch.cat([second, padding], -1))
    assert torch.allclose(wide, divergences.kl(first, second), atol=1e-6)


def test_the_first_argument_is_the_reference():
    certain, uniform = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert float(divergences.kl(certain, uniform)) == pytest.approx(math.log(2), rel=1e-6)
    assert float(divergences.kl(uniform, certain)) == pytest.approx(25 - math.log(2), rel=1e-6)


def test_extreme_logits_give_finite_values_and_gradients():
    for measure in (divergences.kl, divergences.jensen_shannon):
        first, second = EXTREME[:2, 0], EXTREME[:2, 1].clone().requires_grad_(True)
        value = measure(first, second)
        (gradient,) = torch.autograd.grad(value.sum(), second)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()


def test_shifting_all_logits_changes_nothing():
    first, second = MILD[:, 0], MILD[:, 1]
    assert torch.allclose(divergences.kl(first + 5, second - 3), divergences.kl(first, second), atol=1e-5)


def test_half_precision_logits_are_computed_in_float32():
    first, second = (MILD[:, i].bfloat16() for i in (0, 1))
    for measure in (divergences.kl, divergences.jensen_shannon):
        assert measure(first, second).dtype == torch.float32
        assert torch.equal(measure(first, second), measure(first.float(), second.float()))


def test_the_gradient_survives_where_rounding_makes_a_divergence_negative():
    """The exact gradient of KL with respect to the outputs is ``q − p``, however close they are."""
    reference = torch.randn(400, 10, generator=torch.Generator().manual_seed(0)) * 5
    outputs = (reference * 0.99999).requires_grad_()
    value = divergences.kl(reference, outputs)
    assert (value >= 0).all()
    assert (value == 0).sum() > 20  # of so many rounding hides the value
    (found,) = torch.autograd.grad(value.sum(), outputs)
    exact = torch.softmax(outputs.double(), -1) - torch.softmax(reference.double(), -1)
    assert (found - exact).abs().max() < 4 * torch.finfo(torch.float32).eps  # roundings of numbers below 1
    hidden = value == 0
    assert exact[hidden].abs().max() > 1e-6
