"""The same numbers with and without logits, and what is kept of each token."""

import math

import pytest
import torch
from torch import nn

from expunge.data.split import Split
from expunge.data.text import IGNORED, Record, Template, TextData
from expunge.errors import DataError, Unsupported
from expunge.evaluation.subject import Subject
from expunge.methods.gradient.npo import NPO
from expunge.tasks import token_states
from expunge.tasks.causal_lm import CausalLM, labelled
from expunge.tasks.token_states import TokenStates
from expunge.training.engine import Engine
from expunge.training.session import Session
from expunge.training.step import Original, View

WORDS = ["ada", "bo", "cy", "lives", "in", "rome", "oslo", "?", ".", "who", "where"]


class Words:
    """A tokenizer of whole words, with as much of transformers' interface as is used."""

    chat_template = None
    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, list]:
        if isinstance(text, list):
            return {"input_ids": [self(each, add_special_tokens)["input_ids"] for each in text]}
        ids = [3 + WORDS.index(word) for word in text.split() if word in WORDS]
        return {"input_ids": [self.bos_token_id, *ids] if add_special_tokens else ids}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [["<pad>", "<s>", "</s>", *WORDS][i] for i in ids]


TEMPLATE = Template(prompt="{question}", answer="{answer}")
RECORDS = [
    Record(question=f"where lives {name} ?", answer=answer, subject=name, answers={"idk": "bo lives in bo ."})
    for name, answer in (("ada", "ada lives in rome ."), ("bo", "oslo"), ("cy", "cy in rome"))
]


@pytest.fixture
def data() -> TextData:
    return TextData(RECORDS, Words(), TEMPLATE)


@pytest.fixture
def model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=14, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def batch_of(data: TextData) -> dict[str, torch.Tensor]:
    (batch,) = data.batches([torch.arange(len(data))], device="cpu")
    return batch


def test_prompt_and_padding_have_no_label_and_the_end_of_text_has_one(data: TextData) -> None:
    batch = batch_of(data)
    assert batch["input_ids"][1].tolist() == [1, 13, 6, 4, 10, 9, 2, 0, 0, 0, 0]
    assert batch["labels"][1].tolist() == [IGNORED] * 5 + [9, 2] + [IGNORED] * 4
    assert batch["attention_mask"][1].tolist() == [1] * 7 + [0] * 4
    assert batch["subjects"].tolist() == [0, 1, 2]
    assert data.shown(1) == "prompt, no labels: <s> where lives bo ?\nlabels: oslo </s>"


def test_a_batch_is_cut_to_its_longest_example(data: TextData) -> None:
    (batch,) = data.batches([torch.tensor([1, 2])], device="cpu")
    assert batch["input_ids"].shape == (2, 9)
    assert batch["idk.input_ids"].shape == (2, 11)
    assert data.column("input_ids").shape == (3, 11)


def test_random_batches_hold_examples_of_similar_length() -> None:
    long = [Record(question="who ?", answer=" ".join(["rome"] * (1 + i % 7))) for i in range(64)]
    data = TextData(long, Words(), TEMPLATE)
    order = data.random_order(8, torch.Generator().manual_seed(0))
    assert torch.cat(order).sort().values.tolist() == list(range(64))
    lengths = data.column("lengths")
    spread = [int(lengths[rows].max() - lengths[rows].min()) for rows in order]
    assert max(spread) <= 1
    again = data.random_order(8, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(order, again, strict=True))


def test_losses_from_hidden_states_are_those_of_the_logits(data, model, monkeypatch) -> None:
    monkeypatch.setattr(token_states, "CHUNK", 14 * 4)
    task, batch = CausalLM(14), batch_of(data)
    said = task.said(model, batch)
    assert isinstance(said, TokenStates)
    assert len(said.hidden) == int(labelled(batch).sum()) < 33
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.allclose(task.log_likelihood(said, batch), task.log_likelihood(logits, batch), atol=1e-5)
    assert torch.allclose(task.score(said, batch), task.score(logits, batch))
    for name, value in task.tokens(said, batch).items():
        assert torch.allclose(value, task.tokens(logits, batch)[name], atol=1e-5, equal_nan=True)
    mask = labelled(batch)
    assert torch.allclose(said.logits()[:, :-1][mask], logits[:, :-1][mask], atol=1e-5)
    gradients = []
    for found in (task.loss(said, batch), task.loss(logits, batch)):
        model.zero_grad()
        (found.square()).sum().backward()
        gradient = torch.cat([p.grad.flatten().clone() for p in model.parameters()])
        gradients.append(gradient)
    assert torch.allclose(*gradients, atol=1e-5)


def test_the_sum_and_the_mean_have_two_names(data, model) -> None:
    task, batch = CausalLM(14), batch_of(data)
    said = task.said(model, batch)
    counts = torch.tensor([6, 2, 4])
    assert torch.allclose(task.log_likelihood(said, batch), -task.loss(said, batch) * counts)


def test_token_details_by_hand() -> None:
    batch = {"labels": torch.tensor([[IGNORED, 1, IGNORED]])}
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 5.0], [1.0, 0.0]]])
    found = CausalLM(2).tokens(logits, batch)
    p = torch.tensor([0.25, 0.75])
    mean = float((p * p.log()).sum())
    assert found["log_probs"][0, 0] == pytest.approx(math.log(0.75))
    assert found["mean"][0, 0] == pytest.approx(mean)
    assert found["deviation"][0, 0] == pytest.approx(math.sqrt(float((p * (p.log() - mean) ** 2).sum())))
    assert found["right"][0, 0] == 1.0
    assert found["right"][0, 1].isnan()


def test_a_model_whose_logits_are_capped_is_read_by_its_logits(data) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=14, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.01,
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(config).train()
    said = CausalLM(14).said(model, batch_of(data))
    assert isinstance(said, torch.Tensor)
    assert model.training


def test_another_answer_stands_in_for_the_own_and_its_original_value_is_kept(data, model) -> None:
    task = CausalLM(14)
    original = Original(model, task, Engine(), {"forget": data})
    view = View("forget", batch_of(data), model, original, task, Engine(), None)
    idk = view.instead("idk")
    expected = TextData(
        [Record(question=r.question, answer="bo lives in bo .") for r in RECORDS], Words(), TEMPLATE
    )
    other = batch_of(expected)
    assert torch.allclose(idk.log_likelihood, task.log_likelihood(task.said(model, other), other), atol=1e-6)
    assert torch.allclose(idk.original_log_likelihood, idk.log_likelihood, atol=1e-5)
    assert not torch.allclose(view.original_log_likelihood, idk.original_log_likelihood)
    with pytest.raises(Unsupported, match="the data has no 'alternate' answers; it has: idk"):
        view.instead("alternate")


def test_a_reading_keeps_tokens_and_refuses_outputs_that_are_too_many(data, model, monkeypatch) -> None:
    subject = Subject("m", model, {"forget": data}, CausalLM(14), Session())
    reading = subject.read("forget")
    assert reading.outputs.shape == (3, 11, 14)
    assert reading.tokens["log_probs"].shape == (3, 10)
    assert torch.allclose(reading.tokens["log_probs"].nansum(1), reading.log_likelihood, atol=1e-6)
    monkeypatch.setattr("expunge.evaluation.subject.KEPT", 100)
    reading = Subject("m", model, {"forget": data}, CausalLM(14), Session()).read("forget")
    assert torch.isfinite(reading.loss).all()
    with pytest.raises(Unsupported, match="more than the 100 numbers that are kept"):
        _ = reading.outputs


def test_evaluation_batches_of_different_length_are_joined(data, model, monkeypatch) -> None:
    whole = Subject("m", model, {"forget": data}, CausalLM(14), Session()).read("forget")
    monkeypatch.setattr("expunge.tasks.causal_lm.LOGITS", 11 * 14)
    single = Subject("m", model, {"forget": data}, CausalLM(14), Session()).read("forget")
    assert torch.allclose(single.loss, whole.loss, atol=1e-6)
    assert single.outputs.shape == whole.outputs.shape


def test_a_method_for_all_tasks_unlearns_a_transformers_model(data, model) -> None:
    split = Split.from_ids(data, [1])
    found = NPO(epochs=3, batch_size=2).unlearn(model, split, CausalLM(14), Session())
    (batch,) = split.forget.batches([torch.tensor([0])], device="cpu")
    task = CausalLM(14)
    before, after = (task.log_likelihood(task.said(m, batch), batch) for m in (model, found))
    assert after < before


@pytest.mark.parametrize(
    ("records", "template", "said"),
    [
        ([], TEMPLATE, "there are no records"),
        ([Record(question="who ?", answer=" ")], TEMPLATE, "record 0: an answer is empty"),
        (
            [Record(question="who ?", answer="ada lives in rome .")],
            Template(prompt="{question}", answer="{answer}", max_length=5),
            r"record 0 has 9 tokens, more than max_length=5",
        ),
        (
            [Record(question="who ?", answer="ada", earlier=(("user", "bo"), ("assistant", "cy")))],
            TEMPLATE,
            "record 0: a chat of several turns needs",
        ),
        (
            [Record(answer="ada", subject="ada"), Record(answer="bo")],
            TEMPLATE,
            "record 1 has no subject",
        ),
        ([Record(question="who ?", answer="ada")], Template(chat=True), "no chat template"),
    ],
)
def test_bad_records_are_named(records, template, said) -> None:
    with pytest.raises(DataError, match=said):
        TextData(records, Words(), template)


def test_a_document_longer_than_the_context_is_cut_into_pieces() -> None:
    template = Template(prompt="", answer="{answer}", max_length=4)
    data = TextData([Record(answer="ada lives in rome . bo")], Words(), template)
    assert data.column("lengths").tolist() == [4, 4]
    batch = batch_of(data)
    assert batch["labels"].tolist() == batch["input_ids"].tolist() == [[1, 3, 6, 7], [8, 11, 4, 2]]


def test_an_answer_that_an_example_lacks_cannot_be_asked_for() -> None:
    records = [RECORDS[0], Record(question="who ?", answer="ada", subject="bo")]
    data, task = TextData(records, Words(), TEMPLATE), CausalLM(14)
    first, second = (batch_of(data.subset([row])) for row in (0, 1))
    assert task.instead(first, "idk")["labels"].shape == first["idk.labels"].shape
    with pytest.raises(DataError, match="example 1 has no 'idk' answer"):
        task.instead(second, "idk")


def test_logits_are_spelled_out_only_for_who_asks(data, model, monkeypatch) -> None:
    spelled: list[int] = []
    method = CausalLM.spelled_out

    def counted(self, said, batch):
        spelled.append(1)
        return method(self, said, batch)

    monkeypatch.setattr(CausalLM, "spelled_out", counted)
    reading = Subject("m", model, {"forget": data}, CausalLM(14), Session()).read("forget")
    assert reading.kept is None
    assert not spelled
    outputs = reading.outputs
    assert len(spelled) == 1
    assert reading.outputs is outputs
    batch = batch_of(data)
    there = batch["labels"][:, 1:] != -100
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.allclose(outputs[:, :-1][there], logits[:, :-1][there], atol=1e-5)
