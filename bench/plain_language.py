"""The other side of language.py: what a Hugging Face Trainer does for NPO, and questions one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.data.text import IGNORED, TextData

BETA = 0.1
Rows = list[tuple[Tensor, Tensor]]


class Loop:
    """NPO with a retain term, in place: full logits, a frozen reference model that runs at every step, a
    forward pass each for forget and retain, fused AdamW, gradients clipped at norm 1.

    Args:
        loss_of_model: whether labels are handed to the model along with the forget batch, as a Trainer does
            with whatever a batch holds; the model then computes a loss that nobody reads.
    """

    def __init__(self, model: nn.Module, batch: int, lr: float, decay: float, loss_of_model: bool) -> None:
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        self.model: Any = model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=decay, fused=True)
        self.loss_of_model = loss_of_model

    def step(self, forget: dict[str, Tensor], retain: dict[str, Tensor]) -> float:
        now = self._log_likelihood(self.model, forget)
        with torch.no_grad():
            before = self._log_likelihood(self.reference, forget)
        lost = -2 / BETA * F.logsigmoid(BETA * (before - now)).mean()
        total = lost + self.model(**retain).loss
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(total.detach())

    def _log_likelihood(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        given = batch if self.loss_of_model else {k: v for k, v in batch.items() if k != "labels"}
        return log_likelihood(model(**given).logits, batch["labels"])


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over the labels of each example ``(N,)``, of all logits ``(N, T, V)``."""
    shifted, wanted = logits[:, :-1].contiguous().float(), labels[:, 1:].contiguous()
    losses = F.cross_entropy(
        shifted.view(-1, shifted.shape[-1]), wanted.view(-1), ignore_index=IGNORED, reduction="none"
    )
    return -losses.view(wanted.shape).sum(-1)


def batches(
    split: Split, size: int, seed: int, length: int = 0
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """One epoch in random order, every batch padded to its longest example, or to a length where given."""
    draws = torch.Generator().manual_seed(seed)
    forget, retain = (_rows(data) for data in (split.forget, split.retain))
    orders = [torch.randperm(len(rows), generator=draws).split(size) for rows in (forget, retain)]
    return [
        (_padded([forget[i] for i in first], length), _padded([retain[i] for i in second], length))
        for first, second in zip(*orders, strict=True)
    ]


def _rows(data: Any, name: str = "") -> Rows:
    """Tokens and labels of every example, without padding."""
    prefix = f"{name}." if name else ""
    columns = (data.column(prefix + column) for column in ("input_ids", "labels", "lengths"))
    return [(ids[:n], labels[:n]) for ids, labels, n in zip(*columns, strict=True)]


def _padded(rows: Rows, length: int) -> dict[str, Tensor]:
    ids, labels = zip(*rows, strict=True)
    width = max(length, *(len(row) for row in ids))

    def padded(columns: Iterable[Tensor], value: int) -> Tensor:
        return torch.stack([F.pad(row, (0, width - len(row)), value=value) for row in columns])

    return {
        "input_ids": padded(ids, 0),
        "attention_mask": padded((torch.ones_like(row) for row in ids), 0),
        "labels": padded(labels, IGNORED),
    }


def write(model: Any, data: TextData, most: int) -> list[list[int]]:
    """An answer to each question, one by one, greedily and with the model's cache."""
    found = []
    with torch.no_grad():
        for ids, labels in _rows(data):
            prompt = ids[: int((labels != IGNORED).nonzero()[0])][None]
            written = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=1,
            )
            found.append(written[0, prompt.shape[1] :].tolist())
    return found


def score(model: Any, data: TextData, names: Sequence[str]) -> list[float]:
    """The log-likelihood of each answer, one by one."""
    with torch.no_grad():
        return [
            float(log_likelihood(model(ids[None]).logits, labels[None]))
            for name in names
            for ids, labels in _rows(data, name)
        ]


def peak(call: Callable[[], object]) -> float:
    """The highest resident memory of this process during a call above that before it, in MiB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value so far
    before = _status("VmRSS")
    call()
    return round((_status("VmHWM") - before) / 1024, 1)


def _status(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))
