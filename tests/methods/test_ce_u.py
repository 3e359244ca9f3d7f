import pytest
import torch
from tests.methods.label_views import TASK, drawn, view

from expunge.data import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.ce_u import CEU, places, target, without_label
from expunge.methods.labels import label_states


def test_the_target_is_the_model_without_the_true_label():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    found = target(logits.requires_grad_(), torch.tensor([0]))
    assert torch.allclose(found, torch.tensor([[0.0, 0.6, 0.4]]))
    assert not found.requires_grad


def test_the_target_has_exactly_no_mass_on_the_label_however_certain_the_model_is():
    logits = torch.cat([10 * torch.randn(50, 9), 200 * torch.eye(9)])
    labels = torch.arange(59) % 9
    labels[50:] = torch.arange(9)
    found = target(logits, labels)
    assert not found.gather(-1, labels[:, None]).any()
    assert torch.allclose(found.sum(-1), torch.ones(59))
    assert without_label(logits, labels).isfinite().all()


def test_the_value_is_the_cross_entropy_and_the_gradient_the_one_of_the_docstring():
    p = torch.tensor([0.5, 0.3, 0.2])
    logits = p.log()[None].requires_grad_()
    value = without_label(logits, torch.tensor([0]))
    value.backward()
    assert float(value.detach()) == pytest.approx(
        -0.6 * float(p[1].log()) - 0.4 * float(p[2].log()), abs=1e-6
    )
    assert torch.allclose(logits.grad, torch.tensor([[0.5, -0.3, -0.2]]), atol=1e-6)


def test_the_first_tokens_of_an_answer_are_left_alone():
    logits, labels, _ = drawn()
    states = label_states(logits, {"labels": labels}, TASK)
    assert places(states).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]
    loss = CEU(skip=2).forgetting(view(logits, labels), TASK).sum()
    (found,) = torch.autograd.grad(loss, logits)
    assert [int(row.any(-1).sum()) for row in found] == [3, 2, 1]
    whole = CEU(skip=0).forgetting(view(logits, labels), TASK)
    each = without_label(states.hidden, states.labels)
    assert torch.allclose(whole, states.summed(each) / torch.tensor([5.0, 4.0, 3.0]))


def test_answers_with_nothing_left_are_refused_before_training(setting):
    if setting.name == "causal_lm":  # answers of two or three tokens
        CEU(skip=1).check(setting.split, setting.task)
        with pytest.raises(Unsupported, match="has 2 tokens to predict, all of which skip=2.*Set skip lower"):
            CEU(skip=2).check(setting.split, setting.task)
    elif setting.name == "classification":
        CEU(skip=2).check(setting.split, setting.task)
    else:
        with pytest.raises(Unsupported, match="ce_u compares the probabilities"):
            CEU().check(setting.split, setting.task)


@pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
def test_alone_it_reads_no_retain_batch(setting):
    class Untouchable:
        ids, augmented = torch.arange(100, 104), False

        def __len__(self):
            return 4

    split = Split(setting.split.forget, Untouchable())
    result = CEU(epochs=1).unlearn(setting.original, split, setting.task, setting.session)
    assert not torch.equal(result.head.weight, setting.original.head.weight)


def test_a_negative_skip_is_refused():
    with pytest.raises(ConfigError, match="skip"):
        CEU(skip=-1)
