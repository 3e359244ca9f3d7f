import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.edits.influence import Influence
from expunge.tasks import Classification, Regression
from expunge.training.scope import Scope
from expunge.training.session import Session

EXACT = {"damping": 0.0, "samples": None}


def _relative(measured, expected):
    return float((measured.double() - expected.double()).norm() / expected.double().norm())


def _ridge(X, y, l2):
    """The minimum of ``(1/2N) ‖Xw − y‖² + (l2/2) ‖w‖²``."""
    X, y = X.double(), y.double()
    return torch.linalg.solve(X.T @ X / len(X) + l2 * torch.eye(X.shape[1]), X.T @ y / len(X))[:, 0]


def _run_ridge(weight, n_forget, l2, **fields):
    """The result, where it started and the data; ``weight=None`` starts at the minimum."""
    torch.manual_seed(0)
    X, y = torch.randn(40, 5) @ torch.diag(torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])), torch.randn(40, 1)
    model = nn.Linear(5, 1, bias=False)
    start = _ridge(X, y, l2) if weight is None else weight
    with torch.no_grad():
        model.weight.copy_(start[None])
    split = Split.from_ids((X, y), range(n_forget))
    method = Influence(**{**EXACT, "l2": l2, **fields})
    result = method.unlearn(model, split, Regression(), Session()).weight.detach()[0]
    return result, start, (X, y)


@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("n_forget", [1, 10])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_one_step_is_retraining_for_ridge_regression(l2, n_forget, curvature):
    result, start, (X, y) = _run_ridge(None, n_forget, l2, curvature=curvature, batch_size=7)
    retrained = _ridge(X[n_forget:], y[n_forget:], l2)
    assert _relative(result, retrained) < 2e-6
    assert _relative(start, retrained) > 1e-2


def test_without_the_weight_decay_in_the_hessian_the_step_misses():
    right, start, (X, y) = _run_ridge(None, 10, 0.5)
    wrong, _, _ = _run_ridge(start, 10, 0.0)
    retrained = _ridge(X[10:], y[10:], 0.5)
    assert _relative(right, retrained) < 2e-6
    assert _relative(wrong, retrained) > 1e-2


def test_away_from_the_minimum_the_gradient_that_was_left_over_stays_left_over():
    result, start, (X, y) = _run_ridge(torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5]), 10, 0.1)
    before = X.T @ (X @ start - y[:, 0]) / 40 + 0.1 * start
    after = X[10:].T @ (X[10:] @ result - y[10:, 0]) / 30 + 0.1 * result
    assert _relative(after, before) < 1e-5
    assert _relative(result, _ridge(X[10:], y[10:], 0.1)) > 0.1  # nothing was trained further


def test_half_the_scale_is_half_the_step():
    whole, start, _ = _run_ridge(None, 10, 0.1)
    half, _, _ = _run_ridge(None, 10, 0.1, scale=0.5)
    assert torch.allclose(2 * (half - start), whole - start, atol=1e-6)


def _logistic():
    """Softmax regression at the minimum of its mean loss with ``l2`` 0.05, in double precision."""
    draws = torch.Generator().manual_seed(0)
    X = torch.randn(90, 4, generator=draws)
    y = (X @ torch.randn(4, 3, generator=draws) + torch.randn(90, 3, generator=draws)).argmax(1)
    return X, y, _newton(X, y, torch.zeros(12, dtype=torch.float64), 30)


def _objective(X, y):
    def value(w):
        logits = X.double() @ w.view(3, 4).T
        return nn.functional.cross_entropy(logits, y) + 0.025 * w.square().sum()

    return value


def _newton(X, y, w, steps):
    for _ in range(steps):
        leaf = w.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(_objective(X, y)(leaf), leaf)
        w = w - torch.linalg.solve(hessian(_objective(X, y), w), gradient)
    return w


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_it_is_the_exact_newton_step_for_logistic_regression(curvature):
    X, y, start = _logistic()
    model = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(start.view(3, 4))
    method = Influence(**EXACT, l2=0.05, curvature=curvature, batch_size=16)
    split = Split.from_ids((X, y), range(15))
    result = method.unlearn(model, split, Classification(3), Session()).weight.detach().flatten()
    newton = _newton(X[15:], y[15:], start, 1)
    assert _relative(result - start, newton - start) < 1e-4
    retrained = _newton(X[15:], y[15:], start, 30)
    assert _relative(result, retrained) < 0.1 * _relative(start, retrained)


def _gradients(setting, data):
    """The gradient of each example, ``(N, P)``, and their mean."""
    model = setting.original
    rows = []
    for x, y in zip(data.column("inputs"), data.column("targets"), strict=True):
        loss = setting.task.loss(model(x[None]), {"targets": y[None]})
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum(), model.parameters())]))
    return torch.stack(rows)


def _flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _released(gradients, v, n):
    """The recursion as published: one vector, only ever rescaled."""
    value, one = v.clone(), gradients[0]
    for g in gradients[1:]:
        along = one @ g
        value, one = value - one * (value @ g) / (n + along), one - one * along / (n + along)
    return value


@pytest.mark.parametrize("setting", ["regression"], indirect=True)
def test_woodfisher_solves_the_system_and_the_published_recursion_is_a_gradient_step(setting):
    forget, retain = (_gradients(setting, d) for d in (setting.split.forget, setting.split.retain))
    n, N = len(retain), len(forget) + len(retain)
    v = forget.sum(0) / N - len(forget) / (N * n) * retain.sum(0)
    method = Influence(solver="woodfisher", damping=0.01, samples=None)
    step = _flat(method.unlearn(setting.original, setting.split, setting.task, setting.session)) - _flat(
        setting.original
    )
    fisher = retain.T @ retain / n + 0.01 * torch.eye(retain.shape[1])
    dense = torch.linalg.solve(fisher.double(), v.double())
    assert _relative(step, dense) < 1e-3

    def outside(x):
        """How much of ``x − v`` is not along the first gradient."""
        rest = x - v
        along = retain[0] * (rest @ retain[0]) / retain[0].square().sum()
        return float((rest - along).norm() / rest.norm())

    released = _released(retain, v, n)
    assert outside(released) < 1e-3
    unit = retain.T @ retain / n + torch.eye(retain.shape[1])  # the damping that their start v stands for
    honest = torch.linalg.solve(unit, v)
    assert outside(honest) > 0.3
    assert outside(step) > 0.3
    assert _relative(released, v) < 0.3 * _relative(honest, v)


def test_the_default_damping_is_that_of_the_solver_and_weight_decay_adds_to_it():
    assert Influence(l2=0.5).diagonal == 0.501
    assert Influence(solver="woodfisher").diagonal == 0.01
    assert Influence(solver="woodfisher", damping=1.0, l2=0.5).diagonal == 1.5


def test_the_samples_are_drawn_from_the_retain_set_by_the_seed(setting):
    def run(seed):
        method = Influence(samples=5, iterations=5)
        return _flat(method.unlearn(setting.original, setting.split, setting.task, Session(seed)))

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize("setting", ["regression"], indirect=True)
def test_what_the_solver_reached_is_reported(setting):
    events = []
    method = Influence(iterations=3, samples=None)
    method.unlearn(setting.original, setting.split, setting.task, Session(callbacks=(events.append,)))
    (found,) = [e for e in events if e.kind == "evaluated"]
    assert (found.index, found.total) == (3, 3)
    assert 0 < found.values["residual"] < 10


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_a_hessian_with_negative_directions_is_refused_and_the_message_says_what_to_do(setting):
    torch.manual_seed(1)
    model = setting.recipe.initial(Session(seed=3))
    method = Influence(curvature="hessian", damping=0.0, samples=None)
    with pytest.raises(Unsupported, match=r"must be positive. Use curvature=gauss_newton"):
        method.unlearn(model, setting.split, setting.task, setting.session)


class _Head(Scope):
    def names(self, model):
        return ["head.weight"]


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
@pytest.mark.parametrize("solver", ["cg", "woodfisher"])
def test_only_the_scope_moves(setting, solver):
    method = Influence(scope=_Head(), solver=solver)
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session).state_dict()
    before = setting.original.state_dict()
    assert [name for name in before if not torch.equal(before[name], result[name])] == ["head.weight"]


@pytest.mark.parametrize(
    "fields",
    [
        {"samples": 0},
        {"iterations": 0},
        {"batch_size": 0},
        {"damping": -1.0},
        {"l2": -1.0},
        {"scale": 0.0},
        {"tolerance": 0.0},
        {"solver": "woodfisher", "damping": 0.0},
    ],
)
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=list(fields)[-1]):
        Influence(**fields)


INTEGER = ArrayData({"inputs": torch.randn(6, 3), "targets": torch.arange(6) % 2})


def _quantised(kind):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    if kind == "parameter":
        model[0].weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    elif kind == "float8":
        model[0].weight = nn.Parameter(torch.ones(3, 3).to(torch.float8_e4m3fn), requires_grad=False)
    else:
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("parameter", "'0.weight' is torch.int8"),
        ("float8", "'0.weight' is torch.float8_e4m3fn"),
        ("module", "'0' is a Linear"),
    ],
)
def test_quantised_weights_are_refused_before_anything_is_computed(kind, said):
    events = []
    split = Split.from_ids(INTEGER, [0, 1])
    with pytest.raises(
        Unsupported, match=rf"influence writes new weights.*{said}. Give the model from before"
    ):
        Influence().unlearn(_quantised(kind), split, Classification(2), Session(callbacks=(events.append,)))
    assert not events
