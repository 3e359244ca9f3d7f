import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from expunge.config import build, dump
from expunge.data import ArrayData
from expunge.errors import ConfigError, DataError, MissingEvidence, Unsupported
from expunge.methods.base import methods
from expunge.methods.gradient.finetune import Finetune
from expunge.methods.optimisers.sign_sgd import SignSGD
from expunge.searches import searches
from expunge.searches.bilevel import Bilevel, project
from expunge.searches.loss_ranking import LossRanking
from expunge.searches.random_set import RandomSet
from expunge.tasks import Classification, Regression
from expunge.training.models import Mlp
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

TASK = Classification(3)
RECIPE = Recipe(Mlp(inputs=3, outputs=3, hidden=()), TASK, Training(epochs=4, batch_size=40))


@pytest.fixture
def data() -> ArrayData:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (120,), generator=generator)
    x = torch.randn(120, 3, generator=generator) + 2 * torch.eye(3)[y]
    return ArrayData({"inputs": x, "targets": y}, class_names=("a", "b", "c"))


@pytest.fixture
def model(data: ArrayData) -> nn.Module:
    from expunge import seeding

    with seeding.seeded(0):
        return Recipe(lambda: nn.Linear(3, 3), TASK, Training(epochs=20)).train(data, Session(0))


@pytest.mark.parametrize("kind", [
    {"kind": "random_set", "size": 10}, {"kind": "loss_ranking", "size": 10},
    {"kind": "loss_ranking", "size": 10, "mode": "easiest"}, {"kind": "bilevel", "size": 10},
    {"kind": "bilevel", "size": 10, "mode": "easiest"}, {"kind": "class_set", "classes": [1]},
    {"kind": "given", "ids": [5, 3]}, {"kind": "moderate", "size": 10}, {"kind": "entanglement", "size": 10},
    {"kind": "el2n", "size": 10, "models": 2}, {"kind": "grand", "size": 10, "models": 2},
    {"kind": "memorisation", "size": 10, "models": 2}, {"kind": "greedy", "size": 10},
    {"kind": "greedy", "size": 10, "mode": "easiest", "dims": 5, "scope": "everything"},
    {"kind": "bilevel", "size": 10, "upper": 2, "fresh": True},
    {"kind": "bilevel", "size": 10, "upper": 2, "method": {"kind": "finetune", "epochs": 1}},
])  # fmt: skip
def test_every_search_is_repeatable_and_changes_nothing(kind, data, model) -> None:
    search = build(searches, kind)
    assert build(searches, dump(search)) == search
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, session = torch.get_rng_state(), Session(1, recipe=RECIPE)
    search.check(data, TASK)
    first, second = (search.search(model, data, TASK, session) for _ in range(2))
    assert torch.equal(first.ids, second.ids)
    assert first.details == second.details
    assert first.ids.tolist() == sorted(set(first.ids.tolist()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    if "size" in kind:
        assert len(first.ids) == 10


SIZED = (
    "random_set",
    "loss_ranking",
    "bilevel",
    "moderate",
    "el2n",
    "grand",
    "memorisation",
    "entanglement",
    "greedy",
)


@pytest.mark.parametrize("kind", SIZED)
def test_searches_forget_classes_and_subjects_whole(kind, data, model) -> None:
    subjects = torch.arange(120) // 7  # the last of 18 has one record, the others seven
    known = {name: data.column(name) for name in ("inputs", "targets")}
    with_subjects = ArrayData({**known, "subjects": subjects})
    cheap = {"el2n": {"models": 1}, "grand": {"models": 1}, "memorisation": {"models": 2}}.get(kind, {})
    for unit, column, size in (("class", data.column("targets"), 1), ("subject", subjects, 3)):
        search = build(searches, {"kind": kind, "size": size, "unit": unit, **cheap})
        assert search.gives_classes == (unit == "class")
        found = search.search(model, with_subjects, TASK, Session(1, recipe=RECIPE))
        inside = torch.isin(torch.arange(120), found.ids)
        assert found.unit == unit
        assert len(column[inside].unique()) == size
        assert torch.equal(inside, torch.isin(column, column[inside].unique()))


@pytest.mark.parametrize("kind", SIZED)
def test_what_a_search_cannot_do_is_refused_before_any_training(kind, data) -> None:
    for fields, said in (
        ({"size": 120}, "leaves nothing to keep: the data has 120 examples. Ask for at most 119"),
        ({"size": 3, "unit": "class"}, "3 classes"),
        ({"unit": "subject"}, "no column 'subjects'. Add it, or use unit=example"),
        ({"unit": "prompt"}, "no column 'prompts'"),
    ):
        with pytest.raises(DataError, match=said):
            build(searches, {"kind": kind, **fields}).check(data, TASK)
    numbers = ArrayData({"inputs": torch.zeros(9, 3), "targets": torch.zeros(9, 1)})
    search = build(searches, {"kind": kind, "unit": "class"})
    with pytest.raises(Unsupported):
        search.check(numbers, Regression())


def test_what_is_prepared_once_serves_sets_of_all_sizes(data, model) -> None:
    session = Session(1, recipe=RECIPE)
    for kind in ("el2n", "grand", "memorisation"):
        search = build(searches, {"kind": kind, "size": 10, "models": 2})
        known = search.prepare(data, TASK, session)
        assert all(value.shape == (120,) for value in known.values())
        ready = replace(session, prepared=known, recipe=None)  # nothing is trained any more
        for size in (10, 20):
            sized = replace(search, size=size)
            again = sized.search(model, data, TASK, ready)
            assert torch.equal(again.ids, sized.search(model, data, TASK, session).ids)
        fields = {"size", "unit", "mode", "batch_size"} - set(search.prepared_by)
        assert set(dump(search)) - {"kind", *fields} == set(search.prepared_by)


def test_random_set_depends_on_the_seed(data, model) -> None:
    a, b = (RandomSet(size=0.25).search(model, data, TASK, Session(s)).ids for s in (0, 1))
    assert len(a) == 30
    assert not torch.equal(a, b)


def test_class_set_is_all_of_the_class_and_names_it(data, model) -> None:
    found = build(searches, {"kind": "class_set", "classes": [1]}).search(model, data, TASK, Session(0))
    assert (data.subset(found.ids).column("targets") == 1).all()
    assert len(found.ids) == int((data.column("targets") == 1).sum())
    assert "class b" in found.description


def test_loss_ranking_takes_the_smallest_or_largest_losses(data, model) -> None:
    losses = nn.functional.cross_entropy(
        model(data.column("inputs")), data.column("targets"), reduction="none"
    )
    order = losses.argsort()
    worst = LossRanking(size=7).search(model, data, TASK, Session(0))
    easiest = LossRanking(size=7, mode="easiest").search(model, data, TASK, Session(0))
    assert set(worst.ids.tolist()) == set(order[:7].tolist())
    assert set(easiest.ids.tolist()) == set(order[-7:].tolist())
    assert worst.overlap(easiest) == 0.0
    assert worst.overlap(worst) == 1.0


def test_projection_is_the_nearest_point_of_the_capped_simplex() -> None:
    from scipy.optimize import minimize

    wanted = torch.tensor([2.0, 0.9, 0.3, -1.0, 0.1]).double()
    found = project(wanted, 2)
    nearest = minimize(
        lambda w: ((w - wanted.numpy()) ** 2).sum(), x0=[0.4] * 5, bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 2},
    ).x  # fmt: skip
    assert found.tolist() == pytest.approx(nearest.tolist(), abs=1e-4)
    assert found.sum().item() == pytest.approx(2)


def test_projection_leaves_a_feasible_point_where_it_is() -> None:
    inside = torch.tensor([0.5, 0.25, 0.25, 1.0]).double()
    assert project(inside, 2).tolist() == pytest.approx(inside.tolist(), abs=1e-9)


def test_the_published_step_from_a_random_binary_start_returns_that_start() -> None:
    """The trap that the uniform start and the scaled losses avoid (sheet 1.6, trap 1)."""
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(200, generator=generator).double() * 3
    start = torch.zeros(200).double()
    start[torch.randperm(200, generator=generator)[:20]] = 1
    binary, uniform = start.clone(), torch.full((200,), 0.1).double()
    for _ in range(20):
        binary = project(binary - 1e-3 * losses, 20)
        uniform = project(uniform - losses / losses.mean(), 20)
    assert set(binary.argsort(descending=True)[:20].tolist()) == set(start.nonzero()[:, 0].tolist())
    assert set(uniform.argsort(descending=True)[:20].tolist()) == set(losses.argsort()[:20].tolist())


def test_bilevel_scores_in_evaluation_mode_without_moving_batch_statistics(data) -> None:
    from expunge.searches.base import losses

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    before = model[1].running_mean.clone()
    first, second = losses(model, data, TASK, Session(0)), losses(model, data, TASK, Session(0))
    assert torch.equal(first, second)
    assert torch.equal(model[1].running_mean, before)
    assert model.training


def test_bilevel_excludes_the_chosen_from_its_lower_level(data, model) -> None:
    """With weight 1 on some examples, the lower level never sees their labels."""
    weights = torch.zeros(120).double()
    weights[:30] = 1
    poisoned = data.column("targets").clone()
    poisoned[:30] = (poisoned[:30] + 1) % 3
    other = ArrayData({"inputs": data.column("inputs"), "targets": poisoned})
    search = Bilevel(size=10)
    a, b = (search._unlearn(model, d, weights, TASK, Session(0)) for d in (data, other))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    free = search._unlearn(model, other, torch.zeros(120).double(), TASK, Session(0))
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), free.parameters(), strict=True))


@pytest.mark.parametrize("size", [0, 1.5, -3, 0.0, 1.0])
def test_sizes_that_fit_no_data_are_refused_at_once(size) -> None:
    with pytest.raises(ConfigError, match="size"):
        RandomSet(size=size)


def test_sizes_and_classes_that_do_not_fit_this_data_are_refused(data, model) -> None:
    with pytest.raises(DataError, match="leaves nothing to keep"):
        RandomSet(size=120).check(data, TASK)
    with pytest.raises(DataError, match="no training example has class 7"):
        build(searches, {"kind": "class_set", "classes": [7]}).check(data, TASK)
    with pytest.raises(DataError, match="all of the data"):
        build(searches, {"kind": "class_set", "classes": [0, 1, 2]}).check(data, TASK)
    with pytest.raises(Unsupported, match="no classes"):
        build(searches, {"kind": "class_set", "classes": [0]}).check(data, Regression())
    with pytest.raises(DataError, match="500"):
        build(searches, {"kind": "given", "ids": [500]}).check(data, TASK)
    with pytest.raises(ConfigError, match="a list of ids, the path of a file with ids"):
        build(searches, {"kind": "given"})


def test_losses_of_a_collapsed_model_do_not_break_the_search(data) -> None:
    constant = nn.Linear(3, 3)
    nn.init.zeros_(constant.weight), nn.init.zeros_(constant.bias)
    found = Bilevel(size=5).search(constant, data, TASK, Session(0))
    assert len(found.ids) == 5
    assert math.isfinite(found.overlap(found))


def test_bilevel_weighs_units_by_their_mean_loss() -> None:
    """Subject 0 has six easy records, 1 two middling ones, 2 an easy and a hard one, 3 two easy ones."""
    inputs = torch.zeros(12, 3)
    inputs[:, 0] = torch.tensor([5.0, 5, 5, 5, 5, 5, 1, 1, 5, -5, 5, 5])
    subjects = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3])
    targets = torch.zeros(12, dtype=torch.long)
    data = ArrayData({"inputs": inputs, "targets": targets, "subjects": subjects})
    model = nn.Linear(3, 3, bias=False)
    nn.init.eye_(model.weight)
    # by the sum of its losses, 3 would be easier than 0; their means are equal, and 0 comes first
    for mode, subject in (("easiest", 2), ("worst", 0)):
        search = Bilevel(size=1, unit="subject", mode=mode, optim=SignSGD(lr=1e-9))
        found = search.search(model, data, TASK, Session(0))
        assert found.ids.tolist() == (subjects == subject).nonzero()[:, 0].tolist()


def test_bilevel_from_new_weights_does_not_know_the_original(data, model) -> None:
    shifted = nn.Linear(3, 3)
    found = [
        Bilevel(size=10, fresh=True).search(original, data, TASK, Session(1, recipe=RECIPE))
        for original in (model, shifted)
    ]
    assert torch.equal(found[0].ids, found[1].ids)
    with pytest.raises(MissingEvidence, match="fresh=true needs the recipe"):
        Bilevel(size=10, fresh=True).search(model, data, TASK, Session(1))


def test_bilevel_with_a_method_asks_it_to_forget_the_heaviest(data, model) -> None:
    asked: list[list[int]] = []

    @dataclass(frozen=True, kw_only=True)
    class Noted(Finetune):
        def unlearn(self, model, split, task, session):
            asked.append(split.forget.ids.tolist())
            return model  # with doing nothing below, the search is the ranking by loss

    search = Bilevel(size=10, method=Noted())
    found = search.search(model, data, TASK, Session(0))
    assert [len(ids) for ids in asked] == [10] * 3
    assert asked[0] == list(range(10))  # the weights start out equal
    ranked = LossRanking(size=10).search(model, data, TASK, Session(0))
    assert found.overlap(ranked) == 1.0
    assert asked[-1] == ranked.ids.tolist()


def test_bilevel_refuses_settings_that_contradict_each_other(data) -> None:
    with pytest.raises(ConfigError, match="a method starts from the original"):
        Bilevel(method=Finetune(), fresh=True)
    classes = next(name for name in methods.names() if methods.get(name).forgets == "classes")
    search = build(searches, {"kind": "bilevel", "method": classes})
    with pytest.raises(ConfigError, match="whole classes. Set unit=class"):
        search.check(data, TASK)
    replace(search, unit="class", size=1).check(data, TASK)
