import pytest
import torch

from expunge.errors import ConfigError, Unsupported
from expunge.methods.edits.needle import Needle
from expunge.training.language_models import MixtureOfExperts
from expunge.training.optim import SGD, AdamW
from expunge.training.parameters import importance

lm = pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
MATRIX = "blocks.0.mlp.2.weight"  # (8, 32): a column for each of 32 units


def _run(setting, **fields):
    method = Needle(**{"batch_size": 3, **fields})
    return method.unlearn(setting.original, setting.split, setting.task, setting.session)


def _changed(setting, result):
    """The columns of the value matrix that moved, where nothing else did."""
    before, after = setting.original.state_dict(), result.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} <= {MATRIX}
    return set((before[MATRIX] != after[MATRIX]).any(0).nonzero()[:, 0].tolist())


@lm
@pytest.mark.parametrize(
    "optim", [AdamW(lr=0.2, weight_decay=0.5), SGD(lr=0.2, weight_decay=0.5)], ids=["adamw", "sgd"]
)
def test_only_the_given_columns_move_under_weight_decay(setting, optim):
    result = _run(setting, vectors=((0, 3), (0, 17)), epochs=4, optim=optim)
    assert _changed(setting, result) == {3, 17}


@lm
def test_without_noise_and_steps_every_bit_is_the_originals(setting):
    assert _changed(setting, _run(setting, noise=0.0, epochs=0)) == set()
    assert _changed(setting, _run(setting, vectors=((0, 5),), noise=0.0, epochs=0)) == set()


@lm
def test_the_noise_has_the_stated_size_and_comes_from_the_seed(setting):
    vectors = tuple((0, unit) for unit in range(32))
    changes = []
    for seed in (1, 1, 2):
        session = setting.session.__class__(seed=seed)
        method = Needle(vectors=vectors, noise=0.3, epochs=0)
        result = method.unlearn(setting.original, setting.split, setting.task, session)
        changes.append((result.state_dict()[MATRIX] - setting.original.state_dict()[MATRIX]).flatten())
    assert torch.equal(changes[0], changes[1])
    assert not torch.equal(changes[0], changes[2])
    assert float(changes[0].std()) == pytest.approx(0.3, rel=0.15)  # 256 draws: the sd of it is 4.4 %


@lm
def test_one_step_by_hand(setting):
    """Ascent by SGD: the columns move along their own gradient of the forget loss."""
    forget = setting.split.forget
    (batch,) = forget.batches([torch.arange(len(forget))], device="cpu")
    model = setting.fresh().eval()
    loss = setting.task.loss(setting.task.outputs(model, batch), batch).mean()
    (gradient,) = torch.autograd.grad(loss, [model.get_parameter(MATRIX)])
    optim = SGD(lr=0.5, momentum=0.0)
    result = _run(setting, vectors=((0, 4), (0, 9)), noise=0.0, epochs=1, batch_size=len(forget), optim=optim)
    moved = result.state_dict()[MATRIX] - setting.original.state_dict()[MATRIX]
    assert torch.allclose(moved[:, [4, 9]], 0.5 * gradient[:, [4, 9]], atol=1e-6)
    assert gradient[:, [4, 9]].abs().max() > 1e-4


@lm
def test_the_columns_that_are_found_are_the_ones_the_rule_says(setting):
    squares = {}
    for part in ("forget", "retain"):
        found = importance(
            setting.fresh(), getattr(setting.split, part), setting.task, setting.session,
            names=[MATRIX], batch_size=3,
        )  # fmt: skip
        squares[part] = found[MATRIX].sum(0)
    scores = squares["forget"] / (squares["retain"] + squares["retain"].mean())
    expected = set(scores.argsort(descending=True)[:3].tolist())
    assert _changed(setting, _run(setting, count=3, epochs=0)) == expected


@lm
def test_pairs_that_do_not_exist_are_refused(setting):
    with pytest.raises(Unsupported, match="no block 1: the model has 1. Give others"):
        _run(setting, vectors=((1, 0),))
    with pytest.raises(Unsupported, match="no value vector 32: it has 32. Give others"):
        _run(setting, vectors=((0, 32),))
    with pytest.raises(Unsupported, match="asked for 33 of 32 value vectors. Set count lower"):
        _run(setting, count=33)


@lm
def test_a_frozen_matrix_is_refused(setting):
    model = setting.fresh()
    model.get_parameter(MATRIX).requires_grad_(False)
    for fields, said in (
        ({"vectors": ((0, 1),)}, "frozen or not in the scope"),
        ({}, "no value matrix is in"),
    ):
        with pytest.raises(Unsupported, match=said):
            Needle(**fields).unlearn(model, setting.split, setting.task, setting.session)


@lm
def test_a_mixture_of_experts_is_refused(setting):
    pytest.importorskip("transformers")
    model = MixtureOfExperts(vocabulary=11, width=8, layers=1, heads=2).network()
    with pytest.raises(Unsupported, match="one dense feed-forward layer a block"):
        Needle().unlearn(model, setting.split, setting.task, setting.session)


@pytest.mark.parametrize("setting", ["classification", "regression"], indirect=True)
def test_models_without_blocks_are_refused(setting):
    with pytest.raises(Unsupported, match="no list of blocks"):
        _run(setting)


@pytest.mark.parametrize(
    "fields",
    [{"count": 0}, {"batch_size": 0}, {"noise": -0.1}, {"epochs": -1}, {"vectors": ((0, 1), (0, 1))}],
)
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Needle(**fields)
