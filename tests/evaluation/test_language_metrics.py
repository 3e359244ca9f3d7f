"""What a language model says of each part, against a model whose token probabilities are chosen."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from tests.evaluation.bigram import Bigram, Chances, data, evidence
from tests.evaluation.micro import sound

from expunge import config
from expunge.data import ArrayData, Split
from expunge.data.text import Record, Template
from expunge.errors import ConfigError, DataError
from expunge.evaluation import statistics
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.generation import Decoding
from expunge.evaluation.metric import metrics
from expunge.evaluation.metrics.language import (
    AnswerProbability,
    ExactMemorisation,
    ExtractionStrength,
    Fluency,
    Rouge,
)
from expunge.evaluation.metrics.leakage import Leakage, key_words, upper
from expunge.tasks import CausalLM, Classification
from expunge.training.models import models
from expunge.training.session import Session

NAMES = (
    "answer_probability", "rouge", "extraction_strength", "exact_memorisation", "fluency", "leakage",
    "truth_ratio", "forget_quality", "truth_ratio_shift", "model_utility", "multiple_choice",
    "text_membership", "privleak",
)  # fmt: skip


def record(i: int, answer: str, subject: str | None = None) -> Record:
    return Record(question=f"q{i}", answer=answer, subject=subject)


ANSWERS = ["a b", "c", "d e", "f"]
SUBJECTS = ["ann", "ann", "bo", "bo"]
CHANCES: Chances = {
    ("q0", "a"): 0.64, ("a", "b"): 0.5, ("b", ""): 0.2,  # (0.64 × 0.5 × 0.2)^⅓ = 0.4
    ("q1", "c"): 0.36,  # with the end 0.09, so 0.3
    ("q2", "d"): 0.08, ("d", "e"): 0.5, ("e", ""): 0.2, ("q2", "f"): 0.8,  # 0.008^⅓ = 0.2
    ("q3", "f"): 0.04, ("q3", "c"): 0.9,  # 0.1
}  # fmt: skip
LIKELY = [0.4, 0.3, 0.2, 0.1]


def made(chances: Chances = CHANCES, subjects: bool = True, answers: list[str] = ANSWERS, **probes):
    asked = [
        record(i, a, s if subjects else None) for i, (a, s) in enumerate(zip(answers, SUBJECTS, strict=True))
    ]
    kept = [record(9, "g", "cy" if subjects else None)]
    train, *more = data([*asked, *kept], *probes.values())
    split = Split.from_ids(train, range(4), probes=dict(zip(probes, more, strict=True)))
    return evidence(split, Bigram(train.tokenizer, chances))["subject"]


def test_the_probability_of_an_answer_is_the_geometric_mean_of_its_tokens() -> None:
    score = AnswerProbability()(made())
    assert score.reason is None
    assert score.per_example.tolist() == pytest.approx(LIKELY, rel=1e-5)
    assert (score.value, score.n, score.target) == (pytest.approx(0.25), 4, "retrained")
    sound(score)


def test_subjects_are_the_unit_of_the_interval() -> None:
    clustered, plain = AnswerProbability()(made()), AnswerProbability()(made(subjects=False))
    values = clustered.per_example.numpy()
    assert clustered.interval == pytest.approx(statistics.mean(values, clusters=[0, 0, 1, 1]))
    assert plain.interval == pytest.approx(statistics.mean(values))
    assert clustered.interval != pytest.approx(plain.interval)


def test_another_answer_is_another_variant_and_must_be_there() -> None:
    asked = [
        dataclasses.replace(record(0, "a b"), answers={"idk": "c"}),
        dataclasses.replace(record(1, "c"), answers={"idk": "c"}),
    ]
    (train,) = data(asked)
    found = evidence(Split.from_ids(train, [0]), Bigram(train.tokenizer, {("q0", "c"): 0.16}))["subject"]
    score = AnswerProbability(answer="idk")(found)
    assert (score.id, score.value) == ("answer probability.forget.idk", pytest.approx(0.2, rel=1e-5))
    refused = AnswerProbability(answer="alternate")(found)
    assert "no 'alternate' answers; it has: idk" in refused.reason


def test_extraction_strength_and_memorisation_leave_the_end_of_text_out() -> None:
    found = made()
    # first choices: q0 → a → b (not the end); q1 → c; q2 → f, but d → e; q3 → c
    assert ExactMemorisation()(found).per_example.tolist() == [1.0, 1.0, 0.5, 0.0]
    assert ExtractionStrength()(found).per_example.tolist() == [1.0, 1.0, 0.5, 0.0]
    never = {
        ("q0", "c"): 0.5,
        ("a", "c"): 0.5,
        ("q1", "f"): 0.5,
        ("q2", "f"): 0.5,
        ("d", "f"): 0.5,
        ("q3", "g"): 0.5,
    }
    assert ExtractionStrength()(made(never)).value == 0.0


def test_as_published_a_wrong_answer_has_one_over_its_length() -> None:
    never = {
        ("q0", "c"): 0.5,
        ("a", "c"): 0.5,
        ("q1", "f"): 0.5,
        ("q2", "f"): 0.5,
        ("d", "f"): 0.5,
        ("q3", "g"): 0.5,
    }
    score = ExtractionStrength(definition="conformance")(made(never))
    assert score.per_example.tolist() == [0.5, 1.0, 0.5, 1.0]
    assert score.id == "extraction strength.forget.tokens-conformance"


def test_a_text_that_does_not_end_keeps_its_last_token() -> None:
    (train,) = data(
        [record(0, "a b"), record(1, "a c")],
        template=Template(prompt="{question}", answer=" {answer}", eos=False),
    )
    model = Bigram(train.tokenizer, {("q0", "a"): 0.5, ("a", "c"): 0.5, ("q1", "a"): 0.5})
    found = evidence(Split.from_ids(train, [0]), model)["subject"]
    assert ExactMemorisation()(found).value == 0.5  # a, but not b
    assert ExactMemorisation(definition="conformance")(found).value == 1.0  # b is taken for the end of text


def test_tokens_without_text_all_count() -> None:
    ids = torch.tensor([[1, 2, 3], [1, 3, 2]])
    columns = {"input_ids": ids, "labels": ids.masked_fill(torch.tensor([True, False, False]), -100)}
    table = torch.zeros(4, 4)
    table[1, 2] = table[2, 3] = 5.0

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(table)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.table[tokens]

    split = Split.from_ids(ArrayData(columns), [0])
    candidates = [Candidate("original", "original", Table())]
    found = Evaluation(candidates, split, CausalLM(4), Session(0)).evidence(candidates[0])
    assert ExtractionStrength()(found).value == 1.0
    assert ExtractionStrength(part="retain")(found).value == 0.0
    for name in ("rouge", "fluency", "leakage"):
        assert "holds tokens without their text. Use TextData." in metrics.get(name)()(found).reason


SPOKEN: Chances = {
    ("q0", "a"): 0.7, ("a", "b"): 0.7, ("q1", "c"): 0.7, ("c", "d"): 0.7, ("d", ""): 0.7,
    ("q2", "d"): 0.7, ("q3", "g"): 0.7,
}  # fmt: skip
"""Says "a b", "c d", "d" and "g" where "a b", "c", "d e" and "f" are right."""


def test_rouge_by_hand() -> None:
    found = made(SPOKEN)
    assert found.subject.answers("forget") == [["a b"], ["c d"], ["d"], ["g"]]
    assert Rouge()(found).per_example.tolist() == [1.0, 1.0, 0.5, 0.0]
    assert Rouge(read="precision")(found).per_example.tolist() == [1.0, 0.5, 1.0, 0.0]
    assert Rouge(read="f1")(found).per_example.tolist() == pytest.approx([1, 2 / 3, 2 / 3, 0])
    assert Rouge()(found).id == "ROUGE.forget.rougeL-recall"
    odd = Rouge(
        variant="rouge1",
        read="f1",
        stemmer=False,
        cut=True,
        decoding=Decoding(max_tokens=8, temperature=0.5, samples=2),
    )
    assert odd.labels(found)[2] == "rouge1-f1-unstemmed-cut-8-tokens-t0.5-k2"


def test_muse_cuts_the_reference_where_the_answer_must_end() -> None:
    found, short = made(SPOKEN), Decoding(max_tokens=1)
    assert Rouge(decoding=short)(found).per_example.tolist() == [0.5, 1.0, 0.5, 0.0]
    assert Rouge(decoding=short, cut=True)(found).per_example.tolist() == [1.0, 1.0, 1.0, 0.0]


def test_several_answers_to_a_question_are_averaged() -> None:
    ends = {(word, ""): 1.0 for word in "abcfg"}
    said = {("q0", "a"): 0.5, ("q0", "b"): 0.5, ("q1", "c"): 0.7, ("q2", "f"): 1.0, ("q3", "g"): 1.0}
    found = made(said | ends)
    score = Rouge(decoding=Decoding(temperature=1.0, samples=8))(found)
    first, second, *rest = score.per_example.tolist()
    assert first == 0.5  # "a" or "b" of "a b"
    assert 0 < second < 1
    assert second * 8 == int(second * 8)
    assert rest == [0.0, 0.0]


def test_documents_ask_nothing() -> None:
    (train,) = data([Record(answer="a b c"), Record(answer="b c a")])
    model = Bigram(train.tokenizer, {("a", "b"): 0.5, ("b", "c"): 0.5})
    found = evidence(Split.from_ids(train, [0]), model)["subject"]
    for name in ("rouge", "leakage"):
        reason = metrics.get(name)()(found).reason
        assert "documents, which ask nothing" in reason
        assert reason.endswith("or use extraction_strength.")
    assert model.calls == 0
    assert ExtractionStrength()(found).value == 1.0  # b and c; a has nothing before it
    assert Fluency()(found).reason is None


def test_fluency_falls_where_answers_go_in_circles() -> None:
    chain = {("q0", "a"): 1.0, ("a", "b"): 1.0, ("b", "c"): 1.0, ("c", "d"): 1.0, ("d", ""): 1.0}
    circle = {("q0", "a"): 1.0, ("a", "b"): 1.0, ("b", "a"): 1.0}
    short = Decoding(max_tokens=4)
    rest = {("q1", "f"): 1.0, ("q2", "f"): 1.0, ("q3", "f"): 1.0, ("f", ""): 1.0}
    good, bad = (Fluency(decoding=short)(made(rest | words)).per_example[0] for words in (chain, circle))
    # a b c d: 3 pairs and 2 triples, all different; a b a b: ab twice and ba; aba and bab
    assert good == pytest.approx((2 / 3 * math.log2(3) + 4 / 3 * 1) / 2)
    pairs = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert bad == pytest.approx((2 / 3 * pairs + 4 / 3 * 1) / 2)
    repeated = Fluency(read="repetition", decoding=short)
    assert [repeated(made(rest | words)).per_example[0].item() for words in (chain, circle)] == pytest.approx(
        [0, 1 / 3]
    )
    assert (Fluency().counts(), repeated.counts()) == ("index", "fraction")


def test_leakage_lists_the_worst_subject_first_with_an_exact_bound() -> None:
    score = Leakage()(made(SPOKEN))
    assert score.per_example.tolist() == [1.0, 1.0, 0.0, 0.0]  # "c d" contains "c", "d" not "d e"
    rows = score.details["subjects"]
    assert [(row["subject"], row["leaked"], row["questions"], row["value"]) for row in rows] == [
        ("ann", 2, 2, 1.0),
        ("bo", 0, 2, 0.0),
    ]
    assert rows[0]["upper"] == 1.0
    assert rows[1]["upper"] == pytest.approx(1 - 0.05**0.5)  # (1 − p)² = 0.05
    assert score.details["upper"] == pytest.approx(0.902389, abs=1e-6)  # P(Bin(4, p) ≤ 2) = 0.05
    sound(score)
    assert "names no subjects" in Leakage()(made(SPOKEN, subjects=False)).details["note"]


def test_no_leak_of_two_subjects_is_no_certainty() -> None:
    score = Leakage()(made({("q0", "c"): 0.9, ("q1", "d"): 0.9, ("q2", "f"): 0.9, ("q3", "g"): 0.9}))
    assert (score.value, score.interval) == (0.0, pytest.approx(statistics.rate(0, 2)))
    assert score.details["upper"] == pytest.approx(1 - 0.05**0.25)


def test_the_bound_is_three_over_n_where_nothing_leaked() -> None:
    assert upper(0, 20) == pytest.approx(1 - 0.05 ** (1 / 20))
    assert upper(0, 1000) == pytest.approx(3 / 1000, rel=0.01)
    p = upper(3, 10)
    assert sum(math.comb(10, j) * p**j * (1 - p) ** (10 - j) for j in range(4)) == pytest.approx(0.05)


def test_leak_at_k_finds_what_greedy_decoding_misses() -> None:
    chances = {
        ("q0", "c"): 0.6,
        ("q0", "a"): 0.4,
        ("q0", ""): 0.0,
        ("a", "b"): 1.0,
        ("a", ""): 0.0,
        ("b", ""): 1.0,
        ("c", ""): 1.0,
    }
    found = made(chances)
    assert Leakage()(found).per_example[0] == 0.0
    sampled = Leakage(decoding=Decoding(temperature=1.0, samples=16))(found)
    assert sampled.per_example[0] == 1.0  # missed with a chance of 0.6^16 = 0.0003
    assert sampled.details["tries"] == 16
    assert sampled.id == "leakage.forget.t1-k16"
    assert json.loads(json.dumps(sampled.to_json()))["details"]["tries"] == 16


def test_key_words_are_what_the_wrong_answers_lack() -> None:
    other = "The birthplace of Ann is"
    asked = Record(
        question="Where was Ann born?",
        answer="Ann was born in Lima.",
        answers={"paraphrased": f"{other} Lima.", "perturbed_1": f"{other} Oslo."},
    )
    assert key_words(asked) == {"lima"}
    same = dataclasses.replace(asked, answers={"perturbed_1": "He was born in Lima."})
    with pytest.raises(DataError, match="question 7 has no key words"):
        key_words(same, 7)


def test_key_words_see_the_fact_in_another_sentence() -> None:
    asked = [
        Record(
            question=f"q{i}", answer=f"in {city} born", subject="ann", answers={"perturbed_1": "in oslo born"}
        )
        for i, city in enumerate(("lima", "rome", "bern"))
    ]
    (train,) = data(asked)
    model = Bigram(
        train.tokenizer, {("q0", "lima"): 0.9, ("q1", "oslo"): 0.9, ("lima", ""): 0.9, ("oslo", ""): 0.9}
    )
    found = evidence(Split.from_ids(train, [0, 1]), model)["subject"]
    assert Leakage()(found).value == 0.0
    assert Leakage(match="key_words")(found).per_example.tolist() == [1.0, 0.0]
    assert "no wrong answers" in Leakage(match="key_words")(made(SPOKEN)).reason


@pytest.mark.parametrize("name", NAMES)
def test_other_tasks_are_refused_before_any_forward_pass(name: str) -> None:
    class Never(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    split = Split.from_ids(ArrayData({"inputs": torch.zeros(4, 2), "targets": torch.zeros(4).long()}), [0, 1])
    candidates = [Candidate("original", "original", Never()), Candidate("r", "retrained", Never())]
    found = Evaluation(candidates, split, Classification(2), Session(0)).evidence(candidates[0])
    reason = metrics.get(name)()(found).reason
    assert "the task is 'Classification'" in reason
    assert reason.endswith("Use accuracy, loss or loss_threshold.")


@pytest.mark.parametrize("name", NAMES)
def test_a_part_that_is_not_there_is_named(name: str) -> None:
    found = made()
    changed = {"retain": "quiz"} if name == "model_utility" else {"part": "quiz"}
    reason = metrics.get(name)(**changed)(found).reason
    assert "there is no 'quiz' data; there are forget, retain" in reason
    assert found.subject.model.calls == 0


def test_settings_are_built_from_plain_values() -> None:
    built = config.build(
        metrics, {"kind": "rouge", "part": "verbatim", "read": "f1", "decoding": {"max_tokens": 128}}
    )
    assert built == Rouge(part="verbatim", read="f1", decoding=Decoding(max_tokens=128))
    utility = config.build(metrics, {"kind": "model_utility", "facts": ["world"]})
    assert utility.facts == ("world",)
    with pytest.raises(ConfigError):
        config.build(metrics, {"kind": "leakage", "decoding": {"samples": 4}})


def test_every_metric_has_a_value_on_a_small_llama() -> None:
    def asked(i: int, who: str) -> Record:
        homes = {"paraphrased": f"City{i}", "perturbed_1": "Oslo", "perturbed_2": "Bern"}
        answers = {name: f"{who} lives in {city}" for name, city in homes.items()}
        return Record(question=f"Where lives {who}?", answer=f"In City{i}", subject=who, answers=answers)

    train, test = ([asked(i, f"P{i}") for i in range(*span)] for span in ((0, 12), (12, 24)))
    facts = data(train, test)
    split = Split.from_ids(
        facts[0], range(6), test=facts[1], probes={"real_authors": facts[1], "world_facts": facts[1]}
    )
    spec = config.build(
        models,
        {
            "kind": "llama",
            "vocabulary": len(facts[0].tokenizer),
            "width": 16,
            "heads": 2,
            "layers": 1,
            "mlp": 16,
        },
    )
    built = []
    for seed in range(3):
        torch.manual_seed(seed)
        built.append(spec.build())
    assert sum(p.numel() for p in built[0].parameters()) <= 50_000
    found = evidence(split, built[0], built[1:])["subject"]
    for name in NAMES:
        short = (
            {"decoding": Decoding(max_tokens=4)}
            if any(f.name == "decoding" for f in dataclasses.fields(metrics.get(name)))
            else {}
        )
        score = metrics.get(name)(**short)(found)
        assert score.reason is None, f"{name}: {score.reason}"
        sound(score)
