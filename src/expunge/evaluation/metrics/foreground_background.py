"""Whether the object went and what is around it stayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expunge import seeding
from expunge.data.arrays import Data
from expunge.data.captions import EMPTY, CaptionedImages
from expunge.errors import ConfigError, DataError, MissingEvidence, Unsupported
from expunge.evaluation import gallery as galleries
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score
from expunge.evaluation.similarity import ssim
from expunge.tasks.diffusion import Diffusion
from expunge.tasks.noise_schedules import trailing
from expunge.training import sampling

MASK = "mask"

Shares = tuple[Tensor, Tensor]
"""Similarity of each image to what it was, in the foreground and in the background, ``(N,)`` in [0, 1]."""


@metrics.register("foreground_background")
@dataclass(frozen=True, kw_only=True)
class ForegroundBackground(Metric):
    """Whether a model that draws an image again leaves out its object and keeps what is around it.

    A real image ``x`` with an object in the mask ``M`` is noised to the level that ``strength`` says and
    drawn from there on under its caption, which gives ``y``. With ``f = max(0, SSIM_M(x, y))`` and
    ``b = max(0, SSIM_{1−M}(x, y))``, taken inside and outside of the mask with nothing of the other side in
    them, an image's value is ``2 (1 − f) b / ((1 − f) + b)``: 1 where the object is another and the rest the
    same. Interval: a bootstrap (BCa) over images.

    Args:
        part: whose images; of the retained ones nothing should go.
        read: the harmonic mean, or ``foreground`` ``f`` or ``background`` ``b`` alone.
        strength: the share of the sampler's steps that are drawn again, above 0 and at most 1.
        steps, guidance: of the sampler.
        limit: at most so many images, evenly spaced over the ids.

    Ideal: the retrained model's value: who never saw the object does not draw it, nor destroys the rest.
    Cost: one drawing of ``strength · steps`` steps for each image.
    Differs: stands in for ForgetMe's Entangled metric, whose formula is not published; no value of one
        compares with the other. Masks here are those of the data, there found by a segmentation.
    References: the idea: ForgetMe, 2025, arXiv:2504.12574.
    """

    part: str = "forget"
    read: Literal["both", "foreground", "background"] = "both"
    strength: float = 0.7
    steps: int = 20
    guidance: float = 2.5
    limit: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ConfigError(f"must be above 0 and at most 1, got {self.strength}.", "strength")
        for name in ("steps", "limit"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if not self.guidance > 0:
            raise ConfigError(f"must be above 0, got {self.guidance}. Use 1 for none.", "guidance")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words = [*[self.read] * (self.read != "both"), *[f"{self.strength:g}"] * (self.strength != 0.7)]
        words += [f"{self.steps}-steps"] * (self.steps != 20)
        words += [f"g{self.guidance:g}"] * (self.guidance != 2.5)
        return "foreground and background", self.part, "-".join(words)

    def measure(self, evidence: Evidence) -> Score:
        key = ("foreground", self.part, self.strength, self.steps, self.guidance, self.limit)
        inside, outside = evidence.subject.once(key, lambda: self._shares(evidence))
        values = {
            "both": harmonic(1 - inside, outside),
            "foreground": inside,
            "background": outside,
        }[self.read]
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(values.mean()),
            interval=statistics.mean(values.numpy()),
            n=len(values),
            target="retrained",
            unit="fraction",
            details={"foreground": float(inside.mean()), "background": float(outside.mean())},
            per_example=values,
        )

    def _shares(self, evidence: Evidence) -> Shares:
        data, mask = self._images(evidence)
        before = galleries.decoded(evidence, data.column("inputs"))
        after = galleries.decoded(evidence, self._again(evidence, data))
        x, y = before.float() / 255, after.float() / 255
        return ssim(x, y, mask).clamp(min=0), ssim(x, y, 1 - mask).clamp(min=0)

    def _images(self, evidence: Evidence) -> tuple[Data, Tensor]:
        galleries.training(evidence)  # refuses what draws no images
        if self.part not in evidence.parts:
            raise MissingEvidence(f"there is no '{self.part}' data; there are {', '.join(evidence.parts)}.")
        data = evidence.parts[self.part]
        rows = torch.linspace(0, len(data) - 1, min(self.limit, len(data))).round().long()
        few = data.subset(data.ids[rows])
        try:
            return few, few.column(MASK).float()
        except DataError:
            raise MissingEvidence(
                f"the {self.part} images have no masks. Give a column '{MASK}' (N, H, W) of shares: "
                "data: {kind: canvas, masks: true}."
            ) from None

    def _again(self, evidence: Evidence, data: Data) -> Tensor:
        """Latents of the same images, noised and drawn again; each id has its noise."""
        task, latents = evidence.task, data.column("inputs")
        assert isinstance(task, Diffusion)
        if isinstance(data, CaptionedImages):
            condition, empty = data.column("input_ids"), data.column(f"{EMPTY}.input_ids")[:1]
        elif task.conditions is not None:
            condition, empty = data.column("targets"), None
        else:
            raise Unsupported("an unconditional model is not told what to draw. Use a model of captions.")
        since = self.steps - max(1, round(self.strength * self.steps))
        level = trailing(task.timesteps, self.steps)[since]
        seeds = [seeding.derive(0, "again", id_) for id_ in data.ids.tolist()]
        drawn = sampling.noise(latents.shape[1:], seeds)
        return sampling.sample(
            evidence.subject.placed,
            task,
            condition,
            empty=empty,
            steps=self.steps,
            guidance=self.guidance,
            start=task.noised(latents, drawn, torch.full((len(latents),), level)),
            since=since,
            engine=evidence.session.engine,
        )


def harmonic(first: Tensor, second: Tensor) -> Tensor:
    """Harmonic means of pairs of numbers that are at least 0; 0 where one is."""
    total = first + second
    return torch.where(total > 0, 2 * first * second / total.clamp(min=1e-12), 0)
