import pytest
import torch
from torch import nn

from expunge import config
from expunge.errors import ConfigError, Unsupported
from expunge.methods import methods
from expunge.methods.gradient.grad_ascent import GradAscent
from expunge.methods.gradient.random_labels import RandomLabels
from expunge.methods.modifiers.saliency_mask import SaliencyMask
from expunge.methods.optimisers.zeroth_order import ZerothOrder
from expunge.training.engine import Engine
from expunge.training.ensemble import stacking
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

H = torch.tensor([[3.0, -1.0, 0.5], [-1.0, 2.0, 0.0], [0.5, 0.0, -1.0]], dtype=torch.float64)


def estimated(optim, function, start, indices=(0,), seed=0):
    """For each step: the estimate of a function's gradient, and the points it was evaluated at."""
    weights = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = optim.optimizer(weights.values())
    seen = []

    def evaluate():
        seen.append(torch.cat([value.detach().flatten() for value in weights.values()]))
        return {"loss": function(weights)}

    torch.manual_seed(seed)
    steps = []
    for index in indices:
        with torch.no_grad():
            terms = {"loss": function(weights)}
            found = optim.estimate(evaluate, terms, weights, optimizer, index)
        assert all(torch.equal(weights[name], value) for name, value in start.items())
        steps.append((found["loss"], list(seen)))
        seen.clear()
    state = optimizer.state[next(iter(weights.values()))]
    return steps, state


def quadratic(weights):
    return 0.5 * weights["w"] @ H @ weights["w"]


START = {"w": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)}
GRADIENT = H @ START["w"]


@pytest.mark.parametrize("two_sided", [False, True])
def test_coordinates_on_a_quadratic_give_the_gradient_and_on_one_side_half_the_curvature(two_sided):
    optim = ZerothOrder(estimator="cge", step=0.1, two_sided=two_sided)
    [(found, seen)], _ = estimated(optim, quadratic, START)
    bias = 0.0 if two_sided else 0.05 * H.diagonal()
    assert torch.allclose(found["w"], GRADIENT + bias, atol=1e-12)
    assert len(seen) == 3 * (1 + two_sided)


@pytest.mark.parametrize("estimator", ["rge", "cge"])
@pytest.mark.parametrize("two_sided", [False, True])
def test_a_linear_function_is_measured_exactly_at_any_step(estimator, two_sided):
    slope = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    found = [
        estimated(
            ZerothOrder(estimator=estimator, step=step, two_sided=two_sided, queries=7),
            lambda weights: slope @ weights["w"],
            START,
        )[0][0][0]["w"]
        for step in (1e-3, 10.0)
    ]
    assert torch.allclose(found[0], found[1], atol=1e-9)
    if estimator == "cge":
        assert torch.allclose(found[0], slope, atol=1e-9)


def test_the_mean_over_random_directions_is_the_gradient_and_not_smaller_by_the_step():
    """The published estimator keeps the directions at the length of the step."""
    n = 4000
    [(found, seen)], _ = estimated(ZerothOrder(queries=n, step=1e-3), quadratic, START)
    assert len(seen) == n
    # variance of one coordinate: (‖g‖² + g_j²) / n
    error = ((GRADIENT.square().sum() + GRADIENT.square()) / n).sqrt()
    assert ((found["w"] - GRADIENT).abs() < 4 * error).all()
    assert (4 * error < 0.15 * GRADIENT.norm()).all()


def test_directions_differ_from_step_to_step_and_with_the_seed():
    optim = ZerothOrder(queries=3)

    def run(*indices, seed=0):
        return [found["w"] for found, _ in estimated(optim, quadratic, START, indices, seed)[0]]

    first, later = run(0, 1)
    assert torch.equal(first, *run(0))
    assert not torch.equal(first, later)
    assert not torch.equal(first, *run(0, seed=1))


def test_in_the_loop_it_is_momentum_sgd_on_the_exact_gradient(linear):
    fields = {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.1, "schedule": "linear", "clip": 3.0}
    exact = linear.run(GradAscent(epochs=4, batch_size=3, optim=SGD(**fields)))
    optim = ZerothOrder(estimator="cge", step=1e-2, two_sided=True, **fields)
    assert torch.allclose(linear.run(GradAscent(epochs=4, batch_size=3, optim=optim)), exact, atol=1e-3)
    assert (exact - linear.start).norm() > 0.3


def test_all_forward_passes_of_a_step_see_the_same_random_targets(linear):
    """Targets drawn anew at each pass would be divided by the step: errors of the order 1 / μ."""
    fields = {"lr": 0.05, "momentum": 0.0}
    exact = linear.run(RandomLabels(epochs=2, batch_size=3, optim=SGD(**fields)))
    optim = ZerothOrder(estimator="cge", step=1e-2, two_sided=True, **fields)
    assert torch.allclose(linear.run(RandomLabels(epochs=2, batch_size=3, optim=optim)), exact, atol=1e-3)


def test_parts_of_a_batch_share_their_directions(linear):
    method = GradAscent(epochs=2, optim=ZerothOrder(queries=2, two_sided=True, step=0.1))
    halves = Session(seed=0, engine=Engine(accumulate=2))
    assert torch.allclose(linear.run(method), linear.run(method, halves), atol=1e-4)


def test_a_modifier_reads_the_estimated_gradients(linear):
    mask = SaliencyMask(keep=1 / 3)
    optim = ZerothOrder(estimator="cge", step=1e-2, two_sided=True)
    found = linear.run(GradAscent(epochs=1, optim=optim, modifiers=(mask,)))
    exact = linear.run(GradAscent(epochs=1, optim=SGD(lr=0.01), modifiers=(mask,)))
    assert torch.allclose(found, exact, atol=1e-3)
    assert int((found != linear.start).sum()) == 1


def test_scores_keep_their_sign_and_the_difference_is_taken_a_whole_step_away():
    """Loss ``½ θᵀHθ``: the scores ``−θ ⊙ HHθ`` of the three weights are 2, −28 and −1.

    Ranked by size, as the authors do, the first would be kept, whose removal raises the gradient's norm.
    """
    coupling = torch.tensor([[1.0, 3.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)

    def function(weights):
        flat = torch.cat([weights["pair"][0], weights["single"][0]])
        return 0.5 * flat @ coupling @ flat

    start = {"pair": torch.tensor([[1.0, -2.0]]).double(), "single": torch.tensor([[1.0]]).double()}
    flat = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)
    gradient = coupling @ flat
    assert (-flat * (coupling @ gradient)).tolist() == [2.0, -28.0, -1.0]
    optim = ZerothOrder(estimator="cge", density=2 / 3, queries=1500, step=5e-3)
    [(_, seen)], state = estimated(optim, function, start)
    assert state["densities"] == {"pair": 0.5, "single": 1.0}
    base = seen[optim.queries]  # of the second estimate; the authors' lies μ² ‖g‖ away
    assert float((base - flat).norm()) == pytest.approx(optim.step, rel=1e-9)
    weights = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    with torch.no_grad():
        scores = optim.scores(lambda: {"loss": function(weights)}, {"loss": function(weights)}, weights, 0)
    # four standard errors of Hg and of g, each of about its length over √q
    assert float(scores["pair"][0, 1]) == pytest.approx(-28.0, abs=4 * 2 * (14.2 + 4 * 5.2) / 1500**0.5)
    assert float(scores["pair"][0, 0]) == pytest.approx(2.0, abs=2.0)


def test_the_sparse_form_measures_a_part_of_each_matrix_and_all_of_each_vector():
    def function(weights):
        return sum((value**2).sum() for value in weights.values())

    draws = torch.Generator().manual_seed(0)
    start = {
        "large": 3 * torch.randn(10, 10, generator=draws, dtype=torch.float64),
        "small": 0.5 * torch.randn(10, 10, generator=draws, dtype=torch.float64),
        "bias": torch.randn(5, generator=draws, dtype=torch.float64),
    }
    optim = ZerothOrder(estimator="cge", density=0.3, interval=2, queries=100, step=1e-4)
    steps, _ = estimated(optim, function, start, range(4))
    found = [{name: value != 0 for name, value in gradients.items()} for gradients, _ in steps]
    passes = [len(seen) for _, seen in steps]
    for gradients, _ in steps:
        for name, value in gradients.items():  # what is measured is right
            assert torch.allclose(value[value != 0], 2 * start[name][value != 0], atol=1e-3)
    large, small = (int(found[0][name].sum()) for name in ("large", "small"))
    assert large + small == 60
    assert large > 2 * small  # the scores grow with the weights
    assert found[0]["bias"].all()
    assert passes[1:] == [65, 65, 65]
    assert passes[0] == 65 + 2 * 100 + 1
    assert torch.equal(found[0]["large"], found[1]["large"])
    assert torch.equal(found[2]["large"], found[3]["large"])
    assert not torch.equal(found[1]["large"], found[2]["large"])


@pytest.mark.parametrize("setting", ["classification", "causal_lm"], indirect=True)
def test_it_lowers_the_objective_of_a_small_network_from_forward_passes_alone(setting):
    optim = {"kind": "zeroth_order", "lr": 0.003, "queries": 10, "momentum": 0.5}
    described = {"kind": "grad_ascent", "epochs": 3, "batch_size": 12, "mode": "eval", "optim": optim}
    values = []
    session = Session(seed=0, callbacks=(lambda event: values.append(event.values.get("forget")),))
    config.build(methods, described).unlearn(setting.original, setting.split, setting.task, session)
    values = [value for value in values if value is not None]
    assert values[-1] < values[0]


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_batch_norm_in_training_mode_is_refused(setting):
    method = GradAscent(epochs=1, optim=ZerothOrder())
    with pytest.raises(Unsupported, match="Set mode=eval"):
        method.unlearn(setting.original, setting.split, setting.task, setting.session)


def test_models_trained_by_it_are_not_stacked_as_if_it_were_sgd(linear):
    recipe = Recipe(lambda: nn.Linear(3, 1), linear.task, Training(epochs=1, optim=ZerothOrder()))
    assert stacking(recipe, linear.split.retain, linear.session)[0] is False


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"queries": 0}, "queries: must be at least 1"),
        ({"interval": 0}, "interval: must be at least 1"),
        ({"step": 0.0}, "step: must be above 0"),
        ({"momentum": 1.0}, r"momentum: must be in \[0, 1\)"),
        ({"density": 0.0}, r"density: is a fraction in \(0, 1\]"),
        ({"density": 0.5}, "density: below 1 needs estimator=cge"),
    ],
)
def test_fields_out_of_range_are_refused_by_name(fields, said):
    with pytest.raises(ConfigError, match=said):
        ZerothOrder(**fields)
