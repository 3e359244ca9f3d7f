"""Whether a few images bring the erased concept back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data, batch_count
from expunge.errors import ConfigError, DataError
from expunge.evaluation import gallery as galleries
from expunge.evaluation.attacks.cases import Cases
from expunge.evaluation.attacks.revival import Progress, Revival, draws
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import AdamW, Optim


@metrics.register("relearn_images")
@dataclass(frozen=True, kw_only=True)
class RelearnImages(Revival):
    """How often the erased concept comes back after training on a few images.

    A copy is trained by the task's own loss on ``images`` images, then the prompt of each case is drawn with
    its noise and judged, after each number of steps. ``concept``: images that were to be forgotten, with
    their captions. ``others``: likewise, but for each half of the concept's prompts only images of the other
    half, so that what comes back for a prompt was not taught with it. ``benign``: retained images alone.
    ``details["curve"]`` is over steps; curve, excess and interval are as of ``unlearn_diff_atk``, the chance
    of the training itself is not in the interval. Training teaches: the retrained models are trained on the
    same images, and only the excess over them is what was left. The model judged is never changed.

    Ideal: the retrained models' value.

    Args:
        arm: on what is trained.
        images: drawn once, the same for all models.
        steps: after how many steps images are drawn and judged.
        batch_size: images in a step.
        optim: how the step is taken.
        gallery, judge, cases, precision: how images are drawn, who says what they show, and which cases
            count.

    Shapes: text-to-image models and models of classes; ``others`` needs at least two prompts of the concept.
    Cost: ``steps`` steps (twice for ``others``), and one image of each case left at each of ``steps``; on the
        original and the retrained models too.
    Differs: ``relearn_time`` asks when the loss is the original's again; here it is looked at images. A
        published relearning attack is one of language models; the budgets are choices of ours.
    References: Hu et al., Jogging the Memory of Unlearned LLMs, ICLR 2025, arXiv:2406.13356; Deeb and Roger,
        2024, arXiv:2410.08827 (the halves).
    """

    arm: Literal["concept", "others", "benign"] = "concept"
    images: int = 8
    steps: tuple[int, ...] = (1, 2, 5, 10, 20)
    batch_size: int = 8
    optim: Optim = AdamW(lr=3e-4, weight_decay=0.0)
    x_label = "optimiser steps"
    title = "relearnt images"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("images", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)

    @property
    def budgets(self) -> tuple[int, ...]:
        return self.steps

    @property
    def budget_name(self) -> str:
        return "steps"

    @property
    def words(self) -> list[str]:
        return [self.arm, f"{self.images}-images", f"{self.steps[-1]}-steps"]

    def attack(self, evidence: Evidence, cases: Cases, progress: Progress) -> Iterator[None]:
        seen = torch.zeros(len(self.steps), len(cases), dtype=torch.bool)
        for number, (known, asked) in enumerate(self._halves(evidence, cases)):
            rows = asked[~progress.shown[asked]]
            if len(rows):
                seen[:, rows] = self._run(evidence, known, cases, rows, number)
        every = torch.arange(len(cases))
        for row in seen:
            progress.mark(every, row)
            yield

    def _halves(self, evidence: Evidence, cases: Cases) -> list[tuple[Data, Tensor]]:
        """What is trained on, and the cases that are asked for after it."""
        every = torch.arange(len(cases))
        if self.arm != "others":
            data = evidence.parts["retain" if self.arm == "benign" else "forget"]
            return [(self._few(evidence, data, 0), every)]
        forget, prompts = evidence.parts["forget"], galleries.prompts(evidence)
        goal = prompts.cells[cases.goal.among(prompts.cells)]
        if len(goal) < 2:
            raise DataError("the concept has one prompt, so that there are no others. Set arm to concept.")
        shown = galleries.cells(forget, prompts.domains)
        halves = []
        for number in range(2):
            mine = goal[number::2]
            known = forget.subset(forget.ids[~_among(shown, mine)])
            asked = _among(cases.cells, mine).nonzero()[:, 0]
            halves.append((self._few(evidence, known, number), asked))
        return halves

    def _few(self, evidence: Evidence, data: Data, number: int) -> Data:
        if len(data) < self.images:
            raise DataError(
                f"there are {len(data)} images to train on, fewer than images={self.images}. Lower it."
            )
        order = torch.randperm(len(data), generator=draws(self, evidence, "images", self.arm, number))
        return data.subset(data.ids[order[: self.images]])

    def _run(self, evidence: Evidence, known: Data, cases: Cases, rows: Tensor, number: int) -> Tensor:
        """Whether each case is shown after each number of steps on ``known``, ``(steps, n)``."""
        session = evidence.session.child("relearn_images", self.arm, number)
        seen: list[Tensor] = []

        def after(model: nn.Module, index: int) -> bool:
            if index in self.steps:
                seen.append(self.shown(evidence, model, cases, rows))
            return index >= self.steps[-1]

        plan = Plan(
            what="relearn_images",
            objective=lambda step: {"known": step.forget.loss.mean()},
            parts={"forget": known},
            passes=lambda epoch: (Pass("forget"),),
            epochs=-(-self.steps[-1] // batch_count(len(known), self.batch_size)),
            batch_size=self.batch_size,
            optim=self.optim,
            after=after,
        )
        optimise(evidence.subject.model, plan, evidence.task.unlearning(), session)
        return torch.stack(seen)


def _among(cells: Tensor, wanted: Tensor) -> Tensor:
    """Which rows of ``(N, D)`` are among those of ``(M, D)``, ``(N,)`` booleans."""
    return (cells[:, None] == wanted[None]).all(2).any(1)
