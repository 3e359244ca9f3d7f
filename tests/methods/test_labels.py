import pytest
import torch
import torch.nn.functional as F
from tests.methods.label_views import TASK, V, drawn, view
from torch import nn

from expunge.methods import labels as labelled
from expunge.methods import methods
from expunge.methods.gradient.ce_u import CEU
from expunge.methods.gradient.inverted_hinge import InvertedHinge
from expunge.methods.gradient.satimp import SatImp
from expunge.methods.gradient.undial import Undial
from expunge.methods.gradient.wga import WGA
from expunge.tasks import Classification, token_states
from expunge.tasks.token_states import TokenStates

METHODS = [InvertedHinge(), Undial(), WGA(), SatImp(saturation=1.0), CEU()]
every_objective = pytest.mark.parametrize("method", METHODS, ids=methods.name_of)


def value(method, logits, labels, original):
    return method.forgetting(view(logits, labels, original), TASK)


def gradient(method, logits, labels, original):
    (found,) = torch.autograd.grad(value(method, logits, labels, original).sum(), logits)
    return found


@every_objective
def test_padding_changes_nothing(method):
    logits, labels, original = drawn()
    more = [F.pad(values, (0, 0, 0, 4), value=9.0) for values in (logits, original)]
    padded = value(method, more[0], F.pad(labels, (0, 4), value=-100), more[1])
    assert torch.allclose(padded, value(method, logits, labels, original), atol=1e-6)


@every_objective
def test_an_example_counts_the_same_in_any_batch(method):
    logits, labels, original = drawn()
    together = value(method, logits, labels, original)
    alone = [value(method, logits[i : i + 1], labels[i : i + 1], original[i : i + 1]) for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


@every_objective
def test_prompt_and_padding_have_exactly_no_gradient_and_labels_have(method):
    logits, labels, original = drawn()
    found = gradient(method, logits, labels, original)
    counted = F.pad(labels[:, 1:] != -100, (0, 1), value=False)
    assert not found[~counted].any()
    assert found[counted].any()


@every_objective
def test_the_label_that_means_none_is_never_an_index(method):
    """−100 of 120 tokens would be token 20, as it is in open-unlearning's UNDIAL."""
    logits, labels, original = drawn()
    counted = F.pad(labels[:, 1:] != -100, (0, 1), value=False)
    changed = original.masked_fill(~counted[..., None], 0.0)
    spoilt = changed.clone()
    spoilt[..., V - 100] += 50.0 * ~counted
    first, second = (value(method, logits, labels, other) for other in (changed, spoilt))
    assert torch.equal(first, second)


@every_objective
def test_a_token_that_is_no_label_is_not_singled_out(method):
    """With all logits equal, every token that is not the label has the same gradient."""
    logits, labels = torch.zeros(1, 3, V, requires_grad=True), torch.tensor([[-100, 7, 9]])
    found = gradient(method, logits, labels, torch.zeros(1, 3, V))[0, 1]  # predicts label 9
    others = torch.cat([found[:9], found[10:]])
    if isinstance(method, InvertedHinge):  # the rival is one of them, and which is a tie
        others = others.sort().values[1:-1]
    assert torch.allclose(others, others[0].expand_as(others), atol=1e-7)
    assert found[9] > others.max()


@pytest.mark.parametrize("chunk", [V, 3 * V])
@every_objective
def test_chunks_of_logits_give_the_value_and_the_gradient_of_all_at_once(method, chunk, monkeypatch):
    """Through a real output layer, so that the chunks are computed anew in the backward pass."""
    _, labels, original = drawn()
    hidden, head = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(1)), nn.Linear(5, V)

    def run():
        said = view(head(hidden), labels, original)
        where = (labels[:, 1:] != -100).nonzero(as_tuple=True)
        said.said = TokenStates(hidden[:, :-1][where], head, labels[:, 1:][where], where, (3, 6), V)
        found = method.forgetting(said, TASK).sum()
        return found.detach(), torch.autograd.grad(found, head.weight)[0]

    whole = run()
    monkeypatch.setattr(token_states, "CHUNK", chunk)
    parts = run()
    assert torch.allclose(whole[0], parts[0], atol=1e-5)
    assert torch.allclose(whole[1], parts[1], atol=1e-6)


def test_the_mean_is_over_the_counted_labels_of_each_example():
    _, labels, _ = drawn()
    states = labelled.label_states(torch.zeros(3, 7, V), {"labels": labels}, TASK)
    values = torch.arange(len(states.labels), dtype=torch.float)  # 5, 4 and 3 labels
    assert labelled.mean_over_labels(states, values).tolist() == [2.0, 6.5, 10.0]
    odd = values % 2 == 1
    assert labelled.mean_over_labels(states, values, odd).tolist() == [2.0, 6.0, 10.0]


def test_a_classifier_has_one_label_an_example():
    logits = torch.randn(4, 3)
    states = labelled.label_states(logits, {"targets": torch.tensor([0, 2, 1, 1])}, Classification(3))
    found = labelled.of_labels(states, lambda z, y: z.gather(-1, y[:, None])[:, 0])
    assert torch.equal(labelled.mean_over_labels(states, found), logits[range(4), [0, 2, 1, 1]])
