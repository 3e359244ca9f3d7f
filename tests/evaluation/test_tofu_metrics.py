"""TOFU's metrics, and those to read in their place, against a model whose token probabilities are chosen."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("transformers")

from tests.evaluation.bigram import Bigram, data, evidence
from tests.evaluation.micro import sound

from expunge.data import Split
from expunge.data.text import Record
from expunge.errors import ConfigError
from expunge.evaluation import comparisons, statistics, tofu
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics
from expunge.evaluation.metrics.tofu import (
    ForgetQuality,
    ModelUtility,
    MultipleChoice,
    TruthRatio,
    TruthRatioShift,
)

N = 8
"""Questions to forget, two about each of four people; as many are kept."""


def asked(i: int, subject: str | None, paraphrase: bool = True) -> Record:
    """The answer ``a``, its paraphrase ``b``, the wrong answers ``x`` and ``y``."""
    right = {"paraphrased": "b"} if paraphrase else {}
    return Record(
        question=f"q{i}",
        answer="a",
        subject=subject,
        answers=right | {"perturbed_1": "x", "perturbed_2": "y"},
    )


def chances(right: float = 0.36, answer: float = 0.16, wrong: tuple[float, float] = (0.04, 0.16)) -> dict:
    """After each question; every answer ends with the chance ¼, so that its normalised ``p`` is √(p/4)."""
    said = {"b": right, "a": answer, "x": wrong[0], "y": wrong[1]}
    return {(f"q{i}", word): p for i in range(2 * N) for word, p in said.items()}


def made(*models: dict, part: bool = True) -> dict[str, Evidence]:
    """Evidence about models with these chances, the first one being the subject."""
    people = [asked(i, f"p{i // 2}") for i in range(2 * N)]
    facts = [asked(i, None, paraphrase=False) for i in range(2 * N)]
    train, real, world = data(people, facts[:N], facts[N:])
    probes = {"real_authors": real, "world_facts": world} if part else {"real_authors": real}
    split = Split.from_ids(train, range(N), probes=probes)
    subject, *retrained = (Bigram(train.tokenizer, model) for model in models)
    return evidence(split, subject, retrained)


P, A, WRONG = 0.3, 0.2, (0.1, 0.2)
"""Normalised probabilities of paraphrase, answer and wrong answers under ``chances()``."""

GEOMETRIC, ARITHMETIC = math.sqrt(WRONG[0] * WRONG[1]) / P, sum(WRONG) / 2 / P


@pytest.mark.parametrize(
    ("fields", "value", "variant"),
    [
        ({}, GEOMETRIC, "geometric-closeness"),
        ({"ratio": "arithmetic"}, ARITHMETIC, "arithmetic-closeness"),
        ({"read": "truthfulness"}, 1 - GEOMETRIC, "geometric-truthfulness"),
        ({"ratio": "arithmetic", "read": "truthfulness"}, 1 - ARITHMETIC, "arithmetic-truthfulness"),
        ({"read": "log"}, math.log(GEOMETRIC), "geometric-log"),
        ({"ratio": "extent"}, P / (P + GEOMETRIC * P), "extent"),
    ],
)
def test_three_truth_ratios_under_three_names(fields: dict, value: float, variant: str) -> None:
    score = TruthRatio(**fields)(made(chances())["subject"])
    assert score.value == pytest.approx(value, rel=1e-5)
    assert (score.name, score.part, score.variant) == ("truth ratio", "forget", variant)
    assert score.details == {"right": "paraphrased", "wrong": 2}
    assert score.unit == ("nats" if fields.get("read") == "log" else "fraction")
    sound(score)


def test_closeness_turns_ratios_above_one_round() -> None:
    liar = made(chances(right=0.01))["subject"]  # p = 0.05, TR = 0.1414 / 0.05
    ratio = math.sqrt(0.02) / 0.05
    assert TruthRatio()(liar).value == pytest.approx(1 / ratio, rel=1e-5)
    assert TruthRatio(read="truthfulness")(liar).value == 0.0


def test_without_a_paraphrase_the_answer_itself_is_the_right_one() -> None:
    score = TruthRatio(part="real_authors", read="truthfulness")(made(chances())["subject"])
    assert score.details["right"] == "the answer itself"
    assert score.value == pytest.approx(1 - math.sqrt(0.02) / A, rel=1e-5)


def test_what_is_added_to_denominators_hides_what_a_collapsed_model_thinks() -> None:
    found = made(chances(right=1e-30, answer=1e-30, wrong=(1e-28, 1e-28)))["subject"]
    assert TruthRatio(read="log")(found).value == pytest.approx(math.log(10), rel=1e-4)
    assert TruthRatio(ratio="extent")(found).value == pytest.approx(1 / 11, rel=1e-4)
    assert TruthRatio(ratio="extent", definition="conformance")(found).value < 1e-4
    assert TruthRatio()(found).value == pytest.approx(0.1, rel=1e-4)
    published = TruthRatio(definition="conformance")(found)
    assert published.value < 1e-3
    assert published.variant == "geometric-closeness-conformance"
    assert MultipleChoice()(found).value == pytest.approx(1 / 21, rel=1e-4)
    assert MultipleChoice(definition="conformance")(found).value < 1e-4


def test_choices_that_do_not_go_together_are_refused() -> None:
    for fields in ({"ratio": "extent", "read": "log"}, {"read": "log", "definition": "conformance"}):
        with pytest.raises(ConfigError):
            TruthRatio(**fields)
    with pytest.raises(ConfigError):
        MultipleChoice(read="accuracy", definition="conformance")
    with pytest.raises(ConfigError):
        TruthRatioShift(margin=0.0)
    with pytest.raises(ConfigError, match="twice"):
        ModelUtility(facts=("retain",))


def test_wrong_answers_must_be_there() -> None:
    plain = [Record(question=f"q{i}", answer="a") for i in range(4)]
    (train,) = data(plain)
    model = Bigram(train.tokenizer, {})
    found = evidence(Split.from_ids(train, [0, 1]), model, [model])["subject"]
    for name in ("truth_ratio", "forget_quality", "truth_ratio_shift", "multiple_choice"):
        assert "the forget data has no wrong answers; it has: none" in metrics.get(name)()(found).reason
    assert model.calls == 0


def spread(shift: float = 0.0) -> dict:
    """Chances that differ between the questions, with log truth ratios moved by ``−shift/2``."""
    found = chances()
    for i in range(2 * N):
        found[f"q{i}", "b"] = 0.1 * (1 + i / N) * math.exp(shift)
    return found


def test_forget_quality_is_the_published_test_against_each_retrained_model() -> None:
    from scipy.stats import ks_2samp

    # log TR falls with log b by half of it; eight of them, moved so that 4 of 8 change sides
    found = made(spread(0.5), spread(), spread(0.01))["subject"]
    score = ForgetQuality()(found)
    logs = [
        [math.log(math.sqrt(0.02)) - math.log(0.1 * (1 + i / N) * math.exp(s) / 4) / 2 for i in range(N)]
        for s in (0.5, 0.0, 0.01)
    ]
    tests = [ks_2samp(logs[0], other) for other in logs[1:]]
    assert score.details["p"] == pytest.approx(
        {f"retrained {i + 1}": test.pvalue for i, test in enumerate(tests)}
    )
    assert score.details["distance"] == pytest.approx(
        {f"retrained {i + 1}": test.statistic for i, test in enumerate(tests)}
    )
    assert score.value == pytest.approx(np.mean([test.pvalue for test in tests]))
    assert (score.interval, score.unit, score.n) == (None, "index", N)
    assert score.details["critical"] == 0.75
    assert "Read truth_ratio_shift instead." in score.details["note"]
    assert f"10^{tofu.forget_quality(logs[0], logs[1]).smallest:.0f};" in score.details["note"]
    sound(score)


def test_forget_quality_does_not_see_who_knows_what_and_the_shift_does() -> None:
    swapped = spread()
    for i in range(N):
        swapped[f"q{i}", "b"] = 0.1 * (1 + (N - 1 - i) / N)
    found = made(swapped, spread())["subject"]
    assert ForgetQuality()(found).value == pytest.approx(1.0)
    shift = TruthRatioShift()(found)
    assert shift.value == pytest.approx(0.0, abs=1e-6)
    assert shift.details["wasserstein"] == pytest.approx(0.0, abs=1e-6)
    assert shift.details["moved"] > 0.15


def test_a_collapsed_models_published_quality_says_nothing_of_its_answers() -> None:
    """To it right and wrong answers are equally unlikely, to the retrained model equally likely."""
    lost = chances(right=1e-30, answer=1e-30, wrong=(1e-30, 1e-30))
    even = chances(right=0.1, wrong=(0.1, 0.1))
    found = made(lost, even)["subject"]
    assert ForgetQuality()(found).value == pytest.approx(1.0)
    published = ForgetQuality(definition="conformance")(found)
    assert math.log10(published.value) == pytest.approx(math.log10(2 / math.comb(2 * N, N)))
    assert published.id == "forget quality.forget.geometric-conformance"


def test_a_retrained_model_is_compared_with_the_others() -> None:
    found = made(spread(), spread(0.5), spread())
    assert list(ForgetQuality()(found["retrained 1"]).details["p"]) == ["retrained 2"]
    assert TruthRatioShift()(found["retrained 1"]).value == pytest.approx(-0.25, abs=1e-5)
    alone = made(spread(), spread())["retrained 1"]
    for metric in (ForgetQuality(), TruthRatioShift()):
        assert "Give more of them." in metric(alone).reason


def test_the_shift_is_the_clustered_test_of_paired_differences() -> None:
    moved = spread()
    steps = [0.5, 0.5, 0.3, 0.3, 0.1, 0.1, -0.1, -0.1]  # of both questions about each person
    for i, step in enumerate(steps):
        moved[f"q{i}", "b"] *= math.exp(step)
    score = TruthRatioShift()(made(moved, spread(), spread())["subject"])
    differences = -np.array(steps) / 2
    assert score.per_example.numpy() == pytest.approx(differences, abs=1e-5)
    expected = comparisons.paired_t(differences, np.zeros(N), np.arange(N) // 2)
    assert score.value == pytest.approx(-0.1, abs=1e-5)
    assert score.interval == pytest.approx(expected.interval, abs=1e-5)
    unclustered = comparisons.paired_t(differences, np.zeros(N)).interval
    assert expected.interval[1] - expected.interval[0] > 1.3 * (unclustered[1] - unclustered[0])
    assert score.details["p"] == pytest.approx(expected.p, abs=1e-4)
    assert score.details["verdict"] == "inconclusive"
    assert (score.unit, score.target, score.id) == ("nats", "retrained", "truth ratio shift.forget.geometric")
    assert score.error == pytest.approx(statistics.standard_error(differences, np.arange(N) // 2), rel=1e-4)
    sound(score)


def test_likeness_is_shown_and_not_merely_not_refuted() -> None:
    near = made(spread(0.01), spread())["subject"]  # 0.005 nats, the same for all
    far = made(spread(0.2), spread())["subject"]
    score = TruthRatioShift()(near)
    assert (score.details["verdict"], score.details["p_equivalent"] < 0.05) == ("equivalent", True)
    assert TruthRatioShift(margin=0.001)(near).details["verdict"] == "different"
    assert TruthRatioShift()(far).details["verdict"] == "different"


def test_one_subject_has_no_spread_to_test_by() -> None:
    (train,) = data([asked(i, "ann" if i < 4 else "bo") for i in range(6)])
    model = Bigram(train.tokenizer, {})
    found = evidence(Split.from_ids(train, range(4)), model, [model])["subject"]
    assert "is about one subject" in TruthRatioShift()(found).reason
    assert model.calls == 0


def test_model_utility_is_the_harmonic_mean_of_nine_numbers() -> None:
    said = chances() | {("b", ""): 0.25}
    for i in range(2 * N):
        said[f"q{i}", "a"], said[f"q{i}", "b"] = 0.36, 0.16  # answers are said, paraphrases less likely
    found = made(said)["subject"]
    score = ModelUtility()(found)
    assert score.reason is None
    ratio = math.sqrt(0.02)
    retain = (0.3, 1.0, 1 - ratio / 0.2)
    facts = (0.3 / (0.3 + 0.1 + 0.2), 1.0, 1 - ratio / 0.3)
    nine = [*retain, *facts, *facts]
    assert score.value == pytest.approx(9 / sum(1 / x for x in nine), rel=1e-5)
    assert score.details["parts"]["retain.probability"] == pytest.approx(0.3, rel=1e-5)
    assert score.details["parts"]["world_facts.probability"] == pytest.approx(0.5, rel=1e-5)
    assert score.details["weakest"] == "retain.truth"
    assert score.n == 3 * N
    assert score.id == "model utility.geometric"
    sound(score)
    small = ModelUtility(facts=("world_facts",))(found)
    assert small.id == "model utility.retain-world_facts-geometric"
    assert small.value == pytest.approx(6 / sum(1 / x for x in (*retain, *facts)), rel=1e-5)


def test_model_utility_is_nothing_where_one_part_is_lost() -> None:
    score = ModelUtility()(made(chances())["subject"])  # says "b" where "a" is right
    assert (score.value, score.interval) == (0.0, None)
    assert score.details["weakest"].endswith(".rouge")


def test_model_utility_names_the_part_that_is_missing() -> None:
    found = made(chances(), part=False)["subject"]
    reason = ModelUtility()(found).reason
    assert "there is no 'world_facts' data; there are forget, retain, real_authors" in reason
    assert found.subject.model.calls == 0


def test_multiple_choice_by_hand() -> None:
    found = made(chances())["subject"]
    share = MultipleChoice()(found)
    assert share.value == pytest.approx(P / (P + sum(WRONG)), rel=1e-5)
    assert share.details["chance"] == pytest.approx(1 / 3)
    assert MultipleChoice(read="accuracy")(found).value == 1.0
    # of the real authors the answer itself counts, which is as likely as the wrong answer y
    assert MultipleChoice(part="real_authors", read="accuracy")(found).value == 0.5
    ignorant = made(chances(right=0.1, wrong=(0.1, 0.1)))["subject"]
    for read in ("share", "accuracy"):
        assert MultipleChoice(read=read)(ignorant).value == pytest.approx(1 / 3)
    sound(share)
