import pytest
import torch
from scipy import stats
from torch import nn

from expunge.data import Split
from expunge.errors import Unsupported
from expunge.methods.gradient.amnesiac import Amnesiac
from expunge.methods.gradient.random_labels import RandomLabels
from expunge.tasks import CausalLM, Classification, Diffusion
from expunge.training.optim import SGD
from expunge.training.session import Session


class Recording(Classification):
    """Keeps the ids and targets of every batch whose loss it takes."""

    def __init__(self, classes):
        super().__init__(classes)
        object.__setattr__(self, "seen", [])

    def loss(self, outputs, batch):
        self.seen.append((batch["ids"].clone(), batch["targets"].clone()))
        return super().loss(outputs, batch)

    def epoch(self, number, steps):
        """Ids ascending and their targets in one epoch of ``steps`` batches."""
        ids, targets = (torch.cat(c) for c in zip(*self.seen[number * steps :][:steps], strict=True))
        order = ids.argsort()
        return ids[order], targets[order]


def _problem(n=30, forget=10, classes=3):
    torch.manual_seed(0)
    X, y = torch.randn(n, 4), torch.arange(n) % classes
    return nn.Linear(4, classes, bias=False), Split.from_ids((X, y), range(forget)), X, y


def test_a_step_fits_the_wrong_labels_of_one_set_and_the_true_ones_of_the_other_together():
    model, split, X, y = _problem()
    task = Recording(3)
    method = Amnesiac(epochs=2, optim=SGD(lr=0.5, momentum=0.0))
    result = method.unlearn(model, split, task, Session())
    _, targets = task.epoch(0, 1)
    assert torch.equal(targets[10:], y[10:])
    W = model.weight.detach()
    for _ in range(2):
        W = W.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(X @ W.T, targets), W)
        W = (W - 0.5 * g).detach()
    assert torch.allclose(result.weight, W, atol=1e-6)


def test_no_label_is_the_true_one_and_the_others_are_equally_likely():
    model, split, _, y = _problem(n=4001, forget=4000, classes=5)
    task = Recording(5)
    Amnesiac(epochs=1, batch_size=4001).unlearn(model, split, task, Session())
    _, targets = task.epoch(0, 1)
    steps = (targets[:4000] - y[:4000]) % 5
    assert int(steps.min()) == 1
    assert stats.chisquare(torch.bincount(steps, minlength=5)[1:].numpy()).pvalue > 1e-4


def test_labels_are_drawn_once_where_random_labels_draws_for_every_epoch_and_keeps_some_true():
    model, split, _, y = _problem()
    task = Recording(3)
    Amnesiac(epochs=3, batch_size=8).unlearn(model, split, task, Session())
    epochs = [task.epoch(number, 4)[1] for number in range(3)]
    assert torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])
    assert (epochs[0][:10] != y[:10]).all()

    task = Recording(3)
    RandomLabels(epochs=3, batch_size=10).unlearn(model, split, task, Session())
    drawn = torch.stack([task.epoch(number, 3)[1][:10] for number in range(3)])
    assert (drawn == y[:10]).any()
    assert not (drawn[0] == drawn[1]).all()


def test_batches_mix_both_sets():
    model, split, *_ = _problem()
    task = Recording(3)
    Amnesiac(epochs=2, batch_size=10).unlearn(model, split, task, Session())
    assert all((ids < 10).any() and (ids >= 10).any() for ids, _ in task.seen)


def test_another_seed_draws_other_labels():
    model, split, *_ = _problem()
    drawn = []
    for seed in (0, 1):
        task = Recording(3)
        Amnesiac(epochs=1).unlearn(model, split, task, Session(seed=seed))
        drawn.append(task.epoch(0, 1)[1])
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
def test_a_language_model_is_trained_on_one_draw_of_other_answers(setting):
    class Seeing(CausalLM):
        def loss(self, outputs, batch):
            seen.append((batch["ids"], batch["labels"], batch["input_ids"]))
            return super().loss(outputs, batch)

    seen = []
    method = Amnesiac(epochs=2, batch_size=24)
    method.unlearn(setting.original, setting.split, Seeing(11), setting.session)
    rows = [[values[ids.argsort()] for values in (labels, inputs)] for ids, labels, inputs in seen]
    assert torch.equal(rows[0][0], rows[1][0])
    labels, inputs = rows[0]
    true = setting.split.train().column("labels")
    answer, forget = true != -100, setting.split.forget.ids
    assert torch.equal(labels != -100, answer)
    assert torch.equal(labels[answer], inputs[answer])  # the model reads the answer that it must give
    changed = (labels != true).any(1).nonzero()[:, 0]
    assert torch.equal(changed, forget)


@pytest.mark.parametrize("setting", ["diffusion"], indirect=True)
def test_where_there_is_one_target_only_it_says_so(setting):
    data = setting.split.train()
    columns = {"inputs": data.column("inputs"), "targets": torch.zeros(len(data), dtype=torch.long)}
    split = Split.from_ids(columns, range(4))
    task = Diffusion(timesteps=20, conditions=1)
    with pytest.raises(Unsupported, match=r"no target other than their own.*Use a method"):
        Amnesiac().unlearn(setting.original, split, task, setting.session)
