import pytest
import torch
from tests.methods.label_views import TASK, view

from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.inverted_hinge import InvertedHinge, hinge
from expunge.training.optim import SGD, AdamW


def test_it_is_one_plus_the_probability_minus_the_strongest_rivals():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(3, 3)
    assert torch.allclose(hinge(logits, torch.tensor([0, 1, 2])), torch.tensor([1.2, 0.8, 0.7]))


def test_it_lies_between_0_and_2_and_reaches_both():
    logits = 8 * torch.randn(500, 9, generator=torch.Generator().manual_seed(0))
    found = hinge(logits, torch.arange(500) % 9)
    assert 0 <= float(found.min()) < 0.01
    assert 1.99 < float(found.max()) <= 2
    assert hinge(torch.zeros(1, 4), torch.tensor([2])).tolist() == [1.0]


def test_logits_between_0_and_1_are_not_taken_for_probabilities():
    """Taken as they are they would give 1 + 0.9 − 0.1 = 1.8."""
    logits = torch.tensor([[0.9, 0.1, 0.0]])
    p = logits.softmax(-1)[0]
    assert float(hinge(logits, torch.tensor([0]))) == pytest.approx(1 + float(p[0] - p[1]), abs=1e-6)


@pytest.mark.parametrize("logits", [[-12.0, 12.0, 0.0], [12.0, 0.0, 0.0]], ids=["forgotten", "by heart"])
def test_the_gradient_vanishes_where_the_rival_has_won_and_also_where_the_label_is_certain(logits):
    """The latter is why plain SGD stalls on tokens known by heart; ascent on the loss does so too."""
    start = torch.tensor([logits], requires_grad=True)
    hinge(start, torch.tensor([0])).backward()
    assert float(start.grad.abs().max()) < 1e-3
    tie = torch.zeros(1, 3, requires_grad=True)
    hinge(tie, torch.tensor([0])).backward()
    assert float(tie.grad.abs().max()) > 0.3


def test_an_example_is_the_mean_over_its_tokens():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(1, 4, 3)
    labels = torch.tensor([[-100, -100, 0, 2]])
    found = InvertedHinge().forgetting(view(logits, labels), TASK)
    assert found.tolist() == pytest.approx([(1.2 + 0.7) / 2])


def _losses(setting, **fields):
    """The mean losses of the forget and the retain set, after the method with these fields."""
    method = InvertedHinge(epochs=8, batch_size=4, mode="eval", **fields)
    model = method.unlearn(setting.original, setting.split, setting.task, setting.session)
    found = []
    for data in (setting.split.forget, setting.split.retain):
        (batch,) = data.batches([torch.arange(len(data))], device="cpu")
        with torch.no_grad():
            found.append(float(setting.task.loss(setting.task.outputs(model, batch), batch).mean()))
    return found


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_labels_known_by_heart_stay_under_sgd_and_go_under_adamw(setting):
    """Their probability is 0.9996 here."""
    assert _losses(setting, optim=SGD(lr=0.1), retain_weight=0.0)[0] < 0.1
    assert _losses(setting, optim=AdamW(lr=0.01), retain_weight=0.0)[0] > 0.5


@pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
def test_the_retain_term_keeps_the_retain_set(setting):
    alone, kept = (_losses(setting, optim=AdamW(lr=0.02), retain_weight=w) for w in (0.0, 1.0))
    assert min(alone[0], kept[0]) > 1.0
    assert kept[1] < 0.5 * alone[1]


@pytest.mark.parametrize("setting", ["regression", "diffusion"], indirect=True)
def test_tasks_without_classes_are_refused_by_the_check(setting):
    with pytest.raises(
        Unsupported, match="inverted_hinge compares the probabilities.*Use a method for every"
    ):
        InvertedHinge().check(setting.split, setting.task)


def test_a_negative_weight_is_refused():
    with pytest.raises(ConfigError, match="retain_weight"):
        InvertedHinge(retain_weight=-1.0)
