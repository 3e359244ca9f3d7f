import pytest
import torch

from expunge.errors import ConfigError
from expunge.methods.gradient.finetune import Finetune
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.training.optim import SGD
from expunge.training.session import Session

PLAIN = SGD(lr=0.1, momentum=0.0)


@pytest.mark.parametrize("b", [0.95, 0.5, 0.1])
def test_one_step_weighs_descent_on_retain_against_ascent_on_forget(linear, b):
    forget, retain = (linear.gradient(linear.start, part) for part in ("forget", "retain"))
    expected = linear.start - 0.1 * (b * retain - (1 - b) * forget)
    method = GradDiff(epochs=1, optim=PLAIN, retain_weight=b)
    assert torch.allclose(linear.run(method), expected, atol=1e-6)


def test_with_all_the_weight_on_retain_it_is_fine_tuning(linear):
    method = GradDiff(epochs=3, optim=PLAIN, retain_weight=1.0)
    assert torch.allclose(linear.run(method), linear.run(Finetune(epochs=3, optim=PLAIN)), atol=1e-6)


def test_an_epoch_is_one_pass_over_the_retain_set(linear):
    totals = []
    session = Session(
        callbacks=(lambda event: totals.append(event.total) if event.kind == "started" else None,)
    )
    linear.run(GradDiff(epochs=2, batch_size=4), session)
    assert totals == [2 * 4]  # 14 retain examples in batches of 4; the 6 to forget start again


@pytest.mark.parametrize("b", [0.0, -0.1, 1.1])
def test_a_weight_outside_its_range_is_refused(b):
    with pytest.raises(ConfigError, match="retain_weight: must be in"):
        GradDiff(retain_weight=b)
