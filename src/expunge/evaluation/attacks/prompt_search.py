"""Search without gradients: whether random words, or other noises, bring the erased concept back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge import seeding
from expunge.errors import ConfigError
from expunge.evaluation.attacks.cases import Cases
from expunge.evaluation.attacks.fitted_prompt import choices
from expunge.evaluation.attacks.prompt_slots import Slots, ahead
from expunge.evaluation.attacks.revival import Progress, Revival
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics, registered
from expunge.training import sampling


@metrics.register("prompt_search")
@dataclass(frozen=True, kw_only=True)
class PromptSearch(Revival):
    """How often one of several images shows the erased concept, with random words or another noise in each.

    For a case, a prompt with a seed, images are drawn until the judge sees the concept in one: of the prompt
    with ``tokens`` random words before it and the case's noise, or of the prompt as it is and other noises.
    No gradient and no image of the concept is used, so a method that gives in to this has hidden nothing.
    ``details["curve"]`` is over the number of images; curve, excess and interval are as of
    ``unlearn_diff_atk``. Every try helps every model: only the excess over the retrained models, who have
    as many, is a finding.

    Ideal: the retrained models' value.

    Args:
        vary: ``words`` or ``noise``.
        tokens: words before the prompt; of no meaning for ``noise``.
        tries: after how many images it is looked.
        gallery, judge, cases, precision: how images are drawn, who says what they show, and which cases
            count.

    Shapes: models of classes have no words; ``noise`` takes them.
    Cost: at most the last of ``tries`` images of each case; on the original and the retrained models too.
    Differs: the seed search of the authors' code counts every seed that shows the concept and divides by
        their number, which is no success rate of a search; here a case counts once. Words are tokens that
        can be typed, there any, special ones among them.
    References: Zhang et al., To Generate or Not?, ECCV 2024, arXiv:2310.11868 (its baselines).
    """

    vary: Literal["words", "noise"] = "words"
    tokens: int = 3
    tries: tuple[int, ...] = (1, 2, 4, 8)
    x_label = "images drawn"
    title = "prompt search"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 1:
            raise ConfigError(f"must be at least 1, got {self.tokens}.", "tokens")

    @property
    def budgets(self) -> tuple[int, ...]:
        return self.tries

    @property
    def budget_name(self) -> str:
        return "tries"

    @property
    def words(self) -> list[str]:
        words = [f"{self.tokens}-tokens"] if self.vary == "words" else ["noise"]
        return [*words, f"{self.tries[-1]}-tries"]

    def check(self, evidence: Evidence) -> None:
        if self.vary == "words":
            choices(evidence)

    def attack(self, evidence: Evidence, cases: Cases, progress: Progress) -> Iterator[None]:
        model, seed = evidence.subject.placed, evidence.session.child(registered(self)).seed
        slots = None
        if self.vary == "words":
            tokenizer, allowed = choices(evidence)
            slots = ahead(tokenizer, cases.condition, self.tokens)
        for before, budget in zip((0, *self.tries), self.tries, strict=False):
            rows = progress.left.repeat_interleave(budget - before)
            turns = list(range(before, budget)) * len(progress.left)
            seeds = [
                seeding.derive(seed, self.vary, cases.seeds[row], turn)
                for row, turn in zip(rows.tolist(), turns, strict=True)
            ]
            if slots is None:
                start = sampling.noise(cases.noise.shape[1:], seeds)
                progress.mark(rows, self.shown(evidence, model, cases, rows, start=start))
            else:
                texts, typed = slots.among(rows).typed(self._words(slots, allowed, seeds))
                shown = self.shown(evidence, model, cases, rows, condition=typed)
                progress.mark(rows, shown, texts)
            yield

    def _words(self, slots: Slots, allowed: Tensor, seeds: list[int]) -> Tensor:
        """Random words for each try, ``(n, K)``."""
        shape = slots.places.shape[1:]
        drawn = [
            torch.randint(len(allowed), shape, generator=torch.Generator().manual_seed(s)) for s in seeds
        ]
        return allowed[torch.stack(drawn)]
