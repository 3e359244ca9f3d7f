import math
import re
from dataclasses import dataclass, replace
from itertools import chain

import pytest
import torch
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import Diverged, MissingEvidence, Unsupported
from expunge.methods.modifiers.retain_projection import RetainProjection
from expunge.methods.scopes.modules import Modules
from expunge.tasks import Classification, Regression
from expunge.training.engine import Engine
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.modifier import Modifier
from expunge.training.optim import SGD, AdamW
from expunge.training.session import Session

BOTH = (Pass("retain", beside="forget"),)


def _parts(forget=5, retain=8):
    draws = torch.Generator().manual_seed(0)
    n = forget + retain
    X, y = torch.randn(n, 3, generator=draws), torch.randn(n, 1, generator=draws)
    split = Split.from_ids((X, y), range(forget))
    return {"forget": split.forget, "retain": split.retain}


def _both(step):
    return {"forget": -0.3 * step.forget.loss.mean(), "retain": 0.7 * step.retain.loss.mean()}


def _plan(**fields):
    given = {
        "what": "test",
        "objective": _both,
        "parts": _parts(),
        "passes": lambda epoch: BOTH,
        "epochs": 1,
        "batch_size": 8,
        "optim": SGD(lr=0.1, momentum=0.0),
    }
    return Plan(**{**given, **fields})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def _flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _optimise(model, plan, task=None, **session):
    return optimise(model, plan, task or Regression(low=-1.0, high=1.0), Session(**session))


# Accumulation


@pytest.mark.parametrize("parts", [2, 3, 5, 100])
@pytest.mark.parametrize("passes", [BOTH, (Pass("forget", beside="retain"),)])
def test_pieces_add_up_to_the_whole_batch_also_where_the_two_parts_differ_in_size(model, parts, passes):
    plan = _plan(passes=lambda epoch: passes, epochs=3)
    whole = _optimise(model, plan)
    pieces = _optimise(model, plan, engine=Engine(accumulate=parts))
    assert torch.allclose(_flat(whole), _flat(pieces), atol=1e-6)


@pytest.mark.parametrize("parts", [2, 5])
def test_terms_kept_apart_and_the_probe_add_up_too(model, parts):
    def ascent(step):
        return {"forget": -step.forget.loss.mean()}

    plan = _plan(objective=ascent, passes=lambda epoch: (Pass("forget"),), modifiers=(RetainProjection(),))
    whole = _optimise(model, plan)
    pieces = _optimise(model, plan, engine=Engine(accumulate=parts))
    assert torch.allclose(_flat(whole), _flat(pieces), atol=1e-6)


def test_logged_values_are_those_of_the_whole_batch(model):
    def values(parts):
        events = []
        _optimise(model, _plan(), engine=Engine(accumulate=parts), callbacks=(events.append,))
        return next(event.values for event in events if event.kind == "evaluated")

    whole = values(1)
    assert values(3) == pytest.approx(whole, rel=1e-5)
    assert list(whole) == ["forget", "retain"]


@pytest.mark.parametrize("setting", ["diffusion"], indirect=True)
def test_noise_is_drawn_for_the_whole_batch_before_it_is_split(setting):
    plan = _plan(parts={"forget": setting.split.forget, "retain": setting.split.retain}, batch_size=100)
    results = [
        optimise(setting.original, plan, setting.task, Session(engine=Engine(accumulate=parts)))
        for parts in (1, 2)
    ]
    assert torch.allclose(_flat(results[0]), _flat(results[1]), atol=1e-6)
    assert not torch.allclose(_flat(results[0]), _flat(setting.original), atol=1e-4)


# Passes


def _seen(**fields):
    """The ids of both parts, step by step, as an objective sees them."""
    seen = []

    def objective(step):
        seen.append({p: getattr(step, p).batch["ids"].tolist() for p in ("forget", "retain") if step.has(p)})
        part = step.retain if step.has("retain") else step.forget
        return {"loss": part.loss.mean()}

    _optimise(nn.Linear(3, 1), _plan(objective=objective, **fields))
    return seen


def test_an_epoch_goes_over_every_example_once_in_a_new_order():
    seen = _seen(epochs=2, batch_size=3, passes=lambda epoch: (Pass("retain"),))
    assert [len(step["retain"]) for step in seen] == [3, 3, 2] * 2
    epochs = [[id_ for step in seen[i : i + 3] for id_ in step["retain"]] for i in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(5, 13))
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_the_part_beside_starts_again_when_it_is_used_up_and_goes_on_in_the_next_epoch():
    seen = _seen(epochs=2, batch_size=2)  # 4 steps an epoch; the forget set has 2 batches: 2, 3
    beside = [step["forget"] for step in seen]
    assert [len(ids) for ids in beside] == [2, 3, 2, 3, 2, 3, 2, 3]
    for i in (0, 2, 4, 6):
        assert sorted(chain.from_iterable(beside[i : i + 2])) == list(range(5))


def test_a_larger_part_beside_is_not_finished_in_one_epoch():
    seen = _seen(batch_size=2, passes=lambda epoch: (Pass("forget", beside="retain"),))
    assert len(seen) == 2
    assert len({id_ for step in seen for id_ in step["retain"]}) == 4


def test_a_pass_may_have_its_own_batch_size():
    seen = _seen(passes=lambda epoch: (Pass("forget", batch_size=1), Pass("retain")), batch_size=4)
    assert [list(step) for step in seen] == [["forget"]] * 5 + [["retain"]] * 2


def test_passes_may_differ_from_epoch_to_epoch_and_the_total_counts_them():
    events = []
    plan = _plan(
        objective=lambda step: {"loss": getattr(step, step.over).loss.mean()},
        passes=lambda epoch: (Pass("forget"), Pass("retain")) if epoch == 0 else (Pass("retain"),),
        epochs=3,
        batch_size=3,
    )
    _optimise(nn.Linear(3, 1), plan, callbacks=(events.append,))
    assert [(e.index, e.total) for e in events if e.kind == "step"] == [(i, 11) for i in range(1, 12)]


@pytest.mark.parametrize(("over", "missing"), [("forget", "retain"), ("retain", "forget")])
def test_asking_for_a_part_that_the_pass_does_not_bring_says_how_to_declare_it(model, over, missing):
    plan = _plan(passes=lambda epoch: (Pass(over),))
    said = (
        f"asked for a {missing} batch in a pass over {over} alone. Declare Pass('{over}', beside='{missing}')"
    )
    with pytest.raises(MissingEvidence, match=re.escape(said)):
        _optimise(model, plan)


# Failure


def test_a_term_that_becomes_infinite_names_itself_and_the_rate(model):
    plan = _plan(
        objective=lambda step: {"good": step.retain.loss.mean(), "bad": -step.forget.loss.mean() / 0.0},
        optim=SGD(lr=0.25),
    )
    said = r"test: the term 'bad' became -inf at step 1 of 1. Lower the learning rate \(now 0.25\) or set"
    with pytest.raises(Diverged, match=said):
        _optimise(model, plan)


def test_weights_that_become_infinite_in_the_last_step_are_named(model):
    plan = _plan(objective=lambda step: {"loss": 1e30 * step.retain.loss.mean()}, optim=SGD(lr=1e30))
    with pytest.raises(Diverged, match=r"test: the weights of '\d\.\w+' are no longer finite"):
        _optimise(model, plan)


def test_statistics_that_become_infinite_are_named_as_weights_are(model):
    network = nn.Sequential(model, nn.BatchNorm1d(model[-1].out_features))

    def spoil(running: nn.Module, index: int) -> bool:
        running[1].running_var.fill_(torch.inf)
        return False

    plan = replace(_plan(objective=lambda step: {"loss": step.retain.loss.mean()}), after=spoil)
    with pytest.raises(Diverged, match=r"the weights of '1\.running_var' are no longer finite"):
        _optimise(network, plan)


def test_a_term_without_any_trainable_parameter_is_unsupported(model):
    plan = _plan(objective=lambda step: {"loss": step.retain.original_loss.mean()})
    with pytest.raises(Unsupported, match="does not depend on any parameter that may move"):
        _optimise(model, plan)


def test_modifiers_need_both_parts(model):
    plan = _plan(
        objective=lambda step: {"loss": step.retain.loss.mean()},
        parts={"retain": _parts()["retain"]},
        passes=lambda epoch: (Pass("retain"),),
        modifiers=(RetainProjection(),),
    )
    with pytest.raises(Unsupported, match="modifiers need both a forget and a retain part"):
        _optimise(model, plan)


# Steps


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "multistep"])
def test_the_schedule_reaches_the_optimiser_at_every_step(schedule):
    optim = SGD(lr=0.1, momentum=0.0, schedule=schedule, warmup=0.2)
    plan = _plan(
        objective=lambda step: {"loss": step.model.weight.sum()},
        passes=lambda epoch: (Pass("retain"),),
        batch_size=4,
        epochs=5,
        optim=optim,
    )
    model = nn.Linear(3, 1, bias=False)
    moved = model.weight - _optimise(model, plan).weight
    expected = 0.1 * sum(optim.factor(index, 10) for index in range(10))
    assert torch.allclose(moved, torch.full((1, 3), expected), atol=1e-6)


def test_clipping_bounds_the_norm_of_the_sum_of_all_terms():
    plan = _plan(
        objective=lambda step: {"a": 30 * step.model.weight.sum(), "b": 10 * step.model.weight.sum()}
    )
    model = nn.Linear(3, 1, bias=False)
    for clip, norm in ((None, 4.0 * math.sqrt(3)), (0.5, 0.05), (1e6, 4.0 * math.sqrt(3))):
        optim = SGD(lr=0.1, momentum=0.0, clip=clip)
        moved = (_optimise(model, replace(plan, optim=optim)).weight - model.weight).detach()
        assert float(moved.norm()) == pytest.approx(norm, rel=1e-4)


def test_a_watcher_sees_every_step_and_stops_the_run(model):
    events, watched = [], []

    def after(current, index):
        watched.append((index, not torch.equal(_flat(current), _flat(model))))
        return index == 3

    plan = _plan(epochs=10, batch_size=4, after=after)
    result = _optimise(model, plan, callbacks=(events.append,))
    assert watched == [(1, True), (2, True), (3, True)]
    assert [event.kind for event in events] == [
        "started", "step", "step", "evaluated", "step", "evaluated", "finished",
    ]  # fmt: skip
    assert (events[-1].index, events[-1].total) == (3, 20)
    straight = _optimise(model, replace(plan, after=lambda current, index: index == 3))
    assert torch.equal(_flat(result), _flat(straight))


def test_values_of_an_epoch_are_means_over_its_steps(model):
    values, events = [], []

    def objective(step):
        terms = _both(step)
        values.append(terms["forget"].item())
        return terms

    _optimise(model, _plan(objective=objective, batch_size=2), callbacks=(events.append,))
    (evaluated,) = [event for event in events if event.kind == "evaluated"]
    assert len(values) == 4
    assert evaluated.values["forget"] == pytest.approx(sum(values) / 4, rel=1e-6)
    assert (evaluated.what, evaluated.index, evaluated.total) == ("test", 1, 1)


def test_an_objective_reads_where_it_is_and_its_state(model):
    seen = []

    def objective(step):
        seen.append((step.epoch, step.index, step.total, step.over, step.state))
        return _both(step)

    _optimise(model, _plan(objective=objective, epochs=2, batch_size=4, state="kept"))
    assert seen == [(i // 2, i, 4, "retain", "kept") for i in range(4)]


# Modifiers


@dataclass(frozen=True, kw_only=True)
class Noting(Modifier):
    """Writes down what it is given and changes nothing, or doubles."""

    notes: list
    factor: float = 1.0

    separate = True

    def prepare(self, model, split, task, session):
        return len(split.forget), len(split.retain)

    def gradients(self, terms, state, optimizer):
        self.notes.append((self.factor, list(terms), state))
        return {t: {n: self.factor * g for n, g in grads.items()} for t, grads in terms.items()}


@dataclass(frozen=True, kw_only=True)
class Protecting(Noting):
    protects_retain = True


def test_terms_reach_a_modifier_apart_by_name_with_its_state(model):
    notes = []
    plan = _plan()
    result = _optimise(model, replace(plan, modifiers=(Noting(notes=notes),)))
    assert notes == [(1.0, ["forget", "retain"], (5, 8))]
    assert torch.allclose(_flat(result), _flat(_optimise(model, plan)), atol=1e-7)


def test_modifiers_are_applied_in_order_each_to_what_the_one_before_returned(model):
    notes = []
    chain = (Noting(notes=notes, factor=2.0), Noting(notes=notes, factor=3.0))
    moved = _flat(_optimise(model, _plan(modifiers=chain))) - _flat(model)
    plain = _flat(_optimise(model, _plan())) - _flat(model)
    assert [factor for factor, *_ in notes] == [2.0, 3.0]
    assert torch.allclose(moved, 6.0 * plain, atol=1e-5)


def test_the_probe_is_read_and_neither_stepped_nor_logged(model):
    notes, events = [], []
    plan = _plan(
        objective=lambda step: {"forget": step.forget.loss.mean()}, passes=lambda e: (Pass("forget"),)
    )
    result = _optimise(model, replace(plan, modifiers=(Protecting(notes=notes),)), callbacks=(events.append,))
    assert [terms for _, terms, _ in notes] == [["forget", "probe"]]
    assert [list(e.values) for e in events if e.kind == "evaluated"] == [["forget"]]
    assert torch.allclose(_flat(result), _flat(_optimise(model, plan)), atol=1e-7)


def test_where_the_objective_has_a_retain_term_there_is_no_probe(model):
    notes = []
    _optimise(model, _plan(modifiers=(Protecting(notes=notes),)))
    assert [terms for _, terms, _ in notes] == [["forget", "retain"]]


# State of modules


@pytest.fixture
def normed():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)
    )


@pytest.mark.parametrize(
    ("patterns", "moving"),
    [(["*"], {"1", "3"}), (["3"], {"3"}), (["4"], set()), (["0", "3.bias"], {"3"})],
)
def test_statistics_outside_the_scope_stay_also_of_norms_without_parameters(normed, patterns, moving):
    result = _optimise(normed, _plan(scope=Modules(patterns=tuple(patterns)), epochs=2))
    before, after = dict(normed.named_buffers()), dict(result.named_buffers())
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == moving


def test_in_evaluation_mode_no_statistic_moves(normed):
    result = _optimise(normed, _plan(mode="eval", epochs=2))
    after = dict(result.named_buffers())
    assert all(torch.equal(buffer, after[name]) for name, buffer in normed.named_buffers())


@pytest.mark.parametrize(("mode", "same"), [("train", False), ("eval", True)])
def test_dropout_follows_the_mode_and_the_seed(mode, same):
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1))
    plan = _plan(mode=mode, batch_size=100, objective=lambda step: {"loss": step.retain.loss.mean()})
    first, again, other = (_flat(_optimise(model, plan, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.allclose(first, other, atol=1e-5) == same


def test_a_model_that_is_one_module_can_be_optimised():
    data = {"retain": ArrayData({"inputs": torch.eye(3), "targets": torch.arange(3)})}
    plan = _plan(
        objective=lambda step: {"loss": step.retain.loss.mean()},
        parts=data,
        passes=lambda epoch: (Pass("retain"),),
        epochs=30,
        optim=AdamW(lr=0.1),
    )
    result = _optimise(nn.Linear(3, 3), plan, Classification(3))
    assert result(torch.eye(3)).argmax(1).tolist() == [0, 1, 2]
