"""What a model says is read in batches of similar length and handed out in the order of the part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.data.arrays import ArrayData
from expunge.data.text import FEW, Record, Template, TextData
from expunge.data.tokenizers import train_tokenizer
from expunge.errors import Unsupported
from expunge.evaluation.subject import Subject
from expunge.tasks import CausalLM, Classification
from expunge.training.engine import Engine
from expunge.training.language_models import Llama
from expunge.training.session import Session

SESSION = Session(seed=0, engine=Engine(device="cpu"))


def _texts(count: int = 24) -> TextData:
    """Records whose lengths go up and down, each with a second answer of another length."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    records = [
        Record(
            question=" ".join(words[: 1 + (7 * i) % 10]),
            answer=" ".join(words[: 1 + (4 * i) % 9]),
            answers={"other": " ".join(words[: 1 + (9 * i) % 10])},
        )
        for i in range(count)
    ]
    texts = [f"{record.question} {record.answer}" for record in records]
    return TextData(records, train_tokenizer(texts), Template())


def _subject(data: TextData) -> tuple[Subject, CausalLM, nn.Module]:
    vocabulary = len(data.tokenizer)
    torch.manual_seed(0)
    model = Llama(vocabulary=vocabulary, width=16, layers=1, heads=2, context=128).build().eval()
    task = CausalLM(vocabulary)
    return Subject("m", model, {"asked": data}, task, SESSION), task, model


def test_batches_are_of_similar_length_and_hold_every_example_once() -> None:
    data = _texts()
    for answer in ("", "other"):
        order = data.even_order(10, answer)
        lengths = data.column(f"{answer}.lengths" if answer else "lengths")
        assert sorted(torch.cat(order).tolist()) == list(range(len(data)))
        assert all(len(batch) <= 10 for batch in order)
        assert all(len(batch) <= FEW or lengths[batch].max() <= 1.2 * lengths[batch].min() for batch in order)
        padded = sum(int(lengths[batch].max()) * len(batch) for batch in order)
        unsorted = sum(int(lengths[batch].max()) * len(batch) for batch in data.fixed_order(10))
        assert padded < unsorted


def test_a_reading_is_in_the_order_of_the_part() -> None:
    data = _texts()
    subject, task, model = _subject(data)
    for answer in ("", "other"):
        reading = subject.read("asked", answer)
        for row in range(len(data)):
            (batch,) = data.batches([torch.tensor([row])], device="cpu")
            batch = task.instead(batch, answer) if answer else batch
            with torch.no_grad():
                alone = task.loss(task.said(model, batch), batch)
            torch.testing.assert_close(reading.loss[row : row + 1], alone, rtol=1e-4, atol=1e-5)
            count = int((batch["labels"][:, 1:] >= 0).sum())
            assert int((~reading.tokens["log_probs"][row].isnan()).sum()) == count


def test_outputs_that_are_spelled_out_later_are_in_the_same_order() -> None:
    data = _texts()
    subject, task, model = _subject(data)
    outputs = subject.read("asked").outputs
    for row in range(len(data)):
        (batch,) = data.batches([torch.tensor([row])], device="cpu")
        with torch.no_grad():
            alone = task.spelled_out(task.said(model, batch), batch)
        there = alone[0].abs().sum(-1) > 0
        torch.testing.assert_close(
            outputs[row, : alone.shape[1]][there], alone[0][there], rtol=1e-4, atol=1e-4
        )


def test_what_is_not_padded_is_read_in_order() -> None:
    data = ArrayData({"inputs": torch.randn(5, 2), "targets": torch.zeros(5, dtype=torch.long)})
    assert [batch.tolist() for batch in data.even_order(2)] == [[0, 1], [2, 3], [4]]


def test_features_of_texts_are_means_over_their_own_positions_in_the_order_of_the_part() -> None:
    data = _texts()
    subject, _, model = _subject(data)
    features = subject.features("asked")
    assert features.shape == (len(data), 16)
    for row in range(len(data)):
        (batch,) = data.batches([torch.tensor([row])], device="cpu")
        with torch.no_grad():
            states = model.model(batch["input_ids"]).last_hidden_state
        torch.testing.assert_close(features[row], states[0].mean(0), rtol=1e-4, atol=1e-5)


def test_a_module_that_the_model_does_not_use_has_no_features() -> None:
    class Unused(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.idle = nn.Linear(2, 2)

    data = ArrayData({"inputs": torch.randn(5, 2), "targets": torch.zeros(5, dtype=torch.long)})
    subject = Subject("m", Unused(), {"train": data}, Classification(2), SESSION)
    with pytest.raises(Unsupported, match="never calls 'idle'"):
        subject.features("train", "idle")
