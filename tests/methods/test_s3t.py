"""S3T: orders of slices, blocks of adapters, deletion by stages, used-up budgets, exactness."""

import functools
import itertools
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.exact.s3t import S3T, LowRank
from expunge.methods.exact.sequences import cyclic, intact, matched, prefixes, score
from expunge.tasks import Classification
from expunge.training.models import HfViT, Mlp
from expunge.training.networks import MLP
from expunge.training.optim import SGD, AdamW
from expunge.training.recipe import Recipe
from expunge.training.session import Session

SMALL = {"epochs": 1, "batch_size": 4, "optim": AdamW(lr=0.02, weight_decay=0.0), "rank": 2}


@functools.cache
def _trained(**fields):
    """24 examples of 3 classes in 2 shards × 3 slices of four each, over a perceptron of three layers."""
    draws = torch.Generator().manual_seed(5)
    targets = torch.arange(24) % 3
    inputs = torch.eye(3, 6)[targets] + 0.3 * torch.randn(24, 6, generator=draws)
    train = ArrayData({"inputs": inputs, "targets": targets})
    recipe = Recipe(Mlp(inputs=6, outputs=3, hidden=(5, 5, 5)), Classification(3))
    method = S3T(**{"shards": 2, "slices": 3, **SMALL, **fields})
    session = Session(seed=4, recipe=recipe)
    return method, recipe, train, replace(session, prepared=method.prepare(train, recipe.task, session))


def _deployment(**fields):
    method, recipe, train, session = _trained(**fields)
    return method.deploy(recipe, train, session)


def _of(deployment, *cells):
    """One id of each cell, ``shard · 3 + slice``."""
    state = deployment.state
    return [int(state["ids"][state["cells"] == cell][0]) for cell in cells]


def _equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_cyclic_orders_are_the_rotations_and_then_rotations_of_the_rest():
    assert cyclic(3, 3) == ((0, 1, 2), (2, 0, 1), (1, 2, 0))
    assert cyclic(4, 2) == ((0, 1, 2, 3), (3, 0, 1, 2))
    assert cyclic(3, 5) == ((0, 1, 2), (0, 2, 1), (2, 0, 1), (2, 1, 0), (1, 2, 0))
    assert cyclic(1, 1) == ((0,),)


@pytest.mark.parametrize("slices", [2, 3, 4])
def test_every_budget_gives_as_many_different_orders_that_begin_evenly(slices):
    for budget in range(1, math.factorial(slices) + 1):
        orders = cyclic(slices, budget)
        assert len(set(orders)) == budget
        assert all(sorted(order) == list(range(slices)) for order in orders)
        firsts = [sum(order[0] == item for order in orders) for item in range(slices)]
        assert max(firsts) - min(firsts) <= 1
    assert set(orders) == set(itertools.permutations(range(slices)))


def test_the_score_by_hand():
    assert score((0,), [0.4, 0.3], power=2) == pytest.approx(0.6**2)
    assert score((0, 1), [0.4, 0.3], power=2) == pytest.approx(0.6**2 + 2 * 0.3**2)
    assert score((1, 0), [0.4, 0.3], power=1) == pytest.approx(0.7 + 2 * 0.3)


def test_matching_by_hand():
    """With ``t = 2`` the pairs ``i → σ(i)`` maximise ``Σ (1 − p_i − p_σ(i))²``, hence ``Σ p_i p_σ(i)``.

    For p = (.4, .3, .2, .1) the swaps 0 ↔ 1 and 2 ↔ 3 have .28, the best cycle .25, the next swaps .22.
    The third slices are then the other two of the four, once each.
    """
    orders = matched([0.4, 0.3, 0.2, 0.1], 4, power=2)
    assert [order[:2] for order in orders] == [(0, 1), (1, 0), (2, 3), (3, 2)]
    assert {order[2] for order in orders[:2]} == {2, 3}
    assert {order[2] for order in orders[2:]} == {0, 1}


def test_a_smaller_budget_keeps_the_orders_of_the_highest_score():
    probabilities = [0.5, 0.0, 0.1]
    best = max(matched(probabilities, 3), key=lambda order: score(order, probabilities))
    assert matched(probabilities, 1) == (best,)
    assert best[0] == 1


@functools.cache
def _expected(orders, slices, lost=frozenset()):
    """Expected number of uniformly drawn deletions until no stage is left, by its recursion."""
    if not intact(prefixes(orders), lost):
        return 0.0
    new = [item for item in range(slices) if item not in lost]
    return (slices + sum(_expected(orders, slices, lost | {item}) for item in new)) / len(new)


def test_deletions_until_retraining_against_sisa():
    """One order lasts until its first slice is hit, ``L``; all rotations until each slice is, ``L H_L``."""
    assert _expected(cyclic(4, 1), 4) == pytest.approx(4)
    assert _expected(cyclic(4, 4), 4) == pytest.approx(4 * (1 + 1 / 2 + 1 / 3 + 1 / 4))
    rates = [_expected(cyclic(4, budget), 4) for budget in (1, 2, 3, 4, 24)]
    assert rates == sorted(rates)
    assert rates[-1] == rates[-2]  # more orders make longer stages survive, not more deletions


def test_an_adapter_adds_nothing_at_first_and_a_change_of_its_rank():
    layer = nn.Linear(5, 4)
    weight = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, 2))
    assert torch.equal(layer.weight, weight)
    adapter = layer.parametrizations.weight[0]
    nn.init.normal_(adapter.up)
    assert torch.allclose(layer.weight - weight, math.sqrt(2) * adapter.up @ adapter.down, atol=1e-6)
    kernel = nn.Conv2d(3, 4, 2).weight
    assert LowRank(kernel, 2)(kernel).shape == kernel.shape


def test_the_first_step_by_hand():
    """At ``B = 0`` one step is ``B ← −η √r (∂L/∂W) Aᵀ`` and ``h ← h − η ∂L/∂h``, and ``A`` stays."""
    draws = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(8, 4, generator=draws), torch.arange(8) % 3
    train = ArrayData({"inputs": inputs, "targets": targets})
    recipe = Recipe(lambda: MLP(4, (5,), 3), Classification(3))
    optim = SGD(lr=0.5, momentum=0.0)
    method = S3T(shards=1, slices=1, epochs=1, batch_size=8, rank=2, optim=optim)
    deployment = method.deploy(recipe, train, Session(seed=4))
    model = method.initial(recipe, deployment.session, 0)
    down = model.body[0].parametrizations.weight[0].down.detach()
    model = method.merged(model).requires_grad_(True)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    weight, head = model.body[0].weight, model.head
    up = -0.5 * math.sqrt(2) * weight.grad @ down.T
    (member,) = deployment.model.members
    assert torch.allclose(member.body[0].weight, weight + math.sqrt(2) * up @ down, atol=1e-6)
    assert torch.allclose(member.head.weight, head.weight - 0.5 * head.weight.grad, atol=1e-6)
    assert torch.allclose(member.head.bias, head.bias - 0.5 * head.bias.grad, atol=1e-6)
    assert torch.equal(member.body[0].bias, model.body[0].bias)


@pytest.mark.parametrize(
    ("stage", "layer"), [("0", "body.4"), ("2", "body.4"), ("1-2", "body.2"), ("2-0-1", "body.0")]
)
def test_a_stage_moves_the_head_and_the_next_block_from_the_top(stage, layer):
    """Stages have a step for each slice of four, and ``A`` moves from the second step on."""
    factors = ("up", "down") if "-" in stage else ("up",)
    expected = {
        "head.weight",
        "head.bias",
        *(f"{layer}.parametrizations.weight.0.{name}" for name in factors),
    }
    for shard in range(2):
        key = f"{shard}/{stage}/"
        assert {n.removeprefix(key) for n in _deployment().state if n.startswith(key)} == expected


@pytest.mark.parametrize(
    ("layers", "slices", "expected"),
    [(3, 3, ((4,), (2,), (0,))), (5, 2, ((6, 8), (2, 4))), (4, 1, ((0, 2, 4, 6),))],
)
def test_blocks_are_counted_from_the_top_and_what_is_left_over_is_at_the_bottom(layers, slices, expected):
    blocks = S3T(slices=slices).blocks(MLP(4, (4,) * layers, 3))
    assert blocks == tuple(tuple(f"body.{i}" for i in block) for block in expected)


def test_the_queries_and_values_of_a_vision_transformer():
    pytest.importorskip("transformers")
    model = HfViT(classes=3, image_size=8, width=8, layers=4, heads=2)()
    blocks = S3T(slices=2, targets=("query", "value", "q_proj", "v_proj")).blocks(model)
    depths = [{int(re.search(r"\d+", name).group()) for name in block} for block in blocks]
    assert depths == [{2, 3}, {0, 1}]
    assert [len(block) for block in blocks] == [4, 4]


def test_a_deletion_switches_to_the_longest_stage_that_stands_and_trains_nothing():
    deployment = _deployment()
    assert deployment.served == ((0, 1, 2), (0, 1, 2))
    first, second = _of(deployment, 0, 1)
    third = int(deployment.state["ids"][deployment.state["cells"] == 1][1])  # of a slice that is lost already
    for one, served in [(first, (1, 2)), (second, (2,)), (third, (2,))]:
        report = deployment.delete([one])
        assert (report.steps, report.retrained, report.deleted) == (0, {}, 1)
        assert report.served == (served, (0, 1, 2))
    assert {name.split("/")[1] for name in deployment.state if name.startswith("0/")} == {"2"}


@pytest.mark.parametrize("setting", ["classification", "causal_lm", "diffusion"], indirect=True)
def test_what_serves_is_bit_equal_to_training_that_never_saw_the_records(setting):
    method = S3T(shards=2, slices=2, **SMALL)
    train, gone = setting.split.train(), []
    prepared = method.prepare(train, setting.task, setting.session)
    deployment = method.deploy(setting.recipe, train, replace(setting.session, prepared=prepared))
    before = deployment.model
    for cell in (1, 2):
        one = int(prepared["ids"][prepared["cells"] == cell][0])
        deployment.delete([one])
        gone.append(one)
    kept = train.subset(train.ids[~torch.isin(train.ids, torch.tensor(gone))])
    never = method.prepare(kept, setting.task, setting.session)
    stages = {name for name in deployment.state if "/" in name}
    assert stages
    assert all(torch.equal(deployment.state[name], never[name]) for name in stages)
    other = {name: value for name, value in never.items() if "/" in name}
    facts = {name: value for name, value in prepared.items() if "/" not in name}
    again = method.deploy(setting.recipe, train, replace(setting.session, prepared={**facts, **other}))
    again.delete(gone)
    assert _equal(deployment.model, again.model)
    assert not _equal(deployment.model, before)


def test_the_last_model_with_layers_masked_would_still_hold_the_record():
    """The head is trained in every stage: only the head of the stage that stands is free of the record."""
    method, recipe, train, session = _trained(budget=1)
    one = int(session.prepared["ids"][session.prepared["cells"] == 2][0])  # the last slice of shard 0
    kept = train.subset(train.ids[train.ids != one])
    never = method.prepare(kept, recipe.task, replace(session, prepared=None))
    last, stands = "0/0-1-2/head.weight", "0/0-1/head.weight"
    assert not torch.equal(session.prepared[last], never[last])
    assert torch.equal(session.prepared[stands], never[stands])
    deployment = method.deploy(recipe, train, session)
    deployment.delete([one])
    member = deployment.model.members[0]
    assert torch.equal(member.head.weight, never[stands])
    start = recipe.initial(deployment.session.child("initial"))
    assert torch.equal(member.body[0].weight, start.body[0].weight)  # the block of the last slice is off
    assert not torch.equal(member.body[2].weight, start.body[2].weight)


def test_a_used_up_budget_says_that_retraining_is_due_and_does_it_when_asked():
    deployment = _deployment()
    gone = _of(deployment, 0, 1)
    deployment.delete(gone)
    (third,) = _of(deployment, 2)
    state, model = dict(deployment.state), deployment.model
    message = (
        r"no order of slices is left in shard 0 \(1 of 2 shards\), so retraining is due\. Set retrain=auto"
    )
    with pytest.raises(Unsupported, match=message):
        deployment.delete([third])
    assert deployment.state == state
    assert deployment.model is model
    report = deployment.delete([third], retrain=True)
    method, recipe, train, session = _trained()
    assert report.retrained == {0: prefixes(method.orders())}
    assert report.served == ((0, 1, 2), (0, 1, 2))
    assert 0 < report.share < 1
    assert not torch.isin(torch.tensor([*gone, third]), deployment.state["ids"]).any()
    kept = train.subset(train.ids[~torch.isin(train.ids, torch.tensor([*gone, third]))])
    fresh = method.deploy(recipe, kept, replace(session, prepared=None))
    assert _equal(deployment.model, fresh.model)
    report = deployment.delete(_of(deployment, 0))  # and it can take deletions again
    assert (report.steps, report.served[0]) == (0, (1, 2))


def test_unlearning_beyond_the_budget_is_refused_before_training_and_done_with_auto():
    method, recipe, train, session = _trained()
    ids, cells = session.prepared["ids"], session.prepared["cells"]
    split = Split.from_ids(train, [int(ids[cells == cell][0]) for cell in range(3)])
    events = []
    quiet = replace(session, prepared=None, callbacks=(events.append,))
    model = recipe.initial(session)
    with pytest.raises(Unsupported, match="retraining is due"):
        method.unlearn(model, split, recipe.task, quiet)
    assert events == []
    result = replace(method, retrain="auto").unlearn(model, split, recipe.task, quiet)
    fresh = method.deploy(recipe, split.retain, replace(session, prepared=None))
    assert _equal(result, fresh.model)


def test_only_adapted_layers_and_heads_differ_from_the_initial_model_and_by_the_rank():
    deployment = _deployment(rank=1)
    start = dict(deployment.recipe.initial(deployment.session.child("initial")).named_parameters())
    for member in deployment.model.members:
        for name, value in member.named_parameters():
            change = value.detach() - start[name].detach()
            if name.endswith("bias") and "head" not in name:
                assert torch.equal(value, start[name])
            elif "head" not in name:
                sizes = torch.linalg.svdvals(change.double())
                assert sizes[0] > 1e-3
                assert sizes[1] < 1e-5


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_statistics_of_batch_norm_stay_those_of_the_initial_model(setting):
    method = S3T(shards=2, slices=2, **SMALL)
    model = method.deploy(setting.recipe, setting.split.train(), setting.session).model
    start = dict(setting.recipe.initial(setting.session).named_buffers())
    for member in model.members:
        assert all(torch.equal(value, start[name]) for name, value in member.named_buffers())


def test_orders_that_begin_alike_share_their_stages():
    stages = prefixes(cyclic(3, 6))
    assert len(stages) == 3 + 6 + 6
    assert stages[:3] == ((0,), (2,), (1,))


def test_slices_by_a_column_with_known_probabilities():
    _, recipe, train, session = _trained()
    columns = {name: train.column(name) for name in ("inputs", "targets")}
    risk = torch.tensor([0, 0, 1]).repeat(8)
    data = ArrayData({**columns, "risk": risk})
    method = S3T(shards=2, slices=2, probabilities=(0.1, 0.9), slice_by="risk", budget=1, **SMALL)
    assert method.orders() == ((0, 1),)
    state = method.prepare(data, recipe.task, replace(session, prepared=None))
    assert torch.equal(state["cells"] % 2, risk)
    assert torch.bincount(state["cells"] // 2).tolist() == [12, 12]
    with pytest.raises(DataError, match=r"column 'risk' must hold integers 0\.\.0"):
        S3T(shards=2, slices=1, slice_by="risk").prepare(data, recipe.task, replace(session, prepared=None))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"slices": 3}, "2 linear layers and convolutions. Set slices to at most 2"),
        ({"slices": 1, "targets": ("query",)}, r"0 linear layers .* names that end in \['query'\]. Use sisa"),
    ],
)
def test_a_model_of_too_few_layers_is_refused(fields, said):
    with pytest.raises(Unsupported, match=said):
        S3T(**fields).blocks(MLP(4, (4, 4), 3))


def test_a_model_without_a_head_is_refused():
    with pytest.raises(Unsupported, match="Give the model an attribute 'head'"):
        S3T().blocks(nn.Sequential(nn.Linear(3, 3)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rank": 0}, "rank: must be at least 1"),
        ({"batch_size": 0}, "batch_size: must be at least 1"),
        ({"slices": 3, "budget": 7}, r"budget: must be in 1\.\.6 for 3 slices, got 7"),
        ({"slices": 2, "budget": 3, "probabilities": (0.5, 0.5)}, r"budget: must be in 1\.\.2"),
        (
            {"slices": 2, "probabilities": (0.5, 0.6)},
            "probabilities: needs 2 probabilities, .* sum at most 1",
        ),
        ({"slices": 3, "probabilities": (0.5, 0.5)}, "probabilities: needs 3 probabilities, one a slice"),
    ],
)
def test_impossible_settings_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        S3T(**fields)
