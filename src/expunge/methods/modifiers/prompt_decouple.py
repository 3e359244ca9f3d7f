"""Prompt decoupling: benign questions like the forgotten ones keep their answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.data.text import IGNORED
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM
from expunge.training.modifier import Modifier, modifiers
from expunge.training.session import Session
from expunge.training.step import Step


@modifiers.register("prompt_decouple")
@dataclass(frozen=True, kw_only=True)
class PromptDecouple(Modifier):
    """Trains on near-miss benign questions too, so that the fact is forgotten and not the phrase (PD).

    Adds the term ``weight · mean_{i∈D_f} ℓ(a'_i | q'_i)`` to any objective: with every forget example
    comes a harmless question like its own, and the normal answer to that one. Without it a model that
    learns to refuse a question refuses its wording everywhere.

    Args:
        name: of the harmless questions and answers in the data: each record has it in both ``questions``
            and ``answers``.
        weight: of the term; the authors take 0.5 beside gradient ascent and gradient difference, 1
            beside KL and refusals.

    Shapes: language models. A pass without forget examples has no such term.
    Cost: one more forward and backward pass over as many examples as the forget batch.
    Differs: text for text, where the authors have the harmful question with a harmless picture. Each
        harmless question belongs to its forget example; in the authors' data set it is looked up with
        the index drawn for the retain example. The mean over tokens is taken in each example, not over
        the batch. The term has a name of its own, ``prompt_decouple``, in the log; the authors' log of the
        forget loss holds both. The retain weight stays as it was; in the authors' gradient difference it
        falls from 1 to 0.5 with this term. Modifiers after this one treat the term like the one that
        forgets: only ``retain`` is to them what must be kept.
    References: Chen et al., SafeEraser, Findings of ACL 2025, arXiv:2502.12520.
    """

    name: str = "near_miss"
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(
                f"must be above 0, got {self.weight}; leave the modifier out instead.", "weight"
            )

    def prepare(self, model: nn.Module, split: Split, task: Task, session: Session) -> None:
        """Refuses data without such questions, or with ones that teach what is to be forgotten.

        Raises:
            Unsupported: no language model, no questions of the name, or one with the example's own
                question or answer.
        """
        if not isinstance(task, CausalLM):
            raise Unsupported(
                f"prompt_decouple trains on questions, and task '{type(task).__name__}' has none. "
                "Use it with a language model."
            )
        try:
            others = _pairs(split.forget, f"{self.name}.")
        except DataError:
            raise Unsupported(f"the forget set has no '{self.name}' questions. {self._remedy}") from None
        for id_, own, other in zip(split.forget.ids.tolist(), _pairs(split.forget), others, strict=True):
            for what, mine, new in zip(("question", "answer"), own, other, strict=True):
                if mine == new:
                    raise Unsupported(
                        f"the '{self.name}' {what} of example {id_} is its own {what}. {self._remedy}"
                    )

    @property
    def _remedy(self) -> str:
        return (
            "Give every record a harmless question and its answer, in "
            f"questions={{'{self.name}': …}} and answers={{'{self.name}': …}}."
        )

    def terms(
        self, step: Step, objective: Callable[[Step], dict[str, Tensor]], state: Any
    ) -> dict[str, Tensor]:
        terms = objective(step)
        if not step.has("forget"):
            return terms
        return {**terms, "prompt_decouple": self.weight * step.forget.instead(self.name).loss.mean()}


def _pairs(data: Data, prefix: str = "") -> list[tuple[list[int], list[int]]]:
    """Question and answer of each example, as tokens."""
    ids, labels = data.column(f"{prefix}input_ids"), data.column(f"{prefix}labels")
    firsts = (labels != IGNORED).int().argmax(1).tolist()
    return [
        (row[:first].tolist(), answer[answer != IGNORED].tolist())
        for row, answer, first in zip(ids, labels, firsts, strict=True)
    ]
