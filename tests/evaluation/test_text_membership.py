"""Membership from tokens as a metric: every score, subjects as the unit, the warning, and PrivLeak."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from tests.evaluation.bigram import END, Bigram, data, evidence
from tests.evaluation.micro import sound

from expunge.data import ArrayData, Split
from expunge.data.text import Record
from expunge.errors import ConfigError
from expunge.evaluation import statistics, token_membership
from expunge.evaluation.attacks.text_membership import PrivLeak, TextMembership, auc
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.evidence import Evidence
from expunge.tasks import CausalLM
from expunge.training.session import Session

MEMBERS, OTHERS = [0.4, 0.3, 0.2, 0.1], [0.25, 0.15, 0.05]
"""Chances of the answers' word; ``12 × ½`` pairs would be no signal, here members win 9 of 12."""


def made(*models: tuple[list[float], list[float]], subjects: bool = False) -> dict[str, Evidence]:
    """Evidence about models with these chances of members and non-members; the first is the subject."""

    def records(start: int, count: int) -> list[Record]:
        return [
            Record(
                question=f"q{start + i}",
                answer=f"w{start + i}",
                subject=f"s{start}{i // 2}" if subjects else None,
            )
            for i in range(count)
        ]

    members, others = (len(side) for side in models[0])
    train, test = data(records(0, members + 1), records(50, others))
    split = Split.from_ids(train, range(members), test=test)

    def model(sides: tuple[list[float], list[float]]) -> Bigram:
        pairs = [
            (start + i, p) for start, side in zip((0, 50), sides, strict=True) for i, p in enumerate(side)
        ]
        return Bigram(train.tokenizer, {(f"q{i}", f"w{i}"): p for i, p in pairs})

    subject, *retrained = (model(sides) for sides in models)
    return evidence(split, subject, retrained)


def pairs(members: list[float], others: list[float]) -> float:
    return float(np.mean([(a > b) + (a == b) / 2 for a in members for b in others]))


def test_the_auc_counts_pairs() -> None:
    score = TextMembership()(made((MEMBERS, OTHERS))["subject"])
    assert pairs(MEMBERS, OTHERS) == 9 / 12
    assert score.value == pytest.approx(9 / 12)
    assert score.interval == pytest.approx(statistics.auc(np.array(MEMBERS), np.array(OTHERS))[1])
    assert score.id == "membership.forget.text-loss-auc"
    assert score.details["roc"][0] == [0.0, 0.0]
    assert score.details["roc"][-1] == [1.0, 1.0]
    sound(score)


def test_every_score_is_that_of_the_tokens() -> None:
    found = made((MEMBERS, OTHERS))["subject"]
    members = np.log(np.array([[p, END] for p in MEMBERS]))
    everywhere = np.ones((4, 2), bool)
    metric = TextMembership()
    said = metric.scores(found, found.subject, "loss")
    assert said[0] == pytest.approx(members.mean(1), rel=1e-5)
    assert metric.scores(found, found.subject, "min_k")[0] == pytest.approx(members.min(1), rel=1e-5)
    texts = [f"w{i}" for i in range(4)]
    sizes = np.array([len(zlib.compress(text.encode())) - 8 for text in texts])
    assert metric.scores(found, found.subject, "zlib")[0] == pytest.approx(members.mean(1) / sizes, rel=1e-5)
    table = found.subject.model.table.detach().double()
    rows = found.parts["forget"].column("input_ids")[:4, :2]
    mean, spread = token_membership.moments(table[rows])
    expected = token_membership.min_k_plus_plus(members, everywhere, mean.numpy(), spread.numpy(), 0.2)
    assert metric.scores(found, found.subject, "min_k_plus_plus")[0] == pytest.approx(expected, rel=1e-4)


def test_open_unlearning_leaves_the_last_label_out() -> None:
    found = made((MEMBERS, OTHERS))["subject"]
    published = TextMembership(definition="conformance")
    assert published.scores(found, found.subject, "loss")[0] == pytest.approx(np.log(MEMBERS), rel=1e-5)
    first = TextMembership(score="zlib", definition="conformance").scores(found, found.subject, "zlib")[0]
    assert first == pytest.approx(np.log(MEMBERS) / len(zlib.compress(b"w0")), rel=1e-5)
    assert published.labels(found)[2] == "text-loss-auc-conformance"


def test_the_reference_takes_away_what_makes_a_text_easy() -> None:
    same = (MEMBERS, OTHERS)
    known = ([4 * p / 3 for p in MEMBERS], OTHERS)
    score = TextMembership(score="reference")
    assert score(made(same, same)["subject"]).value == 0.5
    assert score(made(known, same)["subject"]).value == 1.0
    assert "Give more of them." in score(made(same)["subject"]).reason


def test_variants_say_what_they_are() -> None:
    found = made((MEMBERS, OTHERS))["subject"]
    metric = TextMembership(score="min_k", k=0.4, read="tpr", fpr=0.05, against="holdout")
    assert metric.labels(found)[2] == "text-min-k-0.4-tpr@0.05-holdout"
    assert PrivLeak().labels(found) == ("PrivLeak", "forget", "text-min-k-0.4")
    assert "there is no 'holdout' data" in metric(found).reason
    assert found.subject.model.calls == 0
    for wrong in ({"k": 0.0}, {"fpr": 1.0}, {"against": "forget"}):
        with pytest.raises(ConfigError):
            TextMembership(**wrong)


def test_the_true_positive_rate_at_a_false_positive_rate() -> None:
    members, others = [0.5, 0.4, 0.06, 0.05], [0.01 * i for i in range(1, 11)]
    score = TextMembership(read="tpr", fpr=0.1)(made((members, others))["subject"])
    assert score.value == 0.5  # one of ten non-members is let through: the threshold is 0.09
    assert score.interval == pytest.approx(statistics.rate(2, 4))
    assert score.perfect == pytest.approx(2 / 11)
    few = TextMembership(read="tpr")(made((MEMBERS, OTHERS))["subject"])
    assert "needs at least 100 non-members" in few.reason


def test_several_texts_of_a_subject_do_not_narrow_the_interval() -> None:
    generator = np.random.default_rng(0)
    members, others = generator.normal(0.5, 1, 30), generator.normal(0, 1, 20)
    alone = statistics.auc(members, others)
    each = (np.arange(30), np.arange(20))
    value, interval = auc(members, others, each)
    assert value == pytest.approx(alone[0])
    assert interval == pytest.approx(alone[1])
    copied = auc(np.repeat(members, 5), np.repeat(others, 5), tuple(np.repeat(ids, 5) for ids in each))
    assert copied[0] == pytest.approx(alone[0])
    assert copied[1] == pytest.approx(alone[1])
    narrow = statistics.auc(np.repeat(members, 5), np.repeat(others, 5))[1]
    assert narrow[1] - narrow[0] < 0.5 * (alone[1][1] - alone[1][0])


def test_perfect_separation_has_the_interval_of_its_subjects() -> None:
    members, others = np.array([3.0, 3.1, 4.0, 4.1]), np.array([1.0, 1.1, 2.0, 2.1])
    ids = np.array([0, 0, 1, 1])
    value, interval = auc(members, others, (ids, ids))
    assert value == 1.0
    assert interval == pytest.approx(statistics.auc(np.array([3.05, 4.05]), np.array([1.05, 2.05]))[1])
    assert auc(members, others, (np.zeros(4, int), ids))[1] is None  # one subject


def test_subjects_reach_the_interval() -> None:
    sides = ([0.5, 0.4, 0.11, 0.1, 0.3, 0.2], [0.25, 0.24, 0.03, 0.02, 0.15, 0.14])
    plain = TextMembership()(made(sides)["subject"])
    clustered = TextMembership()(made(sides, subjects=True)["subject"])
    assert plain.value == pytest.approx(clustered.value)
    ids = np.arange(6) // 2
    assert clustered.interval == pytest.approx(auc(np.array(sides[0]), np.array(sides[1]), (ids, ids))[1])
    assert clustered.interval != pytest.approx(plain.interval)


def test_a_shift_between_the_texts_is_warned_of() -> None:
    def note(test: list[Record]) -> str:
        generator = np.random.default_rng(0)
        train = [
            Record(question="what", answer=" ".join(generator.choice(list("abcdefgh"), 4))) for _ in range(40)
        ]
        members, others = data(train, test)
        split = Split.from_ids(members, range(30), test=others)
        return TextMembership()(evidence(split, Bigram(members.tokenizer, {}))["subject"]).details.get(
            "note", ""
        )

    generator = np.random.default_rng(1)
    alike = [
        Record(question="what", answer=" ".join(generator.choice(list("abcdefgh"), 4))) for _ in range(30)
    ]
    assert note(alike) == ""
    longer = [
        Record(question="what", answer=" ".join(generator.choice(list("abcdefgh"), 9))) for _ in range(30)
    ]
    assert "differ before any model is asked, by " in note(longer)
    assert "their lengths (AUC 0.00" in note(longer)
    assert "takes 10 texts or subjects of either side" in note(alike[:5])


def tokens(count: int = 12) -> ArrayData:
    ids = torch.randint(1, 6, (count, 4), generator=torch.Generator().manual_seed(count))
    return ArrayData({"input_ids": ids, "labels": ids.masked_fill(torch.arange(4) < 1, -100)})


def test_tokens_without_text_have_all_scores_but_zlib() -> None:
    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table[ids]

    split = Split.from_ids(tokens(), range(6), test=tokens(8))
    candidates = [Candidate("original", "original", Table())]
    found = Evaluation(candidates, split, CausalLM(6), Session(0)).evidence(candidates[0])
    score = TextMembership(score="min_k")(found)
    assert score.reason is None
    assert "the data holds tokens only" in score.details["note"]
    assert "Use TextData." in TextMembership(score="zlib")(found).reason


def test_privleak_by_hand() -> None:
    half = ([0.4, 0.2], [0.3, 0.1])  # 1 of 4 non-members is above
    other = ([0.3, 0.1], [0.4, 0.2])  # 3 of 4
    known, overdone = ([0.4, 0.3], [0.2, 0.1]), ([0.2, 0.1], [0.4, 0.3])
    score = PrivLeak(score="loss")(made(known, half, other)["subject"])
    assert score.value == -1.0  # (0 − ½) / ½
    assert score.details["auc"] == 1.0
    assert score.details["retrained_auc"] == [0.75, 0.25]
    noise = np.std([0.25 / 0.75 - 1, 0.75 / 0.25 - 1], ddof=1)
    assert score.details["noise"] == pytest.approx(noise)
    assert f"moves it by {noise:.2g}" in score.details["note"]
    assert PrivLeak(score="loss")(made(overdone, half, other)["subject"]).value == 1.0
    again = PrivLeak(score="loss")(made(known, half, other)["retrained 1"])
    assert again.value == pytest.approx(0.25 / 0.75 - 1)
    assert (score.unit, score.target) == ("index", "retrained")
    sound(score)


def test_privleak_of_a_copy_of_the_retrained_model_is_0_for_certain() -> None:
    """All models are asked about the same texts, so the texts' own luck is not in the interval."""
    same = (MEMBERS, OTHERS)
    score = PrivLeak(score="loss")(made(same, same)["subject"])
    assert (score.value, score.interval) == (0.0, (0.0, 0.0))
    assert "not known from one retrained model" in score.details["note"]
    assert score.details["noise"] is None


def test_privleaks_interval_holds_the_texts_and_the_retrained_models_spread() -> None:
    generator = np.random.default_rng(0)

    def drawn(move: float) -> tuple[list[float], list[float]]:
        return tuple((0.7 / (1 + np.exp(-generator.normal(m, 1, 20)))).tolist() for m in (move, 0.0))

    models = [drawn(1.0), drawn(0.0), drawn(0.0), drawn(0.0)]
    score = PrivLeak(score="loss")(made(*models)["subject"])
    areas = np.array([1 - pairs(*model) for model in models])
    mean = areas[1:].mean()
    assert score.value == pytest.approx(areas[0] / mean - 1, abs=1e-6)
    spread = areas[0] / mean**2 * areas[1:].std(ddof=1) / math.sqrt(3)
    assert (score.interval[1] - score.interval[0]) / 2 > 1.96 * spread
    assert score.interval[0] < score.value < score.interval[1]


def test_privleak_needs_something_to_divide_by() -> None:
    apart = ([0.4, 0.3], [0.2, 0.1])
    assert "nothing to divide by" in PrivLeak(score="loss")(made(apart, apart)["subject"]).reason
    assert "Give more of them." in PrivLeak()(made(apart)["subject"]).reason
