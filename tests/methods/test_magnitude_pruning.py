from dataclasses import dataclass

import pytest
import torch
from torch import nn

from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.cf_k import CFK
from expunge.methods.gradient.finetune import Finetune
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.gradient.npo import NPO
from expunge.methods.gradient.random_labels import RandomLabels
from expunge.methods.gradient.scrub import Scrub
from expunge.methods.modifiers.magnitude_pruning import MagnitudePruning
from expunge.methods.modifiers.retain_projection import RetainProjection
from expunge.methods.modifiers.saliency_mask import SaliencyMask
from expunge.methods.optimisers.sign_sgd import SignSGD
from expunge.methods.scopes.last_layers import LastLayers
from expunge.methods.scopes.lora import LoRA
from expunge.methods.scopes.modules import Modules
from expunge.training.engine import Engine
from expunge.training.modifier import Modifier
from expunge.training.optim import SGD, AdamW
from expunge.training.session import Session

PRUNE = MagnitudePruning(rate=0.6)
STRONG = [
    SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1, clip=1.0),
    AdamW(lr=0.05, weight_decay=0.5),
    SignSGD(lr=0.01, weight_decay=0.5),
]


def _weights(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def _smallest(model, rate, names=None):
    """Which weights are among the smallest fraction of all with two or more dimensions."""
    matrices = {n: p for n, p in _weights(model).items() if p.ndim > 1 and (names is None or n in names)}
    ordered = torch.cat([p.abs().flatten() for p in matrices.values()]).sort().values
    last = ordered[len(ordered) - round((1 - rate) * len(ordered)) - 1]
    return {name: p.abs() <= last for name, p in matrices.items()}


def _run(method, setting, session=None):
    return _weights(method.unlearn(setting.original, setting.split, setting.task, session or setting.session))


def _assert_pruned(result, pruned):
    for name, value in result.items():
        zero = value == 0
        assert torch.equal(zero, pruned.get(name, torch.zeros_like(zero))), name


@pytest.mark.parametrize("optim", STRONG, ids=lambda optim: type(optim).__name__)
@pytest.mark.parametrize("method", [GradDiff, NPO, Scrub, Finetune])
@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_the_smallest_weights_are_zero_at_the_end_and_no_other_is(setting, method, optim):
    method = method(epochs=3, batch_size=8, optim=optim, modifiers=(PRUNE,))
    _assert_pruned(_run(method, setting), _smallest(setting.original, 0.6))


def test_it_works_for_every_task(setting):
    method = GradDiff(epochs=2, batch_size=8, optim=STRONG[0], modifiers=(PRUNE,))
    _assert_pruned(_run(method, setting), _smallest(setting.original, 0.6))


def test_the_first_step_is_that_of_the_pruned_model(linear):
    """Of (0.5, −1, 2) one third is pruned: gradients are taken at (0, −1, 2), without their first part."""
    kept = torch.tensor([0.0, 1.0, 1.0])
    expected = linear.start * kept
    for _ in range(2):
        expected = expected - 0.1 * kept * linear.gradient(expected, "retain")
    method = Finetune(epochs=2, optim=SGD(lr=0.1, momentum=0.0), modifiers=(MagnitudePruning(rate=1 / 3),))
    assert torch.allclose(linear.run(method), expected, atol=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_exactly_the_fraction_is_zero_ranked_over_all_tensors_together(setting, rate):
    result = _run(Finetune(epochs=1, modifiers=(MagnitudePruning(rate=rate),)), setting)
    matrices = [p for p in result.values() if p.ndim > 1]
    total, zeros = sum(p.numel() for p in matrices), [int((p == 0).sum()) for p in matrices]
    assert sum(zeros) == total - round((1 - rate) * total)
    shares = [zero / p.numel() for zero, p in zip(zeros, matrices, strict=True)]
    assert max(shares) - min(shares) > 0.01  # not the same fraction of each


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_without_the_modifier_training_fills_a_pruned_model_up_again(setting):
    pruned = setting.fresh()
    MagnitudePruning(rate=0.6).prepare(pruned, setting.split, setting.task, setting.session)
    method = Finetune(epochs=1, batch_size=8)
    result = _weights(method.unlearn(pruned, setting.split, setting.task, setting.session))
    zeros = {name: int((p == 0).sum()) for name, p in _weights(pruned).items() if p.ndim > 1}
    assert sum(zeros.values()) > 50
    assert sum(int((result[name] == 0).sum()) for name in zeros) < 0.1 * sum(zeros.values())


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
@pytest.mark.parametrize("scope", [Modules(patterns=("head",)), LastLayers(count=2)])
def test_a_scope_prunes_and_counts_within_itself_alone(setting, scope):
    names = scope.names(setting.fresh())
    result = _run(CFK(epochs=2, batch_size=8, scope=scope, modifiers=(PRUNE,)), setting)
    _assert_pruned(result, _smallest(setting.original, 0.6, names))
    before = _weights(setting.original)
    assert all(torch.equal(result[name], before[name]) for name in before if name not in names)


@pytest.mark.parametrize("setting", ["regression"], indirect=True)
def test_gradients_that_are_summed_over_parts_of_a_batch_give_the_same(setting):
    method = GradDiff(epochs=2, batch_size=8, modifiers=(PRUNE,))
    whole, parts = (_run(method, setting, Session(seed=1, engine=Engine(accumulate=k))) for k in (1, 3))
    _assert_pruned(parts, _smallest(setting.original, 0.6))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-5) for name in whole)


@pytest.mark.parametrize(
    "others",
    [
        (PRUNE, SaliencyMask(keep=0.5)),
        (SaliencyMask(keep=0.5), PRUNE),
        (PRUNE, RetainProjection(directions=2)),
    ],
    ids=["then_mask", "mask_first", "then_projection"],
)
@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_it_holds_beside_other_modifiers(setting, others):
    method = RandomLabels(epochs=2, batch_size=8, optim=STRONG[0], modifiers=others)
    _assert_pruned(_run(method, setting), _smallest(setting.original, 0.6))


@dataclass(frozen=True, kw_only=True)
class Noise(Modifier):
    """Noise on every gradient, as a private optimiser adds it."""

    def gradients(self, terms, state, optimizer):
        return {t: {n: g + torch.ones_like(g) for n, g in gs.items()} for t, gs in terms.items()}


def test_what_a_later_modifier_adds_is_taken_away_again(linear):
    prune = MagnitudePruning(rate=1 / 3)
    result = linear.run(Finetune(epochs=3, modifiers=(prune, Noise())))
    assert (result == 0).tolist() == [True, False, False]


def test_clipping_measures_the_gradient_of_the_weights_that_are_left(linear):
    optim = SGD(lr=1.0, momentum=0.0, clip=0.01)
    prune = MagnitudePruning(rate=1 / 3)
    moved = linear.run(Finetune(epochs=1, optim=optim, modifiers=(prune,))) - torch.tensor([0.0, -1.0, 2.0])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


def test_there_must_be_something_to_prune(linear):
    model = nn.Sequential(nn.Linear(3, 1))
    scope = Modules(patterns=("*.bias",))
    with pytest.raises(
        Unsupported, match="no weight of two or more dimensions that may move. Choose a scope"
    ):
        Finetune(scope=scope, modifiers=(PRUNE,)).unlearn(model, linear.split, linear.task, Session())


def test_adapters_are_not_pruned(linear):
    pytest.importorskip("peft")
    model = nn.Sequential(linear.model)
    method = Finetune(scope=LoRA(rank=1), modifiers=(PRUNE,))
    with pytest.raises(Unsupported, match="weights, not adapters. Choose another scope than lora"):
        method.unlearn(model, linear.split, linear.task, Session())


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ConfigError, match="rate: is a fraction"):
        MagnitudePruning(rate=rate)
