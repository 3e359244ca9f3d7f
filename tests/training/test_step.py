import pytest
import torch
from torch import nn

from expunge.data import ArrayData, CropFlip, Split, fixed_order
from expunge.errors import MissingEvidence
from expunge.methods.gradient.npo import NPO
from expunge.tasks import Classification
from expunge.training.engine import Engine
from expunge.training.session import Session
from expunge.training.step import Original, Step, View


class Counting(nn.Module):
    """A model whose forward passes are counted, its deep copies' included."""

    def __init__(self, model, calls):
        super().__init__()
        self.model = model
        self.register_forward_hook(
            lambda *_: calls.append("trained" if torch.is_grad_enabled() else "frozen")
        )

    def forward(self, *arguments, **named):
        return self.model(*arguments, **named)


def _view(setting, part="forget", data=None, rows=None, original=None, model=None):
    """A view of some rows of a part, its ``Original`` and the list of forward passes."""
    calls = []
    data = data or getattr(setting.split, part)
    source = Counting(setting.fresh(), calls)
    original = original or Original(source, setting.task, Engine(), {part: data})
    positions = torch.arange(len(data)) if rows is None else torch.tensor(rows)
    (batch,) = data.batches([positions], device="cpu")
    batch = setting.task.prepare(batch, torch.Generator().manual_seed(0))
    changed = Counting(model or setting.recipe.initial(Session(seed=3)).eval(), calls)
    generator = torch.Generator().manual_seed(1)
    return View(part, batch, changed, original, setting.task, Engine(), generator), original, calls


READ = ("outputs", "loss", "log_likelihood", "original", "original_loss", "original_log_likelihood", "drift")


def test_every_value_is_computed_from_one_forward_pass_of_each_model(setting):
    view, _, calls = _view(setting)
    for _ in range(2):
        for name in READ:
            getattr(view, name)
        view.divergence(3.0)
    assert sorted(calls) == ["frozen", "trained"]


def test_values_are_the_tasks_and_gradients_belong_to_the_model_being_changed(setting):
    view, original, _ = _view(setting)
    task, batch = setting.task, view.batch
    with torch.no_grad():
        before = task.outputs(original.model, batch)
    assert torch.equal(view.original, before)
    assert torch.equal(view.loss, task.loss(view.outputs, batch))
    assert torch.equal(view.original_loss, task.loss(before, batch))
    assert torch.equal(view.log_likelihood, task.log_likelihood(view.outputs, batch))
    assert torch.equal(view.original_log_likelihood, task.log_likelihood(before, batch))
    assert torch.equal(view.drift, task.divergence(before, view.outputs, batch))
    assert torch.equal(view.divergence(2.0), task.divergence(before, view.outputs, batch, 2.0))
    assert view.loss.requires_grad
    assert view.drift.requires_grad
    assert not view.original.requires_grad
    assert not view.original_loss.requires_grad
    assert len(view) == len(batch["ids"])


@pytest.mark.parametrize("setting", ["classification", "regression", "causal_lm"], indirect=True)
def test_the_originals_numbers_are_kept_by_example_whatever_the_batch(setting):
    view, original, calls = _view(setting, rows=[3, 1, 4])
    first = view.original_loss
    calls.clear()
    again, *_ = _view(setting, rows=[4, 3], original=original)
    assert torch.equal(again.original_loss, first[[2, 0]])
    assert calls == []
    partly, *_ = _view(setting, rows=[0, 3], original=original)
    assert torch.allclose(partly.original_loss[1], first[0], atol=1e-6)
    assert calls == ["frozen"]  # row 0 was not known yet
    again.original_log_likelihood  # noqa: B018 - another number
    assert calls == ["frozen", "frozen"]


@pytest.mark.parametrize("setting", ["diffusion"], indirect=True)
def test_where_the_task_draws_noise_they_are_computed_each_time(setting):
    view, original, calls = _view(setting, rows=[3, 1])
    view.original_loss  # noqa: B018
    again, *_ = _view(setting, rows=[3, 1], original=original)
    again.original_loss  # noqa: B018
    assert calls == ["frozen", "frozen"]


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_where_examples_are_augmented_they_are_computed_each_time(setting):
    columns = {name: setting.split.forget.column(name) for name in ("inputs", "targets")}
    data = ArrayData(columns, augment=CropFlip(padding=1))
    view, original, calls = _view(setting, data=data)
    view.original_loss  # noqa: B018
    again, *_ = _view(setting, data=data, original=original)
    again.original_loss  # noqa: B018
    assert calls == ["frozen", "frozen"]


@pytest.mark.parametrize(
    ("setting", "passes"),
    [("classification", 3), ("regression", 3), ("causal_lm", 2), ("diffusion", 3 * 2)],
    indirect=["setting"],
)
def test_a_method_that_needs_the_original_pays_for_it_in_the_first_epoch_only(setting, passes):
    calls = []
    model = Counting(setting.fresh(), calls)
    method = NPO(epochs=3, batch_size=4, retain_weight=0.0)
    method.unlearn(model, setting.split, setting.task, Session())
    batches = -(-len(setting.split.forget) // 4)
    assert calls.count("frozen") == (batches if setting.name != "diffusion" else 3 * batches) == passes
    assert calls.count("trained") == 3 * batches


def test_the_original_is_in_evaluation_mode_and_stays_what_it_was(setting):
    model = setting.fresh().train()
    original = Original(model, setting.task, Engine(), {"forget": setting.split.forget})
    said = []
    watch = model.register_forward_hook(lambda module, *_: said.append(module.training))
    (batch,) = setting.split.forget.batches([torch.arange(2)], device="cpu")
    batch = setting.task.prepare(batch, None)
    loss = setting.task.loss(original.said(batch), batch)
    watch.remove()
    assert said
    assert not any(said)
    assert not loss.requires_grad
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_relabelled_view_is_drawn_once_and_has_the_same_examples(setting):
    view, *_ = _view(setting)
    assert view.relabelled is view.relabelled
    assert torch.equal(view.relabelled.batch["ids"], view.batch["ids"])
    assert any(not torch.equal(view.relabelled.batch[name], view.batch[name]) for name in view.batch)


def test_relabelling_costs_a_forward_pass_only_where_inputs_change(setting):
    view, _, calls = _view(setting)
    view.loss, view.relabelled.loss  # noqa: B018
    assert len(calls) == 1 + setting.task.relabel_changes_inputs


def test_the_originals_loss_of_relabelled_examples_is_not_taken_from_the_true_ones(setting):
    view, original, _ = _view(setting)
    true = view.original_loss
    relabelled = view.relabelled
    with torch.no_grad():
        outputs = setting.task.outputs(original.model, relabelled.batch)
    assert torch.equal(relabelled.original_loss, setting.task.loss(outputs, relabelled.batch))
    likelihood = setting.task.log_likelihood(outputs, relabelled.batch)
    assert torch.equal(relabelled.original_log_likelihood, likelihood)
    assert not torch.equal(relabelled.original_loss, true)
    again, *_ = _view(setting, original=original)
    assert torch.equal(again.original_loss, true)


def test_a_step_has_the_parts_it_was_given_and_names_the_others(setting):
    view, *_ = _view(setting)
    step = Step("forget", {"forget": view}, nn.Identity(), 0, 0, 1, None)
    assert step.forget is view
    assert step.has("forget")
    assert not step.has("retain")
    with pytest.raises(MissingEvidence, match=r"Declare Pass\('forget', beside='retain'\) in passes\(\)"):
        _ = step.retain


def test_ids_need_not_be_sorted_nor_dense():
    split = Split.from_ids((torch.randn(30, 4), torch.arange(30) % 3), [29, 3, 17, 11])
    model, task = nn.Linear(4, 3), Classification(3)
    original = Original(model, task, Engine(), {"forget": split.forget})
    (batch,) = split.forget.batches(fixed_order(4, 4), device="cpu")
    view = View("forget", batch, nn.Linear(4, 3), original, task, Engine(), None)
    with torch.no_grad():
        expected = task.loss(model(batch["inputs"]), batch)
    assert torch.allclose(view.original_loss, expected, atol=1e-6)
    assert batch["ids"].tolist() == [29, 3, 17, 11]
