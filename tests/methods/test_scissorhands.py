"""ScissorHands: what is drawn anew, by hand on a table of answers; the repair and its projection."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.canvases import micro
from tests.methods.told import CLASSES, ROWS, split, told

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.scissorhands import Cone, Memory, ScissorHands
from expunge.tasks import Classification, Diffusion
from expunge.training.cross_attention import cross_attention
from expunge.training.optim import SGD
from expunge.training.scope import Everything
from expunge.training.session import Session

SESSION = Session(seed=0)
PLAIN = {"scope": Everything(), "reset": Everything(), "batch_size": 4, "optim": SGD(lr=0.3, momentum=0.0)}
TABLE = torch.tensor(ROWS)


def canvas_split():
    data = micro().data
    return Split.from_ids(data, data.ids[data.column("style") == 1])


def cut(**fields):
    return ScissorHands(**{**PLAIN, **fields}).cut(told(), split(), CLASSES, SESSION).table


def test_the_weight_with_the_largest_sensitivity_is_drawn_anew_and_no_other():
    """Of class 0 the answer is (1, −2) and the inputs (0, ±1) in turns: the gradient is (1, −2), so that the
    sensitivities are 1 and 4."""
    found = cut(share=1 / 6)
    moved = found != TABLE
    assert moved.tolist() == [[False, True], [False, False], [False, False]]
    assert 0 < abs(float(found[0, 1])) < 0.1  # deviation 0.02
    assert torch.equal(cut(share=2 / 6) != TABLE, torch.tensor([[True, True], [False] * 2, [False] * 2]))


def test_sizes_of_the_gradients_of_all_batches_are_added():
    """Inputs (0, 3) and (0, −7) in batches of one: gradients (1, −5) and (1, 5) cancel in the second number
    if they are added first, as they are in one batch."""
    inputs = torch.tensor([[0.0, 3.0], [0.0, -7.0], [0.0, 0.0]])
    data = Split.from_ids(ArrayData({"inputs": inputs, "targets": torch.tensor([0, 0, 1])}), range(2))
    one = ScissorHands(**{**PLAIN, "batch_size": 1, "share": 1 / 6}).cut(told(), data, CLASSES, SESSION).table
    assert (one != TABLE).tolist()[0] == [False, True]
    whole = ScissorHands(**{**PLAIN, "share": 1 / 6}).cut(told(), data, CLASSES, SESSION).table
    assert (whole != TABLE).tolist()[0] == [True, False]


def redrawn(**fields):
    made = micro()
    method = ScissorHands(batch_size=6, **fields)
    parts, before = canvas_split(), made.model.state_dict()
    after = method.cut(made.model, parts, made.task, SESSION).state_dict()
    return {name: int((before[name] != after[name]).sum()) for name in before}


def test_the_share_is_of_the_cross_attention_or_of_all_weights_of_which_few_are_in_it():
    inside = tuple(f"{path}." for path, _ in cross_attention(micro().model))
    size = sum(p.numel() for name, p in micro().model.named_parameters() if name.startswith(inside))
    own, everywhere = redrawn(share=0.05), redrawn(share=0.05, among="scope")
    for counts in (own, everywhere):
        assert not [name for name, count in counts.items() if count and not name.startswith(inside)]
    assert sum(own.values()) == pytest.approx(0.05 * size, abs=3)  # biases that were 0 stay 0
    assert sum(everywhere.values()) != sum(own.values())


def test_biases_become_zero():
    model = SESSION.engine.copy(micro().model)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.fill_(1.0)
    found = ScissorHands(share=1.0, batch_size=6).cut(model, canvas_split(), micro().task, SESSION)
    inside = tuple(f"{path}." for path, _ in cross_attention(model))
    changed = [p for name, p in found.named_parameters() if name.startswith(inside) and name.endswith("bias")]
    assert changed
    assert all((p == 0).all() for p in changed)


def test_the_repair_draws_the_concept_to_the_anchor_and_keeps_the_rest(monkeypatch):
    """One step without a cut: class 0 goes a part of the way to class 1, whose inputs have mean 0."""
    monkeypatch.setattr(ScissorHands, "cut", lambda self, model, *_: model)
    result = ScissorHands(epochs=1, **PLAIN).unlearn(told(), split(), CLASSES, SESSION).table
    assert torch.allclose(result[0], TABLE[0] - 0.3 * 0.1 * (TABLE[0] - TABLE[1]), atol=1e-6)
    assert torch.allclose(result[1], TABLE[1] - 0.3 * TABLE[1], atol=1e-6)


def turned(gradient, direction, *, margin=0.0, every=1, steps=0):
    cone = Cone(where=Everything(), every=every, margin=margin, batch_size=1)
    memory = Memory({name: torch.tensor(values) for name, values in direction.items()}, steps)
    terms = {"total": {name: torch.tensor(values) for name, values in gradient.items()}}
    found = cone.gradients(terms, memory, None).values()
    return {name: sum(term[name] for term in found if name in term).tolist() for name in gradient}


def test_a_gradient_against_the_memory_loses_its_part_along_it_over_all_tensors_together():
    """``g = (−3, 1 | 1)``, ``g_o = (1, 0 | 1)``: ``⟨g, g_o⟩ = −2``, ``‖g_o‖² = 2``, so ``g + g_o``."""
    found = turned({"a": [-3.0, 1.0], "b": [1.0]}, {"a": [1.0, 0.0], "b": [1.0]})
    assert found == {"a": [-2.0, 1.0], "b": [2.0]}  # orthogonal to g_o


def test_tensors_outside_the_memory_and_gradients_along_it_stay():
    assert turned({"a": [-3.0], "z": [5.0]}, {"a": [1.0]}) == {"a": [0.0], "z": [5.0]}
    assert turned({"a": [3.0]}, {"a": [1.0]}, margin=0.5) == {"a": [3.0]}


def test_a_parameter_without_a_gradient_shifts_nothing():
    """The authors' loop asks another variable whether a parameter has a gradient."""
    cone = Cone(where=Everything(), every=1, margin=0.0, batch_size=1)
    memory = Memory({"none": torch.tensor([4.0]), "a": torch.tensor([1.0])})
    found = cone.gradients({"total": {"a": torch.tensor([-17.0])}}, memory, None)
    assert found["cone"]["a"].tolist() == [1.0]  # 17 / (16 + 1)


def test_the_margin_is_the_least_multiple_that_is_added():
    """The dual of GEM: ``min ½ v² ‖g_o‖² + v ⟨g, g_o⟩`` over ``v ≥ margin``."""
    gradient, direction = torch.tensor([-0.2, 1.0]), torch.tensor([2.0, 0.0])
    grid = torch.linspace(0.5, 3, 2501)
    best = grid[(0.5 * grid**2 * 4 - 0.4 * grid).argmin()]
    found = turned({"a": gradient.tolist()}, {"a": direction.tolist()}, margin=0.5)
    assert torch.allclose(torch.tensor(found["a"]), gradient + best * direction, atol=1e-5)


def test_it_projects_at_each_so_many_steps():
    for steps, wanted in ((0, 0.0), (1, -3.0), (9, -3.0), (10, 0.0)):
        assert turned({"a": [-3.0]}, {"a": [1.0]}, every=10, steps=steps) == {"a": [wanted]}


def test_with_projection_the_loss_on_the_forget_set_does_not_fall_in_the_repair(monkeypatch):
    """Class 0 answers (1, −2) and 0 is in the middle of its images: the anchor (0.2, −0.4) would lower its
    loss. The gradient of the loss is (1, −2) too, so that nothing of the step is left."""
    monkeypatch.setattr(ScissorHands, "cut", lambda self, model, *_: model)
    model = told()
    model.rows.weight.data[1] = torch.tensor([0.2, -0.4])
    method = ScissorHands(epochs=1, every=1, forget_weight=1.0, **PLAIN)
    loose = method.unlearn(model, split(), CLASSES, SESSION).table
    held = replace(method, project=True).unlearn(model, split(), CLASSES, SESSION).table
    assert loose[0].norm() < 0.9 * TABLE[0].norm()
    assert torch.allclose(held[0], TABLE[0], atol=1e-6)
    assert torch.allclose(held[1], loose[1], atol=1e-6)


@pytest.mark.parametrize("project", [False, True])
def test_it_runs_on_captions_and_the_seed_decides(project):
    made, parts = micro(), canvas_split()
    method = ScissorHands(epochs=1, batch_size=6, share=0.1, project=project)
    first, again, other = (
        method.unlearn(made.model, parts, made.task, Session(seed=seed)).state_dict() for seed in (0, 0, 1)
    )
    moved = [name for name, value in made.model.state_dict().items() if not torch.equal(value, first[name])]
    assert moved
    assert all(name.startswith("unet.") for name in moved)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_what_it_cannot_run_on_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        ScissorHands().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="is told nothing. Use grad_ascent"):
        ScissorHands().check(split(), Diffusion(timesteps=10))
    with pytest.raises(Unsupported, match="no cross-attention.*set the scope to everything"):
        ScissorHands(scope=Everything()).unlearn(told(), split(), CLASSES, SESSION)


@pytest.mark.parametrize(
    "field",
    [{"share": 0.0}, {"share": 1.1}, {"std": 0.0}, {"every": 0}, {"forget_weight": -1.0}, {"margin": -1.0}],
)
def test_bad_settings_are_refused(field):
    with pytest.raises(ConfigError):
        ScissorHands(**field)
