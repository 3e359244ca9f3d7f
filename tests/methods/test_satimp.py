import pytest
import torch
from tests.methods.label_views import TASK, drawn, view

from expunge.errors import ConfigError
from expunge.methods.gradient.satimp import SatImp
from expunge.methods.gradient.wga import WGA


def test_the_weight_is_a_power_of_p_times_a_power_of_one_minus_p():
    p = torch.tensor([0.0001, 0.2, 0.5, 5 / 6, 0.999])
    weight = SatImp(saturation=5.0, importance=1.0).weight(p.log())
    assert torch.allclose(weight, p**5 * (1 - p), rtol=1e-4)
    assert int(weight.argmax()) == 3  # its largest value is at β₁ / (β₁ + β₂)


def test_one_minus_p_is_exact_next_to_1_where_float32_has_only_0():
    logs = torch.tensor([-1e-9])
    assert float(1 - logs.exp()) == 0.0
    assert float(SatImp().weight(logs)) == pytest.approx(1e-9, rel=1e-5)


@pytest.mark.parametrize("logs", [0.0, 1e-6])
def test_a_probability_of_1_and_one_rounded_above_it_have_no_weight(logs):
    assert float(SatImp(importance=0.5).weight(torch.tensor([logs]))) == 0.0


def test_without_importance_it_is_wga():
    logits, labels, _ = drawn(scale=2.0)
    first = SatImp(saturation=1.5, importance=0.0).forgetting(view(logits, labels), TASK)
    assert torch.allclose(first, WGA(beta=1.5).forgetting(view(logits, labels), TASK), atol=1e-7)


def test_an_answer_known_by_heart_moves_much_less_than_under_wga():
    """p = 0.9975: the weights are p^5 (1 − p) and p."""
    logits = torch.tensor([[[6.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    labels = torch.tensor([[-100, 0]])
    sizes = [
        float(torch.autograd.grad(m.forgetting(view(logits, labels), TASK).sum(), logits)[0].abs().max())
        for m in (SatImp(), WGA())
    ]
    p = float(torch.sigmoid(torch.tensor(6.0)))
    assert sizes[0] / sizes[1] == pytest.approx(p**4 * (1 - p), rel=1e-3)


@pytest.mark.parametrize("fields", [{"saturation": -1.0}, {"importance": -0.5}, {"retain_weight": -1.0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        SatImp(**fields)
