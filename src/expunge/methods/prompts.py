"""What a frozen language model makes of prompts, and a classifier of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data, fixed_order
from expunge.data.text import IGNORED, TextData
from expunge.errors import Unsupported
from expunge.methods.guarded import Call, body_and_head
from expunge.tasks.base import Task
from expunge.training.features import pooled as mean_over
from expunge.training.session import Session

Features = Literal["hidden", "embeddings"]


def prompts(batch: Batch) -> Tensor:
    """Which tokens come before the first label, ``(N, T)``; the first token at least, never padding."""
    given = batch["labels"] != IGNORED
    first = torch.where(given.any(1), given.long().argmax(1), given.shape[1]).clamp(min=1)
    here = torch.arange(given.shape[1], device=given.device) < first[:, None]
    return here & (batch["attention_mask"] != 0 if "attention_mask" in batch else torch.ones_like(here))


def hidden(model: nn.Module, ids: Tensor, attended: Tensor) -> Tensor:
    """The last hidden states ``(N, T, D)`` of the frozen model, whose guard sleeps meanwhile."""
    places = (attended.long().cumsum(1) - 1).clamp(min=0)
    body = cast(Any, body_and_head(model)[0])
    answer = body(input_ids=ids, attention_mask=attended.long(), position_ids=places, use_cache=False)
    return cast(Tensor, answer.last_hidden_state)


@torch.no_grad()
def pooled(model: nn.Module, ids: Tensor, prompt: Tensor, kind: Features) -> Tensor:
    """The mean over each prompt's tokens of hidden states or of embeddings, ``(N, D)`` float32."""
    if kind == "embeddings":
        values = cast(Any, model).get_input_embeddings()(ids)
    else:
        last = int((prompt.long() * torch.arange(1, ids.shape[1] + 1, device=ids.device)).max())
        ids, prompt = ids[:, :last], prompt[:, :last]
        values = hidden(model, ids, prompt)
    return mean_over(values, prompt)


def asked(model: nn.Module, call: Call, kind: Features) -> Tensor:
    """The same for the prompts of a call."""
    return pooled(model, call.ids, call.prompt, kind)


def batches(data: Data, task: Task, session: Session, limit: int | None = None) -> Iterator[Batch]:
    """The examples in order, ``limit`` of them drawn by the session's seed."""
    if limit is not None and len(data) > limit:
        chosen = torch.randperm(len(data), generator=session.generator("probes"))[:limit].sort().values
        data = data.subset(data.ids[chosen])
    order = fixed_order(len(data), task.batch_size(data))
    yield from data.batches(order, device=session.engine.torch_device)


def features(model: nn.Module, data: Data, task: Task, session: Session, kind: Features) -> Tensor:
    """The pooled prompts of a data set, ``(n, D)``, on the CPU.

    Cost: one forward pass over the prompts.
    """
    rows = []
    with session.engine.frozen(session.engine.placed(model)) as still, session.engine.autocast():
        for batch in batches(data, task, session):
            rows.append(pooled(still, batch["input_ids"], prompts(batch), kind).cpu())
    return torch.cat(rows)


def logistic(positive: Tensor, negative: Tensor, strength: float) -> dict[str, Tensor]:
    """A logistic regression ``P(positive | x) = σ(w·x + b)`` with classes of equal weight.

    It is fitted to standardised features and given back for raw ones: ``weight`` ``(D,)`` and ``bias``.

    Args:
        strength: ``C``, the inverse of the ridge penalty.
    """
    from sklearn.linear_model import LogisticRegression

    x = torch.cat([positive, negative]).double()
    y = [1] * len(positive) + [0] * len(negative)
    mean, scale = x.mean(0), x.std(0).clamp(min=1e-8)
    fit = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
    fit.fit(((x - mean) / scale).numpy(), y)
    weight = torch.from_numpy(fit.coef_[0]).double() / scale
    bias = float(fit.intercept_[0]) - float(weight @ mean)
    return {"weight": weight.float(), "bias": torch.tensor(bias).float()}


def probability(learned: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """``P(positive | x)``, ``(N,)``."""
    return torch.sigmoid(x @ learned["weight"].float() + learned["bias"].float())


def refusal_tokens(data: Data, refusal: str, tokens: tuple[int, ...], method: str) -> Tensor:
    """A refusal as tokens, its end of text included: those given, or of a text by the data's tokenizer.

    Raises:
        Unsupported: a text, and no tokenizer.
    """
    if tokens:
        return torch.tensor(tokens)
    if not isinstance(data, TextData):
        raise Unsupported(
            f"{method} answers with a text, and the data has no tokenizer. Give refusal_tokens, or TextData."
        )
    said = data.template.answer.replace("{answer}", refusal)
    found = list(data.tokenizer(said, add_special_tokens=False)["input_ids"])
    end = data.tokenizer.eos_token_id
    return torch.tensor(found + ([] if end is None else [end]))
