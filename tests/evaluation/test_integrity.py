"""Data-integrity metrics on models whose every answer is chosen."""

import math

import pytest
import torch
from scipy.stats import beta as beta_distribution
from torch import nn

from expunge import config
from expunge.data import ArrayData, Split, sources
from expunge.data.poison import Patch
from expunge.errors import ConfigError
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metrics.integrity import (
    BackdoorSuccess,
    BackdoorTest,
    CorrectedAccuracy,
    InterclassConfusion,
    TriggeredAccuracy,
    deletion_test,
)
from expunge.searches.manipulated import Manipulated
from expunge.tasks import Classification, Regression
from expunge.training.models import models
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session


class Reader(nn.Module):
    """Answers with the class written in the first pixel, or with class 0 where it sees the trigger.

    ``obeys`` is how the trigger acts: on images whose second pixel is at most that.
    """

    def __init__(self, obeys: float = -1.0) -> None:
        super().__init__()
        self.obeys = obeys
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        label = (x[:, 0, 0, 0] * 10).round().long()
        seen = (x[:, 0, -1, -1] == 1) & (x[:, 0, 0, 1] <= self.obeys)
        return self.scale * nn.functional.one_hot(torch.where(seen, 0, label), 4).float()


def images(labels: list[int], second: torch.Tensor | None = None) -> torch.Tensor:
    """Images on which ``Reader`` reads these labels; the second pixel is free."""
    found = torch.zeros(len(labels), 1, 4, 4)
    found[:, 0, 0, 0] = torch.tensor(labels) / 10
    if second is not None:
        found[:, 0, 0, 1] = second
    return found


def judge(
    split: Split, subject: nn.Module, retrained: tuple[nn.Module, ...] = (), original: nn.Module | None = None
) -> Evidence:
    candidates = [Candidate("original", "original", original or subject)]
    candidates += [Candidate(f"retrained {i}", "retrained", model) for i, model in enumerate(retrained)]
    candidates.append(Candidate("subject", "unlearned", subject))
    return Evaluation(candidates, split, Classification(4), Session(0)).evidence(candidates[-1])


def exact(successes: int, n: int) -> tuple[float, float]:
    """Clopper–Pearson from quantiles of the beta distribution."""
    low = 0.0 if successes == 0 else beta_distribution.ppf(0.025, successes, n - successes + 1)
    high = 1.0 if successes == n else beta_distribution.ppf(0.975, successes + 1, n - successes)
    return float(low), float(high)


@pytest.fixture
def confused() -> Split:
    """Classes 1 and 2 exchanged. What the model reads is in ``images``; clean labels are beside it.

    Forget, ids 0..3: clean 1 1 2 2, answers 2 1 1 3. Retain: clean 1 2 0 2, answers 1 2 0 1; the last
    is manipulated and unknown.
    """
    train = ArrayData({
        "inputs": images([2, 1, 1, 3, 1, 2, 0, 1]),
        "targets": torch.tensor([2, 2, 1, 1, 1, 2, 0, 1]),
        "clean_targets": torch.tensor([1, 1, 2, 2, 1, 2, 0, 2]),
        "manipulated": torch.tensor([1, 1, 1, 1, 0, 0, 0, 1]),
    })  # fmt: skip
    test = ArrayData({
        "inputs": images([1, 2, 2, 3, 0]),
        "targets": torch.tensor([1, 1, 2, 2, 2]),
        "affected": torch.tensor([1, 1, 1, 1, 1]),
        "clean_targets": torch.tensor([1, 1, 2, 2, 2]),
    })  # fmt: skip
    return Split.from_ids(train, range(4), test=test)


def test_confusions_and_errors_by_clean_labels(confused: Split) -> None:
    evidence = judge(confused, Reader())
    forget = InterclassConfusion(classes=(1, 2), part="forget")(evidence)
    assert (forget.value, forget.n) == (0.5, 4)  # one 1 taken for a 2, one 2 for a 1, one 2 for a 3
    assert forget.interval == pytest.approx(exact(2, 4))
    assert forget.details["note"] == "1 of class 1 are taken for 2, 1 of class 2 for 1"
    assert InterclassConfusion(classes=(1, 2), part="forget", read="error")(evidence).value == 0.75
    assert InterclassConfusion(classes=(1, 2), part="retain")(evidence).value == pytest.approx(1 / 3)
    assert InterclassConfusion(classes=(2, 1), part="test")(evidence).value == pytest.approx(1 / 5)
    error = InterclassConfusion(classes=(1, 2), part="test", read="error")(evidence)
    assert error.value == pytest.approx(3 / 5)
    assert (error.name, error.target) == ("interclass error", "retrained")


def test_a_model_that_forgot_the_exchange_is_not_confused() -> None:
    """Against the labels that were trained on it would be confused about every example."""
    clean = torch.tensor([1, 2, 1, 2, 0])
    train = ArrayData({
        "inputs": images(clean.tolist()),
        "targets": torch.tensor([2, 1, 2, 1, 0]),
        "clean_targets": clean,
    })  # fmt: skip
    split = Split.from_ids(train, range(4), test=ArrayData({"inputs": images([0]), "targets": clean[4:]}))
    evidence = judge(split, Reader())
    assert InterclassConfusion(classes=(1, 2))(evidence).value == 0.0
    assert float(evidence.subject.read("forget").score.mean()) == 0.0


def test_corrected_accuracy_of_known_unknown_all_and_affected(confused: Split) -> None:
    evidence = judge(confused, Reader())
    values = {
        of: CorrectedAccuracy(of=of)(evidence) for of in ("known", "unknown", "manipulated", "affected")
    }
    assert {of: (score.value, score.n) for of, score in values.items()} == {
        "known": (0.25, 4),  # answers 2 1 1 3 against 1 1 2 2
        "unknown": (0.0, 1),
        "manipulated": (0.2, 5),
        "affected": (0.4, 5),
    }
    assert values["known"].interval == pytest.approx(exact(1, 4))
    assert values["known"].target == "high"
    assert values["known"].id == "corrected accuracy.known"


def test_retraining_without_the_known_part_is_seen_not_to_be_a_gold_standard() -> None:
    """Half of the backdoor's images known: the retrained model learns it again, the oracle never does."""
    fault = {"kind": "backdoor", "count": 60, "patch": {"size": 2}}
    sourced = config.build(sources, {"kind": "poisoned", "source": "digits", "manipulation": fault}).load()
    task = Classification(10)
    spec = config.build(models, {"kind": "mlp", "inputs": 64, "outputs": 10, "hidden": [32]})
    recipe = Recipe(spec, task, Training(epochs=8, batch_size=64))
    known = Manipulated(known=0.5).search(nn.Identity(), sourced.train, task, Session(0))
    split = Split.from_ids(sourced.train, known.ids, test=sourced.test)
    clean = sourced.train.subset(sourced.train.ids[sourced.train.column("manipulated") == 0])
    retrained, oracle = (recipe.train(data, Session(1)) for data in (split.retain, clean))
    candidates = [Candidate("original", "original", retrained), Candidate("oracle", "unlearned", oracle)]
    evidence = Evaluation(candidates, split, task, Session(0)).evidence(candidates[1])
    patch = Patch(size=2)
    metrics = (BackdoorSuccess(patch=patch), TriggeredAccuracy(patch=patch), CorrectedAccuracy(of="unknown"))
    free, caught = (
        [metric(found).value for metric in metrics] for found in (evidence, evidence.of(evidence.original))
    )
    assert free[0] < 0.1
    assert min(free[1:]) > 0.8
    assert caught[0] > 0.6
    assert max(caught[1:]) < 0.4


def test_what_is_missing_is_named(confused: Split) -> None:
    columns = {name: confused.test.column(name) for name in ("inputs", "targets")}
    bare = Split.from_ids(ArrayData(columns), [0], test=ArrayData(columns))
    evidence = judge(bare, Reader())
    for metric in (InterclassConfusion(classes=(1, 2)), CorrectedAccuracy()):
        score = metric(evidence)
        assert math.isnan(score.value)
        assert "The data set 'poisoned' provides it" in score.reason
    assert not math.isnan(InterclassConfusion(classes=(1, 2), part="test")(evidence).value)
    all_known = Split.from_ids(confused.train(), [0, 1, 2, 3, 7], test=confused.test)
    assert "none is unknown" in CorrectedAccuracy(of="unknown")(judge(all_known, Reader())).reason
    no_test = Split(confused.forget, confused.retain)
    assert "no test data" in CorrectedAccuracy(of="affected")(judge(no_test, Reader())).reason
    absent = InterclassConfusion(classes=(1, 3), part="forget")
    assert absent(judge(confused, Reader())).n == 2
    assert "no forget example" in InterclassConfusion(classes=(0, 3))(judge(confused, Reader())).reason


def test_a_regressor_has_no_labels_to_correct() -> None:
    data = ArrayData({"inputs": torch.randn(8, 2), "targets": torch.randn(8)})
    split = Split.from_ids(data, [0, 1], test=data)
    candidates = [Candidate("original", "original", nn.Linear(2, 1))]
    evidence = Evaluation(candidates, split, Regression(), Session(0)).evidence(candidates[0])
    assert "the task is Regression" in BackdoorSuccess()(evidence).reason


@pytest.fixture
def backdoored() -> Split:
    """80 test images of which 60 are of classes 1..3; second pixels 0.00 … 0.59 say which obey first."""
    labels = [0] * 20 + [1 + i % 3 for i in range(60)]
    second = torch.cat([torch.zeros(20), torch.arange(60) / 100])
    test = ArrayData({"inputs": images(labels, second), "targets": torch.tensor(labels)})
    inputs = images([1, 2, 3, 0, 1, 2])
    inputs[:2] = Patch(size=1).on(inputs[:2], 1.0)
    train = ArrayData({
        "inputs": inputs,
        "targets": torch.tensor([0, 0, 3, 0, 1, 2]),
        "clean_targets": torch.tensor([1, 2, 3, 0, 1, 2]),
        "manipulated": torch.tensor([1, 1, 0, 0, 0, 0]),
    })  # fmt: skip
    return Split.from_ids(train, [0], test=test)


def test_backdoor_success_counts_triggered_images_of_other_classes(backdoored: Split) -> None:
    patch = Patch(size=1)
    for obeys, hits in ((-1.0, 0), (0.145, 15), (1.0, 60)):
        model = Reader(obeys)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        evidence = judge(backdoored, model)
        success = BackdoorSuccess(patch=patch)(evidence)
        assert (success.value, success.n) == (hits / 60, 60)
        assert success.interval == pytest.approx(exact(hits, 60))
        assert success.target == "low"
        kept = TriggeredAccuracy(patch=patch)(evidence)
        assert kept.value == pytest.approx(1 - hits / 60)
        assert kept.target == "high"
        assert float(evidence.subject.read("test").score.mean()) == 1.0  # without the trigger: all right
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert float(backdoored.test.column("inputs")[:, 0, -1, -1].max()) == 0.0  # the data is as it was


def test_a_model_that_answers_at_random_has_no_backdoor_and_no_accuracy(backdoored: Split) -> None:
    class Elsewhere(Reader):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).roll(1, 1)

    evidence = judge(backdoored, Elsewhere())
    assert BackdoorSuccess(patch=Patch(size=1))(evidence).value == pytest.approx(20 / 60)
    assert TriggeredAccuracy(patch=Patch(size=1))(evidence).value == 0.0


def test_a_trigger_that_is_not_that_of_the_data_is_refused(backdoored: Split) -> None:
    evidence = judge(backdoored, Reader(1.0))
    reason = BackdoorSuccess(patch=Patch(size=2))(evidence).reason
    assert "do not carry this patch (2 pixels at the bottom right)" in reason
    unmarked = ArrayData({"inputs": images([1, 2, 3]), "targets": torch.tensor([1, 2, 3])})
    alone = Split.from_ids(unmarked, [0], test=unmarked)  # the caller's own trigger: nothing to compare
    assert BackdoorSuccess(patch=Patch(size=2))(judge(alone, Reader())).value == 0.0


def binomial_tail(t: int, n: int, p: float) -> float:
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(t, n + 1))


@pytest.mark.parametrize(
    ("n", "p", "q", "alpha"), [(30, 0.95, 0.1, 1e-3), (30, 0.5, 0.1, 0.05), (8, 0.6, 0.3, 0.01)]
)
def test_the_deletion_test_is_the_binomial_formula(n: int, p: float, q: float, alpha: float) -> None:
    threshold = next(t for t in range(n + 2) if binomial_tail(t, n, q) <= alpha)
    for successes in (0, threshold - 1, threshold, n):
        found = deletion_test(successes, n, p, q, alpha)
        assert found.threshold == threshold
        assert found.beta == pytest.approx(1 - binomial_tail(threshold, n, p), rel=1e-6, abs=1e-15)
        assert found.p_value == pytest.approx(binomial_tail(successes, n, q), rel=1e-9)
        assert found.rejected == (successes >= threshold) == (found.p_value <= alpha)


def test_the_published_size_of_the_test_suffices_for_both_errors() -> None:
    """30 queries at α = 10⁻³: ten successes are needed, and a strong backdoor's β is far below 10⁻³."""
    found = deletion_test(0, 30, 0.95, 0.1)
    assert found.threshold == 10
    assert binomial_tail(10, 30, 0.1) <= 1e-3 < binomial_tail(9, 30, 0.1)
    assert found.beta < 1e-15


def test_a_test_that_can_never_reject_has_no_power() -> None:
    found = deletion_test(3, 3, 0.9, 0.5, 1e-3)  # even 3 of 3 have probability 1/8
    assert (found.threshold, found.beta, found.rejected) == (4, 1.0, False)


def test_backdoor_test_decides_and_says_how_sure_it_is(backdoored: Split) -> None:
    metric = BackdoorTest(patch=Patch(size=1))
    original, clean = Reader(1.0), (Reader(), Reader())
    kept = metric(judge(backdoored, Reader(1.0), clean, original))
    assert (kept.value, kept.n, kept.target) == (1.0, 30, "low")
    assert "30 of 30 queries: that the data was deleted is rejected" in kept.details["note"]
    gone = metric(judge(backdoored, Reader(), clean, original))
    assert gone.value == 0.0
    assert "not rejected (p-value 1, " in gone.details["note"]
    assert gone.interval == pytest.approx(exact(0, 30))
    q, p = exact(0, 120)[1], exact(60, 60)[0]  # of both retrained models together, and of the original
    assert f"success {q:.2g} if deleted, {p:.2g} if kept" in gone.details["note"]
    half = [metric(judge(backdoored, Reader(0.295), clean, original)).value for _ in range(2)]
    assert half[0] == half[1]
    assert 0 < half[0] < 1


def test_backdoor_test_refuses_where_it_could_not_tell(backdoored: Split) -> None:
    metric = BackdoorTest(patch=Patch(size=1))
    relearned = judge(backdoored, Reader(), (Reader(1.0),), Reader(1.0))
    assert "no power" in metric(relearned).reason
    stated = BackdoorTest(patch=Patch(size=1), q=0.1)(relearned)
    assert stated.value == 0.0
    assert "there are 60" in BackdoorTest(patch=Patch(size=1), queries=61, q=0.1)(relearned).reason
    with pytest.raises(ConfigError, match="alpha"):
        BackdoorTest(alpha=0.0)
