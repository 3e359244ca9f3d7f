"""What a language model writes when it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.arrays import Data
from expunge.data.text import IGNORED, TextData
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.tasks.base import model_output
from expunge.training.engine import Engine

TOKENS = 2**14
"""Tokens of prompts and answers in one batch."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How an answer is written.

    Args:
        max_tokens: where an answer ends at the latest.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
        samples: answers to each question; more than one needs a temperature.
        top_p: draws only among the likeliest tokens that have this probability together.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    samples: int = 1
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if self.temperature < 0:
            raise ConfigError(f"must be at least 0, got {self.temperature}.", "temperature")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError("several answers to a question need a temperature above 0.", "samples")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"is a probability above 0, got {self.top_p}.", "top_p")


GREEDY = Decoding()


def answers(
    model: nn.Module, data: Data, engine: Engine, decoding: Decoding = GREEDY, seed: int = 0
) -> list[list[str]]:
    """For every example the ``samples`` answers that the model writes after its prompt.

    A prompt is all that stands before the first label. Prompts of similar length are asked together,
    padded on the left. Models of transformers generate with their cache and stop where the context is
    full; any other model is asked for all tokens anew at every step.

    Raises:
        Unsupported: the data holds no text.
        DataError: a prompt fills the model's context.
    """
    if not isinstance(data, TextData):
        raise Unsupported("only text can be asked for: the data holds no questions. Use TextData.")
    prompts = _prompts(data)
    found: list[list[str]] = [[] for _ in prompts]
    beside = {name: data.column(name) for name in data.beside}
    with engine.frozen(engine.placed(model)) as asked, seeding.seeded(seeding.derive(seed, "generation")):
        for rows in _batches([len(prompt) for prompt in prompts], decoding):
            tokens, mask = _padded([prompts[row] for row in rows], data.tokenizer, engine.torch_device)
            given = {name: values[rows].to(engine.torch_device) for name, values in beside.items()}
            with engine.autocast():
                written = _written(asked, tokens, mask, decoding, data.tokenizer, given)
            texts = data.tokenizer.batch_decode(written.tolist(), skip_special_tokens=True)
            for i, row in enumerate(rows):
                start = i * decoding.samples
                found[row] = [text.strip() for text in texts[start : start + decoding.samples]]
    return found


def _prompts(data: TextData) -> list[list[int]]:
    ids, labels = data.column("input_ids"), data.column("labels")
    return [
        row[: int((label != IGNORED).nonzero()[0])].tolist() or row[:1].tolist()
        for row, label in zip(ids, labels, strict=True)
    ]


def _batches(lengths: list[int], decoding: Decoding) -> Iterator[list[int]]:
    """Rows in batches of at most ``TOKENS`` tokens, the shortest prompts first."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        width = (lengths[row] + decoding.max_tokens) * decoding.samples
        if batch and (len(batch) + 1) * width > TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _padded(prompts: list[list[int]], tokenizer: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    tokens = torch.full((len(prompts), longest), _padding(tokenizer))
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def _padding(tokenizer: Any) -> int:
    found = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if found is None else found)


def _written(
    model: Any, tokens: Tensor, mask: Tensor, decoding: Decoding, tokenizer: Any, given: dict[str, Tensor]
) -> Tensor:
    """The new tokens, ``(N · samples, L)``."""
    if not hasattr(model, "generate"):
        if given:
            raise Unsupported(
                f"{type(model).__name__} cannot generate, and only models of transformers are shown "
                "pictures. Use kind llava."
            )
        return _stepwise(model, tokens, mask, decoding, tokenizer)
    draws: dict[str, Any] = {"do_sample": False}
    if decoding.temperature > 0:
        draws = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    found = model.generate(
        input_ids=tokens,
        attention_mask=mask,
        max_new_tokens=_room(model, tokens.shape[1], decoding),
        num_return_sequences=decoding.samples,
        pad_token_id=_padding(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        **given,
        **draws,
    )
    return found[:, tokens.shape[1] :]  # type: ignore[no-any-return]


def context(model: Any) -> int | None:
    """The most tokens that a model of transformers reads; None where that is not known."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def _room(model: Any, prompt: int, decoding: Decoding) -> int:
    """Tokens that an answer may have: no more than the model's context leaves."""
    most = context(model)
    if most is None:
        return decoding.max_tokens
    if prompt >= most:
        raise DataError(
            f"a prompt of {prompt} tokens fills the model's context of {most}. Shorten the question."
        )
    return min(decoding.max_tokens, most - prompt)


def _stepwise(model: nn.Module, tokens: Tensor, mask: Tensor, decoding: Decoding, tokenizer: Any) -> Tensor:
    """The same for a model without a cache, one prompt at a time as it takes no padding."""
    rows = []
    for prompt, there in zip(tokens, mask, strict=True):
        for _ in range(decoding.samples):
            text = prompt[there.bool()][None]
            start = text.shape[1]
            for _ in range(decoding.max_tokens):
                logits = model_output(model(text))[0, -1].float()
                following = _drawn(logits, decoding)
                text = torch.cat([text, following.view(1, 1)], 1)
                if int(following) == tokenizer.eos_token_id:
                    break
            rows.append(text[0, start:])
    longest = max(map(len, rows))
    padded = tokens.new_full((len(rows), longest), _padding(tokenizer))
    for row, written in enumerate(rows):
        padded[row, : len(written)] = written
    return padded


def _drawn(logits: Tensor, decoding: Decoding) -> Tensor:
    if decoding.temperature == 0:
        return logits.argmax()
    chances = (logits / decoding.temperature).softmax(-1)
    ordered, places = chances.sort(descending=True)
    ordered[ordered.cumsum(0) - ordered >= decoding.top_p] = 0
    return places[torch.multinomial(ordered, 1)][0]
