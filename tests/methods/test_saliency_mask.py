import pytest
import torch

from expunge.data import ArrayData, CropFlip, Split
from expunge.errors import ConfigError
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.modifiers.saliency_mask import SaliencyMask
from expunge.methods.optimisers.sign_sgd import SignSGD
from expunge.training.optim import SGD, AdamW

STRONG = [
    SGD(lr=0.05, momentum=0.9, weight_decay=0.1),
    SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1, clip=1.0),
    AdamW(lr=0.05, weight_decay=0.5),
    SignSGD(lr=0.01, weight_decay=0.5),
]


def _mask(setting, keep, split=None):
    mask = SaliencyMask(keep=keep, batch_size=4)
    return mask.prepare(setting.fresh(), split or setting.split, setting.task, setting.session).movable


@pytest.mark.parametrize("optim", STRONG, ids=lambda optim: type(optim).__name__)
def test_masked_weights_keep_every_bit_under_weight_decay_and_momentum(setting, optim):
    mask = SaliencyMask(keep=0.3, batch_size=4)
    method = GradDiff(epochs=4, batch_size=8, optim=optim, modifiers=(mask,))
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session)
    movable = _mask(setting, 0.3)
    before, after = dict(setting.original.named_parameters()), dict(result.named_parameters())
    moved = {name: before[name] != after[name] for name in before}
    assert not any((moved[name] & ~movable[name]).any() for name in before)
    assert sum(int(m.sum()) for m in moved.values()) > 0.9 * sum(int(m.sum()) for m in movable.values())


@pytest.mark.parametrize("keep", [0.05, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("setting", ["regression"], indirect=True)
def test_exactly_the_fraction_may_move_ranked_over_all_tensors_together(setting, keep):
    movable = _mask(setting, keep)
    total = sum(mask.numel() for mask in movable.values())
    assert sum(int(mask.sum()) for mask in movable.values()) == round(keep * total)


def test_keeping_all_lets_all_move(setting):
    assert all(mask.all() for mask in _mask(setting, 1.0).values())


def test_the_salient_weight_is_the_one_with_the_largest_gradient_of_the_forget_loss(linear):
    gradient = linear.gradient(linear.start, "forget")
    mask = SaliencyMask(keep=1 / 3).prepare(linear.model, linear.split, linear.task, linear.session)
    assert mask.movable["weight"][0].tolist() == (gradient.abs() == gradient.abs().max()).tolist()


def test_gradients_of_batches_are_added_before_their_size_is_taken(linear):
    X = torch.tensor([[1.0, 0.5, 0.0], [-1.0, 0.5, 0.0]])
    y = X @ linear.start[:, None] - 1  # residual 1: the gradients are the inputs; the first ones cancel
    split = Split((ArrayData({"inputs": X, "targets": y})), linear.split.retain)
    mask = SaliencyMask(keep=1 / 3, batch_size=1).prepare(linear.model, split, linear.task, linear.session)
    assert mask.movable["weight"][0].tolist() == [False, True, False]


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_the_mask_depends_neither_on_augmentation_nor_on_the_mode_of_the_model(setting):
    forget = setting.split.forget
    columns = {name: forget.column(name) for name in ("inputs", "targets")}
    augmented = Split(ArrayData(columns, augment=CropFlip(padding=2)), setting.split.retain)
    mask = SaliencyMask(keep=0.5, batch_size=4)
    first = mask.prepare(setting.fresh().eval(), setting.split, setting.task, setting.session).movable
    second = mask.prepare(setting.fresh().train(), augmented, setting.task, setting.session).movable
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_preparing_a_mask_leaves_the_model_as_it_was(setting):
    model = setting.fresh().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    SaliencyMask(batch_size=4).prepare(model, setting.split, setting.task, setting.session)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("fields", [{"keep": 0.0}, {"keep": 1.1}, {"batch_size": 0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        SaliencyMask(**fields)


def test_clipping_measures_the_gradient_of_the_weights_that_may_move(linear):
    optim = SGD(lr=1.0, momentum=0.0, clip=0.01)
    method = GradDiff(epochs=1, optim=optim, modifiers=(SaliencyMask(keep=1 / 3),))
    moved = linear.run(method) - linear.start
    assert int((moved != 0).sum()) == 1
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)
