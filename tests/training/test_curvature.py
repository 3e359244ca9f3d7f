import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call, jacrev

from expunge.data import ArrayData
from expunge.errors import Unsupported
from expunge.tasks import Classification
from expunge.training.curvature import (
    conjugate_gradient,
    curvature,
    fisher_diagonal,
    flatten,
    unflatten,
    woodbury,
)
from expunge.training.engine import Engine
from expunge.training.session import Session

TASK = Classification(3)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).eval()
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2.0)
    return model, ArrayData({"inputs": torch.randn(11, 4), "targets": torch.arange(11) % 3})


def _names(model):
    return [name for name, _ in model.named_parameters()]


def _outputs(model, data):
    """The logits ``(N, C)`` as a function of the flat parameters, and those parameters."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def call(vector):
        found = unflatten(vector, weights, _names(model))
        return functional_call(model, found, (data.column("inputs"),))

    return call, flatten(weights, _names(model))


def _dense(model, data, kind):
    call, start = _outputs(model, data)
    loss = nn.functional.cross_entropy
    if kind == "hessian":
        return hessian(lambda v: loss(call(v), data.column("targets")), start)
    J = jacrev(call)(start)  # (N, C, P)
    p = call(start).softmax(-1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nap,nab,nbq->pq", J, inner, J) / len(data)


@pytest.mark.parametrize(("kind", "batch_size"), [("hessian", 4), ("gauss_newton", 4), ("gauss_newton", 1)])
def test_products_are_those_of_the_dense_matrix_whatever_the_batches(problem, kind, batch_size):
    model, data = problem
    vector = torch.randn(len(_outputs(model, data)[1]))
    how = {"names": _names(model), "batch_size": batch_size, "kind": kind}
    with curvature(model, data, TASK, Session(), **how) as product:
        measured = product(vector)
    expected = _dense(model, data, kind) @ vector
    assert torch.allclose(measured, expected, atol=1e-6)
    assert expected.abs().max() > 0.1


def test_the_two_kinds_differ_for_a_network_and_only_one_has_negative_directions(problem):
    model, data = problem
    exact, newton = (torch.linalg.eigvalsh(_dense(model, data, k)) for k in ("hessian", "gauss_newton"))
    assert exact[0] < -1e-2
    assert newton[0] > -1e-5


def test_products_are_in_full_precision_and_leave_the_model_as_it_was(problem):
    model, data = problem
    model.train()
    model[0].weight.requires_grad_(False)
    vector = torch.ones(20)
    how = {"names": ["0.weight"], "batch_size": 4, "kind": "hessian"}
    with curvature(model, data, TASK, Session(), **how) as product:
        full = product(vector)
    with curvature(model, data, TASK, Session(engine=Engine(dtype="bfloat16")), **how) as product:
        assert torch.equal(product(vector), full)
    assert model[1].training
    assert not model[0].weight.requires_grad


def test_conjugate_gradients_solve_the_damped_system_and_say_how_well():
    torch.manual_seed(0)
    half = torch.randn(8, 8)
    A, b = half @ half.T, torch.randn(8)
    found = conjugate_gradient(lambda v: A @ v, b, damping=0.5, tolerance=1e-6, iterations=50)
    assert torch.allclose(found.value, torch.linalg.solve(A + 0.5 * torch.eye(8), b), rtol=1e-4, atol=1e-6)
    assert found.residual <= 1e-6
    short = conjugate_gradient(lambda v: A @ v, b, damping=0.5, tolerance=1e-6, iterations=2)
    assert short.iterations == 2
    assert short.residual > 1e-3


def test_conjugate_gradients_need_as_many_products_as_there_are_different_eigenvalues():
    A = torch.diag(torch.tensor([1.0, 1.0, 4.0, 4.0, 4.0]))
    found = conjugate_gradient(lambda v: A @ v, torch.ones(5), damping=0.0, tolerance=1e-6, iterations=50)
    assert found.iterations == 2


def test_nothing_to_solve_takes_no_product():
    found = conjugate_gradient(lambda v: 1 / 0, torch.zeros(3), damping=0.0, tolerance=1e-6, iterations=9)
    assert found.value.tolist() == [0.0] * 3
    assert found.residual == 0.0


def test_a_direction_of_negative_curvature_is_refused_with_its_size():
    with pytest.raises(Unsupported, match=r"is -2 along a direction, damping 1 included.*gauss_newton"):
        conjugate_gradient(lambda v: -3 * v, torch.ones(3), damping=1.0, tolerance=1e-6, iterations=9)


@pytest.mark.parametrize(("damping", "error"), [(1e-3, 5e-4), (1.0, 1e-6)])
def test_woodburys_recursion_is_the_dense_inverse(damping, error):
    torch.manual_seed(0)
    G, b = torch.randn(12, 30), torch.randn(30)
    dense = (damping * torch.eye(30) + G.T @ G / 12).double()
    measured = woodbury(iter(G), b, damping=damping, count=12)
    expected = torch.linalg.solve(dense, b.double()).float()
    assert float((measured - expected).norm() / expected.norm()) < error


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_fisher_information_weights_squared_gradients_by_the_models_probabilities(problem, batch_size):
    model, data = problem
    model.train()
    measured = fisher_diagonal(model, data, TASK, Session(), names=_names(model), batch_size=batch_size)
    assert model.training
    model.eval()
    call, start = _outputs(model, data)
    squared = jacrev(lambda v: call(v).log_softmax(-1))(start).square()  # (N, C, P)
    expected = torch.einsum("nc,ncp->p", call(start).softmax(-1), squared) / len(data)
    assert torch.allclose(flatten(measured, _names(model)), expected, atol=1e-6)


def test_the_labels_of_the_data_do_not_enter_the_fisher_information(problem):
    model, data = problem
    other = ArrayData({"inputs": data.column("inputs"), "targets": (data.column("targets") + 1) % 3})
    first, second = (
        fisher_diagonal(model, d, TASK, Session(), names=["0.bias"], batch_size=4) for d in (data, other)
    )
    assert list(first) == ["0.bias"]
    assert torch.equal(first["0.bias"], second["0.bias"])
