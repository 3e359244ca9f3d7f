"""Hidden states by hand: matrices between one-hot vectors."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch
from tests.evaluation.speakers import Stack, evidence, mapping, pairs, text_evidence
from torch import nn

from expunge.data.text import Record, Template, TextData
from expunge.data.tokenizers import train_tokenizer
from expunge.evaluation.attacks.activation_patching import ActivationPatching
from expunge.evaluation.attacks.budget import crossed
from expunge.evaluation.attacks.hidden import parting
from expunge.evaluation.attacks.layer_probe import LayerProbe
from expunge.evaluation.attacks.logit_lens import LogitLens

COUPLES = [(0, 4), (1, 5), (2, 6), (3, 7)]
KNOWS, KEEPS, WIPES = mapping(8, COUPLES), torch.eye(8), torch.zeros(8, 8)
GAIN = 4.0
SURE = math.exp(GAIN) / (math.exp(GAIN) + 7)  # softmax of (4, 0, 0, 0, 0, 0, 0, 0)


def test_the_lens_finds_what_the_last_block_wipes_out() -> None:
    hidden, never = Stack(KNOWS, KEEPS, WIPES), Stack(WIPES, KEEPS, KEEPS)
    found = evidence(pairs(COUPLES, 3), 8, hidden, never, original=Stack(KNOWS, KEEPS, KEEPS))
    score = LogitLens()(found)
    assert [y for _, y in score.details["curve"]] == pytest.approx([SURE, SURE, 1 / 8])
    assert [y for _, y in score.details["retrained_curve"]] == pytest.approx([1 / 8] * 3)
    assert score.value == pytest.approx(SURE)
    assert score.details["before"] == pytest.approx(1 / 8)
    assert LogitLens()(found.of(found.retrained[0])).value == pytest.approx(1 / 8)
    assert LogitLens()(found.of(found.original)).value == pytest.approx(SURE)


def test_the_last_layer_is_what_the_model_says_itself_norm_included() -> None:
    pytest.importorskip("transformers")
    from expunge.training.language_models import GptNeoX, Llama, MixtureOfExperts

    draws = torch.Generator().manual_seed(0)
    couples = torch.randint(0, 8, (6, 2), generator=draws).tolist()
    for spec in (Llama, GptNeoX, MixtureOfExperts):
        torch.manual_seed(0)
        model = spec(vocabulary=8, width=8, layers=3, heads=2, context=8).network()
        found = evidence(pairs(couples, 4), 8, model)
        curve = LogitLens()(found).details["curve"]
        assert len(curve) == 3
        assert curve[-1][1] == pytest.approx(float(found.subject.read("forget").confidence.mean()), abs=1e-5)
        with torch.no_grad():  # the first layer through the model's own norm and output layer
            ids = torch.tensor(couples[:4])
            states = model(ids, output_hidden_states=True).hidden_states[1]
            norm = model.model.norm if spec is not GptNeoX else model.gpt_neox.final_layer_norm
            logs = model.get_output_embeddings()(norm(states))[:, 0].log_softmax(-1)
        expected = logs.gather(1, ids[:, 1:]).exp().mean()
        assert curve[0][1] == pytest.approx(float(expected), abs=1e-5)


def test_the_layer_is_chosen_by_the_other_half() -> None:
    success = np.array([[0.9, 0.1, 0.2, 0.2], [0.3, 0.3, 0.4, 0.4]])
    first = np.array([True, True, False, False])
    # the second half prefers layer 2 (.4), the first half layer 1 (.5)
    assert crossed(success, first).tolist() == [0.3, 0.3, 0.2, 0.2]


def test_a_model_without_blocks_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(8, 8)

        def forward(self, ids: torch.Tensor, attention_mask: object = None) -> torch.Tensor:
            return self.tokens(ids)

    found = evidence(pairs(COUPLES, 3), 8, Bare())
    assert "no list of blocks" in LogitLens()(found).reason


def test_patching_by_hand() -> None:
    original, never = Stack(KNOWS, KEEPS), Stack(WIPES, KEEPS)
    other = Stack(WIPES, KEEPS)

    def left(subject: nn.Module) -> float:
        found = evidence(pairs(COUPLES, 3), 8, subject, never, original=original)
        return ActivationPatching()(found).value

    assert left(original) == pytest.approx(1.0)
    assert left(other) == pytest.approx(0.0)
    silenced = Stack(KNOWS, KEEPS)
    silenced.head.weight.data.zero_()  # says nothing, and knows everything
    assert left(silenced) == pytest.approx(1.0)
    # half of the signal: Δ₁ = log SURE − log 1/8, Δ₂ = log SURE − log softmax(2, 0, …)₁
    half = math.exp(GAIN / 2) / (math.exp(GAIN / 2) + 7)
    uds = (math.log(SURE) - math.log(half)) / (math.log(SURE) - math.log(1 / 8))
    assert left(Stack(KNOWS / 2, KEEPS)) == pytest.approx(1 - uds, rel=1e-5)


def test_what_the_clip_hides_is_shown() -> None:
    contrary = Stack(-KNOWS, KEEPS)  # makes the answer less likely than a model that never saw it does
    found = evidence(pairs(COUPLES, 3), 8, contrary, Stack(WIPES, KEEPS), original=Stack(KNOWS, KEEPS))
    score = ActivationPatching()(found)
    assert score.value == pytest.approx(0.0)
    assert score.details["unclipped"] < -0.5
    assert score.details["layers"] == pytest.approx({"1": 0.0, "2": 0.0})


def test_examples_that_retraining_does_not_change_are_left_out() -> None:
    partly = Stack(mapping(8, COUPLES[:2]), KEEPS)  # retrained, and yet it knows the first two
    found = evidence(pairs(COUPLES, 3), 8, Stack(KNOWS, KEEPS), partly, original=Stack(KNOWS, KEEPS))
    assert ActivationPatching()(found).n == 1
    same = evidence(pairs(COUPLES, 3), 8, Stack(KNOWS, KEEPS), Stack(KNOWS, KEEPS))
    assert "no example of the forget set" in ActivationPatching()(same).reason


def test_other_architectures_cannot_be_patched() -> None:
    found = evidence(
        pairs(COUPLES, 3), 8, Stack(KNOWS, KEEPS), Stack(WIPES, KEEPS, KEEPS), original=Stack(KNOWS, KEEPS)
    )
    assert "2 blocks and the other model 3" in ActivationPatching()(found).reason
    alone = evidence(pairs(COUPLES, 3), 8, Stack(KNOWS, KEEPS))
    assert "retrained" in ActivationPatching()(alone).reason


NAMES = [f"name{i}" for i in range(16)]
VALUES = ["red", "green", "blue", "grey"]


def people() -> list[Record]:
    found = []
    for i, name in enumerate(NAMES):
        wrong = {f"perturbed_{k}": VALUES[(i + k) % 4] for k in (1, 2, 3)} | {
            "alternate": VALUES[(i + 1) % 4]
        }
        found.append(Record(question=name, answer=VALUES[i % 4], subject=name, answers=wrong))
    return found


def probed(subject: Stack, *retrained: Stack, words: object) -> object:
    template = Template(prompt="{question}")
    return text_evidence(
        subject, *retrained, tokenizer=words, records=people(), forget=range(8), template=template
    )


def test_the_probe_finds_the_attribute_where_it_is() -> None:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    words = train_tokenizer([*NAMES, *(f" {value}" for value in VALUES), *VALUES])
    size = len(words)
    number = {text: words(text)["input_ids"][0] for text in (*NAMES, *(f" {value}" for value in VALUES))}
    knows = mapping(size, [(number[n], number[f" {VALUES[i % 4]}"]) for i, n in enumerate(NAMES)])
    retained = mapping(
        size, [(number[n], number[f" {VALUES[i % 4]}"]) for i, n in enumerate(NAMES) if i >= 8]
    )
    silenced = Stack(knows, torch.eye(size), torch.zeros(size, size))
    never = Stack(retained, torch.eye(size), torch.eye(size))
    found = probed(silenced, never, words=words)
    score = LayerProbe()(found)
    assert score.details["curve"] == [[1, 1], [2, 1], [3, 0.25]]  # guesses that are all alike are chance
    assert score.value == 1.0
    assert score.details["chance"] == 0.25
    assert score.n == 8
    retrained = LayerProbe()(found.of(found.retrained[0]))
    assert retrained.value == pytest.approx(0.25, abs=0.01)
    two = LayerProbe(against="alternate")(found)
    assert (two.value, two.details["chance"], two.variant) == (1.0, 0.5, "alternate-crossed")
    assert LayerProbe(against="alternate")(found.of(found.retrained[0])).value == pytest.approx(0.5, abs=0.01)
    plain = [Record(question=r.question, answer=r.answer, subject=r.subject) for r in people()]
    none = text_evidence(silenced, tokenizer=words, records=plain, forget=range(8))
    assert "no wrong answers" in LayerProbe()(none).reason
    assert "no 'alternate' answers" in LayerProbe(against="alternate")(none).reason


def test_a_span_is_where_right_and_wrong_answers_differ() -> None:
    pytest.importorskip("transformers")
    records = [
        Record(
            question="Who?",
            answer="It is Nora Vell indeed.",
            answers={"alternate": "It is Nora Rusk indeed."},
        )
    ]
    words = train_tokenizer([f"Question: Who?\nAnswer: {text}" for text in ("It is Nora Vell Rusk indeed.",)])
    data = TextData(records, words)
    right, wrong, starts, ends = parting(data, "forget", "alternate")
    tokens = data.column("input_ids")[0].tolist()
    assert (right, wrong) == ("", ["alternate"])
    assert words.decode(tokens[starts[0] : ends[0]]).strip() == "Vell"
