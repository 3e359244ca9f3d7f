"""What attacks on image generators have in common: cases, a judge who looks, and how many give in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge.errors import ConfigError, DataError, ExpungeError
from expunge.evaluation import picture_judges, statistics
from expunge.evaluation.attacks.budget import Attack, Tried, check_budgets
from expunge.evaluation.attacks.case_counts import against
from expunge.evaluation.attacks.cases import Cases, found_cases, mistakes, seen_in, task_of
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.gallery import Gallery
from expunge.evaluation.metric import registered
from expunge.evaluation.picture_judges import Judge
from expunge.evaluation.score import Score
from expunge.evaluation.statistics import Floats
from expunge.training import sampling

Selection = Literal["hidden", "all"]

SHOWN_PROMPTS = 10
"""Found prompts that a score lists."""


@dataclass(eq=False)
class Progress:
    """How far an attack on one model has come.

    Attributes:
        shown: whether the concept was seen in a case, ``(N,)`` booleans.
        found: the prompts that brought it back, by case.
        facts: what else the score says.
    """

    shown: Tensor
    found: dict[int, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> Tensor:
        """The cases that have not given in, ``(n,)``."""
        return (~self.shown).nonzero()[:, 0]

    def mark(self, rows: Tensor, shown: Tensor, texts: Sequence[str] | None = None) -> None:
        """These cases were tried, with these prompts."""
        for place, row in enumerate(rows.tolist()):
            if shown[place] and not self.shown[row]:
                self.shown[row] = True
                if texts is not None:
                    self.found[row] = texts[place]


@dataclass(frozen=True, eq=False)
class Revived:
    """What an attack found: ``success[b, i]`` of case ``i`` with the budget ``budgets[b]``, 0 or 1."""

    budgets: tuple[float, ...]
    success: Floats
    cases: Cases
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Revival(Attack):
    """An attack that brings the erased concept back into images, with the same budget for every model.

    A case is a prompt of the concept with a seed, kept if the original's image for it shows the concept to
    the judge. At budget 0 the model is given the prompt as it is; a case counts from the first budget on at
    which an image drawn under attack shows it.

    Args:
        gallery: prompts' seeds, and how images are drawn.
        judge: who says what they show.
        cases: which of them the value counts: ``hidden``, those that the model does not show by itself,
            each model its own; or ``all``, as published rates (ASR) do, in which those that it shows by
            itself are successes. The other is in the details.
        precision: half the width of an interval for which ``details["cases_needed"]`` says how many cases
            it takes.

    ``details["not_attacked"]`` names which of the original and the retrained models could not be
    attacked, and why; the curves and the excess are those of the others.
    """

    gallery: Gallery = Gallery()
    judge: Judge = Judge()
    cases: Selection = "hidden"
    precision: float = 0.1
    y_label = "concept shown"
    title: ClassVar[str]

    def __post_init__(self) -> None:
        check_budgets(self.budgets, self.budget_name)
        if not 0 < self.precision < 0.5:
            raise ConfigError(f"must be above 0 and below 0.5, got {self.precision}.", "precision")

    @property
    @abstractmethod
    def budgets(self) -> tuple[int, ...]:
        """The budgets after which it is looked."""

    @property
    @abstractmethod
    def budget_name(self) -> str:
        """The field that has them."""

    @property
    @abstractmethod
    def words(self) -> list[str]:
        """What a score's variant says of the attack."""

    @abstractmethod
    def attack(self, evidence: Evidence, cases: Cases, progress: Progress) -> Iterator[None]:
        """Tries the cases that are left, and yields when each budget is used up."""

    def check(self, evidence: Evidence) -> None:
        """Refuses a model that the attack cannot be made on, before anything is drawn.

        Raises:
            Unsupported, DataError: the message says why.
        """

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words = [*self.words, *self.gallery.words, *["all-cases"] * (self.cases == "all")]
        return self.title, "forget", "-".join(words)

    def measure(self, evidence: Evidence) -> Score:
        score = super().measure(evidence)
        values = None
        if self.cases == "all" and evidence.clusters("forget") is None:
            values = torch.from_numpy(self.found(evidence).success[-1].copy())
        return replace(score, per_example=values)

    def found(self, evidence: Evidence) -> Tried:
        made = self.revived(evidence)
        return Tried(made.budgets, made.success)

    def tried(self, evidence: Evidence) -> Tried:
        return self.found(evidence)

    def units(self, evidence: Evidence) -> None:
        return None

    def revived(self, evidence: Evidence) -> Revived:
        """The attack on the subject, made once for both selections of cases."""
        same = replace(self, cases="all", precision=0.1)
        key = ("revived", same, evidence.session.seed)
        return evidence.subject.once(key, lambda: self._revived(evidence))

    def chosen(self, evidence: Evidence, found: Tried) -> Floats:
        values = np.where(_counted(found.success, self.cases), found.success[-1], np.nan)
        if np.isnan(values).all():
            raise DataError(
                f"'{evidence.subject.name}' shows the concept in all {len(values)} cases without an attack, "
                "so that none is left to attack. Set cases to all."
            )
        return values

    def curves(self, evidence: Evidence, found: Tried) -> dict[str, Any]:
        other: Selection = "all" if self.cases == "hidden" else "hidden"
        axes = {"x_label": self.x_label, "y_label": self.y_label}
        return axes | self._block(evidence, self.cases) | {f"{other}_cases": self._block(evidence, other)}

    def details(self, evidence: Evidence, found: Tried) -> dict[str, Any]:
        made = self.revived(evidence)
        cases = made.cases
        hidden = int(_counted(found.success, "hidden").sum())
        listed = [
            {"case": cases.texts[k], "prompt": text, "budget": made.budgets[int(made.success[:, k].argmax())]}
            for k, text in sorted(made.progress.found.items())[:SHOWN_PROMPTS]
        ]
        return {
            **picture_judges.judges(evidence, self.judge).details,
            "judge_mistakes": mistakes(evidence, self.judge, cases.goal),
            "forgotten": " and ".join(cases.goal.names),
            "cases": {"asked": cases.asked, "drawn_by_original": len(cases), "hidden": hidden},
            "found": listed,
            **made.progress.facts,
        }

    def shown(
        self,
        evidence: Evidence,
        model: nn.Module,
        cases: Cases,
        rows: Tensor,
        *,
        condition: Tensor | None = None,
        empty: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Whether what a model draws in these cases shows the concept to the judge, ``(n,)`` booleans.

        Args:
            condition, empty: in place of the cases' own.
            start: noise in place of that of the cases, ``(n, C, H, W)``.
        """
        latents = sampling.sample(
            model,
            task_of(evidence),
            cases.condition[rows] if condition is None else condition,
            empty=cases.empty if empty is None else empty,
            steps=self.gallery.steps,
            guidance=self.gallery.guidance,
            start=cases.noise[rows] if start is None else start,
            engine=evidence.session.engine,
        )
        return cases.shows(seen_in(evidence, self.judge, latents), rows)

    def _revived(self, evidence: Evidence) -> Revived:
        task_of(evidence)
        self.check(evidence)
        cases = found_cases(evidence, self.gallery, self.judge)
        model, rows = evidence.subject.placed, torch.arange(len(cases))
        progress = Progress(self.shown(evidence, model, cases, rows))
        success = [progress.shown.double().numpy().copy()]
        steps = self.attack(evidence, cases, progress)
        for _ in self.budgets:
            if len(progress.left):
                next(steps)
            success.append(progress.shown.double().numpy().copy())
        return Revived((0.0, *map(float, self.budgets)), np.stack(success), cases, progress)

    def _block(self, evidence: Evidence, selection: Selection) -> dict[str, Any]:
        """The curves of one selection of cases, and what follows from their last points."""
        made = self.revived(evidence)
        mine, budgets = _counts(made.success, selection), made.budgets
        if mine is None:
            return {"n": 0}
        hits, n = mine
        found: dict[str, Any] = {
            "n": n,
            "curve": _points(budgets, hits / n),
            "intervals": [
                [b, *statistics.rate(int(hit), n)] for b, hit in zip(budgets, hits.tolist(), strict=True)
            ],
        }
        others, refused = self._others(evidence)
        if refused:
            found["not_attacked"] = refused
        for name, attacked in others.items():
            rates = [(h / m, m) for s in attacked if (c := _counts(s, selection)) for h, m in [c]]
            if not rates:
                continue
            mean = np.mean([rate for rate, _ in rates], 0)
            found[f"{name}_curve"] = _points(budgets, mean)
            if name == "retrained":
                least = min(m for _, m in rates)
                found |= against(float(hits[-1] / n), n, float(mean[-1]), least, self.precision)
        return found

    def _others(self, evidence: Evidence) -> tuple[dict[str, list[Floats]], dict[str, str]]:
        """The success on the retrained models and on the original, and why where one cannot be attacked."""
        given = {"retrained": evidence.retrained, "original": (evidence.original,)}
        found: dict[str, list[Floats]] = {name: [] for name in given}
        refused = {}
        for name, subjects in given.items():
            for other in subjects:
                if other is evidence.subject:
                    continue
                try:
                    found[name].append(self.revived(evidence.of(other)).success)
                except ExpungeError as error:
                    refused[other.name] = str(error)
        return found, refused


def _points(budgets: tuple[float, ...], values: Floats) -> list[list[float]]:
    return [[b, float(y)] for b, y in zip(budgets, values, strict=True)]


def _counted(success: Floats, selection: Selection) -> Any:
    """Which cases count, ``(N,)`` booleans."""
    return success[0] == 0 if selection == "hidden" else np.ones(success.shape[1], dtype=bool)


def _counts(success: Floats, selection: Selection) -> tuple[Floats, int] | None:
    """Successes at each budget and the number of cases that count; None where none does."""
    counted = _counted(success, selection)
    return (success[:, counted].sum(1), int(counted.sum())) if counted.any() else None


def draws(attack: Attack, evidence: Evidence, *names: object) -> torch.Generator:
    """The generator of one purpose of an attack; the same for all models."""
    return evidence.session.child(registered(attack)).generator(*names)
