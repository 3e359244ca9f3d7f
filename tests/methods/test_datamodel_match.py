from dataclasses import replace

import pytest
import torch
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, DataError, MissingEvidence, Unsupported
from expunge.methods.gradient.datamodel_match import DatamodelMatch
from expunge.tasks import Diffusion, Regression
from expunge.training.engine import Engine
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

N, GONE = 20, 5
ONE_STEP = Training(epochs=1, batch_size=100, optim=SGD(lr=1.0, momentum=0.0))
SOLVED = SGD(lr=0.5, momentum=0.0)
"""One step of ``min (w − t)²``."""


@pytest.fixture
def constant():
    """A model that learns the mean of its targets: its datamodels are exactly linear.

    On half of the data ``w = (2/N) Σ_{i∈S} y_i``, so ``β_i = 2 (y_i − ȳ) / N`` up to a constant.
    """
    y = torch.randn(N, 1, generator=torch.Generator().manual_seed(0))
    y[:GONE] += 4
    recipe = Recipe(lambda: nn.Linear(1, 1, bias=False), Regression(), ONE_STEP)
    data = ArrayData({"inputs": torch.ones(N, 1), "targets": y})
    session = Session(seed=0, recipe=recipe)
    model = recipe.train(data, session)
    return model, Split.from_ids(data, range(GONE)), recipe, session, y[:, 0]


def unlearned(constant, **fields):
    model, split, recipe, session, _ = constant
    method = DatamodelMatch(epochs=1, optim=SOLVED, **fields)
    return method.unlearn(model, split, recipe.task, session).weight.item()


def test_with_more_models_than_examples_the_prediction_is_the_closed_form(constant):
    y = constant[-1]
    change = float(2 / N * (y[:GONE] - y.mean()).sum())
    for kappa in (1.0, 0.5):
        found = unlearned(constant, models=60, penalty=1e-6, kappa=kappa)
        assert found == pytest.approx(float(y.mean()) - kappa * change, abs=1e-3)
    assert change > 1


def test_where_influence_falls_as_one_over_n_halves_double_it_and_a_half_is_the_right_kappa(constant):
    """The mean truly changes by ``n_f / (N − n_f) (ȳ_f − ȳ)``; datamodels of halves say ``2 n_f / N``."""
    y = constant[-1]
    retrained = float(y[GONE:].mean())
    kappa = 0.5 * N / (N - GONE)
    assert unlearned(constant, models=60, penalty=1e-6, kappa=kappa) == pytest.approx(retrained, abs=2e-3)
    assert abs(unlearned(constant, models=60, penalty=1e-6, kappa=1.0) - retrained) > 0.3


def truth(models, examples, noise=0.0, seed=0):
    """Masks of random halves, known effects, and the outputs they give."""
    draws = torch.Generator().manual_seed(seed)
    members = torch.stack([torch.randperm(examples, generator=draws) < examples // 2 for _ in range(models)])
    effects = torch.randn(examples, 3, 2, generator=draws, dtype=torch.float64)
    effects -= effects.mean(0)  # masks of a fixed size say nothing of what all effects have in common
    outputs = torch.einsum("mi,ixd->mxd", members.double(), effects) + 7
    return members, effects, outputs + noise * torch.randn(outputs.shape, generator=draws)


def test_ridge_finds_known_effects_exactly_with_enough_models():
    members, effects, outputs = truth(80, 12)
    forget = torch.arange(12) < 3
    found = DatamodelMatch(penalty=1e-7).effect(members, outputs, forget)
    assert torch.allclose(found.double(), effects[:3].sum(0), atol=1e-3)


def test_lasso_finds_few_effects_among_more_examples_than_models():
    members, _, _ = truth(40, 60)
    effects = torch.zeros(60, 70, dtype=torch.float64)  # more outputs than are fitted at once
    effects[torch.arange(70) % 60, torch.arange(70)] = 3.0
    outputs = (members.double() @ effects).view(40, 35, 2)
    forget = torch.arange(60) < 15
    expected = effects[:15].sum(0).view(35, 2)
    lasso, ridge = (
        (DatamodelMatch(fit=fit, penalty=1e-3).effect(members, outputs, forget) - expected).abs().max()
        for fit in ("lasso", "ridge")
    )
    assert lasso < 0.1
    assert ridge > 1


def test_the_sums_are_those_of_the_full_matrix_of_effects():
    """Ridge in its primal form, ``β = (ZᵀZ + Mλ)⁻¹ Zᵀ F``, here with fewer models than examples."""
    members, _, outputs = truth(10, 25)
    forget = torch.arange(25) % 4 == 0
    z = members.double() - members.double().mean(0)
    f = (outputs - outputs.mean(0)).flatten(1)
    beta = torch.linalg.solve(z.T @ z + 10 * 0.3 * torch.eye(25).double(), z.T @ f)
    found = DatamodelMatch(penalty=0.3).effect(members, outputs, forget).double()
    assert torch.allclose(found.flatten(), beta[forget].sum(0), atol=1e-5)


def test_means_are_the_difference_of_two_means():
    members, _, outputs = truth(11, 6, noise=1.0)
    forget = torch.tensor([True, False, False, True, False, False])
    expected = sum(outputs[members[:, i]].mean(0) - outputs[~members[:, i]].mean(0) for i in (0, 3))
    assert torch.allclose(
        DatamodelMatch(fit="means").effect(members, outputs, forget).double(), expected, atol=1e-5
    )


def test_with_few_models_ridge_shrinks_and_means_do_not():
    """Over many draws of ten masks for forty examples: the mean prediction over the true effect."""
    ratios = {"ridge": [], "means": []}
    for seed in range(150):
        members, effects, outputs = truth(10, 40, seed=seed)
        forget = torch.arange(40) < 10
        true = effects[:10].sum(0)
        for fit, found in ratios.items():
            got = DatamodelMatch(fit=fit, penalty=1e-3).effect(members, outputs, forget).double()
            found.append((float((got * true).sum()), float(true.square().sum())))
    shrunk, unbiased = (sum(a for a, _ in pairs) / sum(b for _, b in pairs) for pairs in ratios.values())
    assert shrunk == pytest.approx(9 / 39, abs=0.1)  # M − 1 of N − 1 dimensions are seen
    assert unbiased == pytest.approx(40 / 39, abs=0.2)


def test_what_is_prepared_once_serves_every_request(constant, monkeypatch):
    model, split, recipe, session, _ = constant
    method = DatamodelMatch(epochs=1, models=6, optim=SOLVED)
    made = method.prepare(split.train(), recipe.task, session)
    assert made["members"].sum(1).tolist() == [N // 2] * 6
    assert made["outputs"].shape == (6, N, 1)
    for row, said in zip(made["members"], made["outputs"], strict=True):  # each says the mean of its half
        assert torch.allclose(said, constant[-1][row].mean().expand(N, 1), atol=1e-5)
    alone = method.unlearn(model, split, recipe.task, session)
    monkeypatch.setattr(DatamodelMatch, "prepare", lambda *_: pytest.fail("prepared twice"))
    shared = method.unlearn(model, split, recipe.task, replace(session, prepared=made))
    assert torch.equal(alone.weight, shared.weight)
    other = Split.from_ids(split.train(), [7, 3])
    method.unlearn(model, other, recipe.task, replace(session, prepared=made))


def test_on_a_linear_regression_the_prediction_is_close_to_retraining():
    """Least squares in three weights; 4 of 40 examples with wrong targets are forgotten."""
    draws = torch.Generator().manual_seed(0)
    X = torch.randn(40, 3, generator=draws)
    y = X @ torch.tensor([[1.0], [-1.0], [0.5]]) + 0.1 * torch.randn(40, 1, generator=draws)
    y[:4] += 3
    training = Training(epochs=60, batch_size=100, optim=SGD(lr=0.5, momentum=0.0))
    recipe = Recipe(lambda: nn.Linear(3, 1, bias=False), Regression(), training)
    data = ArrayData({"inputs": X, "targets": y})
    session = Session(seed=0, recipe=recipe)
    model, split = recipe.train(data, session), Split.from_ids(data, range(4))
    retrained = torch.linalg.lstsq(X[4:], y[4:]).solution[:, 0]
    method = DatamodelMatch(models=100, penalty=1e-3, kappa=0.5, epochs=60, optim=SGD(lr=0.3, momentum=0.0))
    result = method.unlearn(model, split, recipe.task, session).weight[0]
    before, after = ((X @ (w.detach() - retrained)).norm() for w in (model.weight[0], result))
    assert before > 1
    assert after < 0.4 * before


def test_gradients_of_half_batches_add_up(constant):
    model, split, recipe, session, _ = constant
    method = DatamodelMatch(epochs=2, models=8, batch_size=4, optim=SGD(lr=0.1))
    halved = replace(session, engine=Engine(accumulate=2))
    whole, halves = (method.unlearn(model, split, recipe.task, s).weight.item() for s in (session, halved))
    assert whole == pytest.approx(halves, abs=1e-4)
    assert abs(whole - model.weight.item()) > 0.05


def test_batches_come_in_random_order_and_mix_both_parts(constant):
    """The authors' loader does not shuffle; every pass here is a new order, three retain to one forget."""
    (found,) = DatamodelMatch().passes(0)
    assert (found.over, found.beside, found.beside_ratio) == ("forget", "retain", 3)


def test_random_outputs_foreign_data_and_a_missing_recipe_are_refused(constant):
    model, split, recipe, session, _ = constant
    with pytest.raises(Unsupported, match="Use oracle_match"):
        DatamodelMatch().unlearn(model, split, Diffusion(), session)
    with pytest.raises(MissingEvidence, match="recipe"):
        DatamodelMatch().unlearn(model, split, recipe.task, replace(session, recipe=None))
    method = DatamodelMatch(models=2)
    made = method.prepare(split.retain, recipe.task, session)
    with pytest.raises(DataError, match="prepared for 15 training examples"):
        method.unlearn(model, split, recipe.task, replace(session, prepared=made))


@pytest.mark.parametrize("fields", [{"models": 1}, {"retain_ratio": 0}, {"penalty": 0.0}, {"epochs": 0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        DatamodelMatch(**fields)
