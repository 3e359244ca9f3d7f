import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.data import ArrayData, CropFlip, Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.gs_lora import GSLoRA
from expunge.methods.gradient.gs_lora_plus import Average, GSLoRAPlus
from expunge.methods.scopes.lora import LoRA
from expunge.tasks import Classification
from expunge.training.optim import SGD
from expunge.training.session import Session

pytest.importorskip("peft")

SCALE, ETA = 1.5, 0.1


@pytest.fixture
def problem():
    """Three classes of three examples, of which the first is to be forgotten, and a two-layer network."""
    draws = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(9, 3, generator=draws), torch.arange(9) % 3
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    return model, inputs, labels, Split.from_ids((inputs, labels), [0, 3, 6])


class Fixed(LoRA):
    """Adapters whose ``A`` is known."""

    A = torch.tensor([[1.0, 2.0, -2.0]])

    def enter(self, model):
        wrapped = super().enter(model)
        with torch.no_grad():
            wrapped.get_parameter("model.0.lora_A.default.weight").copy_(self.A)
        return wrapped


def _method(**fields):
    defaults = {
        "epochs": 1,
        "batch_size": 16,
        "optim": SGD(lr=ETA, momentum=0.0),
        "scope": Fixed(rank=1, alpha=SCALE, head=False),
        "alpha": 0.0,
        "beta": 0.5,
        "bound": 50.0,
        "retain_fraction": 1.0,
        "average_decay": 0.0,
    }
    return GSLoRAPlus(**{**defaults, **fields})


def _run(method, problem, **session):
    model, _, _, split = problem
    return method.unlearn(model, split, Classification(3), Session(**session))


def _divergence(features, labels, prototypes):
    log_p, log_q = F.log_softmax(prototypes[labels], 1), F.log_softmax(features, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


@pytest.mark.parametrize("head", [False, True])
def test_the_terms_and_one_step_are_the_ones_written_on_paper(problem, head):
    """``B₁ = −η s ∇W Aᵀ`` with the gradient of all four terms, whether the head has adapters or not."""
    model, inputs, labels, _ = problem
    w_f, w_r, bound = 0.7, 0.4, 3.0
    seen = []
    method = _method(
        prototype_forget=w_f,
        prototype_retain=w_r,
        prototype_bound=bound,
        scope=Fixed(rank=1, alpha=SCALE, head=head),
    )
    result = _run(method, problem, callbacks=(lambda event: seen.append(dict(event.values)),))

    features, forget = model[0](inputs), labels == 0
    prototypes = torch.stack([features[labels == label].mean(0) for label in range(3)]).detach()
    k_f, k_r = (_divergence(features[m], labels[m], prototypes) for m in (forget, ~forget))
    l_f, l_r = (F.cross_entropy(model[1](features[m]), labels[m]) for m in (forget, ~forget))
    terms = {
        "retain": l_r,
        "forget": 0.5 * (50 - l_f),
        "prototype_forget": w_f * (bound - k_f),
        "prototype_retain": w_r * k_r,
    }
    (logged,) = [values for values in seen if values]
    assert logged == pytest.approx({name: float(value.detach()) for name, value in terms.items()}, rel=1e-5)
    (gradient,) = torch.autograd.grad(sum(terms.values()), model[0].weight)
    moved = -ETA * SCALE * gradient @ Fixed.A.T @ Fixed.A * SCALE
    torch.testing.assert_close(result[0].weight, model[0].weight + moved)


def test_without_its_own_terms_it_is_gs_lora(problem):
    fields = {"epochs": 3, "batch_size": 4, "alpha": 0.01, "retain_fraction": 0.5}
    plus = _run(GSLoRAPlus(**fields, prototype_forget=0.0, average_decay=0.0), problem)
    plain = _run(GSLoRA(**fields), problem)
    torch.testing.assert_close(plus.state_dict(), plain.state_dict(), rtol=0, atol=1e-7)
    other = _run(GSLoRAPlus(**fields, prototype_forget=0.5, average_decay=0.0), problem)
    assert (other[0].weight - plain[0].weight).abs().max() > 1e-5


def test_by_default_the_bound_of_the_features_is_two_nats_above_their_largest_entropy(problem):
    seen = []
    callbacks = (lambda event: seen.append(dict(event.values)),)
    _run(_method(prototype_forget=1.0), problem, callbacks=callbacks)
    _run(_method(prototype_forget=1.0, prototype_bound=math.log(4) + 2), problem, callbacks=callbacks)
    default, given = (values["prototype_forget"] for values in seen if values)
    assert default == given
    _run(_method(prototype_forget=1.0, prototype_bound=1e-9), problem, callbacks=callbacks)
    assert seen[-2]["prototype_forget"] == 0.0


def test_the_average_is_the_one_written_on_paper():
    """From the second of four epochs of two steps: ``θ₂``, ``½ (θ₂ + θ₃)``, ``¼ θ₂ + ¼ θ₃ + ½ θ₄``."""
    model = nn.Linear(1, 1, bias=False)
    average = Average(decay=0.5, first=1, steps=2, epochs=4)
    for index, value in enumerate([10.0, 1.0, 20.0, 4.0, 30.0, 8.0, 40.0, 16.0], start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        assert average(model, index) is False
        assert index == 8 or model.weight.item() == value
    assert model.weight.item() == 0.25 * 4.0 + 0.25 * 8.0 + 0.5 * 16.0


def test_the_result_is_the_average_of_the_ends_of_epochs(problem):
    """With one step an epoch, the averaged ``B`` of two epochs lies where the weights ``d`` put it."""
    fields = {"average_from": 0.0, "scope": FixedA(rank=1, alpha=SCALE, head=False)}
    first = _run(_method(epochs=1, **fields), problem)[0].weight
    second = _run(_method(epochs=2, **fields), problem)[0].weight
    mean = _run(_method(epochs=2, average_decay=0.7, **fields), problem)[0].weight
    torch.testing.assert_close(mean, 0.7 * first + 0.3 * second)


class FixedA(Fixed):
    """Only ``B`` moves, so that averages of ``B`` are averages of the weights."""

    def enter(self, model):
        wrapped = super().enter(model)
        wrapped.get_parameter("model.0.lora_A.default.weight").requires_grad_(False)
        return wrapped


def test_prototypes_are_of_examples_without_augmentation_and_the_data_keep_theirs():
    draws = torch.Generator().manual_seed(0)
    columns = {"inputs": torch.rand(12, 1, 4, 4, generator=draws), "targets": torch.arange(12) % 3}
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 3))
    plain, augmented = (
        Split.from_ids(ArrayData(columns, augment), range(0, 12, 3)) for augment in (None, CropFlip())
    )
    runs = [GSLoRAPlus().setup(model, split, Classification(3), Session()) for split in (plain, augmented)]
    assert torch.equal(runs[0].prototypes, runs[1].prototypes)
    assert augmented.retain.augmented
    expected = model[:2](columns["inputs"])[columns["targets"] == 1].mean(0)
    torch.testing.assert_close(runs[0].prototypes[1], expected)


def test_the_prototypes_of_a_second_request_are_those_of_the_model_it_is_handed(problem):
    model, inputs, labels, split = problem
    result = _run(_method(epochs=3), problem)
    second = Split.from_ids(split.retain, split.retain.ids[split.retain.column("targets") == 1])
    run = GSLoRAPlus().setup(result, second, Classification(3), Session())
    assert run.prototypes.shape == (2, 4)
    torch.testing.assert_close(run.prototypes[0], result[0](inputs[labels == 1]).mean(0))
    assert not torch.allclose(run.prototypes[0], model[0](inputs[labels == 1]).mean(0))


def test_single_examples_are_refused(problem):
    model, inputs, labels, _ = problem
    with pytest.raises(Unsupported, match="only whole classes can be forgotten"):
        GSLoRAPlus().unlearn(model, Split.from_ids((inputs, labels), [0]), Classification(3), Session())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prototype_forget", -1.0),
        ("prototype_retain", -1.0),
        ("prototype_bound", 0.0),
        ("average_decay", 1.0),
        ("average_from", 1.0),
    ],
)
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        GSLoRAPlus(**{field: value})
