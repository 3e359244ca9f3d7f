import pytest
import torch

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.masks import MaskModifier
from expunge.methods.modifiers.saliency_mask import SaliencyMask
from expunge.methods.modifiers.wagle import WAGLE
from expunge.training.optim import SGD, AdamW


def _mask(linear, **fields):
    return (
        WAGLE(**fields).prepare(linear.model, linear.split, linear.task, linear.session).movable["weight"][0]
    )


@pytest.mark.parametrize("hessian", [1e-6, 0.1, 1e6])
def test_the_weights_that_move_have_the_largest_scores_by_hand(linear, hessian):
    forget, retain = (linear.gradient(linear.start, part) for part in ("forget", "retain"))
    scores = ((linear.start - retain / hessian) * forget).abs()
    for keep in (1, 2):
        expected = torch.zeros(3, dtype=torch.bool)
        expected[scores.argsort(descending=True)[:keep]] = True
        assert torch.equal(_mask(linear, keep=keep / 3, hessian=hessian), expected)


@pytest.mark.parametrize(("hessian", "first"), [(1e6, 2), (0.1, 0)])
def test_the_retain_gradient_decides_where_the_hessian_is_small(linear, hessian, first):
    """Weights ½, −1, 2 and a forget gradient of 1 in each; the retain gradient is 3 in the first alone."""
    parts = []
    for row in ([1.0, 1.0, 1.0], [3.0, 0.0, 0.0]):
        X = torch.tensor([row])
        parts.append(ArrayData({"inputs": X, "targets": X @ linear.start[:, None] - 1}))
    mask = WAGLE(keep=1 / 3, hessian=hessian).prepare(
        linear.model, Split(*parts), linear.task, linear.session
    )
    assert mask.movable["weight"][0].tolist() == [i == first for i in range(3)]


def test_the_scores_do_not_depend_on_the_batch_size(linear):
    def scores(size):
        found = WAGLE(batch_size=size).scores(
            linear.model, ["weight"], linear.split, linear.task, linear.session
        )
        return found["weight"]

    assert torch.allclose(scores(1), scores(128), rtol=1e-4)
    assert torch.allclose(scores(4), scores(128), rtol=1e-4)  # 14 and 6 examples: the last batch is smaller


@pytest.mark.parametrize(
    "optim", [AdamW(lr=0.05, weight_decay=0.5), SGD(lr=0.05, weight_decay=0.1)], ids=["adamw", "sgd"]
)
@pytest.mark.parametrize("setting", ["regression", "causal_lm"], indirect=True)
def test_masked_weights_keep_every_bit_under_weight_decay(setting, optim):
    mask = WAGLE(keep=0.6, batch_size=4)
    method = GradDiff(epochs=4, batch_size=8, optim=optim, modifiers=(mask,))
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session)
    movable = mask.prepare(setting.fresh(), setting.split, setting.task, setting.session).movable
    before, after = dict(setting.original.named_parameters()), dict(result.named_parameters())
    moved = {name: before[name] != after[name] for name in before}
    assert not any((moved[name] & ~movable[name]).any() for name in before)
    assert sum(int(m.sum()) for m in moved.values()) > 0.9 * sum(int(m.sum()) for m in movable.values())


def test_without_the_mask_decay_moves_every_weight(linear):
    """Masking the gradient alone, as the authors' code does, leaves the rest to weight decay."""

    class GradientOnly(WAGLE):
        def after_step(self, model, state):
            pass

    optim = AdamW(lr=0.05, weight_decay=0.5)
    moved = {
        cls: linear.run(GradDiff(epochs=2, optim=optim, modifiers=(cls(keep=1 / 3),))) != linear.start
        for cls in (GradientOnly, WAGLE)
    }
    assert moved[GradientOnly].sum() == 3
    assert moved[WAGLE].sum() == 1


@pytest.mark.parametrize("setting", ["regression", "causal_lm"], indirect=True)
def test_it_is_another_mask_than_saliency_and_shares_how_weights_are_held(setting):
    wagle, saliency = WAGLE(keep=0.3, batch_size=4), SaliencyMask(keep=0.3, batch_size=4)
    first, second = (
        m.prepare(setting.fresh(), setting.split, setting.task, setting.session).movable
        for m in (wagle, saliency)
    )
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert all(type(m).after_step is MaskModifier.after_step for m in (wagle, saliency))


def test_equal_sets_give_equal_gradients_and_the_hand_worked_score(linear):
    split = Split(linear.split.forget, linear.split.forget)
    forget = linear.gradient(linear.start, "forget")
    found = WAGLE(hessian=2.0).scores(linear.model, ["weight"], split, linear.task, linear.session)
    assert torch.allclose(found["weight"][0], ((linear.start - forget / 2) * forget).abs(), atol=1e-6)


@pytest.mark.parametrize("fields", [{"keep": 0.0}, {"keep": 1.1}, {"batch_size": 0}, {"hessian": 0.0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        WAGLE(**fields)
