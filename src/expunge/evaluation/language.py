"""What metrics of language models read: answers beside their references, likelihoods, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.data.arrays import Data
from expunge.data.text import IGNORED, Record, TextData
from expunge.errors import MissingEvidence, Unsupported
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.generation import GREEDY, Decoding
from expunge.evaluation.metric import Metric
from expunge.evaluation.score import Score
from expunge.evaluation.statistics import Floats
from expunge.evaluation.subject import Subject
from expunge.evaluation.tofu import Likelihood
from expunge.tasks.causal_lm import CausalLM

Bools = NDArray[np.bool_]


def tokens(evidence: Evidence, part: str) -> Data:
    """A part of a language model's data.

    Raises:
        Unsupported: the task has no tokens.
        MissingEvidence: there is no such part.
    """
    if not isinstance(evidence.task, CausalLM):
        raise Unsupported(
            f"only a language model's answers are made of tokens; the task is "
            f"'{type(evidence.task).__name__}'. Use accuracy, loss or loss_threshold."
        )
    if part not in evidence.parts:
        raise MissingEvidence(
            f"there is no '{part}' data; there are {', '.join(evidence.parts)}. Give the split the part, or "
            f"probes={{'{part}': …}}."
        )
    return evidence.parts[part]


def text(evidence: Evidence, part: str) -> TextData:
    """A part whose tokens can be read.

    Raises:
        Unsupported: the task has no tokens, or the data no text.
        MissingEvidence: there is no such part.
    """
    data = tokens(evidence, part)
    if not isinstance(data, TextData):
        raise Unsupported(f"the {part} data holds tokens without their text. Use TextData.")
    return data


def questions(evidence: Evidence, part: str) -> list[Record]:
    """The records of a part in its order, all of which ask something.

    Raises:
        Unsupported: as ``text``; or documents, which ask nothing.
        MissingEvidence: there is no such part.
    """
    found = records(text(evidence, part))
    if any(record.question is None for record in found):
        raise Unsupported(
            f"the {part} data holds documents, which ask nothing. Give each as a beginning and how it goes "
            'on ({"prompt": …, "completion": …}), or use extraction_strength.'
        )
    return found


def records(data: TextData) -> list[Record]:
    """The record of each example, in the order of the data."""
    return [data.record(id_) for id_ in data.ids.tolist()]


def scored(data: TextData) -> list[str]:
    """What the labels of each example spell: its answer, or its piece of a document."""
    labels = data.column("labels")
    return [
        _spelled(data.tokenizer, labels[row]) if record.question is None else record.answer
        for row, record in enumerate(records(data))
    ]


def _spelled(tokenizer: Any, labels: Tensor) -> str:
    return str(tokenizer.decode(labels[labels != IGNORED].tolist(), skip_special_tokens=True))


def right_answer(data: TextData) -> str:
    """The name of the right answer beside wrong ones: ``paraphrased`` where there is one, else the answer."""
    return "paraphrased" if "paraphrased" in data.names else ""


def wrong_answers(data: TextData, part: str) -> list[str]:
    """The names of the wrong answers: all that begin with ``perturbed_``.

    Raises:
        Unsupported: there is none.
    """
    found = [name for name in data.names if name.startswith("perturbed_")]
    if not found:
        raise Unsupported(
            f"the {part} data has no wrong answers; it has: {', '.join(data.names) or 'none'}. Give every "
            "record one in answers={'perturbed_1': …}, or another part."
        )
    return found


def likelihood(subject: Subject, part: str, answer: str = "") -> Likelihood:
    """Of each example's answer, ``(N,)``."""
    reading = subject.read(part, answer)
    counts = (~reading.tokens["log_probs"].isnan()).sum(1)
    return Likelihood(reading.log_likelihood.double().numpy(), counts.double().numpy())


def likelihoods(subject: Subject, part: str, data: TextData) -> tuple[Likelihood, Likelihood]:
    """Of the right answer ``(N,)`` and of all wrong ones ``(N, W)``.

    Raises:
        Unsupported: there are no wrong answers.
    """
    names = wrong_answers(data, part)
    wrong = [likelihood(subject, part, name) for name in names]
    stacked = Likelihood(
        *(np.stack(rows, 1) for rows in zip(*((w.total, w.tokens) for w in wrong), strict=True))
    )
    return likelihood(subject, part, right_answer(data)), stacked


def token_values(subject: Subject, part: str, answer: str = "") -> tuple[dict[str, Floats], Bools]:
    """What the task says of each label, by name, ``(N, T)``, and where the labels are, ``(N, T)``."""
    found = subject.read(part, answer).tokens
    values = {name: value.double().numpy() for name, value in found.items()}
    return values, ~np.isnan(values["log_probs"])


def without_end(data: Data, counted: Bools) -> Bools:
    """The places of labels ``(N, T)`` without those of the end-of-text token; data without text has none."""
    if not isinstance(data, TextData) or data.tokenizer.eos_token_id is None:
        return counted
    labels = data.column("labels")[:, 1 : counted.shape[1] + 1].numpy()
    last = counted & (counted.cumsum(1) == counted.sum(1, keepdims=True))
    return np.asarray(counted & ~(last & (labels == data.tokenizer.eos_token_id)))


def averaged(
    metric: Metric, evidence: Evidence, values: Floats, details: Mapping[str, Any] | None = None
) -> Score:
    """The score that is the mean of a value for each example, with subjects as the unit of its interval.

    Where all values are 0, or all are 1, its interval is that of as many subjects: exact and not of width 0.
    """
    name, part, variant = metric.labels(evidence)
    clusters = evidence.clusters(part)
    interval = statistics.interval(values, clusters)
    if clusters is not None and values[0] in (0.0, 1.0) and bool((values == values[0]).all()):
        count = len(clusters.unique())
        interval = statistics.rate(int(values[0]) * count, count)
    return Score(
        name=name,
        part=part,
        variant=variant,
        value=float(values.mean()),
        interval=interval,
        n=len(values),
        target=metric.target,
        unit=metric.counts(),
        details=details or {},
        per_example=torch.from_numpy(values),
    )


def decoded(decoding: Decoding) -> list[str]:
    """How an answer was written, in the words of a variant; none for up to 64 tokens, greedily."""
    words = [f"{decoding.max_tokens}-tokens"] * (decoding.max_tokens != GREEDY.max_tokens)
    words += [f"t{decoding.temperature:g}"] * (decoding.temperature > 0)
    words += [f"p{decoding.top_p:g}"] * (decoding.top_p < 1)
    return words + [f"k{decoding.samples}"] * (decoding.samples > 1)


def over_samples(written: Sequence[Sequence[str]], values: Floats) -> Floats:
    """The mean over the samples of each question, ``(N,)``, of values of all texts one after the other."""
    return np.asarray(values.reshape(len(written), -1).mean(1), np.float64)
