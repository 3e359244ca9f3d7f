import pytest
import torch

from expunge.errors import Diverged
from expunge.methods.gradient.grad_ascent import GradAscent
from expunge.training.optim import SGD

PLAIN = SGD(lr=0.1, momentum=0.0)


def test_one_step_adds_the_learning_rate_times_the_gradient_of_the_forget_loss(linear):
    expected = linear.start + 0.1 * linear.gradient(linear.start, "forget")
    assert torch.allclose(linear.run(GradAscent(epochs=1, optim=PLAIN)), expected, atol=1e-6)


def test_steps_follow_one_another_from_where_the_last_one_ended(linear):
    expected = linear.start
    for _ in range(4):
        expected = expected + 0.1 * linear.gradient(expected, "forget")
    assert torch.allclose(linear.run(GradAscent(epochs=4, optim=PLAIN)), expected, atol=1e-5)


def test_a_collapse_ends_with_an_error_that_says_what_to_lower(linear):
    method = GradAscent(epochs=60, optim=SGD(lr=50.0, momentum=0.0))
    with pytest.raises(
        Diverged, match=r"grad_ascent: .*Lower the learning rate \(now 50.0\) or set optim.clip"
    ):
        linear.run(method)


def test_clipping_bounds_the_length_of_the_step(linear):
    method = GradAscent(epochs=1, optim=SGD(lr=50.0, momentum=0.0, clip=0.01))
    step = linear.run(method) - linear.start
    assert float(step.norm()) == pytest.approx(50.0 * 0.01, rel=1e-3)


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
@pytest.mark.parametrize(("mode", "moves"), [("train", True), ("eval", False)])
def test_statistics_of_batch_norm_move_towards_the_forget_set_unless_mode_is_eval(setting, mode, moves):
    method = GradAscent(epochs=1, optim=SGD(lr=1e-9), mode=mode)
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session)
    before, after = setting.original.state_dict(), result.state_dict()
    statistics = [name for name in before if "running" in name]
    assert len(statistics) == 6
    assert all(torch.equal(before[name], after[name]) != moves for name in statistics)
