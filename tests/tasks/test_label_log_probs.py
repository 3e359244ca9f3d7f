"""The loss at the labels and its gradient, against the cross-entropy of all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.tasks import label_log_probs as module
from expunge.tasks.label_log_probs import label_log_probs, serves


def setting(bias: bool) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(6, 50, bias=bias)
    return torch.randn(23, 6, requires_grad=True), head, torch.randint(50, (23,))


def plain(hidden: Tensor, head: nn.Linear, labels: Tensor) -> Tensor:
    return -F.cross_entropy(head(hidden), labels, reduction="none")


def bent(values: Tensor) -> Tensor:
    """A gradient that differs from token to token, as that of NPO does."""
    return (torch.arange(len(values)) * (values / 4).tanh()).sum()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("most", [2**25, 0], ids=["kept", "anew"])
def test_values_and_gradients_are_those_of_the_logits(bias, frozen, most, monkeypatch) -> None:
    monkeypatch.setattr(module, "KEPT", most)
    hidden, head, labels = setting(bias)
    head.requires_grad_(not frozen)
    inputs = [hidden, *(head.parameters() if not frozen else ())]
    ours, theirs = label_log_probs(hidden, head, labels, 4), plain(hidden, head, labels)
    assert torch.allclose(ours, theirs, atol=1e-6)
    expected = torch.autograd.grad(bent(theirs), inputs)
    for again in (True, False):  # terms that stay apart go backward through the same graph
        found = torch.autograd.grad(bent(ours), inputs, retain_graph=again)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_can_be_differentiated_again(frozen) -> None:
    hidden, head, labels = setting(bias=True)
    head.requires_grad_(not frozen)
    inputs = [hidden, *(head.parameters() if not frozen else ())]
    seconds = []
    for values in (label_log_probs(hidden, head, labels, 4), plain(hidden, head, labels)):
        first = torch.autograd.grad(bent(values), inputs, create_graph=True)
        total = torch.stack([gradient.square().sum() for gradient in first]).sum()
        seconds.append(torch.autograd.grad(total, inputs))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*seconds, strict=True))
    assert seconds[0][0].abs().max() > 0.01


def test_nearly_certain_and_nearly_impossible_labels_keep_their_digits() -> None:
    _, head, _ = setting(bias=False)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[0, 0] = 1.0
    hidden = torch.zeros(2, 6)
    hidden[:, 0] = torch.tensor([12.0, 90.0])
    hidden.requires_grad_()
    values = label_log_probs(hidden, head, torch.tensor([0, 1]), 1)
    certain = -torch.log1p(torch.tensor(49 * 6.144212e-06))
    assert values[0].item() == pytest.approx(certain.item(), rel=1e-3)
    assert values[1].item() == pytest.approx(-90.0)


@pytest.mark.parametrize(("kept", "numbers"), [(2**25, 23 * 50), (0, 0)])
def test_what_is_kept_for_the_gradient_has_a_limit(kept, numbers, monkeypatch) -> None:
    monkeypatch.setattr(module, "KEPT", kept)
    hidden, head, labels = setting(bias=False)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x.numel()) or x, lambda x: x):
        label_log_probs(hidden, head, labels, 4)
        assert sum(held) == hidden.numel() + head.weight.numel() + len(labels) + numbers
        held.clear()
        label_log_probs(hidden, head.requires_grad_(False), labels, 4)
    assert sum(held) == 2 * hidden.numel() + head.weight.numel() + len(labels)


def test_layers_that_are_more_than_a_product_are_left_to_autograd() -> None:
    hidden, head, _ = setting(bias=False)
    assert serves(head, hidden)
    assert not serves(nn.Identity(), hidden)
    assert not serves(head, hidden.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not serves(head, hidden)
    head.register_forward_hook(lambda *_: None)
    assert not serves(head, hidden)
