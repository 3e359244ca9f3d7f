"""SISA: dealing, aggregation, deletion and its exactness; the parts that S3T shares are tested here too."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, DataError, MissingEvidence, Unsupported
from expunge.methods.exact.sisa import SISA
from expunge.tasks import Classification, Regression, Task
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session
from expunge.training.sharding import ShardedModel, dealt

METHOD = SISA(shards=2, slices=3, epochs=2)


def _equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _without(data, ids):
    return data.subset(data.ids[~torch.isin(data.ids, torch.tensor(ids))])


def _where(deployment, *cells):
    """One id of each cell."""
    state = deployment.state
    return [int(state["ids"][state["cells"] == cell][0]) for cell in cells]


@pytest.fixture
def regression(setting):
    """A trained deployment of the micro regression: 40 examples in 2 × 3 cells, batches of 10."""
    return METHOD.deploy(setting.recipe, setting.split.train(), setting.session)


only_regression = pytest.mark.parametrize("setting", ["regression"], indirect=True)


def test_dealing_depends_on_the_id_and_the_seed_alone():
    everything = dealt(torch.arange(100), 6, seed=3)
    some = torch.tensor([97, 3, 40, 41])
    assert torch.equal(dealt(some, 6, seed=3), everything[some])
    assert not torch.equal(dealt(torch.arange(100), 6, seed=4), everything)


def test_hands_are_equally_large_and_each_run_of_ids_gives_one_to_every_hand():
    hands = dealt(torch.arange(45), 6, seed=0)
    assert set(torch.bincount(hands).tolist()) <= {7, 8}
    assert sorted(hands[6:12].tolist()) == list(range(6))


def test_a_permutation_of_positions_would_deal_other_examples_anew():
    def by_position(ids):
        return dict(
            zip(ids, torch.randperm(len(ids), generator=torch.Generator().manual_seed(0)) % 6, strict=True)
        )

    before, after = by_position(list(range(30))), by_position([i for i in range(30) if i != 4])
    assert sum(before[i] != after[i] for i in after) > 10
    hands, kept = dealt(torch.arange(30), 6, 0), torch.tensor(list(after))
    assert torch.equal(dealt(kept, 6, 0), hands[kept])


class Constant(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = nn.Parameter(torch.tensor(outputs))

    def forward(self, x):
        return self.outputs.expand(len(x), -1)


def test_classifiers_are_averaged_as_probabilities_and_predictions_as_numbers():
    one, two = torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8])
    batch = {"inputs": torch.zeros(1, 1), "targets": torch.tensor([0])}
    task = Classification(2)
    members = [Constant((one.log() + 3).tolist()), Constant((two.log() - 1).tolist())]
    outputs = task.outputs(ShardedModel(members), batch)
    assert torch.allclose(outputs.softmax(-1), torch.tensor([[0.55, 0.45]]))
    assert task.loss(outputs, batch).item() == pytest.approx(-torch.tensor(0.55).log().item())
    mean = ShardedModel([Constant([1.0]), Constant([4.0])], mixture=False)
    assert mean(torch.zeros(1, 1)).item() == 2.5


def test_two_stages_of_one_full_batch_are_two_steps_by_hand(linear):
    """``w ← w − η X₁ᵀ(X₁w − y₁)/n₁`` on slice 1, then the same on slices 1 and 2; shards are averaged."""
    train, lr = linear.split.train(), 0.1
    recipe = Recipe(
        lambda: nn.Linear(3, 1, bias=False),
        linear.task,
        Training(epochs=1, batch_size=10, optim=SGD(lr=lr, momentum=0.0)),
    )
    method = SISA(shards=2, slices=2, epochs=1)
    deployment = method.deploy(recipe, train, linear.session)
    X, y = train.column("inputs"), train.column("targets")
    cells = dealt(train.ids, 4, linear.session.seed)
    ends = []
    for shard in range(2):
        session = linear.session.child("shard", shard, "initial")
        weight = recipe.initial(session).weight.detach()[0]
        for last in range(2):
            rows = (cells // 2 == shard) & (cells % 2 <= last)
            weight = weight - lr * X[rows].T @ (X[rows] @ weight - y[rows, 0]) / rows.sum()
        ends.append(weight)
    found = [member.weight.detach()[0] for member in deployment.model.members]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, ends, strict=True))
    expected = X @ (ends[0] + ends[1]) / 2
    assert torch.allclose(deployment.model(X)[:, 0], expected, atol=1e-6)


def test_after_deletions_the_ensemble_is_bit_equal_to_one_that_never_saw_the_records(setting):
    method = SISA(shards=2, slices=3, epochs=1)
    train = setting.split.train()
    deployment = method.deploy(setting.recipe, train, setting.session)
    before = deployment.model
    gone = []
    for cell in (5, 0, 1):  # the last slice of one shard, then slices of the other
        (one,) = _where(deployment, cell)
        deployment.delete([one])
        gone.append(one)
        fresh = method.deploy(setting.recipe, _without(train, gone), setting.session)
        assert _equal(deployment.model, fresh.model)
        assert not _equal(before, fresh.model)
        assert deployment.state.keys() == fresh.state.keys()
        for name, value in fresh.state.items():
            assert name == "made_of" or torch.equal(deployment.state[name], value)


def test_unlearn_is_the_deletion_whether_it_is_prepared_or_not(setting):
    train = setting.split.train()
    split = Split.from_ids(train, train.ids[:3])
    prepared = METHOD.prepare(train, setting.task, setting.session)
    alone = METHOD.unlearn(setting.original, split, setting.task, setting.session)
    session = replace(setting.session, seed=77, prepared=prepared)
    shared = METHOD.unlearn(setting.original, split, setting.task, session)
    fresh = METHOD.deploy(setting.recipe, split.retain, setting.session)
    assert _equal(alone, fresh.model)
    assert _equal(shared, fresh.model)


@only_regression
def test_what_is_prepared_survives_a_file(setting, tmp_path):
    prepared = METHOD.prepare(setting.split.train(), setting.task, setting.session)
    save_file(prepared, tmp_path / "tensors.safetensors")
    loaded = load_file(tmp_path / "tensors.safetensors")
    results = [
        METHOD.unlearn(setting.original, setting.split, setting.task, replace(setting.session, prepared=p))
        for p in (prepared, loaded)
    ]
    assert _equal(*results)


@only_regression
def test_only_the_shard_is_trained_again_and_only_from_the_slice(setting, regression):
    before = dict(regression.state)
    (one,) = _where(regression, 1)  # slice 1 of shard 0
    report = regression.delete([one])
    assert report.retrained == {0: ((0, 1), (0, 1, 2))}
    moved = {name for name, value in regression.state.items() if before.get(name) is not value}
    assert {name.rpartition("/")[0] for name in moved} == {"", "0/0-1", "0/0-1-2"}
    # 40 examples in 6 cells: shard 0 lost one; the steps of its stages at batches of 10, two epochs each
    cells = regression.state["cells"]
    sizes = [int((cells == cell).sum()) for cell in range(6)]
    stage = [sizes[0], sizes[0] + sizes[1], sum(sizes[:3]), sizes[3], sizes[3] + sizes[4], sum(sizes[3:])]
    steps = [2 * (-(-n // 10) - (n % 10 == 1)) for n in stage]
    assert (report.steps, report.full) == (steps[1] + steps[2], sum(steps))
    assert report.deleted == 1
    assert report.share == report.steps / report.full
    assert report.served == ((0, 1, 2), (0, 1, 2))


@pytest.mark.parametrize("slices", [1, 2, 5, 20])
def test_the_stated_mean_cost_of_a_deletion(slices):
    """Stage r sees r slices: from slice r on, ``Σ_{i ≥ r} i`` of ``Σ_i i``."""
    total = sum(range(1, slices + 1))
    mean = sum(sum(range(r, slices + 1)) / total for r in range(1, slices + 1)) / slices
    assert mean == pytest.approx((2 * slices + 1) / (3 * slices))


@only_regression
def test_by_default_slices_cost_as_many_examples_as_none(setting):
    recipe = replace(setting.recipe, training=Training(epochs=30))
    assert [SISA(slices=r).training(recipe).epochs for r in (1, 2, 5, 59, 99)] == [30, 20, 10, 1, 1]


@only_regression
def test_two_seeds_and_two_shards_start_from_different_weights(setting, regression):
    other = METHOD.deploy(setting.recipe, setting.split.train(), replace(setting.session, seed=8))
    members = [*regression.model.members, *other.model.members]
    weights = [member.head.weight for member in members]
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


@only_regression
@pytest.mark.parametrize("shards", [5, 50])
def test_shards_smaller_than_a_batch_are_refused_before_anything_is_trained(setting, shards):
    events = []
    session = replace(setting.session, callbacks=(events.append,))
    with pytest.raises(Unsupported, match=r"shard 0 of .* fewer than a batch of 10\. Set fewer shards or a"):
        SISA(shards=shards).unlearn(setting.original, setting.split, setting.task, session)
    with pytest.raises(Unsupported, match="fewer than a batch"):
        SISA(shards=shards).prepare(setting.split.train(), setting.task, session)
    assert events == []


@only_regression
def test_a_deletion_that_would_leave_a_shard_smaller_than_a_batch_changes_nothing(setting, regression):
    state, model = dict(regression.state), regression.model
    of_shard = state["ids"][state["cells"] // 3 == 1]
    with pytest.raises(Unsupported, match="shard 1 of 2 holds 9 examples"):
        regression.delete(of_shard[: len(of_shard) - 9])
    assert regression.state == state
    assert regression.model is model
    assert len(regression.data) == 40


@only_regression
def test_a_record_cannot_be_deleted_twice(setting, regression):
    (one,) = _where(regression, 0)
    regression.delete([one])
    with pytest.raises(DataError, match=f"ids to delete hold {one}, which is not in the data"):
        regression.delete([one])


@only_regression
def test_a_slice_may_lose_all_its_examples(setting, regression):
    state = regression.state
    gone = state["ids"][state["cells"] == 0].tolist()
    regression.delete(gone)
    fresh = METHOD.deploy(setting.recipe, _without(setting.split.train(), gone), setting.session)
    assert _equal(regression.model, fresh.model)
    assert not any(name.startswith("0/0/") for name in regression.state)


@only_regression
def test_checkpoints_of_other_data_or_settings_are_refused(setting):
    prepared = METHOD.prepare(setting.split.train(), setting.task, setting.session)
    session = replace(setting.session, prepared=prepared)
    fewer = Split.from_ids(setting.split.retain, setting.split.retain.ids[:2])
    with pytest.raises(DataError, match="belongs to other training data or settings. Give what prepare"):
        METHOD.unlearn(setting.original, fewer, setting.task, session)
    with pytest.raises(DataError, match="other training data or settings"):
        SISA(shards=2, slices=2).unlearn(setting.original, setting.split, setting.task, session)


class Unknown(Regression):
    """A subclass, as which the mean is known; ``Strange`` is none."""


class Strange(Task):
    outputs = loss = divergence = score = None


@only_regression
def test_a_task_whose_models_cannot_be_averaged_is_refused(setting):
    train = ArrayData({"inputs": torch.randn(40, 4), "targets": torch.randn(40, 1)})
    METHOD.prepare(train, Unknown(), setting.session)
    with pytest.raises(Unsupported, match="average models of the task 'Strange'. Use retrain"):
        METHOD.prepare(train, Strange(), setting.session)


@only_regression
def test_without_a_recipe_it_says_what_to_give(setting):
    with pytest.raises(MissingEvidence, match=r"sisa trains its shards itself .* pass recipe=expunge.Recipe"):
        METHOD.unlearn(setting.original, setting.split, setting.task, Session())


@pytest.mark.parametrize("name", ["shards", "slices", "epochs"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name}: must be at least 1, got 0"):
        SISA(**{name: 0})
