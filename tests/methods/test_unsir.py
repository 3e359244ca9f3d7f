from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge import config
from expunge.data import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.unsir import Unsir
from expunge.tasks import Classification, Regression
from expunge.training.engine import Engine
from expunge.training.models import models
from expunge.training.optim import SGD, AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

PLAIN = SGD(lr=0.5, momentum=0.0)
WHOLE = {"batch_size": 1000, "impair_batch_size": 1000, "optim": PLAIN}
SESSION = Session(seed=0)
TASK = Classification(4)


def _problem(forgotten=(1, 2)):
    torch.manual_seed(0)
    X, y = torch.randn(40, 5), torch.arange(40) % 4
    ids = torch.isin(y, torch.tensor(forgotten)).nonzero()[:, 0]
    return nn.Linear(5, 4), Split.from_ids((X, y), ids), X, y


def _descended(model, X, y, weights=None):
    """The parameters after one step of gradient descent on the cross-entropy."""
    W, b = (p.detach().clone().requires_grad_(True) for p in weights or (model.weight, model.bias))
    gradients = torch.autograd.grad(F.cross_entropy(X @ W.T + b, y), (W, b))
    return tuple((p - 0.5 * g).detach() for p, g in zip((W, b), gradients, strict=True))


def test_impairing_fits_noise_with_each_classes_own_label_and_repairing_the_sample_alone():
    model, split, X, y = _problem()
    method = Unsir(noise_size=3, noise_copies=4, per_class=6, **WHOLE)
    noise, labels = method.noise(model, split, TASK, SESSION)
    assert labels.tolist() == [1, 1, 1, 2, 2, 2]  # the authors' notebook labels all of them 0
    sample = method.sample(split.retain, TASK, SESSION).ids
    impaired = _descended(
        model,
        torch.cat([noise.repeat(4, 1), X[sample]]),
        torch.cat([labels.repeat(4), y[sample]]),
    )
    W, b = _descended(model, X[sample], y[sample], impaired)
    result = method.unlearn(model, split, TASK, SESSION)
    assert torch.allclose(result.weight, W, atol=1e-6)
    assert torch.allclose(result.bias, b, atol=1e-6)
    assert float((W - model.weight.detach()).norm()) > 0.1


def test_a_step_of_the_noise_ascends_the_loss_against_its_size():
    model, split, *_ = _problem()
    method = Unsir(noise_size=4, noise_steps=1, noise_rate=0.1, penalty=0.1)
    start = torch.randn(8, 5, generator=SESSION.generator("noise")).requires_grad_(True)
    found, labels = method.noise(model, split, TASK, SESSION)
    losses = F.cross_entropy(model(start), labels, reduction="none")
    (g,) = torch.autograd.grad((-losses + 0.1 * start.square().sum(1)).sum(), start)
    assert torch.allclose(found, start - 0.1 * g.sign(), atol=1e-4)  # Adam's first step


def test_without_a_penalty_the_model_likes_the_noise_less_and_less():
    model, split, *_ = _problem()
    losses = []
    for steps in (1, 10, 40):
        noise, labels = Unsir(noise_steps=steps, penalty=0.0).noise(model, split, TASK, SESSION)
        losses.append(float(F.cross_entropy(model(noise), labels).detach()))
    assert losses[0] < losses[1] < losses[2]
    assert losses[2] > losses[0] + 1


def test_the_noise_of_a_class_does_not_depend_on_which_others_are_forgotten():
    model, both, X, y = _problem()
    alone = Split.from_ids((X, y), (y == 1).nonzero()[:, 0])
    method = Unsir(noise_size=16)
    first, _ = method.noise(model, alone, TASK, SESSION)
    second, _ = method.noise(model, both, TASK, SESSION)
    assert torch.allclose(first, second[:16], atol=1e-4)


def test_no_forget_example_is_looked_at():
    model, split, X, y = _problem()
    gone = torch.where(torch.isin(y, torch.tensor([1, 2]))[:, None], 100.0, X)
    method = Unsir(noise_copies=2)
    first, second = (
        method.unlearn(model, s, TASK, SESSION) for s in (split, Split.from_ids((gone, y), split.forget.ids))
    )
    assert torch.equal(first.weight, second.weight)


def test_the_sample_holds_at_most_so_many_of_each_retained_class():
    _, split, _, y = _problem()
    method = Unsir(per_class=7)
    ids = method.sample(split.retain, TASK, SESSION).ids
    assert torch.bincount(y[ids], minlength=4).tolist() == [7, 0, 0, 7]
    other = method.sample(split.retain, TASK, Session(seed=1)).ids
    assert not torch.equal(ids, other)  # drawn, not the first ones
    assert len(Unsir(per_class=50).sample(split.retain, TASK, SESSION)) == 20


def test_gradients_of_half_batches_add_up_to_the_same_weights():
    model, split, *_ = _problem()
    method = Unsir(noise_size=4, noise_copies=3, **WHOLE)
    halved = replace(SESSION, engine=Engine(accumulate=2))
    first, second = (method.unlearn(model, split, TASK, session) for session in (SESSION, halved))
    assert torch.allclose(first.weight, second.weight, atol=1e-5)


def test_a_trained_network_loses_the_class_and_keeps_the_others():
    from sklearn.datasets import load_digits

    digits = load_digits()
    X = torch.tensor(digits.images[:600], dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target[:600]).long()
    split, task = Split.from_ids((X, y), (y == 3).nonzero()[:, 0]), Classification(10)
    network = config.build(models, {"kind": "small_cnn", "classes": 10, "in_channels": 1, "width": 8})
    recipe = Recipe(network, task, Training(epochs=8, batch_size=64, optim=AdamW(lr=0.01)))
    model = recipe.train(split.train(), SESSION)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method = Unsir(optim=AdamW(lr=0.01, weight_decay=0.0), batch_size=32)
    result = method.unlearn(model, split, task, SESSION)

    def right(model, part):
        with torch.no_grad():
            return float((model(part.column("inputs")).argmax(1) == part.column("targets")).float().mean())

    assert right(model, split.forget) > 0.95
    assert right(result, split.forget) < 0.2
    assert right(result, split.retain) > 0.9
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in result.modules())


def test_gradients_of_the_weights_for_the_noise_never_enter_the_impair_step():
    model, split, X, y = _problem()
    method = Unsir(noise_size=3, noise_copies=4, per_class=6, noise_steps=5, **WHOLE)
    noise, labels = method.noise(model, split, TASK, SESSION)
    assert all(parameter.grad is None for parameter in model.parameters())
    # in the SSD code every backward pass through the noise leaves its gradient with the weights
    (left,) = torch.autograd.grad(-F.cross_entropy(model(noise), labels), model.weight)
    sample = method.sample(split.retain, TASK, SESSION).ids
    inputs, targets = torch.cat([noise.repeat(4, 1), X[sample]]), torch.cat([labels.repeat(4), y[sample]])
    (wanted,) = torch.autograd.grad(F.cross_entropy(model(inputs), targets), model.weight)
    assert float((left * wanted).sum()) < 0  # it undoes part of the impairing


def test_single_examples_other_tasks_and_inputs_without_a_gradient_are_refused():
    model, _, X, y = _problem()
    with pytest.raises(Unsupported, match="only whole classes can be forgotten"):
        Unsir().check(Split.from_ids((X, y), range(3)), TASK)
    with pytest.raises(Unsupported, match=r"the task is 'Regression'.*Use amnesiac"):
        Unsir().check(Split.from_ids((X, y.float()), range(3)), Regression())
    split = Split.from_ids((X.long(), y), (y == 0).nonzero()[:, 0])
    with pytest.raises(Unsupported, match=r"optimises inputs, and these are torch.int64.*Use amnesiac"):
        Unsir().unlearn(model, split, TASK, SESSION)


@pytest.mark.parametrize(
    "fields",
    [
        *({name: 0} for name in ("per_class", "noise_size", "noise_copies", "noise_steps")),
        {"impair_batch_size": 0},
        {"noise_rate": 0.0},
        {"penalty": -0.1},
    ],
)
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Unsir(**fields)
