"""Reference models: who is trained on what, what is kept of it, and how examples are found again."""

import pytest
import torch

from expunge.data import ArrayData, Split, StreamData
from expunge.data.pool import pooled
from expunge.data.source import sources
from expunge.errors import ConfigError, DataError, MissingEvidence
from expunge.evaluation import statistics
from expunge.evaluation.attacks.lira import LiRA
from expunge.evaluation.attacks.rmia import RMIA
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.shadows import ShadowPlan, Shadows, halves, train_shadows, treat
from expunge.methods.base import Method, methods
from expunge.tasks import Classification
from expunge.training.models import Mlp
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

RECIPE = Recipe(
    Mlp(inputs=3, outputs=3, hidden=(6,)),
    Classification(3),
    Training(epochs=2, batch_size=8, optim=SGD(lr=0.1)),
)


def data(count: int, seed: int) -> ArrayData:
    draws = torch.Generator().manual_seed(seed)
    return ArrayData(
        {
            "inputs": torch.randn(count, 3, generator=draws),
            "targets": torch.randint(3, (count,), generator=draws),
        }
    )


@pytest.mark.parametrize(("count", "fraction"), [(2, 0.5), (16, 0.5), (8, 0.25), (6, 2 / 3), (5, 0.4)])
def test_every_example_is_in_equally_many_models_and_models_are_equally_large(count, fraction) -> None:
    members = halves(120, ShadowPlan(count=count, fraction=fraction), torch.Generator().manual_seed(0))
    assert members.sum(0).unique().tolist() == [round(count * fraction)]
    assert members.sum(1).unique().tolist() == [round(120 * fraction)]


def test_an_odd_pool_differs_by_one_example_and_any_even_number_of_models_is_balanced() -> None:
    members = halves(31, ShadowPlan(count=8), torch.Generator().manual_seed(0))
    assert set(members.sum(1).tolist()) == {15, 16}
    for first in (2, 4, 6):
        assert members[:first].sum(0).unique().tolist() == [first // 2]
    other = halves(31, ShadowPlan(count=8), torch.Generator().manual_seed(1))
    assert not torch.equal(members, other)
    assert not torch.equal(members[0], members[2])


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"count": 1}, "at least 2"), ({"count": 3}, "= 1.5 models"), ({"fraction": 1.0}, "below 16"),
     ({"group": 0}, "at least 1")],
)  # fmt: skip
def test_a_plan_that_cannot_be_balanced_is_refused(fields, said) -> None:
    with pytest.raises(ConfigError, match=said):
        ShadowPlan(**fields)


@pytest.fixture(scope="module")
def trained() -> tuple[ArrayData, ArrayData, Shadows]:
    train, test = data(30, 0), data(20, 1)
    return train, test, train_shadows(RECIPE, train, test, ShadowPlan(count=4), Session(0))


def test_shadows_are_models_of_the_recipe_read_over_all_examples(trained) -> None:
    train, test, shadows = trained
    assert shadows.members.shape == shadows.loss.shape == shadows.margin.shape == (4, 50)
    assert shadows.members.sum(1).tolist() == [25] * 4
    assert shadows.ensemble.how == "stacked"
    pool = pooled(train, test)
    alone = RECIPE.train(pool.subset(shadows.members[1].nonzero()[:, 0]), Session(0).child("shadow", 1))
    logits = alone(pool.column("inputs"))
    expected = torch.nn.functional.cross_entropy(logits, pool.column("targets"), reduction="none")
    torch.testing.assert_close(shadows.loss[1], expected.detach(), atol=1e-4, rtol=1e-4)
    p = torch.exp(-shadows.loss.double())
    torch.testing.assert_close(shadows.margin.double(), (p / (1 - p)).log(), atol=1e-3, rtol=1e-3)


def test_parts_are_found_by_id_whatever_their_order(trained) -> None:
    train, test, shadows = trained
    split = Split.from_ids(train, [7, 2, 11], test=test.subset([19, 0]))
    bound = shadows.on(split.parts())
    assert torch.equal(bound.losses("forget"), shadows.loss[:, [7, 2, 11]])
    assert torch.equal(bound.margins("test"), shadows.margin[:, [30 + 19, 30]])
    assert torch.equal(bound.inside("retain")[:, 0], shadows.members[:, 0])
    with pytest.raises(MissingEvidence, match="know nothing of the holdout"):
        bound.losses("holdout")
    with pytest.raises(DataError, match="forget example 30 is not among the 30"):
        shadows.on({"forget": data(40, 0).subset([30])})


def test_what_is_stored_gives_the_same_readings_without_the_models(trained) -> None:
    train, test, shadows = trained
    again = Shadows.from_tensors(shadows.tensors())
    for name in ("members", "loss", "margin"):
        assert torch.equal(getattr(again, name), getattr(shadows, name))
    with pytest.raises(MissingEvidence, match="not kept"):
        treat(again, methods.get("finetune")(), torch.arange(3), train, test, RECIPE.task, Session(0))


def test_treated_models_unlearn_exactly_the_audited_examples_that_they_were_trained_on(trained) -> None:
    train, test, shadows = trained
    seen = []

    class Watching(Method):
        def unlearn(self, model, split, task, session):
            seen.append((split.forget.ids, split.retain.ids))
            return methods.get("finetune")(epochs=1).unlearn(model, split, task, session)

    forget = torch.arange(0, 12)
    treated = treat(shadows, Watching(), forget, train, test, RECIPE.task, Session(0))
    assert int(treated.audited[:30].sum()) == int(treated.audited[30:].sum()) == 12
    for (gone, kept), inside in zip(seen, shadows.members, strict=True):
        assert torch.equal(gone, (inside & treated.audited).nonzero()[:, 0])
        assert torch.equal(kept, (inside & ~treated.audited).nonzero()[:, 0])
    sizes = [len(gone) for gone, _ in seen]
    assert sizes[0] + sizes[1] == sizes[2] + sizes[3] == 24
    assert not torch.equal(treated.loss, shadows.loss)
    split = Split.from_ids(train, forget, test=test)
    assert treated.on(split.parts()).judged("forget").all()
    assert not shadows.on(split.parts()).judged("forget").any()


def test_unequal_shapes_are_refused(trained) -> None:
    tensors = trained[2].tensors()
    with pytest.raises(DataError, match="loss has the shape"):
        Shadows.from_tensors({**tensors, "loss": tensors["loss"][:, :-1]})


def test_a_pool_is_one_data_set_after_the_other() -> None:
    first, second = data(5, 0).subset([3, 1]), data(4, 1)
    pool = pooled(first, second)
    assert pool.ids.tolist() == list(range(6))
    expected = torch.cat([first.column("inputs"), second.column("inputs")])
    assert torch.equal(pool.column("inputs"), expected)
    streams = [
        StreamData(list(zip(d.column("inputs"), d.column("targets"), strict=True))) for d in (first, second)
    ]
    streamed = pooled(streams[0].subset([1]), streams[1])
    (batch,) = streamed.batches([torch.arange(5)], device="cpu")
    assert torch.equal(batch["inputs"], expected[1:])


def test_data_sets_that_do_not_fit_each_other_are_not_pooled() -> None:
    with pytest.raises(DataError, match="the columns inputs, targets"):
        pooled(data(5, 0), ArrayData({"inputs": torch.ones(3, 3)}))
    with pytest.raises(DataError, match="'inputs' is"):
        pooled(data(5, 0), ArrayData({"inputs": torch.ones(3, 4), "targets": torch.ones(3).long()}))
    with pytest.raises(DataError, match="of the same kind"):
        pooled(data(5, 0), StreamData([(torch.ones(3), 1)]))


@pytest.mark.slow
def test_attacks_find_members_of_an_overfitted_model_of_digits_and_none_of_a_retrained_one() -> None:
    """The claims of ``bench/membership.py`` at small size, with digits half of whose labels are wrong."""
    published, draws = sources.get("digits")().load().train, torch.Generator().manual_seed(5)
    rows = torch.randperm(len(published), generator=draws)[:1400]
    x, y = published.column("inputs")[rows], published.column("targets")[rows].clone()
    wrong = torch.rand(1400, generator=draws) < 0.5
    y[wrong] = torch.randint(10, (int(wrong.sum()),), generator=draws)
    train, test = (
        ArrayData({"inputs": x[part], "targets": y[part]}) for part in (slice(700), slice(700, 1400))
    )
    training = Training(epochs=30, batch_size=32, optim=SGD(lr=0.1, schedule="cosine"))
    recipe = Recipe(Mlp(inputs=64, outputs=10), Classification(10), training)
    split, session = Split.from_ids(train, range(350), test=test), Session(0)
    shadows = train_shadows(recipe, train, test, ShadowPlan(count=32), session)
    candidates = [
        Candidate("original", "original", recipe.train(train, session.child("original"))),
        Candidate("retrained", "retrained", recipe.train(split.retain, session.child("retrained"))),
    ]
    evaluation = Evaluation(candidates, split, recipe.task, session, shadows.on(split.parts()))
    original, retrained = (evaluation.evidence(candidate) for candidate in candidates)
    losses = [(-original.subject.read(part).loss).double().numpy() for part in ("forget", "test")]
    lira, few = LiRA()(original), RMIA(references=4)(original)
    assert lira.interval[0] > statistics.auc(*losses)[1][1]
    assert few.interval[0] > 0.5
    for attack in (LiRA(), RMIA(references=4)):
        low, high = attack(retrained).interval
        assert low < 0.5 < high
