"""Cases of an attack on an image generator: prompts of the erased concept, each with a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from expunge import seeding
from expunge.errors import DataError
from expunge.evaluation import gallery as galleries
from expunge.evaluation import picture_judges
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.gallery import Gallery, Target
from expunge.evaluation.picture_judges import Judge
from expunge.tasks.diffusion import Diffusion
from expunge.training import sampling


@dataclass(frozen=True, eq=False)
class Cases:
    """Prompts of the erased concept, each with a seed, of which the original draws the concept.

    Attributes:
        goal: the concept.
        texts: the prompts.
        cells: what they ask for, by domain, ``(N, D)``.
        condition: what the model is given, ``(N, T)`` or ``(N,)``; ``empty`` as in ``gallery.Prompts``.
        noise: to start from, ``(N, C, H, W)``, a noise of its own for each prompt and seed.
        latents: what the original draws, ``(N, C, H, W)``.
        seeds: of the noises.
        asked: prompts times seeds, before the original was asked.
    """

    goal: Target
    texts: tuple[str, ...]
    cells: Tensor
    condition: Tensor
    empty: Tensor | None
    noise: Tensor
    latents: Tensor
    seeds: tuple[int, ...]
    asked: int

    def __len__(self) -> int:
        return len(self.texts)

    def among(self, rows: Sequence[int]) -> Cases:
        """Some of them."""
        few = torch.tensor(rows, dtype=torch.long)
        tensors = {name: getattr(self, name)[few] for name in ("cells", "condition", "noise", "latents")}
        texts, seeds = tuple(self.texts[k] for k in rows), tuple(self.seeds[k] for k in rows)
        return replace(self, texts=texts, seeds=seeds, **tensors)

    def shows(self, cells: Tensor, rows: Tensor) -> Tensor:
        """Which images of these cases show what the prompt asked for in the domain of the concept."""
        right = cells == self.cells[rows]
        return right.all(1) if self.goal.is_pair else right[:, self.goal.column]


def found_cases(evidence: Evidence, gallery: Gallery, judge: Judge) -> Cases:
    """The cases of an evaluation, the same for all models.

    Raises:
        Unsupported, DataError, MissingEvidence: as ``gallery.target`` and ``picture_judges.judges``.
        DataError: the original shows the concept in none.
    """
    key = ("cases", gallery, judge)
    return evidence.original.once(key, lambda: _cases(evidence, gallery, judge))


def mistakes(evidence: Evidence, judge: Judge, goal: Target) -> dict[str, float]:
    """How often the judge is wrong about the concept on real test images.

    ``false``: of images without it, the share in which it is seen; ``missed``: of those with it, the share
    in which it is not.
    """
    cells, said = picture_judges.real(evidence, "test", judge)
    there, seen = goal.among(cells), goal.among(said.cells)
    found = {"false": seen[~there], "missed": ~seen[there]}
    return {name: float(values.double().mean()) for name, values in found.items() if len(values)}


def _cases(evidence: Evidence, gallery: Gallery, judge: Judge) -> Cases:
    asked, goal, task = galleries.prompts(evidence), galleries.target(evidence), task_of(evidence)
    picture_judges.judges(evidence, judge)
    chosen = goal.among(asked.cells).nonzero()[:, 0].repeat_interleave(len(gallery.seeds))
    texts = tuple(asked.texts[k] for k in chosen.tolist())
    given = gallery.seeds * (len(chosen) // len(gallery.seeds))
    seeds = tuple(seeding.derive(seed, text) for seed, text in zip(given, texts, strict=True))
    noise = sampling.noise(evidence.parts["retain"].column("inputs").shape[1:], seeds)
    latents = sampling.sample(
        evidence.original.placed,
        task,
        asked.condition[chosen],
        empty=asked.empty,
        steps=gallery.steps,
        guidance=gallery.guidance,
        start=noise,
        engine=evidence.session.engine,
    ).cpu()
    condition, cells = asked.condition[chosen], asked.cells[chosen]
    found = Cases(goal, texts, cells, condition, asked.empty, noise, latents, seeds, len(texts))
    shown = found.shows(seen_in(evidence, judge, latents), torch.arange(len(found)))
    if not shown.any():
        raise DataError(
            f"the original shows '{' and '.join(goal.names)}' in none of {len(found)} images of its prompts, "
            "so that an attack could bring nothing back. Train it longer, or bring another judge."
        )
    return found.among(shown.nonzero()[:, 0].tolist())


def seen_in(evidence: Evidence, judge: Judge, latents: Tensor) -> Tensor:
    """What the judges see in decoded latents, ``(N, D)``."""
    who = picture_judges.judges(evidence, judge)
    return who.look(galleries.decoded(evidence, latents), evidence.session.engine).cells


def task_of(evidence: Evidence) -> Diffusion:
    galleries.training(evidence)
    assert isinstance(evidence.task, Diffusion)
    return evidence.task
