"""UnlearnCanvas: whether a concept is gone from what a model draws, and whether the others are there."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge.errors import DataError, Unsupported
from expunge.evaluation import gallery as galleries
from expunge.evaluation import picture_judges, statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.gallery import Gallery, Pictures, Target
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.picture_judges import Judge
from expunge.evaluation.score import Score


@dataclass(frozen=True, kw_only=True)
class Pictured(Metric):
    """A share of the images that a model draws, read off the judges' verdicts.

    Args:
        gallery: how the images are drawn.
        judge: who says what they show.
    """

    gallery: Gallery = Gallery()
    judge: Judge = Judge()

    def measure(self, evidence: Evidence) -> Score:
        goal = galleries.target(evidence)
        drawn, said, who = picture_judges.seen(evidence, self.gallery, self.judge)
        rows, values = self.values(drawn, said.cells == drawn.cells, goal)
        if not len(values):
            raise DataError("no prompt of the training data is of the kind that is counted here.")
        name, part, variant = self.labels(evidence)
        prompts = drawn.rows[rows]
        by_prompt = {
            drawn.prompts.texts[k]: float(values[prompts == k].mean()) for k in prompts.unique().tolist()
        }
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(values.mean()),
            interval=statistics.interval(values.numpy()),
            n=len(values),
            target="retrained",
            unit="fraction",
            details={**who.details, "forgotten": " and ".join(goal.names), "prompts": by_prompt},
            per_example=values,
        )

    @abstractmethod
    def values(self, drawn: Pictures, right: Tensor, goal: Target) -> tuple[Tensor, Tensor]:
        """Which images count, as positions, and the value of each of these in [0, 1].

        Args:
            right: whether an image shows what it was asked to show, by domain, ``(N, D)``.
        """


def _single(goal: Target, drawn: Pictures) -> int:
    """The place of the forgotten concept's domain.

    Raises:
        Unsupported: it is of several domains at once, or there is no other.
    """
    if goal.is_pair:
        raise Unsupported(
            f"'{goal.names[0]}' is one concept of each domain, so no domain is another one. Use "
            "in_domain_accuracy, whose domain are then all such pairs, and conditioned_accuracy."
        )
    if drawn.cells.shape[1] < 2:
        raise Unsupported(f"the data has no domain but '{goal.domain}'. Use in_domain_accuracy.")
    return goal.column


def _others(right: Tensor, column: int) -> Tensor:
    """The share of the other domains in which each image is right, ``(N,)``."""
    kept = [k for k in range(right.shape[1]) if k != column]
    return right[:, kept].double().mean(1)


@metrics.register("unlearning_accuracy")
@dataclass(frozen=True, kw_only=True)
class UnlearningAccuracy(Pictured):
    """How many images of the forgotten concept's prompts do not show it (UA).

    ``mean_{i: c(i) ∈ F} 1[ĉ(x_i) ≠ c(i)]`` with ``c(i)`` the concept that image ``i`` was asked to show,
    ``ĉ`` the judge's and ``F`` what is forgotten: a style or an object (several of one domain too), or an
    object in a style, which an image shows if both are right. What is forgotten is found from the data: the
    concepts that forget images show and no retained one does. Interval: Clopper–Pearson over images; the
    prompts are all that there are, and each image starts from a noise of its own.

    Args:
        gallery, judge: how images are drawn, and who says what they show.

    Ideal: the retrained model's value, below 1 where it hits the concept by chance. A model that draws
        nothing at all reaches 1: read it beside the retain accuracies.
    Cost: one image for each prompt and seed, drawn once for all metrics; training the judges once.
    Differs: the published judges are ViT-L/16 at 224 pixels; 100 steps and guidance 9 there.
    References: Zhang et al., UnlearnCanvas, NeurIPS 2024 Datasets and Benchmarks, arXiv:2402.11846.
    """

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "unlearning accuracy", "forget", "-".join(self.gallery.words)

    def values(self, drawn: Pictures, right: Tensor, goal: Target) -> tuple[Tensor, Tensor]:
        rows = goal.among(drawn.cells).nonzero()[:, 0]
        shown = right[rows].all(1) if goal.is_pair else right[rows, goal.column]
        return rows, 1 - shown.double()


@metrics.register("in_domain_accuracy")
@dataclass(frozen=True, kw_only=True)
class InDomainAccuracy(Pictured):
    """How well the other concepts of the forgotten one's domain are still drawn (IRA).

    ``mean_{i: c(i) ∉ F} 1[ĉ(x_i) = c(i)]`` over the images of all prompts without a forgotten concept, in
    the domain of what is forgotten: after a style the other styles. After an object in a style the domain are
    all other pairs, and an image is right in both. ``details["prompts"]`` has the share of each prompt.
    Interval: Clopper–Pearson over images.

    Args:
        gallery, judge: how images are drawn, and who says what they show.

    Ideal: the retrained model's value.
    Cost: as unlearning_accuracy, whose images and verdicts it shares.
    References: Zhang et al., 2024, arXiv:2402.11846.
    """

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "in-domain accuracy", "retain", "-".join(self.gallery.words)

    def values(self, drawn: Pictures, right: Tensor, goal: Target) -> tuple[Tensor, Tensor]:
        rows = (~goal.among(drawn.cells)).nonzero()[:, 0]
        shown = right[rows].all(1) if goal.is_pair else right[rows, goal.column]
        return rows, shown.double()


@metrics.register("cross_domain_accuracy")
@dataclass(frozen=True, kw_only=True)
class CrossDomainAccuracy(Pictured):
    """How well the concepts of the other domain are still drawn (CRA): after a style, the objects.

    ``mean_i 1[ô(x_i) = o(i)]`` with ``o`` the concept of the other domain, over the images of all prompts
    without a forgotten concept. Interval: Clopper–Pearson over images.

    Args:
        gallery, judge: how images are drawn, and who says what they show.
        definition: ``corrected`` counts no image of a prompt with a forgotten concept. ``conformance`` is
            what the authors' accuracy.py gives: it adds up all styles, the erased one too, so that a method
            that draws nothing for the erased style loses here too. ``conditioned_accuracy`` has those images
            alone.

    Ideal: the retrained model's value.
    Cost: as unlearning_accuracy, whose images and verdicts it shares.
    Differs: from published tables, whose scripts count the target's images; ``definition`` says which.
    References: Zhang et al., 2024, arXiv:2402.11846; code UnlearnCanvas.
    """

    definition: Literal["corrected", "conformance"] = "corrected"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words = [*self.gallery.words, *["all-prompts-conformance"] * (self.definition == "conformance")]
        return "cross-domain accuracy", "retain", "-".join(words)

    def values(self, drawn: Pictures, right: Tensor, goal: Target) -> tuple[Tensor, Tensor]:
        column = _single(goal, drawn)
        counted = ~goal.among(drawn.cells)
        if self.definition == "conformance":
            counted = torch.ones_like(counted)
        rows = counted.nonzero()[:, 0]
        return rows, _others(right[rows], column)


@metrics.register("conditioned_accuracy")
@dataclass(frozen=True, kw_only=True)
class ConditionedAccuracy(Pictured):
    """How well the rest of a prompt with the forgotten concept is drawn: objects in the erased style.

    ``mean_{i: c(i) ∈ F} 1[ô(x_i) = o(i)]`` over the images of prompts with a forgotten concept, in the other
    domain. After an object in a style the images whose prompts have one of the two, and both must be right.
    Erasing by drawing nothing looks perfect to the unlearning accuracy and fails here. Interval:
    Clopper–Pearson over images.

    Args:
        gallery, judge: how images are drawn, and who says what they show.

    Ideal: the retrained model's value.
    Cost: as unlearning_accuracy, whose images and verdicts it shares.
    Differs: no published table has it.
    """

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "conditioned accuracy", "forget", "-".join(self.gallery.words)

    def values(self, drawn: Pictures, right: Tensor, goal: Target) -> tuple[Tensor, Tensor]:
        if goal.is_pair:
            same = drawn.cells == goal.cells
            rows = (same.any(1) & ~same.all(1)).nonzero()[:, 0]
            return rows, right[rows].all(1).double()
        column = _single(goal, drawn)
        rows = goal.among(drawn.cells).nonzero()[:, 0]
        return rows, _others(right[rows], column)
