"""Population-level membership attacks on models whose outputs are chosen."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError
from expunge.evaluation import statistics
from expunge.evaluation.attacks.cross_validated import CrossValidated
from expunge.evaluation.attacks.entropy_logistic import EntropyLogistic
from expunge.evaluation.attacks.loss_threshold import LossThreshold
from expunge.evaluation.attacks.membership import SVC, Threshold
from expunge.evaluation.attacks.population import Population
from expunge.evaluation.evaluate import Candidate, Evaluation, evaluate
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics
from expunge.evaluation.metrics.utility import Accuracy
from expunge.tasks import Classification, Regression, Task
from expunge.training.session import Session


class Echo(nn.Module):
    """Answers with its inputs as logits, times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def evidence(
    forget: tuple[Tensor, Tensor],
    retain: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    task: Task | None = None,
    factor: float = 1.0,
    seed: int = 0,
) -> Evidence:
    """A model that answers with the given logits on the given labels."""
    split = Split(*(ArrayData({"inputs": x, "targets": y}) for x, y in (forget, retain, test)))
    candidate = Candidate("original", "original", Echo(factor))
    task = task or Classification(forget[0].shape[1])
    return Evaluation([candidate], split, task, Session(seed)).evidence(candidate)


def answers(n: int, gain: float, seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits that are normal but for the true label's, which is ``gain`` higher."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), targets] += gain
    return logits, targets


def two_class(margins: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of two classes with the given logit-scaled confidence."""
    logits = torch.zeros(len(margins), 2)
    logits[torch.arange(len(margins)), targets] = margins
    return logits, targets


# --- the published support vector machine


@pytest.mark.parametrize("feature", ["correctness", "entropy", "modified_entropy", "probabilities"])
def test_svc_reads_each_feature_as_published(feature: str) -> None:
    from sklearn import svm

    from expunge.evaluation.attacks import signals

    parts = {"retain": answers(90, 3, 0), "test": answers(60, 1, 1), "forget": answers(40, 2, 2)}
    found = evidence(parts["forget"], parts["retain"], parts["test"])
    read = {
        "correctness": signals.correctness,
        "entropy": lambda x, y: signals.entropy(x),
        "modified_entropy": signals.modified_entropy,
        "probabilities": lambda x, y: signals.probabilities(x),
    }[feature]
    x = {part: read(*pair).numpy().reshape(len(pair[1]), -1) for part, pair in parts.items()}
    machine = svm.SVC(C=3, gamma="auto", kernel="rbf")
    machine.fit(np.r_[x["retain"][:60], x["test"]], np.r_[np.ones(60), np.zeros(60)])
    score = SVC(feature=feature)(found)
    assert score.value == pytest.approx(1 - machine.predict(x["forget"]).mean())
    assert score.id == f"membership.forget.svc-{feature.replace('_', '-')}"


def test_conformance_reads_the_published_modified_entropy_and_gets_another_value() -> None:
    # The wrong sign matters where sure answers can be sure and wrong: 30 % of the unseen ones.
    retain, test = answers(120, 5, 0), answers(120, 5, 1)
    test[0][:36] = torch.roll(test[0][:36], 1, 1)
    forget = answers(60, 5, 2)
    forget[0][:] = torch.roll(forget[0], 1, 1)  # sure and wrong, all of it
    found = evidence(forget, retain, test)
    corrected, published = (
        SVC(feature="modified_entropy", definition=d)(found) for d in ("corrected", "conformance")
    )
    assert published.id == corrected.id + "-conformance"
    assert corrected.value > 0.9  # seen to be unlike members
    assert published.value < corrected.value - 0.3  # which the published feature cannot see
    same = [SVC(definition=d)(found) for d in ("corrected", "conformance")]
    assert same[0].id == same[1].id  # there is one definition of the confidence
    assert same[0].value == same[1].value


def test_binned_svc_calls_the_same_examples_members_but_for_half_a_point() -> None:
    draws = np.random.default_rng(0)
    sides = [draws.beta(a, b, n) for a, b, n in ((5, 1, 1500), (3, 1.2, 1500), (4, 1.1, 2000))]
    retain, test, forget = (torch.from_numpy(side) for side in sides)
    exact, binned = (SVC(solver=s).members(retain, test, 1500, forget) for s in ("exact", "binned"))
    assert 0.2 < exact.double().mean() < 0.8
    assert abs(exact.double().mean() - binned.double().mean()).item() <= 0.005
    assert (exact != binned).double().mean().item() <= 0.005


def test_binned_svc_is_the_exact_one_where_there_are_fewer_values_than_bins() -> None:
    found = evidence(answers(40, 2, 2), answers(90, 3, 0), answers(60, 1, 1))
    exact, binned = SVC()(found), SVC(solver="binned")(found)
    assert torch.equal(exact.per_example, binned.per_example)
    assert (exact.id, binned.id) == (
        "membership.forget.svc-confidence",
        "membership.forget.svc-confidence-binned",
    )


def test_bins_are_for_one_number_only() -> None:
    with pytest.raises(ConfigError, match="one number"):
        SVC(solver="binned", feature="probabilities")


# --- the entropy attack


def test_entropy_logistic_is_the_published_two_class_softmax_regression() -> None:
    from expunge.evaluation.attacks import signals

    retain, test, forget = answers(150, 4, 0), answers(40, 1.5, 1), answers(60, 2.5, 2)
    score = EntropyLogistic()(evidence(forget, retain, test))
    x = torch.cat([signals.entropy(retain[0]), signals.entropy(test[0])]).numpy()
    y = np.repeat([1, 0], [150, 40])
    weights = np.repeat([190 / 300, 190 / 80], [150, 40])  # balanced: n / (2 n_side)

    def penalised(parameters: np.ndarray) -> float:
        """Softmax regression with a weight for each of the two classes, C = 1, as it was called."""
        logits = x[:, None] * parameters[:2] + parameters[2:]
        logs = logits - np.logaddexp(logits[:, 0], logits[:, 1])[:, None]
        return float(-(weights * logs[np.arange(len(y)), y]).sum() + 0.5 * (parameters[:2] ** 2).sum())

    best = minimize(penalised, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    boundary = -(best[3] - best[2]) / (best[1] - best[0])  # members are below it
    member = signals.entropy(forget[0]).numpy() < boundary
    assert 0.1 < member.mean() < 0.9
    assert score.value == pytest.approx(member.mean())
    assert score.id == "membership.forget.entropy-logistic"
    assert score.target == "retrained"


def test_entropy_logistic_counts_members_where_the_svc_counts_the_others() -> None:
    found = evidence(answers(50, 9, 2), answers(100, 9, 0), answers(100, 0, 1))
    assert EntropyLogistic()(found).value > 0.95
    assert SVC()(found).value < 0.05


def test_entropy_cannot_tell_sure_and_wrong_from_sure_and_right() -> None:
    retain, test = answers(200, 6, 0), answers(200, 0, 1)
    x, y = answers(100, 6, 2)
    wrong = torch.roll(x, 1, 1), y
    assert EntropyLogistic()(evidence(wrong, retain, test)).value > 0.95
    assert SVC(feature="modified_entropy")(evidence(wrong, retain, test)).value > 0.95  # not members


# --- SCRUB's attack


def test_cross_validated_accuracy_by_hand() -> None:
    # Forget losses near 0, test losses near 5, but for one of ten on either side: 18 of 20 are right.
    margins = torch.tensor([8.0] * 9 + [-5.0]), torch.tensor([-5.0] * 9 + [8.0])
    y = torch.zeros(10, dtype=torch.long)
    forget, test = (two_class(margin, y) for margin in margins)
    score = CrossValidated()(evidence(forget, forget, test))
    assert score.value == pytest.approx(0.9)
    assert score.n == 20
    assert score.interval == pytest.approx((0.683, 0.988), abs=1e-3)  # Clopper–Pearson, 18 of 20
    assert score.id == "membership.forget.cross-validated-loss"


def by_class(sizes: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Exchangeable within a class: class 0 easy (margin 4 ± 1), class 1 hard (0 ± 1)."""
    targets = torch.arange(2).repeat_interleave(torch.tensor(sizes))
    noise = torch.randn(len(targets), generator=torch.Generator().manual_seed(seed))
    return two_class(4.0 * (targets == 0) + noise, targets)


def test_on_a_forgotten_class_a_perfect_model_is_at_one_half_only_with_class_matching() -> None:
    found = evidence(by_class((0, 300), 0), by_class((300, 0), 1), by_class((400, 400), 2))
    matched, plain = CrossValidated()(found), CrossValidated(match_classes=False)(found)
    assert matched.interval[0] <= 0.5 <= matched.interval[1]
    assert plain.interval[0] > 0.6
    assert plain.id == matched.id + "-unmatched"


def test_published_matching_forgets_the_proportions_and_corrected_does_not() -> None:
    # 270 easy and 30 hard examples forgotten; among test examples there are as many of both.
    found = evidence(by_class((270, 30), 0), by_class((300, 300), 1), by_class((400, 400), 2))
    corrected, published = (
        CrossValidated(definition=d, repeats=5)(found) for d in ("corrected", "conformance")
    )
    assert corrected.interval[0] <= 0.5 <= corrected.interval[1]
    assert published.interval[0] > 0.55
    assert published.id == corrected.id + "-conformance"
    assert published.n == 5 * 60  # five random tenths of 600
    assert corrected.n == 600  # every example once


def test_repeats_average_and_are_seeded() -> None:
    parts = [answers(60, 3, 0), answers(60, 3, 1), answers(300, 2, 2)]
    once = [CrossValidated()(evidence(*parts, seed=seed)).value for seed in range(6)]
    often = [CrossValidated(repeats=10)(evidence(*parts, seed=seed)).value for seed in range(3)]
    assert np.std(often) < 0.5 * np.std(once)
    again = CrossValidated()(evidence(*parts, seed=3))
    assert again.value == once[3]
    assert CrossValidated(repeats=20).labels(evidence(*parts))[2] == "cross-validated-loss-20-times"


@pytest.mark.parametrize(
    ("forget", "test", "message"),
    [
        (answers(1, 1, 0), answers(50, 1, 1), "5 parts need at least 5 forget examples"),
        (answers(4, 1, 0), answers(50, 1, 1), "5 parts need at least 5 forget examples"),
        (by_class((5, 5), 0), by_class((20, 0), 1), "no test example of class 1"),
    ],
)
def test_too_few_to_cross_validate_is_a_reason(forget, test, message) -> None:
    score = CrossValidated()(evidence(forget, forget, test))
    assert math.isnan(score.value)
    assert message in score.reason


def test_a_regressor_has_no_classes_and_the_message_says_what_to_do() -> None:
    x = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    parts = (x[:20], x[:20, 0] + 0.1), (x[20:40], x[20:40, 0]), (x[40:], x[40:, 0] + 1)
    found = evidence(*parts, task=Regression())
    assert "Set match_classes to false" in CrossValidated()(found).reason
    assert CrossValidated(match_classes=False)(found).reason is None
    assert "Set by_class to false" in Population()(found).reason
    assert Population(by_class=False)(found).reason is None
    assert "needs a classifier" in EntropyLogistic()(found).reason
    with pytest.raises(ConfigError, match="at least 2"):
        CrossValidated(folds=1)


# --- thresholds read as AUC, balanced accuracy and true positive rates


def test_loss_threshold_by_hand() -> None:
    y = torch.zeros(4, dtype=torch.long)
    forget, test = two_class(torch.tensor([3.0, 2, 1, 0]), y), two_class(torch.tensor([2.5, 0.5, -1, -2]), y)
    found = evidence(forget, forget, test)
    # 3 beats 4 of them, 2 and 1 beat 3, 0 beats 2: 12 of 16 pairs
    assert LossThreshold()(found).value == pytest.approx(12 / 16)
    assert LossThreshold(read="tpr", fpr=0.25)(found).value == pytest.approx(3 / 4)
    assert LossThreshold()(found).id == "membership.forget.loss-threshold-auc"


def test_losses_that_round_to_zero_still_tell_members_apart() -> None:
    y = torch.zeros(50, dtype=torch.long)
    forget, test = two_class(torch.linspace(60, 80, 50), y), two_class(torch.linspace(30, 50, 50), y)
    found = evidence(forget, forget, test)
    assert float(found.subject.read("forget").loss.max()) == 0 == float(found.subject.read("test").loss.max())
    assert LossThreshold()(found).value == 1.0


def test_population_ranks_by_hand() -> None:
    y = torch.tensor([0, 0, 1, 1])
    # class 0 of the test set: −1, 1, 1, 3; class 1: 5, 7
    test = two_class(torch.tensor([-1.0, 1, 1, 3, 5, 7]), torch.tensor([0, 0, 0, 0, 1, 1]))
    forget = two_class(torch.tensor([1.0, 4.0, 6.0, 0.0]), y)
    members, others = Population().scores(evidence(forget, forget, test))
    assert members.tolist() == pytest.approx([(1 + 1) / 4, 1.0, 0.5, 0.0])
    assert others.tolist() == pytest.approx([0.5 / 4, 2 / 4, 2 / 4, 3.5 / 4, 0.5 / 2, 1.5 / 2])


def test_ranks_of_a_model_without_knowledge_are_at_chance_with_few_non_members_and_with_ties() -> None:
    plain, tied = [], []
    for seed in range(60):
        draws = torch.Generator().manual_seed(seed)
        parts = [two_class(1 + torch.randn(12, generator=draws), torch.arange(12) % 3 % 2) for _ in range(2)]
        found = evidence(parts[0], parts[0], parts[1])
        members, others = Population().scores(found)
        plain.append(statistics.auc(members.numpy(), others.numpy())[0])
        members, others = Population(signal="correctness").scores(found)
        tied.append(statistics.auc(members.numpy(), others.numpy())[0])
    for values in (plain, tied):
        assert np.mean(values) == pytest.approx(0.5, abs=3 * np.std(values) / 60**0.5)
        assert np.std(values) < 0.2


def test_chance_of_a_true_positive_rate_is_above_the_false_positive_rate_with_few_non_members() -> None:
    y = torch.arange(100).repeat_interleave(20) % 100  # 20 non-members in each of 100 classes
    rates = []
    for seed in range(10):
        draws = torch.Generator().manual_seed(seed)
        forget, test = ((torch.randn(2000, 100, generator=draws), y) for _ in range(2))
        score = Population(read="tpr", fpr=0.05)(evidence(forget, forget, test))
        rates.append(score.value)
    assert score.perfect == pytest.approx(2 / 21)  # the best of 20 and the gap below it, of 21 places
    assert np.mean(rates) == pytest.approx(score.perfect, abs=0.012)
    assert np.mean(rates) > 0.07
    assert LossThreshold(read="tpr", fpr=0.05)(evidence(forget, forget, test)).perfect == 101 / 2001


def test_easy_classes_look_like_members_to_one_threshold_but_not_to_ranks() -> None:
    found = evidence(by_class((270, 30), 0), by_class((30, 30), 1), by_class((400, 400), 2))
    globally, ranked = LossThreshold()(found), Population()(found)
    assert globally.interval[0] > 0.6  # nothing was trained: only the mixture of classes differs
    assert ranked.interval[0] <= 0.5 <= ranked.interval[1]
    assert Population(by_class=False)(found).value == pytest.approx(globally.value)


def test_signals_of_the_population_attack_point_the_same_way() -> None:
    found = evidence(answers(200, 4, 0), answers(50, 4, 1), answers(200, 1, 2))
    kinds = ("confidence", "correctness", "entropy", "modified_entropy")
    scores = [Population(signal=kind)(found) for kind in kinds]
    assert all(score.value > 0.6 for score in scores)
    assert len({score.id for score in scores}) == 4


@pytest.mark.parametrize("attack", [LossThreshold, Population])
def test_leakage_of_retained_examples_is_read_before_and_after(attack) -> None:
    retain, test = answers(4000, 3, 0), answers(1000, 2, 1)
    before = evidence(retain, retain, test, factor=1.0)
    # an unlearned model that became less sure of the retained examples alone
    blurred = retain[0] - 0.9 * nn.functional.one_hot(retain[1], 3)
    after = evidence((blurred, retain[1]), (blurred, retain[1]), test)
    for read, chance in (("auc", 0.5), ("balanced_accuracy", 0.5), ("tpr", 0.01)):
        first, second = (attack(part="retain", read=read)(found) for found in (before, after))
        assert (first.n, first.part) == (4000, "retain")
        assert first.interval[0] > chance
        assert first.interval[0] > second.interval[1]
        assert first.interval[0] < first.value < first.interval[1]
        assert first.details["roc"][-1] == [1.0, 1.0]


def test_fifty_thousand_retained_examples_are_read_in_less_than_a_second() -> None:
    import time

    found = evidence(answers(10, 3, 0, 10), answers(50_000, 3, 1, 10), answers(10_000, 2, 2, 10))
    found.subject.read("retain"), found.subject.read("test")
    start = time.process_time()
    for read in ("auc", "balanced_accuracy", "tpr"):
        assert Population(part="retain", read=read)(found).reason is None
    assert time.process_time() - start < 3


# --- bad input


def test_too_few_non_members_for_the_false_positive_rate_says_how_many_it_needs() -> None:
    found = evidence(answers(20, 1, 0), answers(20, 1, 1), answers(200, 1, 2))
    for attack in (LossThreshold, Population):
        assert "at least 1000 non-members; there are 200" in attack(read="tpr", fpr=0.001)(found).reason
        assert attack(read="tpr", fpr=0.01)(found).reason is None


def test_a_forget_set_of_one() -> None:
    found = evidence(answers(1, 1, 0), answers(50, 1, 1), answers(50, 1, 2))
    for metric in (SVC(), Threshold(), EntropyLogistic()):
        score = metric(found)
        assert score.value in (0.0, 1.0)
        assert score.interval in ((0.0, pytest.approx(0.975)), (pytest.approx(0.025), 1.0))
    assert LossThreshold()(found).interval is None
    assert 0 <= LossThreshold()(found).value <= 1
    assert "at least two members" in LossThreshold(read="balanced_accuracy")(found).reason


def test_constant_answers_are_refused_by_every_attack() -> None:
    y = torch.zeros(30, dtype=torch.long)
    same = torch.ones(30, 3), y
    found = evidence(same, same, same)
    for metric in (SVC(), Threshold(), EntropyLogistic(), CrossValidated(), LossThreshold(), Population()):
        score = metric(found)
        assert math.isnan(score.value)
        assert "same" in score.reason


def test_a_class_without_non_members_cannot_be_ranked() -> None:
    found = evidence(by_class((10, 10), 0), by_class((10, 10), 1), by_class((10, 0), 2))
    assert "no test example of class 1 to rank its forget examples among" in Population()(found).reason


def test_outputs_that_are_nan_spoil_the_attacks_and_nothing_else() -> None:
    parts = {"forget": answers(20, 1, 0), "retain": answers(20, 1, 1), "test": answers(20, 1, 2)}
    parts["forget"][0][3, 0] = 1e30  # times 1e30 an infinity
    split = Split(*(ArrayData({"inputs": x, "targets": y}) for x, y in parts.values()))
    attacks = [SVC(), SVC(feature="entropy"), EntropyLogistic(), CrossValidated(), LossThreshold()]
    others = [Accuracy(part="retain"), LossThreshold(part="retain")]
    rows = evaluate(
        [Candidate("original", "original", Echo(1e30))],
        split,
        Classification(3),
        Session(0),
        [*attacks, *others],
    )
    scores = list(rows[0].scores.values())
    for score in scores[: len(attacks)]:
        assert "NaN or infinite for 1 of 20 forget examples" in score.reason
    assert all(score.reason is None for score in scores[len(attacks) :])


# --- names


def test_no_two_kinds_of_membership_score_share_an_id() -> None:
    found = evidence(answers(20, 1, 0), answers(20, 1, 1), answers(20, 1, 2))
    both = ("corrected", "conformance")
    features = ("confidence", "correctness", "entropy", "modified_entropy", "probabilities")
    kinds = [SVC(feature=feature) for feature in features]
    kinds += [SVC(feature=feature, solver="binned") for feature in features[:4]]
    kinds += [
        SVC(feature="modified_entropy", definition="conformance", solver=s) for s in ("exact", "binned")
    ]
    kinds += [
        CrossValidated(definition=definition, repeats=repeats, match_classes=matched, folds=folds)
        for definition in both
        for repeats in (1, 20)
        for matched in (True, False)
        for folds in (5, 10)
    ]
    kinds += [Population(signal=s, by_class=b) for s in features[:4] for b in (True, False)]
    for part in ("forget", "retain"):
        kinds += [LossThreshold(part=part, read="tpr", fpr=fpr) for fpr in (0.001, 0.01)]
        kinds += [LossThreshold(part=part, read=read) for read in ("auc", "balanced_accuracy")]
    own = (SVC, CrossValidated, Population, LossThreshold)
    kinds += [metrics.get(name)() for name in metrics.names() if not issubclass(metrics.get(name), own)]
    ids = [".".join(kind.labels(found)) for kind in kinds]
    assert len(ids) == len(set(ids))
    assert all(name.endswith("-conformance") for name in ids if "conformance" in name)
