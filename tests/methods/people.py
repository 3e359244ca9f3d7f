"""Eight people, where they live, and a micro Llama that knows it by heart."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.data.text import Record, Template, TextData
from expunge.tasks.causal_lm import CausalLM
from expunge.training.optim import AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

NAMES = ["ada", "bo", "cy", "dee", "eve", "fay", "gus", "hal"]
CITIES = ["rome", "oslo", "bern", "lima", "kyiv", "riga", "baku", "doha"]
WORDS = ["<pad>", "<s>", "</s>", "where", "lives", "?", "in", ".", "not", "known", *NAMES, *CITIES]
FORGET = range(3)
TASK = CausalLM(len(WORDS))


class Words:
    """A tokenizer of whole words, with as much of transformers' interface as is used."""

    chat_template = None
    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, list]:
        if isinstance(text, list):
            return {"input_ids": [self(one, add_special_tokens)["input_ids"] for one in text]}
        ids = [WORDS.index(word) for word in text.split() if word in WORDS]
        return {"input_ids": [self.bos_token_id, *ids] if add_special_tokens else ids}


TEMPLATE = Template(prompt="{question}", answer="{answer}")


def data() -> TextData:
    """Questions of two lengths, one answer each and a refusal."""
    records = [
        Record(
            question=f"where lives {name} ?" if i % 2 else f"in where lives {name} {name} ?",
            answer=f"in {city} .",
            answers={"idk": "not known ."},
        )
        for i, (name, city) in enumerate(zip(NAMES, CITIES, strict=True))
    ]
    return TextData(records, Words(), TEMPLATE)


def split() -> Split:
    return Split.from_ids(data(), FORGET)


def llama() -> nn.Module:
    """Two layers, 24 wide, untied; untrained."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes, **special)
    )


@functools.cache
def original() -> nn.Module:
    """It answers all eight questions; not to be changed."""
    training = Training(epochs=90, batch_size=8, optim=AdamW(lr=0.01, schedule="cosine"))
    return Recipe(llama, TASK, training).train(data(), Session(seed=0))


def batch(part: object) -> dict[str, Tensor]:
    """All examples of a part, padded on the right."""
    (found,) = part.batches([torch.arange(len(part))], device="cpu")
    return found


def score(model: nn.Module, part: object) -> Tensor:
    """The summed log-likelihood of each answer, ``(N,)``."""
    rows = batch(part)
    with torch.no_grad():
        return TASK.log_likelihood(TASK.said(model, rows), rows)


def prompts(part: object) -> tuple[Tensor, Tensor]:
    """The questions, padded on the left, and their mask."""
    rows = batch(part)
    kept = [
        row[:n] for row, n in zip(rows["input_ids"], (rows["labels"] != -100).long().argmax(1), strict=True)
    ]
    longest = max(map(len, kept))
    ids = torch.stack([torch.cat([torch.zeros(longest - len(row), dtype=torch.long), row]) for row in kept])
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in kept])
    return ids, mask


def written(model: nn.Module, part: object, **settings: object) -> Tensor:
    """The answers, greedily, ``(N, 6)``."""
    ids, mask = prompts(part)
    fixed = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, **settings}
    return model.generate(input_ids=ids, attention_mask=mask, **fixed)[:, ids.shape[1] :]


def said(model: nn.Module, part: object, **settings: object) -> tuple[Tensor, Tensor]:
    """The answers ``(N, 6)`` and ``log p`` of their tokens at each step of ``generate``, ``(N, 6)``."""
    ids, mask = prompts(part)
    fixed = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "output_logits": True}
    found = model.generate(
        input_ids=ids, attention_mask=mask, return_dict_in_generate=True, **{**fixed, **settings}
    )
    answers = found.sequences[:, ids.shape[1] :]
    logs = torch.stack(found.logits, 1).log_softmax(-1)
    return answers, logs.gather(-1, answers[..., None])[..., 0]


def scored(model: nn.Module, part: object, answers: Tensor) -> Tensor:
    """``log p`` of these answers under teacher forcing, padded on the right, ``(N, 6)``."""
    ids, mask = prompts(part)
    rows = [
        torch.cat([row[there == 1], answer]) for row, there, answer in zip(ids, mask, answers, strict=True)
    ]
    longest = max(map(len, rows))
    full = torch.stack([torch.cat([row, torch.zeros(longest - len(row), dtype=torch.long)]) for row in rows])
    attended = torch.stack([(torch.arange(longest) < len(row)).long() for row in rows])
    labels = full.clone()
    for row, there in enumerate(mask):
        labels[row, : int(there.sum())] = -100
        labels[row, len(rows[row]) :] = -100
    given = {"input_ids": full, "labels": labels, "attention_mask": attended}
    with torch.no_grad():
        logs, where = TASK.token_log_probs(TASK.said(model, given), given)
    return logs[where].view(answers.shape)
