import pytest
import torch
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, Unsupported
from expunge.evaluation import controls
from expunge.evaluation.subject import Subject
from expunge.tasks import Classification, Regression
from expunge.training.session import Session

CLASSES = Classification(3)


def subject(model: nn.Module, task=CLASSES, targets: torch.Tensor | None = None) -> Subject:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(30) % 3 if targets is None else targets
    split = Split.from_ids(ArrayData({"inputs": x, "targets": y}), range(6), test=(x, y))
    return Subject("original", model, split.parts(), task, Session(0))


def test_constant_is_the_mean_answer_and_its_score_the_floor() -> None:
    original = subject(nn.Linear(4, 3))
    constant = controls.control("constant", original, Session(0))
    answers = constant(torch.randn(7, 4))
    assert torch.equal(answers, answers[:1].expand(7, 3))
    assert torch.allclose(answers[0], original.read("test").outputs.mean(0))
    assert controls.floors(original, "test")["accuracy"] == pytest.approx(10 / 30)


def test_the_floor_of_a_regressor_is_that_of_its_mean_prediction() -> None:
    targets = torch.linspace(0, 1, 30)
    original = subject(nn.Linear(4, 1), Regression(), targets)
    mean = original.read("test").outputs.mean()
    expected = torch.exp(-0.5 * (targets - mean).square()).mean()
    assert controls.floors(original, "test")["accuracy"] == pytest.approx(float(expected), rel=1e-5)


def test_collapsed_has_the_originals_weights_in_another_order() -> None:
    model = nn.Linear(4, 3)
    broken = controls.control("collapsed", subject(model), Session(0))
    assert not torch.equal(broken.weight, model.weight)
    assert torch.equal(broken.weight.flatten().sort().values, model.weight.flatten().sort().values)
    again = controls.control("collapsed", subject(model), Session(0))
    assert torch.equal(broken.weight, again.weight)


def test_never_trained_without_a_recipe_asks_every_layer_to_initialise_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    fresh = controls.control("never_trained", subject(model.eval()), Session(0))
    assert not any(
        torch.equal(a, b) for a, b in zip(fresh[0].parameters(), model[0].parameters(), strict=True)
    )

    nested = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(4, 3))))  # not the top level alone
    fresh = controls.control("never_trained", subject(nested.eval()), Session(0))
    assert not torch.equal(fresh[0][0][0].weight, nested[0][0][0].weight)

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    with pytest.raises(Unsupported, match="Give the recipe"):
        controls.control("never_trained", subject(Bare()), Session(0))


def test_an_unknown_control_is_an_error() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'constant'"):
        controls.control("constnt", subject(nn.Linear(4, 3)), Session(0))


@pytest.mark.parametrize("name", controls.CONTROLS)
def test_every_control_runs_on_every_task(setting, name: str) -> None:
    split = Split(setting.split.forget, setting.split.retain, setting.split.retain)
    original = Subject("original", setting.original, split.parts(), setting.task, Session(0))
    model = controls.control(name, original, setting.session)
    found = Subject(name, model, split.parts(), setting.task, Session(0)).read("test")
    assert torch.isfinite(found.loss).all()
    assert found.outputs.shape == original.read("test").outputs.shape
    assert 0 <= controls.floors(original, "test")["accuracy"] <= 1
