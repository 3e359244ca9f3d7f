"""TOFU's published evaluation logs, read into what its metrics take."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.errors import DataError
from expunge.evaluation.statistics import Floats
from expunge.evaluation.tofu import (
    Ability,
    Likelihood,
    Ratio,
    option_probability,
    probability,
    truth_ratio,
    truthfulness,
)

AUTHOR = 20
"""Questions about each of TOFU's authors, one after another."""

FILES = {
    "retain": "eval_log.json",
    "forget": "eval_log_forget.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
"""What a published log calls the four sets."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What one model said of one set of questions.

    Args:
        answer, paraphrased: the right answer and a paraphrase of it, ``(N,)``.
        wrong: perturbed answers, ``(N, W)``.
        rouge1_recall, rougeL_recall: as logged, ``(N,)``.
        said, truth: what was generated and what it should have been, ``N`` strings.
        options: whether the probability is a share among the wrong answers.
        clusters: the author of each question, ``(N,)``; None where each question stands alone.
    """

    answer: Likelihood
    paraphrased: Likelihood
    wrong: Likelihood
    rouge1_recall: Floats
    rougeL_recall: Floats  # noqa: N815
    said: tuple[str, ...]
    truth: tuple[str, ...]
    options: bool
    clusters: NDArray[np.int64] | None

    def ability(self, kind: Ratio = "geometric") -> Ability:
        """What ``model_utility`` takes."""
        options = option_probability(self.answer, self.wrong) if self.options else probability(self.answer)
        truth = truthfulness(truth_ratio(self.paraphrased, self.wrong, kind))
        return Ability(probability=options, rouge=self.rougeL_recall, truth=truth, clusters=self.clusters)


def read_log(path: Path) -> dict[str, Answers]:
    """A log (``.json``, ``.json.gz``): its ``retain``, ``forget``, ``real_authors`` and ``world_facts``.

    Raises:
        DataError: it cannot be read, or lacks a set or a measure.
    """
    try:
        raw = path.read_bytes()
        log = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"cannot read '{path}' as a TOFU log: {error}.") from None
    try:
        return {name: _answers(name, log[file]) for name, file in FILES.items()}
    except KeyError as error:
        raise DataError(f"'{path}' lacks {error}. Give a log of all four sets with every example.") from None


def _answers(name: str, log: dict[str, Any]) -> Answers:
    keys = sorted(log["gt_loss"], key=int)

    def column(measure: str) -> Floats:
        return np.array([log[measure][key] for key in keys], dtype=np.float64)

    def likelihood(loss: str, tokens: str) -> Likelihood:
        return Likelihood(-column(loss), column(tokens))

    texts = [log["generated_text"][key] for key in keys]
    authors = name in ("retain", "forget")
    return Answers(
        answer=likelihood("gt_loss", "num_token_gt"),
        paraphrased=likelihood("paraphrased_loss", "num_token_paraphrased"),
        wrong=likelihood("perturb_loss", "num_token_perturb"),
        rouge1_recall=column("rouge1_recall"),
        rougeL_recall=column("rougeL_recall"),
        said=tuple(text[-2] for text in texts),
        truth=tuple(text[-1] for text in texts),
        options=not authors,
        clusters=np.array([int(key) // AUTHOR for key in keys]) if authors else None,
    )
