import pytest
import torch

from expunge.errors import Unsupported
from expunge.methods.gradient.cf_k import CFK
from expunge.methods.gradient.finetune import Finetune
from expunge.methods.scopes.last_layers import LastLayers
from expunge.training.optim import SGD


def _run(method, setting):
    return method.unlearn(setting.original, setting.split, setting.task, setting.session).state_dict()


@pytest.mark.parametrize("count", [1, 2])
def test_it_is_fine_tuning_of_the_last_layers_byte_for_byte(setting, count):
    shared = {"epochs": 2, "batch_size": 8, "scope": LastLayers(count=count)}
    optim = SGD(lr=0.01, weight_decay=5e-4)
    first, second = (_run(method, setting) for method in (CFK(**shared), Finetune(optim=optim, **shared)))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
@pytest.mark.parametrize(
    ("count", "moves"),
    [
        (1, {"head.weight", "head.bias"}),
        (
            2,
            {"head.weight", "head.bias", "body.6.weight"} | {f"body.7.{part}" for part in ("weight", "bias")},
        ),
    ],
)
def test_the_last_k_layers_move_with_their_batch_norm_and_nothing_before_them_does(setting, count, moves):
    result = _run(CFK(epochs=2, batch_size=8, scope=LastLayers(count=count)), setting)
    before = setting.original.state_dict()
    moved = {name for name in before if not torch.equal(before[name], result[name])}
    statistics = {name for name in moved if name not in dict(setting.original.named_parameters())}
    assert moved - statistics == moves
    assert {name.rpartition(".")[0] for name in statistics} == ({"body.7"} if count == 2 else set())


def test_momentum_is_kept_over_the_epochs(linear):
    """A new optimiser at every epoch, as in the worst-case-sets code, ends elsewhere."""
    kept, dropped = ([linear.start, torch.zeros(3)] for _ in range(2))
    for _ in range(3):
        for state, old in ((kept, kept[1]), (dropped, torch.zeros(3))):
            state[1] = 0.9 * old + linear.gradient(state[0], "retain")
            state[0] = state[0] - 0.05 * state[1]
    result = linear.run(CFK(epochs=3, optim=SGD(lr=0.05, momentum=0.9)))
    assert torch.allclose(result, kept[0], atol=1e-6)
    assert float((result - dropped[0]).norm()) > 0.1


def test_more_layers_than_there_are_are_refused(linear):
    with pytest.raises(Unsupported, match="the last 2 layers of a model that has 1"):
        linear.run(CFK(scope=LastLayers(count=2)))
