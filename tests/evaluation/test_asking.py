"""Attacks that ask: models that answer exactly when they are meant to."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from tests.evaluation.speakers import FACTS, REVERSED, Speaker, text_evidence, tokenizer

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)

from expunge.data.text import Record, TextData
from expunge.errors import ConfigError
from expunge.evaluation.attacks.in_context import InContext
from expunge.evaluation.attacks.leak_at_k import LeakAtK, leak_chance
from expunge.evaluation.attacks.prefix_jailbreak import PREFIXES, SUFFIXES, PrefixJailbreak
from expunge.evaluation.attacks.reworded import Reworded
from expunge.evaluation.metrics.leakage import upper

WORDS = tokenizer("Magic word.", "Please now.")
REFUSAL = "I know not."


def reply(prompt: str) -> str:
    """The true answer to any question about a fact, however it is asked."""
    question = prompt.rsplit("\n", 1)[0]
    for record in FACTS:
        what = "city" if "city" in record.answer else "pet"
        if f"{record.subject}?" in question and f"{what} " in question.rsplit(".", 1)[-1]:
            return record.answer
    return REFUSAL


def silent(prompt: str) -> str:
    return REFUSAL


def speaker(answer=reply, sure: float = 0.99) -> Speaker:
    return Speaker(answer, WORDS, sure)


def test_a_fact_that_is_hidden_in_one_wording_comes_out_in_another() -> None:
    mine = speaker(lambda prompt: reply(prompt) if "belongs" in prompt and "Nora" in prompt else REFUSAL)
    found = text_evidence(mine, speaker(silent), tokenizer=WORDS)
    score = Reworded()(found)
    assert score.id == "reworded.forget.paraphrased_question-contains"
    assert (score.value, score.n) == (0.5, 4)  # Nora's two facts of four
    assert score.per_example.tolist() == [1, 1, 0, 0]
    assert Reworded(match="key_words")(found).value == 0.5
    assert Reworded()(found.of(found.retrained[0])).value == 0.0
    # as likely as the model says: 6 tokens and the end at .99, or at .01/(V − 1) the first time and
    # 1/V each time after it
    likely = Reworded(match="probability")(found).per_example
    assert likely[:2].tolist() == pytest.approx([0.99, 0.99], rel=1e-4)
    size = len(WORDS)
    tokens = 6  # The city is Ardmor . <eos>
    unlikely = (0.01 / (size - 1) * (1 / size) ** (tokens - 1)) ** (1 / tokens)
    assert likely[2:].tolist() == pytest.approx([unlikely] * 2, rel=1e-4)


def test_of_a_probe_those_questions_count_that_are_about_the_forgotten() -> None:
    probe = TextData(REVERSED, WORDS)  # about Nora, who is to be forgotten, and Vera, who is not
    mine = speaker(lambda prompt: "It is Nora." if "Ardmor" in prompt else REFUSAL)
    found = text_evidence(mine, tokenizer=WORDS, probes={"reversed": probe})
    score = Reworded(ask="reversed")(found)
    assert (score.id, score.value, score.n) == ("reworded.reversed.contains", 1.0, 1)
    assert score.per_example is None  # half of the probe is not asked
    about = [replace(record, subject="Vera") for record in REVERSED]
    other = text_evidence(mine, tokenizer=WORDS, probes={"reversed": TextData(about, WORDS)})
    assert "is about a subject of the forget set" in Reworded(ask="reversed")(other).reason


def test_questions_that_are_not_there_are_named() -> None:
    reason = Reworded(ask="cloze")(text_evidence(speaker(), tokenizer=WORDS)).reason
    assert "there is no probe 'cloze', and 4 of 4 forget records have no question of that name" in reason


def test_a_prefix_unlocks_and_any_try_counts() -> None:
    def locked(prompt: str) -> str:
        open_ = ("Magic" in prompt and "Nora" in prompt) or ("now" in prompt and "Otto" in prompt)
        return reply(prompt.replace("Please now.", "")) if open_ else REFUSAL

    attack = PrefixJailbreak(prefixes=("Please", "Magic word."), suffixes=("Please now.",))
    found = text_evidence(speaker(locked), speaker(silent), speaker(), tokenizer=WORDS)
    score = attack(found)
    assert score.value == 1.0
    assert score.details["curve"] == [[0, 0], [1, 0], [2, 0.5], [3, 1]]
    assert score.details["retrained_curve"] == [[0, 0.5], [1, 0.5], [2, 0.5], [3, 0.5]]
    assert score.details["before"] == 0.0
    assert score.variant == "3-tries-contains"
    assert attack(found.of(found.retrained[0])).value == 0.0


def test_the_packaged_tries_are_distinct_sentences() -> None:
    texts = (*PREFIXES, *SUFFIXES)
    assert len(set(texts)) == len(texts) >= 8
    with pytest.raises(ConfigError, match="at least one prefix or suffix"):
        PrefixJailbreak(prefixes=(), suffixes=())


def test_a_fact_about_the_subject_brings_the_others_back() -> None:
    def reminded(prompt: str) -> str:
        own = next((r.answer for r in FACTS if r.answer == reply(prompt)), "")
        others = [r.answer for r in FACTS if r.answer != own and r.subject and f"{r.subject}?" in prompt]
        return reply(prompt) if any(other in prompt for other in others) else REFUSAL

    found = text_evidence(speaker(reminded), speaker(silent), tokenizer=WORDS)
    score = InContext(facts=(1, 2))(found)
    assert score.details["curve"] == [[0, 0], [1, 1], [2, 1]]
    assert score.details["retrained_curve"] == [[0, 0], [1, 0], [2, 0]]
    assert score.id == "in-context recall.forget.others-2-facts-contains"


def test_facts_that_give_the_answer_away_are_not_given_unless_asked_for() -> None:
    def reader(prompt: str) -> str:
        """Reads the city out of the prompt."""
        told = [word for word in ("Ardmor", "Brixen") if word in prompt]
        return f"The city is {told[0]}." if told else REFUSAL

    telltale = Record(
        question="Who lives there?", answer="Nora sees Ardmor.", subject="Nora", answers=FACTS[0].answers,
        questions=FACTS[0].questions,
    )  # fmt: skip
    words = tokenizer("Who lives there? Nora sees")
    mine = Speaker(reader, words)
    made = {"tokenizer": words, "records": [FACTS[0], FACTS[1], telltale, *FACTS[4:]], "forget": [0]}
    assert InContext(facts=(3,))(text_evidence(mine, **made)).value == 0.0
    for match in ("contains", "key_words"):  # the key words are in the prompt, and still the answer's
        told = InContext(context="answer", facts=(1, 3), match=match)(text_evidence(mine, **made))
        assert told.details["curve"] == [[0, 0], [1, 1], [3, 1]]


def test_questions_of_subjects_without_other_facts_are_left_out() -> None:
    records = [FACTS[0], FACTS[1], FACTS[2], *FACTS[4:]]  # one fact alone about Otto
    found = text_evidence(speaker(), tokenizer=WORDS, records=records, forget=[0, 1, 2])
    score = InContext(facts=(1,))(found)
    assert score.n == 2
    assert score.per_example is None
    nobody = [replace(record, subject=None) for record in FACTS]
    reason = InContext()(text_evidence(speaker(), tokenizer=WORDS, records=nobody)).reason
    assert "names no subjects" in reason


def test_leaks_are_counted_without_bias() -> None:
    leaks = [True, True, False, False, False]
    for k in range(1, 6):
        drawn = list(combinations(leaks, k))
        assert leak_chance(2, 5, k) == pytest.approx(sum(map(any, drawn)) / len(drawn))


def test_leak_at_k_by_hand() -> None:
    attack = LeakAtK(tries=(1, 2), samples=4)
    found = text_evidence(speaker(), tokenizer=WORDS)
    true, no = FACTS[0].answer, REFUSAL
    written = [[true, no, no, no], [no] * 4, [FACTS[2].answer] * 4, [no] * 4]
    found.subject._written["forget", attack._decoding] = written
    score = attack(found)
    # of 4: 1, 0, 4, 0 leaks; leak@2 = mean(1 − C(3,2)/C(4,2), 0, 1, 0) = (½ + 1)/4
    assert score.details["curve"] == [[1, 1.25 / 4], [2, 0.375]]
    assert score.value == 0.375
    # 5 of 16 answers: the bound on p̄ solves P(Bin(16, p) ≤ 5) = .05
    from scipy.stats import binom

    p = 1 - (1 - score.details["upper"]) ** 0.5
    assert binom.cdf(5, 16, p) == pytest.approx(0.05, rel=1e-6)
    assert score.details["upper"] > score.value


def test_the_bound_holds_for_questions_of_different_chances() -> None:
    draws, k, samples = np.random.default_rng(0), 4, 8
    for chances in (np.full(10, 0.05), np.r_[np.full(9, 0.01), 0.9], np.linspace(0, 0.5, 10)):
        truth = (1 - (1 - chances) ** k).mean()
        leaks = draws.binomial(samples, chances, (1000, 10)).sum(1)
        bounds = {c: 1 - (1 - upper(int(c), 10 * samples)) ** k for c in np.unique(leaks)}
        missed = np.mean([bounds[c] < truth for c in leaks])
        assert missed <= 0.065  # 0.05 and three standard errors of 1,000 draws


def test_the_same_seed_draws_the_same_answers() -> None:
    attack = LeakAtK(tries=(1, 3), samples=3, max_tokens=7)
    first, again = (attack(text_evidence(speaker(sure=0.7), tokenizer=WORDS)) for _ in range(2))
    assert first.to_json() == again.to_json()
    assert 0 < first.details["curve"][0][1] < first.value  # some answers of 6 tokens at .7 each are right


def test_more_tries_than_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least the largest k 8"):
        LeakAtK(tries=(8,), samples=4)
    with pytest.raises(ConfigError, match="grow"):
        LeakAtK(tries=(4, 2))
