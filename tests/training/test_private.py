import math
from dataclasses import replace

import pytest
import torch
from tests.conftest import _setting
from torch import nn

from expunge.data import ArrayData
from expunge.errors import Diverged, Unsupported
from expunge.methods.optimisers.sophia import Sophia
from expunge.tasks import Regression
from expunge.training.engine import Engine
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import SGD
from expunge.training.private import UNIT, Private, PrivateGradient
from expunge.training.session import Session

LR1 = SGD(lr=1.0, momentum=0.0)


def regression(n=6, subjects=None, seed=0):
    """``f(x) = wᵀx`` from ``w = 0``, with loss ``½ (wᵀx − y)²``: the gradient of an example is ``−y x``."""
    draws = torch.Generator().manual_seed(seed)
    X, y = 3 * torch.randn(n, 2, generator=draws), torch.randn(n, 1, generator=draws)
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    columns = {"inputs": X, "targets": y} | ({} if subjects is None else {"subjects": subjects})
    return model, ArrayData(columns), -y * X


def trained(model, data, private, *, epochs=1, batch_size=None, session=None, optim=LR1, **more):
    plan = Plan(
        what="private",
        objective=lambda step: {"loss": step.retain.loss.mean()},
        parts={"retain": data},
        passes=lambda epoch: (Pass("retain"),),
        epochs=epochs,
        batch_size=batch_size or len(data),
        optim=optim,
        private=private,
        **more,
    )
    return optimise(model, plan, Regression(), session or Session(seed=0))


def clipped(gradients, bound):
    return gradients * (bound / gradients.norm(dim=1, keepdim=True)).clamp(max=1)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_without_noise_is_the_mean_of_gradients_clipped_one_by_one(accumulate):
    model, data, gradients = regression()
    norms = gradients.norm(dim=1)
    bound = float(norms.median()) + 0.1
    assert (norms > bound).any()
    assert (norms < bound).any()
    session = Session(seed=0, engine=Engine(accumulate=accumulate))
    weight = trained(model, data, Private(clip=bound, noise=0.0), session=session).weight[0]
    expected = -clipped(gradients, bound).sum(0) / 6
    assert torch.allclose(weight, expected, atol=1e-6)
    whole = -gradients.mean(0)
    assert not torch.allclose(weight, whole * min(1, bound / whole.norm()), atol=1e-3)  # not the batch's clip


@pytest.mark.parametrize("at_once", [True, False])
def test_a_subject_is_clipped_as_one_by_the_mean_of_its_examples(at_once):
    subjects = torch.tensor([4, 4, 4, 9, 9, 7])
    model, data, gradients = regression(subjects=subjects)
    private = Private(clip=0.5, noise=0.0, unit="subject")
    of = PrivateGradient(private, model, dict(model.named_parameters()), data, 6, Session())
    of.at_once = at_once
    (batch,) = private.batches(data, 6, torch.device("cpu"), torch.Generator())

    def loss(examples):
        return Regression().loss(Regression().outputs(model, examples), examples).mean()

    means = torch.stack([gradients[:3].mean(0), gradients[3:5].mean(0), gradients[5]])
    assert torch.allclose(of.clipped(loss, batch)["weight"][0], clipped(means, 0.5).sum(0), atol=1e-6)
    assert of.expected == 3


def test_all_examples_of_a_subject_are_drawn_together():
    subjects = torch.arange(60) // 3
    _, data, _ = regression(60, subjects)
    private = Private(clip=1.0, noise=0.0, unit="subject")
    draws = torch.Generator().manual_seed(0)
    for batch in private.batches(data, 20, torch.device("cpu"), draws):
        assert (batch["subjects"].bincount() % 3 == 0).all()


@pytest.mark.parametrize("name", ["regression", "causal_lm", "diffusion"])
def test_the_sum_never_changes_by_more_than_the_bound_when_a_unit_leaves(name):
    setting = _setting(name)
    model, task, data = setting.original, setting.task, setting.split.train()
    private = Private(clip=0.01, noise=0.0)
    of = PrivateGradient(private, model, dict(model.named_parameters()), data, len(data), Session())
    (batch,) = private.batches(data, len(data), torch.device("cpu"), torch.Generator())
    batch = task.prepare(batch, torch.Generator())

    def loss(examples):
        return task.loss(task.outputs(model, examples), examples).mean()

    whole = of.clipped(loss, batch)
    assert of.at_once
    changes = []
    for row in range(4):
        rest = {key: torch.cat([v[:row], v[row + 1 :]]) for key, v in batch.items()}
        less = of.clipped(loss, rest)
        changes.append(math.sqrt(sum(float((whole[k] - less[k]).square().sum()) for k in whole)))
    assert all(change <= 0.01 * (1 + 1e-3) for change in changes)
    assert max(changes) > 0.009  # the bound is reached
    of.at_once = False
    singly = of.clipped(loss, batch)
    assert all(torch.allclose(whole[key], singly[key], atol=1e-6) for key in whole)


def test_the_noise_has_the_stated_standard_deviation_for_the_expected_batch():
    model = nn.Linear(20000, 1, bias=False)
    nn.init.zeros_(model.weight)
    data = ArrayData({"inputs": torch.zeros(8, 20000), "targets": torch.zeros(8, 1)})
    moved = trained(model, data, Private(clip=0.5, noise=3.0), batch_size=8).weight
    assert moved.std().item() == pytest.approx(3.0 * 0.5 / 8, rel=0.02)
    assert moved.mean().item() == pytest.approx(0, abs=0.01)


def test_units_are_drawn_independently_at_the_rate_and_batches_differ_in_size():
    _, data, _ = regression(100)
    private, draws = Private(clip=1.0, noise=0.0), torch.Generator().manual_seed(0)
    batches = [b for _ in range(100) for b in private.batches(data, 10, torch.device("cpu"), draws)]
    assert len(batches) == 1000
    sizes = torch.tensor([float((batch[UNIT] >= 0).sum()) for batch in batches])
    assert sizes.mean().item() == pytest.approx(10, abs=0.4)
    assert sizes.var().item() == pytest.approx(100 * 0.1 * 0.9, rel=0.15)  # of fixed batches it is 0
    counts = torch.cat([batch["ids"][batch[UNIT] >= 0] for batch in batches]).bincount()
    assert counts.float().mean().item() == pytest.approx(100, abs=4)


def test_the_sum_is_divided_by_the_expected_number_of_units_not_by_those_that_came():
    """Every example has the gradient −1: a step moves by the size of its batch over the expected one."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    data = ArrayData({"inputs": torch.ones(40, 1), "targets": 1e3 * torch.ones(40, 1)})
    moved = {
        float(
            trained(
                model, data, Private(clip=1.0, noise=0.0), batch_size=39, session=Session(seed=s)
            ).weight.detach()
        )
        for s in range(5)
    }
    assert len(moved) > 1
    for value in moved:
        assert value * 39 == pytest.approx(round(value * 39), abs=1e-3)  # whole examples over q N = 39


def test_a_step_that_draws_nobody_is_taken_with_noise_alone():
    """The accountant counts it; to leave it out would tell that nobody was drawn."""
    model, data, _ = regression(2)
    nobody = Private(clip=1.0, noise=1.0)
    session = Session(seed=_first_empty(nobody, data))
    still = trained(model, data, replace(nobody, noise=0.0), batch_size=1, session=session)
    assert torch.equal(still.weight, model.weight)
    assert trained(model, data, nobody, batch_size=1, session=session).weight.abs().min() > 0


def _first_empty(private, data):
    for seed in range(40):
        draws = Session(seed=seed).generator("draws")
        if all((b[UNIT] < 0).all() for b in private.batches(data, 1, torch.device("cpu"), draws)):
            return seed
    raise AssertionError("no seed draws nobody")


def test_no_loss_of_the_data_is_reported():
    model, data, _ = regression()
    heard = []
    trained(model, data, Private(clip=1.0, noise=1.0), session=Session(seed=0, callbacks=(heard.append,)))
    assert [event.kind for event in heard] == ["started", "step", "evaluated", "finished"]
    assert not any(event.values for event in heard)


def test_the_same_seed_draws_the_same_noise_and_another_one_other_noise():
    model, data, _ = regression()
    first, again, other = (
        trained(model, data, Private(clip=1.0, noise=1.0), session=Session(seed=s)).weight for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_model_that_vmap_refuses_is_trained_one_by_one_to_the_same_weights():
    class Asks(nn.Linear):
        def forward(self, x):
            return super().forward(x) if float(x.abs().sum()) >= 0 else x  # a number: vmap has none

    _, data, _ = regression()
    asks = Asks(2, 1, bias=False)
    plain = nn.Linear(2, 1, bias=False)
    plain.load_state_dict(asks.state_dict())
    heard = []
    session = Session(seed=0, callbacks=(heard.append,))
    ours = trained(asks, data, Private(clip=1.0, noise=1.0), session=session, epochs=3, batch_size=3)
    assert any("torch.vmap refuses" in event.what for event in heard)
    theirs = trained(plain, data, Private(clip=1.0, noise=1.0), epochs=3, batch_size=3)
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(3),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.InstanceNorm2d(3, track_running_stats=True),
    ],
)
def test_layers_that_mix_examples_are_refused_by_name(layer):
    with pytest.raises(Unsupported, match=r"'0' \(.*Norm.d\) mixes.*Use GroupNorm or LayerNorm"):
        Private(clip=1.0, noise=1.0).check(nn.Sequential(layer), LR1)


def test_layers_that_do_not_are_not():
    Private(clip=1.0, noise=1.0).check(nn.Sequential(nn.GroupNorm(1, 3), nn.InstanceNorm2d(3)), LR1)


def test_an_optimiser_that_reads_the_data_itself_is_refused():
    model, data, _ = regression()
    with pytest.raises(Unsupported, match="optimiser Sophia reads the data past the noise. Use sgd or adamw"):
        trained(model, data, Private(clip=1.0, noise=1.0), optim=Sophia())


def test_subjects_need_to_be_named():
    _, data, _ = regression()
    with pytest.raises(Unsupported, match="Give them a column 'subjects'.*or use unit=record"):
        Private(clip=1.0, noise=1.0, unit="subject").units(data)


def test_an_example_without_a_finite_gradient_stops_the_training():
    model, _, _ = regression()
    data = ArrayData({"inputs": torch.full((4, 2), 3e38), "targets": torch.full((4, 1), 3e38)})
    with pytest.raises(Diverged, match="private: .* (no longer finite|became NaN or infinite)"):
        trained(model, data, Private(clip=1.0, noise=1.0))
