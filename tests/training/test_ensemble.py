"""Training many models at once gives the models that training them one by one gives."""

import pytest
import torch
from torch import nn

from expunge.data import ArrayData, CropFlip, Data
from expunge.errors import ConfigError, DataError, Diverged, Unsupported
from expunge.methods.optimisers.sign_sgd import SignSGD
from expunge.tasks import Classification
from expunge.training.engine import Engine
from expunge.training.ensemble import train_many
from expunge.training.models import Mlp, SmallCnn
from expunge.training.optim import SGD, AdamW, Optim
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Event, Session

MLP, CNN = Mlp(inputs=64, outputs=10, hidden=(12,)), SmallCnn(in_channels=1, classes=10, width=3)
MOMENTUM = SGD(lr=0.1, weight_decay=1e-2, schedule="cosine", nesterov=True)


def images(augment: CropFlip | None = None) -> ArrayData:
    draws = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 1, 8, 8, generator=draws), torch.randint(10, (60,), generator=draws)
    return ArrayData({"inputs": x, "targets": y}, augment)


def recipe(model, optim: Optim = MOMENTUM) -> Recipe:
    return Recipe(model, Classification(10), Training(epochs=3, batch_size=16, optim=optim))


def parts(data: Data, sizes: tuple[int, ...] = (35, 35, 35)) -> list[Data]:
    draws = torch.Generator().manual_seed(1)
    return [data.subset(torch.randperm(60, generator=draws)[:size]) for size in sizes]


def sessions(count: int = 3, engine: Engine | None = None) -> list[Session]:
    return [Session(i, engine or Engine(device="cpu")) for i in range(count)]


def furthest(first: nn.Module, second: nn.Module) -> float:
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    return max(float((a - states[1][name]).abs().max()) for name, a in states[0].items())


@pytest.mark.parametrize(
    ("model", "optim", "augment"),
    [
        (MLP, MOMENTUM, None),
        (MLP, AdamW(lr=0.01, clip=0.1), None),
        (CNN, MOMENTUM, None),
        (CNN, SGD(lr=0.1, clip=0.5), CropFlip(1)),
    ],
)
def test_a_stack_trains_the_models_that_training_one_by_one_gives(model, optim, augment) -> None:
    data = parts(images(augment))
    one_by_one = train_many(recipe(model, optim), data, sessions(), "sequential")
    stacked = train_many(recipe(model, optim), data, sessions(), "stacked", group=2)
    assert (one_by_one.how, stacked.how) == ("sequential", "stacked")
    for a, b in zip(one_by_one.models, stacked.models, strict=True):
        assert furthest(a, b) < 1e-5
        assert not b.training
    assert furthest(*stacked.models[:2]) > 0.01
    assert furthest(stacked.models[0], recipe(model).initial(Session(0))) > 0.01


def test_running_statistics_of_batch_norm_are_those_of_each_model_alone() -> None:
    data = parts(images())
    alone = [recipe(CNN).train(d, s) for d, s in zip(data, sessions(), strict=True)]
    stacked = train_many(recipe(CNN), data, sessions(), "stacked").models
    for a, b in zip(alone, stacked, strict=True):
        norms = [[m for m in model.modules() if isinstance(m, nn.BatchNorm2d)] for model in (a, b)]
        assert len(norms[0]) == 3
        for x, y in zip(*norms, strict=True):
            torch.testing.assert_close(x.running_mean, y.running_mean, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(x.running_var, y.running_var, atol=1e-6, rtol=1e-5)
            assert x.num_batches_tracked == y.num_batches_tracked == 9
    means = [next(m for m in s.modules() if isinstance(m, nn.BatchNorm2d)).running_mean for s in stacked]
    assert not torch.allclose(means[0], means[1], atol=1e-3)


def test_data_sets_of_different_sizes_are_stacked_with_those_of_their_own_size() -> None:
    data = parts(images(), (35, 20, 35))
    stacked = train_many(recipe(MLP), data, sessions(), "stacked").models
    for model, d, s in zip(stacked, data, sessions(), strict=True):
        assert furthest(model, recipe(MLP).train(d, s)) < 1e-5


class WithDropout(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))


class Branching(nn.Module):
    """Its path depends on a value, which ``vmap`` cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1)) if float(x.sum()) > 0 else self.head(-x.flatten(1))


def frozen() -> nn.Module:
    model = MLP()
    next(model.parameters()).requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("made", "engine", "why"),
    [
        (recipe(WithDropout), Engine(), "'1' draws at random in training"),
        (recipe(Branching), Engine(), "torch.vmap refuses"),
        (recipe(frozen), Engine(), "frozen"),
        (recipe(MLP, SignSGD(lr=0.01)), Engine(), "SignSGD"),
        (recipe(MLP), Engine(accumulate=2), "accumulated"),
    ],
)
def test_what_cannot_be_stacked_says_why_and_auto_goes_one_by_one(made, engine, why) -> None:
    data = parts(images())
    with pytest.raises(Unsupported, match=why):
        train_many(made, data, sessions(3, engine), "stacked")
    found = train_many(made, data[:2], sessions(2, engine), "auto")
    assert found.how == "sequential"
    assert why in found.reason
    alone = made.train(data[0], sessions(1, engine)[0])
    assert furthest(found.models[0], alone) == 0


def test_auto_stacks_small_perceptrons_on_a_cpu_and_neither_large_ones_nor_convolutions() -> None:
    data = parts(images())[:2]
    large = Mlp(inputs=64, outputs=10, hidden=(700,))
    found = {m: train_many(recipe(m), data, sessions(2)) for m in (MLP, large, CNN)}
    assert [e.how for e in found.values()] == ["stacked", "sequential", "sequential"]
    assert found[CNN].reason == "convolutions on a CPU"


def test_events_say_how_the_models_were_trained_and_how_fast() -> None:
    seen: list[Event] = []
    session = Session(0, Engine(device="cpu"), (seen.append,))
    found = train_many(recipe(MLP), parts(images())[:2], [session, session.child(1)])
    assert "stacked" in seen[0].what
    assert seen[-1].values["models_per_minute"] == found.models_per_minute > 0
    assert sum(e.kind == "step" for e in seen) == 9


def test_a_stack_that_diverges_says_so() -> None:
    with pytest.raises(Diverged, match="Lower the learning rate"):
        train_many(recipe(MLP, SGD(lr=1e20)), parts(images()), sessions(), "stacked")


def test_mistakes_are_refused() -> None:
    with pytest.raises(ConfigError, match="group"):
        train_many(recipe(MLP), parts(images()), sessions(), group=0)
    with pytest.raises(DataError, match="3 data sets for 2 models"):
        train_many(recipe(MLP), parts(images()), sessions(2))
