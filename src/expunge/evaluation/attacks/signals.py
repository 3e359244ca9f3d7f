"""What an attack may read of one answer: five numbers that tend to differ between seen and unseen examples.

All take logits ``(N, C)`` and the true labels ``(N,)`` and work in double precision, so that answers that
are sure to the last bit of a float still differ.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from expunge.errors import Unsupported
from expunge.evaluation.evidence import Evidence
from expunge.tasks.classification import Classification

Signal = Literal["confidence", "correctness", "entropy", "modified_entropy", "probabilities"]
Definition = Literal["corrected", "conformance"]


def correctness(logits: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest logit is the true label's, else 0. ``(N,)``."""
    return (logits.argmax(-1) == targets).double()


def confidence(logits: Tensor, targets: Tensor) -> Tensor:
    """``p_y``, the probability of the true label. ``(N,)``."""
    return _log_probabilities(logits).gather(-1, targets[:, None]).squeeze(-1).exp()


def entropy(logits: Tensor) -> Tensor:
    """``−Σ_k p_k log p_k`` in nats. ``(N,)``."""
    logs = _log_probabilities(logits)
    return -(logs.exp() * logs).nan_to_num(nan=0.0).sum(-1)  # 0 · log 0 = 0


def modified_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``−(1 − p_y) log p_y − Σ_{k≠y} p_k log(1 − p_k)``: 0 for sure and right, large for sure and wrong.

    In nats, ``(N,)``. Entropy cannot tell these two apart.

    References: Song and Mittal, USENIX Security 2021, arXiv:2003.10595 (eq. 10).
    """
    logs = _log_probabilities(logits)
    others = _log_complements(logits, logs)
    own = targets[:, None]
    true = others.gather(-1, own).exp() * logs.gather(-1, own)
    false = (logs.exp() * others).scatter(-1, own, 0.0).sum(-1)
    return -(true.squeeze(-1) + false)


def published_modified_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The modified entropy as the copied code has it, which is no modified entropy. ``(N,)``.

    ``−Σ_{k∈Y} (1 − p_k) log p_k − Σ_{k∉Y} p_k log p_k``, where ``Y`` are all labels of the part: the
    assignment that should change one column of each row changes these columns of all rows, and
    ``log p`` stands where ``log(1 − p)`` belongs. So the true label does not enter at all, and sure
    answers get the largest values instead of the smallest.
    Float32 with ``log 0`` read as ``log 1e-30``, as there.
    """
    p = torch.softmax(logits.float(), -1)
    logs = torch.where(p > 0, p, torch.full_like(p, 1e-30)).log()
    columns = torch.unique(targets)
    weights = p.clone()
    weights[:, columns] = 1 - p[:, columns]
    return -(weights * logs).sum(-1)


def probabilities(logits: Tensor) -> Tensor:
    """All of ``p_1 … p_C``. ``(N, C)``."""
    return _log_probabilities(logits).exp()


def read(evidence: Evidence, part: str, signal: Signal, definition: Definition = "corrected") -> Tensor:
    """A signal of the subject on a part: ``(N,)``, or ``(N, C)`` for the probabilities; float64.

    Confidence and correctness are the task's own ``exp(−loss)`` and score, and so exist for every task.

    Raises:
        Unsupported: another signal of a model that is no classifier.
    """
    reading = evidence.subject.read(part)
    if signal == "confidence":
        return reading.confidence.double()
    if signal == "correctness":
        return reading.score.double()
    if not isinstance(evidence.task, Classification):
        raise Unsupported(
            f"the {signal.replace('_', ' ')} of an answer needs a classifier's probabilities; the task is "
            f"'{type(evidence.task).__name__}'. Use confidence or correctness."
        )
    if signal == "entropy":
        return entropy(reading.outputs)
    if signal == "probabilities":
        return probabilities(reading.outputs)
    targets = evidence.batch(part)["targets"].long()
    if definition == "conformance":
        return published_modified_entropy(reading.outputs, targets).double()
    return modified_entropy(reading.outputs, targets)


def classes(evidence: Evidence, part: str, otherwise: str) -> Tensor:
    """The class of each example of a part, ``(N,)``.

    Raises:
        Unsupported: the task has no classes; the message ends with ``otherwise``, what to do then.
    """
    try:
        return evidence.task.groups(evidence.parts[part])
    except Unsupported as error:
        raise Unsupported(
            f"examples of task '{type(evidence.task).__name__}' belong to no class. {otherwise}"
        ) from error


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), -1)


def _log_complements(logits: Tensor, logs: Tensor) -> Tensor:
    """``log(1 − p_k)``; of the largest ``p`` from the sum of all others, free of cancellation."""
    top = logits.argmax(-1, keepdim=True)
    values = logits.double()
    rest = values.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    largest = rest - values.logsumexp(-1, keepdim=True)
    return torch.log1p(-logs.exp()).scatter(-1, top, largest)
