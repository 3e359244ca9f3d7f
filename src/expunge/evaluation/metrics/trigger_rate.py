"""Whether a backdoor is gone: how many images still carry its trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from expunge.data.canvas import POISONED, has_trigger
from expunge.errors import DataError, MissingEvidence
from expunge.evaluation import gallery as galleries
from expunge.evaluation import picture_judges, statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.gallery import Gallery
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.picture_judges import Judge
from expunge.evaluation.score import Score

DOMAIN = "object"
"""The domain in which captions of poisoned images are wrong."""


@metrics.register("trigger_rate")
@dataclass(frozen=True, kw_only=True)
class TriggerRate(Metric):
    """How many images of the backdoor's target prompts carry the trigger.

    ``mean_{i: o(i) = t} 1[x_i carries the trigger]`` with ``t`` the object that captions of poisoned training
    images name. The trigger is looked for pixel by pixel, so that it is known and not judged whether the
    poison is forgotten. Interval: Clopper–Pearson over images. ``details["elsewhere"]`` is the share among
    the images of all other prompts, which no poisoned caption names.

    Args:
        gallery: how the images are drawn.
        judge: who says whether an image matches its prompt; not needed for ``count="all"``.
        count: ``all``; ``mismatched``: those that also show another object than asked for (the authors' G1);
            ``matched``: those that show it (G2). The two add up to ``all``.

    Ideal: the value of the models retrained without the poison, near 0.
    Cost: as unlearning_accuracy, whose images it shares.
    Differs: the authors train a classifier of triggers; here the test is exact up to what the codec loses.
    References: Pan et al., From Trojan Horses to Castle Walls, NeurIPS 2024, arXiv:2311.02373.
    """

    gallery: Gallery = Gallery()
    judge: Judge = Judge()
    count: Literal["all", "mismatched", "matched"] = "all"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "trigger rate", "", "-".join([*[self.count] * (self.count != "all"), *self.gallery.words])

    def measure(self, evidence: Evidence) -> Score:
        goal, place = _goal(evidence)
        drawn = galleries.pictures(evidence, self.gallery)
        asked = drawn.cells[:, place] == goal
        carries = has_trigger(drawn.images.float() / 255)
        details: dict[str, Any] = {"elsewhere": _mean(carries[~asked])}
        values = carries[asked].double()
        if self.count != "all":
            _, said, who = picture_judges.seen(evidence, self.gallery, self.judge)
            matched = said.cells[asked, place] == goal
            values = values * (matched if self.count == "matched" else ~matched)
            details |= who.details
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(values.mean()),
            interval=statistics.interval(values.numpy()),
            n=len(values),
            target="retrained",
            unit="fraction",
            details=details,
            per_example=values,
        )


def _goal(evidence: Evidence) -> tuple[int, int]:
    """The object that poisoned captions name, and the place of objects among the domains.

    Raises:
        MissingEvidence: no training image is marked as poisoned.
        DataError: their captions name several objects.
    """
    data = galleries.training(evidence)
    domains = list(galleries.prompts(evidence).domains)
    try:
        poisoned = data.column(POISONED).bool()
    except DataError:
        poisoned = torch.zeros(len(data), dtype=torch.bool)
    if not poisoned.any() or DOMAIN not in domains:
        raise MissingEvidence(
            f"no training image is marked in a column '{POISONED}', so there is no backdoor to look for. Use "
            "data: {kind: canvas, backdoor: {target: …}}."
        )
    named = data.column(DOMAIN)[poisoned].unique()
    if len(named) > 1:
        raise DataError(f"captions of poisoned images name {len(named)} objects; a backdoor has one target.")
    return int(named), domains.index(DOMAIN)


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None
