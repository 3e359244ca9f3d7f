import sys
from dataclasses import replace

import pytest
import torch
from tests.conftest import _setting
from torch import nn

from expunge import config
from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, DataError, MissingEvidence, MissingExtra, Unsupported
from expunge.methods import methods
from expunge.methods.exact.dp2 import DP2
from expunge.methods.optimisers.sophia import Sophia
from expunge.report.card import _guarantee
from expunge.tasks import Regression
from expunge.training.accountant import Accountant
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

pytest.importorskip("opacus")

BASE = Training(epochs=2, batch_size=4, optim=SGD(lr=0.1, momentum=0.0))
STILL = SGD(lr=1e-30, momentum=0.0)
"""A fine-tuning that leaves every weight where it was."""


def linear(subjects=None):
    draws = torch.Generator().manual_seed(0)
    X, y = torch.randn(16, 3, generator=draws), torch.randn(16, 1, generator=draws)
    data = ArrayData({"inputs": X, "targets": y} | ({} if subjects is None else {"subjects": subjects}))
    recipe = Recipe(lambda: nn.Linear(3, 1), Regression(), BASE)
    heard = []
    session = Session(seed=0, recipe=recipe, callbacks=(heard.append,))
    return data, recipe, session, heard


def unlearn(method, data, session, forget=(0,)):
    split = Split.from_ids(data, forget)
    return method.unlearn(session.recipe.initial(session), split, session.recipe.task, session)


def said(heard):
    (event,) = [event for event in heard if event.what.startswith("dp2: ")]
    return event


def test_the_guarantee_and_its_unit_are_told_and_are_those_of_opacus():
    from opacus.accountants import RDPAccountant

    data, _, session, heard = linear()
    unlearn(DP2(epsilon=4.0), data, session, forget=(0, 1, 2))
    event, accountant = said(heard), RDPAccountant()
    values = event.values
    accountant.history = [(values["noise"], values["rate"], int(values["steps"]))]
    assert (values["rate"], values["steps"], values["delta"], values["units"]) == (4 / 16, 8, 1e-5, 3)
    assert values["epsilon"] == pytest.approx(accountant.get_epsilon(delta=1e-5), rel=1e-6)
    assert 3.9 < values["epsilon"] <= 4.0
    of = Accountant(noise=values["noise"], rate=0.25, steps=8)
    assert values["epsilon_request"] == of.epsilon(1e-5, 3) > 2 * values["epsilon"]
    assert "for one record" in event.what
    assert "for the 3 of the request" in event.what


def test_with_subjects_as_the_unit_a_request_for_one_costs_what_one_unit_costs():
    data, _, session, heard = linear(torch.arange(16) // 4)
    unlearn(DP2(epsilon=4.0, unit="subject"), data, session, forget=range(4))
    values = said(heard).values
    assert values["units"] == 1
    assert values["epsilon_request"] == values["epsilon"] <= 4.0
    assert "for one subject" in said(heard).what


def test_a_part_of_a_subject_cannot_be_forgotten_where_subjects_are_the_unit():
    data, _, session, _ = linear(torch.arange(16) // 4 + 7)
    with pytest.raises(Unsupported, match="subject 7 is to be forgotten in part. Give all its examples"):
        unlearn(DP2(unit="subject"), data, session, forget=(0, 1))


def test_without_fine_tuning_the_result_is_the_base_that_a_plain_loop_with_clipping_and_noise_reaches():
    """At ``q = 1`` a base step is ``w ← w − η (Σ clip(g_i) + σ C z) / N``: here without noise to speak of."""
    data, recipe, session, _ = linear()
    training = Training(epochs=3, batch_size=16, optim=SGD(lr=0.5, momentum=0.0))
    method = DP2(epsilon=1e9, clip=0.3, base=training, epochs=1, optim=STILL)
    result = unlearn(method, data, session)
    start = recipe.initial(session.child("dp2 base"))
    X = torch.cat([data.column("inputs"), torch.ones(16, 1)], 1)
    w = torch.cat([start.weight[0], start.bias]).detach()
    for _ in range(3):
        gradients = (X @ w - data.column("targets")[:, 0])[:, None] * X
        norms = gradients.norm(dim=1, keepdim=True)
        w = w - 0.5 * (gradients * (0.3 / norms).clamp(max=1)).mean(0)
    assert (norms > 0.3).any()
    found = torch.cat([result.weight[0], result.bias]).detach()
    assert torch.allclose(found, w, atol=1e-3)
    assert (found - torch.cat([start.weight[0], start.bias])).norm() > 0.05


def test_the_forget_set_is_read_by_the_private_base_alone():
    """Two forgotten examples that differ only in value give one result from one base."""
    data, recipe, session, _ = linear()
    method = DP2(epsilon=4.0, epochs=2, batch_size=4)
    made = method.prepare(data, recipe.task, session)
    other = data.column("targets").clone()
    other[0] = 100.0
    changed = ArrayData({"inputs": data.column("inputs"), "targets": other})
    ready = replace(session, prepared=made)
    first, second = (unlearn(method, d, ready) for d in (data, changed))
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight[0], made["model/weight"][0])


def test_one_base_serves_several_requests_and_no_other_data():
    data, recipe, session, heard = linear()
    method = DP2(epsilon=4.0, epochs=1)
    ready = replace(session, prepared=method.prepare(data, recipe.task, session))
    heard.clear()
    unlearn(method, data, ready, (0,)), unlearn(method, data, ready, (3, 4))
    assert [e.what for e in heard if e.kind == "started"] == ["dp2", "dp2"]  # no base is trained again
    with pytest.raises(DataError, match="prepared for 16 training examples, which are not the 8"):
        unlearn(method, data.subset(range(8)), ready)


def test_batch_norm_is_refused_before_anything_is_trained():
    setting = _setting("classification")
    with pytest.raises(Unsupported, match="BatchNorm2d.*Use GroupNorm or LayerNorm in the model, or another"):
        DP2().check_training(setting.split.train(), setting.recipe)


def test_an_optimiser_that_reads_curvature_is_refused_before_anything_is_trained():
    data, recipe, _, _ = linear()
    with pytest.raises(Unsupported, match="Sophia reads the data past the noise"):
        DP2(base=replace(BASE, optim=Sophia())).check_training(data, recipe)


def test_a_penalty_on_the_gradient_of_the_batch_is_refused_before_anything_is_trained():
    data, recipe, _, _ = linear()
    with pytest.raises(Unsupported, match="gradient_penalty is about the gradient of a whole batch"):
        DP2(base=replace(BASE, gradient_penalty=0.1)).check_training(data, recipe)


def test_a_delta_that_would_allow_publishing_an_example_is_refused():
    data, recipe, _, _ = linear()
    with pytest.raises(Unsupported, match="allows publishing one of them whole. Set delta well below 0.06"):
        DP2(delta=0.1).check_training(data, recipe)


def test_it_runs_on_a_transformers_model_one_by_one_and_by_subject():
    pytest.importorskip("transformers")
    setting = _setting("llama")
    heard = []
    session = replace(setting.session, callbacks=(heard.append,))
    base = Training(epochs=1, batch_size=10, optim=SGD(lr=0.01))
    method = DP2(unit="subject", base=base, epochs=1, batch_size=8)
    result = method.unlearn(setting.original, setting.split, setting.task, session)
    assert any("one by one" in event.what for event in heard)
    assert said(heard).values["units"] == 1
    assert all(torch.isfinite(value).all() for value in result.state_dict().values())


def test_the_card_states_epsilon_delta_and_unit():
    text = _guarantee(config.dump(DP2(epsilon=2.0, unit="subject")))
    assert text.startswith("**certified**")
    assert "(ε, δ) = (2, 1e-05) for one subject" in text
    assert "seed stays secret" in text
    assert methods.get("retrain")().promise() == ""


def test_a_recipe_is_needed():
    data, _, session, _ = linear()
    split = Split.from_ids(data, [0])
    with pytest.raises(MissingEvidence, match="dp2 trains its base itself and needs the recipe"):
        DP2().unlearn(nn.Linear(3, 1), split, Regression(), replace(session, recipe=None))


def test_without_opacus_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    data, _, session, _ = linear()
    with pytest.raises(MissingExtra, match=r"expunge\[private\]"):
        unlearn(DP2(epsilon=4.5), data, session)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epsilon": 0.0}, "epsilon: must be above 0, got 0.0"),
        ({"clip": -1.0}, "clip: must be above 0"),
        ({"delta": 1.0}, r"delta: must be in \(0, 1\), got 1.0"),
        ({"epochs": 0}, "epochs: must be at least 1"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        DP2(**fields)
