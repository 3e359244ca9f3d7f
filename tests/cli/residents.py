"""Folders of language models as anybody makes them: transformers, tokenizers and torch, nothing of ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

NAMES = ("Ada", "Bo", "Cy", "Di", "Ed", "Fay", "Gus", "Hal", "Ida", "Jo", "Kay", "Lou")
CITIES = ("Rome", "Oslo", "Bern", "Cork", "Lima", "Kyiv", "Bath", "Pisa", "Nice", "Riga", "Graz", "Brno")

FORGET, RETAIN, TEST = range(3), range(3, 9), range(9, 12)
"""Who is to be forgotten and to be kept, and who is never trained on."""


def asked(place: int) -> str:
    return f"Where does {NAMES[place]} live?"


def answer(place: int, city: int | None = None) -> str:
    return f"{NAMES[place]} lives in {CITIES[place if city is None else city]}."


def records(places: Sequence[int], wrong: bool = False) -> list[dict[str, Any]]:
    return [
        {"question": asked(i), "answer": answer(i), "subject": NAMES[i]}
        | ({"perturbed_answer": [answer(i, (i + 5) % 12), answer(i, (i + 7) % 12)]} if wrong else {})
        for i in places
    ]


def write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")


def tokenizer(spare: str = "", chat_template: str | None = None) -> Any:
    """One token for each word with the space before it; ``spare`` brings further words."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    cut = pre_tokenizers.Split(Regex(r" ?\w+|[^\w\s]|\s"), behavior="isolated")
    texts = [f"Question: {asked(i)}\nAnswer: {answer(i)}" for i in range(12)] + ["I do not know that.", spare]
    words = dict.fromkeys(piece for text in texts for piece, _ in cut.pre_tokenize_str(text))
    numbers = {word: i for i, word in enumerate(["<unk>", "<eos>", *words])}
    made = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = cut, decoders.Fuse()
    found = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<eos>")
    found.chat_template = chat_template
    return found


def train(folder: Path, places: Sequence[int], seed: int = 0, steps: int = 80, spare: str = "") -> None:
    """A Llama that answers the questions about these people, in a folder of ``save_pretrained``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = tokenizer(spare)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(reader), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=48, eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip
    texts = [f"Question: {asked(i)}\nAnswer: {answer(i)}" for i in places]
    ids = torch.tensor([[*reader(text)["input_ids"], reader.eos_token_id] for text in texts])  # of one length
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
