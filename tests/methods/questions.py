"""Questions with answers, refusals and other answers, a micro Llama for them, and steps over all of them."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from expunge import config
from expunge.data import Split
from expunge.data.arrays import fixed_order
from expunge.data.text import Record, Template, TextData
from expunge.tasks import CausalLM
from expunge.training.engine import Engine
from expunge.training.models import models
from expunge.training.step import Original, Step, View

NAMES = ("Ada", "Ben", "Cleo", "Dora", "Emil", "Fay")
PLACES = ("Oslo", "Lima by the sea", "Rome", "a small town near Bonn", "Kyoto", "Cairo")


@functools.cache
def split() -> Split:
    """Six questions, two of them to be forgotten; answers of one to five words."""
    from expunge.data.tokenizers import train_tokenizer

    records = [
        Record(
            question=f"Where does {name} live?",
            answer=place,
            answers={
                "idk": ("I do not know", "No idea")[index % 2],
                "alternate": PLACES[(index + 1) % len(PLACES)],
            },
        )
        for index, (name, place) in enumerate(zip(NAMES, PLACES, strict=True))
    ]
    texts = [
        Template().prompt,
        *(text for r in records for text in (r.question, r.answer, *r.answers.values())),
    ]
    tokenizer = train_tokenizer([text.replace("{question}", "") for text in texts])
    return Split.from_ids(TextData(records, tokenizer), [1, 4])


def task() -> CausalLM:
    return CausalLM(len(split().forget.tokenizer))


@functools.cache
def llama(seed: int = 0) -> nn.Module:
    """A Llama of 3,000 parameters whose predictions are far from uniform."""
    pytest.importorskip("transformers")
    fields = {"vocabulary": task().vocabulary, "width": 16, "layers": 1, "heads": 2, "context": 64}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = config.build(models, {"kind": "llama", **fields}).build()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch(part: str) -> dict[str, torch.Tensor]:
    data = getattr(split(), part)
    (whole,) = data.batches(fixed_order(len(data), len(data)), device="cpu")
    return whole


def originals(model: nn.Module) -> Original:
    return Original(model, task(), Engine(device="cpu"), {"forget": split().forget, "retain": split().retain})


def step(model: nn.Module, original: nn.Module | Original, change=lambda rows: rows, state=None) -> Step:
    """A step over the whole forget and retain sets, each batch as ``change`` makes it."""
    known = original if isinstance(original, Original) else originals(original)
    views = {
        part: View(part, change(batch(part)), model, known, task(), Engine(device="cpu"), None)
        for part in ("forget", "retain")
    }
    return Step("forget", views, model, 0, 0, 1, state)


def gradients(terms: dict[str, torch.Tensor], model: nn.Module) -> torch.Tensor:
    """All gradients of the sum of the terms in one vector."""
    total = torch.stack(list(terms.values())).sum()
    found = torch.autograd.grad(total, list(model.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def check_padding_does_not_count(method, state=None) -> None:
    def longer(rows):
        fills = {"input_ids": 3, "labels": -100, "attention_mask": 0}  # whatever token, it is not attended to
        return {
            name: nn.functional.pad(column, (0, 5), value=fills[name.rpartition(".")[2]])
            if name.rpartition(".")[2] in fills
            else column
            for name, column in rows.items()
        }

    plain = method.objective(step(llama(1), llama(0), state=state))
    padded = method.objective(step(llama(1), llama(0), longer, state))
    assert {name: float(value) for name, value in padded.items()} == pytest.approx(
        {name: float(value) for name, value in plain.items()}, rel=1e-5
    )


def check_parts_add_up(method, state=None) -> None:
    """The terms of single examples, averaged, are the terms of the batch."""
    whole = method.objective(step(llama(1), llama(0), state=state))
    totals = dict.fromkeys(whole, 0.0)
    for part in ("forget", "retain"):
        if part in whole:
            count = len(getattr(split(), part))
            for i in range(count):

                def one(rows, part=part, i=i):
                    size = len(rows["ids"])
                    return {name: column[i % size : i % size + 1] for name, column in rows.items()}

                totals[part] += float(method.objective(step(llama(1), llama(0), one, state))[part]) / count
    assert totals == pytest.approx({name: float(value) for name, value in whole.items()}, rel=1e-5)


class Recording(nn.Module):
    """The next token from the one before alone; keeps its logits and so their gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(
            torch.randn(2 * [task().vocabulary], generator=torch.Generator().manual_seed(0))
        )
        self.said: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        logits = self.table[ids]
        if logits.requires_grad:
            logits.retain_grad()
            self.said.append((ids, logits))
        return logits


def check_prompts_get_no_gradient(method, answers=(), state=None) -> None:
    """Logits have a gradient exactly where a label follows, and at no other place."""
    model, other = Recording(), Recording()
    with torch.no_grad():
        other.table.mul_(0.5)
    views = step(model, other, state=state)
    torch.stack(list(method.objective(views).values())).sum().backward()
    labels = [rows["labels"] for rows in (batch("forget"), batch("retain"))]
    labels += [batch("forget")[f"{name}.labels"] for name in answers]
    inputs = [rows["input_ids"] for rows in (batch("forget"), batch("retain"))]
    inputs += [batch("forget")[f"{name}.input_ids"] for name in answers]
    assert model.said
    for ids, logits in model.said:
        expected = next(y for x, y in zip(inputs, labels, strict=True) if torch.equal(x, ids))[:, 1:] != -100
        moved = (logits.grad != 0).any(-1)
        assert torch.equal(moved[:, :-1], expected)
        assert not moved[:, -1].any()
