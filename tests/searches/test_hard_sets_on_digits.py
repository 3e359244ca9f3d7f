"""What the hardest and easiest forget sets are for, on real data with a fully fitted original."""

import pytest
import torch

from expunge import api, experiment
from expunge.evaluation import Candidate
from expunge.evaluation.attacks.membership import SVC
from expunge.evaluation.metrics.over_unlearning import SignedGap
from expunge.evaluation.metrics.utility import Accuracy, Loss
from expunge.searches import searches
from expunge.training import parameters


@pytest.fixture(scope="module")
def digits():
    suite = experiment.read("digits")
    session = suite.session()
    return suite, session, suite.recipe.train(suite.sourced.train, session.child("original"))


def error(model, data) -> float:
    with torch.no_grad():
        wrong = model(
            data.column("inputs").float().div(255 if data.column("inputs").dtype == torch.uint8 else 1)
        )
    return (wrong.argmax(1) != data.column("targets")).double().mean().item()


@pytest.mark.parametrize(("name", "low", "high"), [("hardest", 0.0, 0.005), ("easiest", 0.2, 1.0)])
def test_retraining_forgets_the_easiest_and_not_the_hardest(digits, name, low, high, capsys) -> None:
    suite, session, original = digits
    search = suite.forget[name]
    found = search.search(original, suite.sourced.train, suite.task, session.child("search", name))
    baseline = search.baseline().search(original, suite.sourced.train, suite.task, session)
    split = suite.split(found.ids)
    models = [suite.recipe.train(split.retain, session.child("retrained", name, k)) for k in range(2)]
    mean = sum(error(model, split.forget) for model in models) / len(models)
    with capsys.disabled():
        print(
            f"\n{name}: retrained forget error {mean:.3f}, "
            f"overlap with loss_ranking {found.overlap(baseline):.3f}"
        )
    assert error(original, split.forget) <= 0.01
    assert low <= mean <= high
    assert all(parameters.shared_tensors(original, model) == [] for model in models)


def test_on_the_easiest_set_doing_nothing_is_different_and_another_retraining_is_not(digits) -> None:
    suite, session, original = digits
    split = suite.split(
        suite.forget["easiest"].search(original, suite.sourced.train, suite.task, session).ids
    )
    models = [suite.recipe.train(split.retain, session.child("honest", k)) for k in range(5)]
    metrics = [Accuracy(part="forget"), Accuracy(part="test"), Loss(part="forget"), SignedGap(), SVC()]

    def kinds(references, judged) -> list[str]:
        candidates = [Candidate("original", "original", original)]
        candidates += [Candidate(f"retrained {k}", "retrained", model) for k, model in enumerate(references)]
        candidates.append(Candidate("judged", "unlearned", judged))
        (table,) = api.compare("easiest", candidates, split, suite.task, session, metrics).tables
        return [verdict.kind for verdict in table.verdicts(table.rows[-1]).values()]

    assert kinds(models, original).count("different") >= 2
    for k, model in enumerate(models):
        assert "different" not in kinds(models[:k] + models[k + 1 :], model)


def test_random_sets_lie_in_between(digits) -> None:
    suite, session, original = digits
    found = searches.get("random_set")(size=0.05).search(original, suite.sourced.train, suite.task, session)
    split = suite.split(found.ids)
    retrained = suite.recipe.train(split.retain, session.child("retrained", "random", 0))
    assert error(original, split.forget) <= 0.01
    assert 0.0 <= error(retrained, split.forget) < 0.2
