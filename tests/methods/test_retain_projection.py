import pytest
import torch
from torch import nn

from expunge.config import build
from expunge.data import ArrayData, Split, fixed_order
from expunge.errors import ConfigError, Unsupported
from expunge.methods.base import methods
from expunge.methods.gradient.grad_ascent import GradAscent
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.gradient.npo import NPO
from expunge.methods.modifiers.retain_projection import RetainProjection
from expunge.tasks import Regression
from expunge.training.engine import Engine
from expunge.training.optim import SGD
from expunge.training.session import Session

ONE_STEP = {"epochs": 1, "mode": "eval"}
PLAIN = SGD(lr=1.0, momentum=0.0)
DETERMINISTIC = pytest.mark.parametrize(
    "setting", ["classification", "regression", "causal_lm"], indirect=True
)


def _gradient(setting, part, model=None):
    """Of the mean loss over a whole part, as one vector, in evaluation mode."""
    model = (model or setting.fresh()).eval()
    data = getattr(setting.split, part)
    (batch,) = data.batches(fixed_order(len(data), len(data)), device="cpu")
    loss = setting.task.loss(setting.task.outputs(model, batch), batch).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def _move(setting, method, session=None):
    """The change of all parameters, as one vector."""
    result = method.unlearn(setting.original, setting.split, setting.task, session or setting.session)
    pairs = zip(result.parameters(), setting.original.parameters(), strict=True)
    return torch.cat([(after - before).detach().flatten() for after, before in pairs])


def _cosine(first, second):
    return float(first @ second / (first.norm() * second.norm()))


@DETERMINISTIC
@pytest.mark.parametrize(
    "method", [GradAscent, lambda **kw: NPO(retain_weight=0.0, **kw)], ids=["ascent", "npo"]
)
def test_the_retain_loss_does_not_change_to_first_order(setting, method):
    retain, forget = (_gradient(setting, part) for part in ("retain", "forget"))
    bare = _move(setting, method(optim=PLAIN, **ONE_STEP))
    projected = _move(setting, method(optim=PLAIN, modifiers=(RetainProjection(),), **ONE_STEP))
    assert abs(_cosine(bare, retain)) > 0.01  # there is something to remove
    assert abs(_cosine(projected, retain)) < 1e-4
    assert _cosine(projected, forget) > 0.1  # it still climbs the forget loss


@DETERMINISTIC
def test_the_step_is_the_forget_gradient_less_its_part_along_the_retain_gradient(setting):
    retain, forget = (_gradient(setting, part) for part in ("retain", "forget"))
    unit = retain / retain.norm()
    expected = forget - (unit @ forget) * unit
    projected = _move(setting, GradAscent(optim=PLAIN, modifiers=(RetainProjection(),), **ONE_STEP))
    assert torch.allclose(projected, expected, atol=1e-5)


def test_the_retain_term_itself_is_not_changed(linear):
    b = 0.7
    forget, retain = (linear.gradient(linear.start, part) for part in ("forget", "retain"))
    unit = retain / retain.norm()
    expected = linear.start - 0.1 * (b * retain - (1 - b) * (forget - (unit @ forget) * unit))
    optim = SGD(lr=0.1, momentum=0.0)
    method = GradDiff(epochs=1, optim=optim, retain_weight=b, modifiers=(RetainProjection(),))
    assert torch.allclose(linear.run(method), expected, atol=1e-6)


def test_projection_is_right_under_accumulation(linear):
    method = GradDiff(
        epochs=1, optim=SGD(lr=0.1, momentum=0.0), retain_weight=0.5, modifiers=(RetainProjection(),)
    )
    whole, parts = (linear.run(method, Session(engine=Engine(accumulate=n))) for n in (1, 4))
    assert torch.allclose(whole, parts, atol=1e-6)


@pytest.fixture
def layer():
    """A layer, its projection's state and an AdamW whose second moments differ between weights."""
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * torch.rand_like(parameter) ** 3
    optimizer.step()
    return model, optimizer


def _draw(model):
    return {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}


def _inner(first, second, model, optimizer):
    """``⟨a, H⁻¹ b⟩`` relative to the lengths of the two in that metric, ``H = √v + ε``."""
    H = {n: optimizer.state[p]["exp_avg_sq"].sqrt() + 1e-8 for n, p in model.named_parameters()}

    def product(a, b):
        return sum(float((a[name].double() * b[name] / H[name]).sum()) for name in H)

    return product(first, second) / (product(first, first) * product(second, second)) ** 0.5


def test_with_second_moments_it_is_orthogonal_in_the_metric_of_the_optimiser(layer):
    model, optimizer = layer
    projection = RetainProjection()
    state = projection.prepare(model, None, None, None)
    terms = {"forget": _draw(model), "other": _draw(model), "retain": _draw(model)}
    changed = projection.gradients(terms, state, optimizer)
    for term in ("forget", "other"):
        assert abs(_inner(terms["retain"], terms[term], model, optimizer)) > 1e-3
        assert abs(_inner(terms["retain"], changed[term], model, optimizer)) < 1e-5
    assert all(torch.equal(changed["retain"][name], terms["retain"][name]) for name in terms["retain"])


def test_every_recent_direction_is_left_alone_and_the_oldest_is_let_go(layer):
    model, optimizer = layer
    projection = RetainProjection(directions=3)
    state = projection.prepare(model, None, None, None)
    retained = []
    for _ in range(4):
        retained.append(_draw(model))
        changed = projection.gradients({"forget": _draw(model), "probe": retained[-1]}, state, optimizer)
    products = [abs(_inner(retain, changed["forget"], model, optimizer)) for retain in retained]
    assert max(products[1:]) < 1e-5
    assert products[0] > 1e-3


def test_the_same_direction_twice_counts_once(layer):
    model, optimizer = layer
    projection = RetainProjection(directions=2)
    state = projection.prepare(model, None, None, None)
    retain = _draw(model)
    projection.gradients({"forget": _draw(model), "retain": retain}, state, optimizer)
    twice = {name: 2 * gradient for name, gradient in retain.items()}
    changed = projection.gradients({"forget": _draw(model), "retain": twice}, state, optimizer)
    assert all(torch.isfinite(gradient).all() for gradient in changed["forget"].values())
    assert abs(_inner(retain, changed["forget"], model, optimizer)) < 1e-5


def test_parameters_that_a_term_does_not_reach_count_as_zero(layer):
    model, optimizer = layer
    projection = RetainProjection()
    state = projection.prepare(model, None, None, None)
    forget = {"weight": torch.randn(4, 5)}
    changed = projection.gradients({"forget": forget, "retain": _draw(model)}, state, optimizer)
    assert abs(_inner(state_gradient(state), changed["forget"], model, optimizer)) < 1e-5


def state_gradient(state):
    sizes = {name: parameter.numel() for name, parameter in state.parameters.items()}
    parts = state.recent[-1].split(list(sizes.values()))
    return {n: part.view_as(state.parameters[n]) for n, part in zip(sizes, parts, strict=True)}


def test_fewer_than_one_direction_is_refused():
    with pytest.raises(ConfigError, match="directions: must be at least 1"):
        RetainProjection(directions=0)


def test_sign_descent_is_refused_because_its_step_is_not_linear_in_the_gradient():
    data = ArrayData({"inputs": torch.randn(8, 2), "targets": torch.randn(8)})
    method = build(
        methods,
        {"kind": "grad_diff", "modifiers": ["retain_projection"], "optim": {"kind": "sign_sgd"}},
    )
    with pytest.raises(Unsupported, match="no linear function of the gradient"):
        method.unlearn(nn.Linear(2, 1), Split.from_ids(data, [0, 1]), Regression(), Session())


def _per_tensor(first, second, model, optimizer, name):
    pick = dict(model.named_parameters())[name]
    metric = optimizer.state[pick]["exp_avg_sq"].sqrt() + 1e-8

    def product(a, b):
        return float((a[name].double() * b[name] / metric).sum())

    return product(first, second) / (product(first, first) * product(second, second)) ** 0.5


def test_per_tensor_it_is_orthogonal_in_each_and_globally_only_in_sum(layer):
    model, optimizer = layer
    terms = {"forget": _draw(model), "retain": _draw(model)}
    found = {}
    for per in ("tensor", "model"):
        projection = RetainProjection(per=per)
        state = projection.prepare(model, None, None, None)
        found[per] = projection.gradients(terms, state, optimizer)["forget"]
        assert abs(_inner(terms["retain"], found[per], model, optimizer)) < 1e-5
    for name in ("weight", "bias"):
        inside = {per: abs(_per_tensor(terms["retain"], found[per], model, optimizer, name)) for per in found}
        assert inside["tensor"] < 1e-5
        assert inside["model"] > 1e-3


@pytest.mark.parametrize("per", ["model", "tensor"])
def test_every_stored_direction_is_left_alone_also_when_they_are_nearly_the_same(per):
    torch.manual_seed(1)
    model = nn.Linear(30, 20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * torch.rand_like(parameter) ** 3
    optimizer.step()
    projection = RetainProjection(directions=8, per=per)
    state = projection.prepare(model, None, None, None)
    first, retained = _draw(model), []
    for _ in range(8):  # each differs from the first by 5 thousandths
        retained.append({n: g + 5e-3 * torch.randn_like(g) for n, g in first.items()})
        forget = {n: g + 0.1 * torch.randn_like(g) for n, g in first.items()}
        changed = projection.gradients({"forget": forget, "retain": retained[-1]}, state, optimizer)["forget"]
    products = [abs(_inner(retain, changed, model, optimizer)) for retain in retained]
    assert max(products) <= 1e-5
    assert any(float(gradient.norm()) > 1e-3 for gradient in changed.values())


@DETERMINISTIC
def test_a_step_per_tensor_leaves_the_retain_loss_and_moves_less(setting):
    retain = _gradient(setting, "retain")
    moves = {
        per: _move(setting, GradAscent(optim=PLAIN, modifiers=(RetainProjection(per=per),), **ONE_STEP))
        for per in ("model", "tensor")
    }
    assert abs(_cosine(moves["tensor"], retain)) < 1e-4
    assert moves["tensor"].norm() <= moves["model"].norm()
