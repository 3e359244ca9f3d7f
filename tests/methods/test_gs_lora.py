import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from expunge.data import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.continual import adapter_groups, few_of_each_class, group_norms
from expunge.methods.gradient.gs_lora import GSLoRA
from expunge.methods.scopes.lora import LoRA
from expunge.methods.scopes.modules import Modules
from expunge.tasks import Classification, Regression
from expunge.tasks.base import Task
from expunge.training.networks import LanguageModel, Normalise, ResNet
from expunge.training.optim import SGD
from expunge.training.session import Session

pytest.importorskip("peft")

CLASSES = 6
TASK = Classification(CLASSES)


@pytest.fixture(scope="module")
def blobs():
    """A trained perceptron, its six classes of 40 examples, and how often it is right on 25 new ones."""
    draws = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(CLASSES, 10, generator=draws)

    def sample(count):
        labels = torch.arange(CLASSES * count) % CLASSES
        return centres[labels] + torch.randn(len(labels), 10, generator=draws), labels

    train, (inputs, labels) = sample(40), sample(25)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 6))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train[0]), train[1]).backward()
        optimizer.step()
    optimizer.zero_grad()

    def accuracy(tested):
        right = (tested(inputs).argmax(1) == labels).float()
        return torch.stack([right[labels == label].mean() for label in range(CLASSES)])

    return model.eval(), train, accuracy


def _forgetting(train, label=0):
    return Split.from_ids(train, (train[1] == label).nonzero()[:, 0])


def _loss(model, data):
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(data.column("inputs")), data.column("targets")))


class Fixed(LoRA):
    """Adapters whose ``A`` is known."""

    A = torch.tensor([[1.0, 2.0, -2.0]])

    def enter(self, model):
        wrapped = super().enter(model)
        with torch.no_grad():
            wrapped.get_parameter("model.0.lora_A.default.weight").copy_(self.A)
        return wrapped


def test_one_step_is_the_one_written_on_paper():
    """``B`` starts at 0, so ``B₁ = −η s ∇W Aᵀ`` and ``A₁ = A (1 − η α / ‖A‖)`` with ``‖A‖ = 3``."""
    draws = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(9, 3, generator=draws), torch.arange(9) % 3
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    eta, alpha, beta, scale = 0.1, 0.3, 0.5, 1.5
    method = GSLoRA(
        epochs=1,
        batch_size=16,
        optim=SGD(lr=eta, momentum=0.0),
        scope=Fixed(rank=1, alpha=scale, head=False),
        alpha=alpha,
        beta=beta,
        bound=50.0,
        warmup=0.0,
        retain_fraction=1.0,
    )
    result = method.unlearn(model, _forgetting((inputs, labels)), Classification(3), Session())

    weight = model[0].weight
    forget = labels == 0
    retain_loss, forget_loss = (
        nn.functional.cross_entropy(model(inputs[rows]), labels[rows]) for rows in (~forget, forget)
    )
    (gradient,) = torch.autograd.grad(retain_loss - beta * forget_loss, weight)
    B = -eta * scale * gradient @ Fixed.A.T
    A = Fixed.A * (1 - eta * alpha / 3.0)
    torch.testing.assert_close(result[0].weight, weight + scale * B @ A)
    assert torch.equal(result[1].weight, model[1].weight)


@pytest.mark.parametrize(("bound", "moves"), [(1e-6, False), (50.0, True)])
def test_beyond_the_bound_forgetting_has_no_gradient(blobs, bound, moves):
    """The lasso away, what is left of the objective beyond the bound is the retain loss."""
    model, train, _ = blobs
    start = _forgetting(train)
    run = {"epochs": 2, "alpha": 0.0, "retain_fraction": 1.0, "optim": SGD(lr=0.05)}
    first, second = (
        GSLoRA(bound=bound, beta=beta, **run).unlearn(model, start, TASK, Session()) for beta in (0.2, 0.4)
    )
    assert (not torch.equal(first[0].weight, second[0].weight)) == moves


def test_three_requests_one_after_another_each_forget_a_class_and_keep_the_rest(blobs):
    model, train, accuracy = blobs
    assert accuracy(model).min() > 0.9
    split = _forgetting(train)
    for label in range(3):
        model = GSLoRA(epochs=60, retain_fraction=0.3).unlearn(model, split, TASK, Session(seed=label))
        found = accuracy(model)
        assert found[: label + 1].max() < 0.15
        assert found[label + 1 :].min() > 0.85
        left = split.retain
        if label < 2:
            split = Split.from_ids(left, left.ids[left.column("targets") == label + 1])


def test_the_bound_is_two_nats_above_guessing_unless_given():
    assert GSLoRA().ceiling(Classification(10)) == pytest.approx(math.log(10) + 2)
    assert GSLoRA(bound=7.0).ceiling(Classification(10)) == 7.0


def test_the_published_bound_does_not_fit_a_plain_cross_entropy(blobs):
    """105 is for losses with margins: here forgetting never stops, and the other classes pay."""
    model, train, accuracy = blobs
    split = _forgetting(train)
    ours, published = (
        GSLoRA(epochs=80, beta=1.0, bound=bound).unlearn(model, split, TASK, Session())
        for bound in (None, 105.0)
    )
    assert _loss(published, split.forget) > 3 * _loss(ours, split.forget)
    assert _loss(published, split.retain) > 3 * _loss(ours, split.retain)
    assert accuracy(ours)[0] < 0.15


def test_a_lasso_from_the_start_keeps_the_adapters_at_zero(blobs):
    model, train, accuracy = blobs
    split = _forgetting(train)
    early, late = (
        GSLoRA(epochs=60, alpha=0.1, warmup=warmup).unlearn(model, split, TASK, Session())
        for warmup in (0.0, 0.5)
    )
    assert accuracy(early)[0] > 0.9
    assert accuracy(late)[0] < 0.5


def test_test_data_are_never_looked_at(blobs):
    model, train, _ = blobs
    split = _forgetting(train)
    other = replace(split, test=split.retain.subset(split.retain.ids[:5]))
    results = [GSLoRA(epochs=3).unlearn(model, s, TASK, Session()) for s in (split, other)]
    assert all(torch.equal(a, b) for a, b in zip(*(r.state_dict().values() for r in results), strict=True))


def _adapted(model, **fields):
    wrapped = LoRA(rank=2, **{"head": False, **fields}).enter(model)
    names = {id(p): name.removeprefix("model.") for name, p in wrapped.named_parameters()}
    return [{names[id(p)].partition(".lora_")[0] for p in group} for group in adapter_groups(wrapped)]


def test_a_group_is_a_block_of_the_network():
    transformer = _adapted(LanguageModel(11, 8, 2, 2, 6))
    layers = ("attention", "project", "mlp.0", "mlp.2")
    assert transformer == [{f"blocks.{i}.{layer}" for layer in layers} for i in range(2)]
    residual = _adapted(ResNet(1, 3, (2, 4), 2, False, Normalise()))
    convolutions = [{f"stages.{s}.{b}.conv{c}" for c in (1, 2)} for s in range(2) for b in range(2)]
    assert residual == [{"conv1"}, *convolutions]
    assert _adapted(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2))) == [
        {"0"},
        {"2"},
    ]


def test_layers_can_be_named_as_the_feed_forward_ones_of_the_authors():
    named = _adapted(LanguageModel(11, 8, 2, 2, 6), targets=("mlp.0", "mlp.2"))
    assert named == [{f"blocks.{i}.mlp.{j}" for j in (0, 2)} for i in range(2)]


def test_the_head_is_adapted_only_when_asked():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert _adapted(model, head=True) == [{"0"}, {"2"}]


def test_the_norm_of_a_group_is_over_all_its_matrices_and_flat_at_zero():
    groups = [[torch.tensor([[3.0]]), torch.tensor([[4.0], [12.0]])], [torch.zeros(2, requires_grad=True)]]
    norms = group_norms(groups)
    assert norms.tolist() == [13.0, 0.0]
    norms.sum().backward()
    assert groups[1][0].grad.tolist() == [0.0, 0.0]


def test_the_replayed_examples_are_a_share_of_every_class():
    labels = torch.tensor([0] * 20 + [1] * 5 + [2])
    data = Split.from_ids((torch.randn(27, 2), torch.cat([labels, torch.tensor([3])])), [26]).retain
    kept = few_of_each_class(data, 0.1, Classification(4), torch.Generator().manual_seed(0))
    assert torch.bincount(kept.column("targets")).tolist() == [2, 1, 1]
    whole = few_of_each_class(data, 1.0, Classification(4), torch.Generator().manual_seed(0))
    assert torch.equal(whole.ids, data.ids)


def test_only_whole_classes_can_be_forgotten(blobs):
    model, train, _ = blobs
    with pytest.raises(Unsupported, match="only whole classes can be forgotten"):
        GSLoRA().unlearn(model, Split.from_ids(train, [0, 1]), TASK, Session())


def test_another_scope_is_refused_before_anything_is_trained(blobs):
    model, train, _ = blobs
    method = GSLoRA(scope=Modules(patterns=("0",)))
    with pytest.raises(Unsupported, match="gs_lora trains adapters. Set scope to lora"):
        method.unlearn(model, _forgetting(train), TASK, Session())


def test_a_task_without_a_number_of_classes_needs_a_bound():
    class Grouped(Regression):
        groups = Task.groups

    with pytest.raises(Unsupported, match="no number of classes to bound the forget loss by. Set bound"):
        GSLoRA().ceiling(Grouped())
    assert GSLoRA(bound=3.0).ceiling(Grouped()) == 3.0


@pytest.mark.parametrize(
    ("field", "value"),
    [("beta", 0.0), ("bound", -1.0), ("alpha", -1.0), ("warmup", 1.0), ("retain_fraction", 0.0)],
)
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        GSLoRA(**{field: value})
