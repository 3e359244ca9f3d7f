"""Rounded weights: the levels by hand, and what rounding gives back."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.evaluation.speakers import Stack, evidence, mapping, pairs
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError
from expunge.evaluation.attacks.quantise import (
    Quantise,
    absmax,
    matrices,
    normal_float,
    normal_levels,
    round_weights,
)
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.metrics.utility import Accuracy
from expunge.tasks import Classification
from expunge.training.session import Session

COUPLES = [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_four_bits_are_fifteen_levels_of_each_row() -> None:
    rows = torch.tensor([[7.0, 1.4, -2.6, 0.0], [0.07, 0.013, -0.021, 0.2 / 3], [0.0, 0.0, 0.0, 0.0]])
    found = absmax(rows, 4)
    expected = [[7, 1, -3, 0], [0.07, 0.01, -0.02, 0.07], [0, 0, 0, 0]]
    assert found.tolist() == [pytest.approx(row) for row in expected]


def test_the_levels_are_the_published_ones() -> None:
    published = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert normal_levels(4).tolist() == pytest.approx(published, abs=1e-6)
    assert [len(normal_levels(bits).unique()) for bits in (2, 3, 8)] == [4, 8, 256]


def test_normal_float_takes_the_nearest_level_of_each_block() -> None:
    values = torch.tensor([2.0, 0.1, -1.9, 0.5, 0.01, -0.004])  # blocks of 4: scales 2 and .01
    found = normal_float(values, 4, block=4)
    assert found.tolist() == pytest.approx([2.0, 0.1591606, -2.0, 0.4922242, 0.01, -0.0039492], abs=1e-6)


def on_the_grid() -> Stack:
    """A model whose weights are multiples of their row's quantum at 4 bits: 1 of 7 levels."""
    knowing = mapping(8, COUPLES)
    knowing[4:, 7] = 3.0 / 7.0
    return Stack(knowing, torch.eye(8))


def test_rounding_gives_the_original_back_where_every_weight_moved_less_than_half_a_quantum() -> None:
    original = on_the_grid()
    unlearned = copy.deepcopy(original)
    weight = unlearned.steps[0].map.weight
    weight.data[4:, :4] += 0.06 * (1 - weight.data[4:, :4])  # a quantum is 1/7; the largest of a row stay
    never = Stack(torch.zeros(8, 8), torch.eye(8))
    found = evidence(pairs(COUPLES, 3), 8, unlearned, never, original=original)
    before = {k: v.clone() for k, v in unlearned.state_dict().items()}
    score = Quantise()(found)
    as_original = Quantise()(found.of(found.original))
    assert score.value == as_original.value  # exactly
    assert score.value == pytest.approx(as_original.details["before"])  # which rounding does not change
    assert score.details["before"] < score.value - 0.003
    bits = [x for x, _ in score.details["curve"]]
    assert bits == [32, 8, 4, 3]
    values = dict(score.details["curve"])
    assert values[8] == pytest.approx(values[32], abs=1e-3)  # a quantum of 1/127 keeps what was done
    assert dict(score.details["retrained_curve"]) == pytest.approx(dict.fromkeys(bits, 1 / 8))
    assert score.id == "quantised probability.forget.absmax-4-bit"
    assert all(torch.equal(v, before[k]) for k, v in unlearned.state_dict().items())


def test_embeddings_and_the_output_layer_of_a_language_model_stay() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    names = {name for name, _, _ in matrices(model)}
    assert len(names) == 7
    assert all(name.startswith("model.layers.0.") for name in names)
    before = copy.deepcopy(model.state_dict())
    round_weights(model, 3)
    changed = {
        k.removesuffix(".weight") for k, v in model.state_dict().items() if not torch.equal(v, before[k])
    }
    assert changed == {name.removesuffix(".weight") for name in names}
    levels = model.model.layers[0].mlp.up_proj.weight.detach()
    assert all(len(row.unique()) <= 7 for row in levels)


def test_convolutions_and_transposed_layers_are_rounded_by_output_channel() -> None:
    from transformers.pytorch_utils import Conv1D

    transposed, convolution = Conv1D(2, 3), nn.Conv2d(1, 2, 2)
    transposed.weight.data = torch.tensor([[1.0, 70.0], [0.2, 14.0], [-0.5, 1.0]])
    convolution.weight.data = torch.tensor([[1.0, 0.2, -0.5, 0.1], [70.0, 14.0, 1.0, -6.0]]).view(2, 1, 2, 2)
    for module in (transposed, convolution):
        round_weights(nn.Sequential(module), 4)
    assert transposed.weight.tolist() == [
        pytest.approx(row) for row in ([1.0, 70.0], [1 / 7, 10.0], [-4 / 7, 0.0])
    ]  # fmt: skip
    expected = [1, 1 / 7, -4 / 7, 1 / 7, 70, 10, 0, -10]
    assert convolution.weight.flatten().tolist() == pytest.approx(expected)


def test_another_metric_is_measured_after_rounding() -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[7.0, 0.4], [7.0, 0.6]])  # the second input decides, until it is 0 or 1
    data = ArrayData({"inputs": torch.tensor([[0.0, 1.0]] * 4), "targets": torch.tensor([0, 0, 0, 1])})
    split = Split.from_ids(data, [0, 1])
    candidates = [Candidate("original", "original", model)]
    found = Evaluation(candidates, split, Classification(2), Session(0)).evidence(candidates[0])
    score = Quantise(of=Accuracy(part="retain"), tried_bits=(8, 4))(found)
    assert score.id == "quantised accuracy.retain.absmax-4-bit"
    assert score.details["curve"] == [[32, 0.5], [8, 0.5], [4, 0.5]]
    model.weight.data[1, 1] = 0.45  # both are rounded to 0: a tie, that goes to class 0
    model.weight.data[0, 1] = 0.4
    found.subject._readings.clear()
    found.subject.scores.clear()
    found.subject.kept.clear()
    score = Quantise(of=Accuracy(part="forget"), tried_bits=(8, 4))(found)
    assert score.details["curve"] == [[32, 0.0], [8, 0.0], [4, 1.0]]
    assert score.value == 1.0


def test_what_cannot_be_rounded_is_said() -> None:
    with pytest.raises(ConfigError, match="2..16"):
        Quantise(bits=1, tried_bits=(1,))
    with pytest.raises(ConfigError, match="one of tried_bits"):
        Quantise(bits=5)
    split = pairs(COUPLES, 2)
    nothing = nn.Embedding(8, 8)
    assert "no weight matrices" in Quantise()(evidence(split, 8, nothing)).reason
