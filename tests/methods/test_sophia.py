import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.finetune import Finetune
from expunge.methods.gradient.grad_ascent import GradAscent
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.gradient.random_labels import RandomLabels
from expunge.methods.optimisers.sophia import Sophia
from expunge.tasks import CausalLM, Classification, Diffusion, Regression
from expunge.training.engine import Engine
from expunge.training.optim import SGD
from expunge.training.session import Session

SQUARED = {"hessian": "squared", "interval": 1}


def stepped(weights, gradients, curvature=None, **fields):
    """The weights after each gradient; the curvature is set before the first step."""
    parameter = nn.Parameter(torch.tensor(weights))
    optimizer = Sophia(**fields).optimizer([parameter])
    if curvature is not None:
        optimizer.state[parameter]["curvature"] = torch.tensor(curvature)
    found = []
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        found.append(parameter.detach().clone())
    return found


def test_two_steps_follow_the_formula_and_the_momentum_takes_each_gradient_once():
    fields = {"lr": 0.1, "betas": (0.5, 0.9), "rho": 2.0, "weight_decay": 0.5}
    # h = (1, 100, 0): denominators ρh = (2, 200, ε)
    # m = ½ g = (1, 1, −0.001): ratios (½, 1/200, 1); θ ← 0.95 θ − 0.1 sign(m) ratio
    first, second = stepped(
        [1.0, 1.0, 1.0], [[2.0, 2.0, -0.002], [-1.0, 6.0, 0.0]], [1.0, 100.0, 0.0], **fields
    )
    assert torch.allclose(first, torch.tensor([0.95 - 0.05, 0.95 - 0.0005, 0.95 + 0.1]))
    # m = ½ m + ½ g = (0, 3.5, −0.0005): ratios (0, 3.5/200, 1). Added twice a step, m would start at ¾ g.
    expected = 0.95 * first - 0.1 * torch.tensor([0.0, 3.5 / 200, -1.0])
    assert torch.allclose(second, expected)


def test_no_weight_moves_by_more_than_the_rate_and_the_decay():
    draws = torch.Generator().manual_seed(0)
    rate, decay = 0.05, 0.3
    gradients = [(10.0 ** torch.randn(50, generator=draws) * 3).tolist() for _ in range(10)]
    curvature = (10.0 ** (4 * torch.randn(50, generator=draws))).tolist()
    start = torch.randn(50, generator=draws)
    path = [start, *stepped(start.tolist(), gradients, curvature, lr=rate, weight_decay=decay, rho=0.04)]
    for before, after in itertools.pairwise(path):
        assert ((after - before).abs() <= rate * (1 + decay * before.abs()) + 1e-6).all()
    assert ((path[1] - path[0] * (1 - rate * decay)).abs() > 0.99 * rate).any()  # the bound is reached


def test_a_weight_without_gradient_only_decays():
    (found,) = stepped([2.0], [[0.0]], lr=0.1, weight_decay=0.5)
    assert found.item() == pytest.approx(1.9)


@pytest.mark.parametrize("interval", [1, 2])
def test_in_the_loop_the_squared_curvature_has_the_size_of_the_real_batch(linear, interval):
    optim = Sophia(lr=0.1, betas=(0.9, 0.5), rho=0.2, weight_decay=0.1, hessian="squared", interval=interval)
    w, m, h = linear.start.clone(), torch.zeros(3), torch.zeros(3)
    for index in range(4):
        g = -linear.gradient(w, "forget")  # all 6 examples in one batch
        m = 0.9 * m + 0.1 * g
        if index % interval == 0:
            h = 0.5 * h + 0.5 * 6 * g**2
        w = (1 - 0.1 * 0.1) * w - 0.1 * m.sign() * (m.abs() / (0.2 * h)).clamp(max=1)
    found = linear.run(GradAscent(epochs=4, optim=optim))
    assert torch.allclose(found, w, atol=1e-6)
    # with B = 5120 the steps would be another
    assert (m.abs() / (0.2 * h) < 1).any()
    assert (w - linear.start).abs().max() > 0.03


def test_with_the_squared_curvature_small_gradients_are_mostly_their_signs():
    """Below 1 / ρB every step is the whole rate."""
    parameter = nn.Parameter(torch.zeros(3))
    optim = Sophia(lr=0.1, betas=(0.0, 0.0), rho=0.04, weight_decay=0.0, **SQUARED)
    optimizer = optim.optimizer([parameter])
    parameter.grad = torch.tensor([1e-4, -0.1, 100.0])  # 1 / ρB = 0.25
    optim.observe(optimizer, 0, 100, {})
    optimizer.step()
    assert torch.allclose(parameter.detach(), torch.tensor([-0.1, 0.1, -0.1 * 0.25 / 100]))


class Watched(Sophia):
    """Keeps every estimate of the curvature."""

    def observe(self, optimizer, index, examples, sampled):
        super().observe(optimizer, index, examples, sampled)
        if self.samples(index):
            WATCHED.append(next(iter(sampled.values())).square())
        else:
            assert not sampled


WATCHED: list[Tensor] = []


def curvature(model, data, task, method=Finetune, epochs=300, **fields):
    """The mean estimate of a run whose model does not move, with its standard error."""
    WATCHED.clear()
    optim = Watched(lr=1e-30, weight_decay=0.0, interval=1)
    split = Split.from_ids(ArrayData(data), [0])
    method(epochs=epochs, optim=optim, **fields).unlearn(model, split, task, Session(seed=0))
    drawn = torch.stack(WATCHED).double()
    return drawn.mean(0), drawn.std(0) / len(drawn) ** 0.5


def assert_mean(found, expected):
    mean, error = found
    assert ((mean - expected).abs() < 4 * error + 1e-6).all()
    assert (4 * error < 0.6 * mean.abs().max()).all()


def test_sampled_labels_give_the_gauss_newton_diagonal_of_a_linear_regression():
    X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 2.0, 0.5])
    found = curvature(nn.Linear(3, 1, bias=False), {"inputs": X, "targets": X[:, 0] + 50}, Regression())
    assert_mean(found, X[1:].square().mean(0).double())  # the 11 retained ones; the targets do not matter


def test_sampled_labels_give_the_gauss_newton_diagonal_of_a_softmax_regression():
    draws = torch.Generator().manual_seed(1)
    X = torch.randn(10, 2, generator=draws)
    model = nn.Linear(2, 3, bias=False)
    p = (X[1:] @ model.weight.detach().T).softmax(-1)
    expected = torch.einsum("nc,nd->cd", p * (1 - p), X[1:] ** 2) / 9
    data = {"inputs": X, "targets": torch.zeros(10).long()}
    assert_mean(curvature(model, data, Classification(3)), expected.double())


class Constant(nn.Module):
    """The same answer, its weights, whatever the question."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, inputs: Tensor, *_: object, **__: object) -> Tensor:
        return (
            self.answer.expand(*inputs.shape[:2], -1)
            if not inputs.is_floating_point()
            else (self.answer.expand(len(inputs), -1))
        )


def test_in_a_language_model_every_labelled_token_counts_as_the_loss_weighs_it():
    """Answers of 1 and of 6 tokens: ``B`` alone, examples or tokens, would be another number."""
    lengths = torch.tensor([1, 1, 6, 1, 6])
    ids = torch.randint(1, 4, (5, 8), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(8) > lengths[:, None], -100)
    labels[:, 0] = -100
    answer = torch.tensor([0.0, 0.5, -1.0, 1.0])
    p = answer.softmax(-1)
    found = curvature(Constant(answer), {"input_ids": ids, "labels": labels}, CausalLM(4))
    assert_mean(found, (p * (1 - p)).double())


def test_noise_drawn_around_the_prediction_gives_the_curvature_of_the_diffusion_loss():
    found = curvature(Constant(torch.zeros(4)), {"inputs": torch.randn(6, 4)}, Diffusion(timesteps=10))
    assert_mean(found, torch.full((4,), 2 / 4).double())  # ℓ = ‖f − ε‖² / 4


def test_forget_and_retain_examples_count_alike_and_never_make_it_negative():
    X = torch.tensor([[4.0], [1.0], [1.0]])
    data = {"inputs": X, "targets": torch.zeros(3)}
    found = curvature(nn.Linear(1, 1, bias=False), data, Regression(), method=GradDiff, batch_size=2)
    assert_mean(found, torch.tensor([[(16 + 1 + 1) / 3]]).double())  # one forget, two retain examples a step


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_statistics_of_batch_norm_move_once_a_step_as_with_any_other_optimiser(setting):
    methods = [
        GradAscent(epochs=2, batch_size=4, optim=optim)
        for optim in (SGD(lr=1e-30), Sophia(lr=1e-30, weight_decay=0.0, interval=1))
    ]
    first, second = (dict(_unlearn(method, setting).named_buffers()) for method in methods)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], value) for name, value in setting.original.named_buffers())


def _unlearn(method, setting):
    return method.unlearn(setting.original, setting.split, setting.task, setting.session)


def test_it_runs_on_every_task_and_is_repeatable(setting):
    method = GradDiff(epochs=2, batch_size=4, optim=Sophia(lr=1e-3, interval=2))
    first, second = (_unlearn(method, setting).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    before = setting.original.state_dict()
    assert any(not torch.equal(first[name], before[name]) for name in first)


def test_parts_of_a_batch_add_up(linear):
    method = GradDiff(epochs=3, optim=Sophia(lr=0.01, betas=(0.9, 0.5), rho=0.1, **SQUARED))
    halves = Session(seed=0, engine=Engine(accumulate=2))
    assert torch.allclose(linear.run(method), linear.run(method, halves), atol=1e-6)


def test_a_task_whose_model_draws_nothing_says_what_to_do(linear):
    class Silent(Regression):
        def sample(self, outputs, batch, generator):
            return super(Regression, self).sample(outputs, batch, generator)

    silent = replace(linear, task=Silent())
    with pytest.raises(Unsupported, match="hessian=squared"):
        silent.run(GradAscent(epochs=1, optim=Sophia()))
    silent.run(GradAscent(epochs=1, optim=Sophia(hessian="squared")))


def test_random_targets_and_sampled_ones_do_not_share_a_generator(linear):
    """The relabelled targets are those that plain SGD gets."""
    seen = {}

    def run(name, optim):
        class Kept(Regression):
            def relabel(self, batch, generator):
                found = super().relabel(batch, generator)
                seen.setdefault(name, []).append(found["targets"])
                return found

        replace(linear, task=Kept(low=-1.0, high=1.0)).run(RandomLabels(epochs=2, optim=optim))

    run("sgd", SGD())
    run("sophia", Sophia(interval=1))
    assert all(torch.equal(a, b) for a, b in zip(seen["sgd"], seen["sophia"], strict=True))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"betas": (0.9, 1.0)}, r"betas: both must be in \[0, 1\)"),
        ({"rho": 0.0}, "rho: must be above 0"),
        ({"eps": 0.0}, "eps: must be above 0"),
        ({"interval": 0}, "interval: must be at least 1"),
        ({"lr": 0.0}, "lr: must be above 0"),
    ],
)
def test_fields_out_of_range_are_refused_by_name(fields, said):
    with pytest.raises(ConfigError, match=said):
        Sophia(**fields)
