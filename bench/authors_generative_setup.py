"""Micro denoisers, batches and draws that ``authors_generative.py`` gives to the authors' code and ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data import ArrayData
from expunge.data.arrays import Batch, Data, fixed_order
from expunge.data.canvas import Canvas
from expunge.data.captions import CaptionedImages
from expunge.data.patch_codec import PatchCodecSpec
from expunge.data.split import Split
from expunge.tasks import Diffusion
from expunge.training.diffusion_models import ClassDenoiserSpec, TextToImageSpec
from expunge.training.engine import Engine
from expunge.training.session import Session
from expunge.training.step import Original, Part, Step, View

SEED = 0
COUNT = 4
"""Examples of each part."""

SESSION = Session(seed=SEED, engine=Engine(device="cpu"))
FORGOTTEN = 3
"""The class to be forgotten."""

Gradients = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Stage:
    """A task, the original and a model moved away from it, what to forget, and one draw for each part.

    Args:
        noise, timesteps: of each part, ``(N, …)`` and ``(N,)``; the timesteps are pairs ``t``, ``T − 1 − t``.
    """

    task: Diffusion
    original: nn.Module
    changed: nn.Module
    split: Split
    noise: dict[str, Tensor]
    timesteps: dict[str, Tensor]

    def batch(self, part: str, split: Split | None = None) -> Batch:
        """The part's one batch, noised."""
        data: Data = getattr(split or self.split, part)
        (batch,) = data.batches(fixed_order(len(data), len(data)), device="cpu")
        return self.noised(batch, part)

    def noised(self, batch: Batch, part: str) -> Batch:
        """A batch with the part's noise and timesteps."""
        count = len(batch["ids"])
        noise, steps = self.noise[part][:count], self.timesteps[part][:count]
        noisy = self.task.noised(batch["inputs"], noise, steps)
        return {**batch, "noise": noise, "timesteps": steps, "noisy": noisy}

    def step(self, state: Any = None, split: Split | None = None, **batches: Batch) -> Step:
        """The first step of a run at the changed model; ``forget`` and ``retain`` may be given."""
        split = split or self.split
        parts: tuple[Part, ...] = ("forget", "retain")
        data: dict[str, Data] = {part: getattr(split, part) for part in parts}
        known = Original(self.original, self.task, SESSION.engine, data)
        views: dict[Part, View] = {
            part: View(
                part,
                batches.get(part) or self.batch(part, split),
                self.changed,
                known,
                self.task,
                SESSION.engine,
                None,
            )
            for part in parts
        }
        return Step("forget", views, self.changed, 0, 0, 1, state)


@functools.cache
def pictures() -> Stage:
    """Latents ``(4, 8, 8)`` of two objects in two styles, of which one is to be forgotten, with captions."""
    codec = PatchCodecSpec(patch=2, channels=4)
    source = Canvas(
        styles=("mosaic", "sketch"),
        objects=("circle", "square"),
        per_cell=COUNT // 2,
        test_per_cell=1,
        size=16,
        codec=codec,
    )
    data = source.load().train
    assert isinstance(data, CaptionedImages)
    spec = TextToImageSpec(
        vocabulary=len(data.tokenizer),
        image_size=16,
        codec=codec,
        channels=(8, 8),
        groups=4,
        heads=2,
        attention=4,
        text_width=16,
        text_layers=1,
        text_heads=2,
    )
    task = Diffusion(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    split = Split.from_ids(data, data.ids[data.column("style") == 0])
    return Stage(task, *_models(spec.build), split, *_draws(task, (4, 8, 8)))


@functools.cache
def classes() -> Stage:
    """Images ``(3, 8, 8)`` of ten classes, of which one is to be forgotten."""
    draws = np.random.default_rng([SEED, 1])
    inputs = torch.from_numpy(draws.uniform(-1, 1, (2 * COUNT, 3, 8, 8))).float()
    targets = torch.tensor([FORGOTTEN] * COUNT + [0, 5, 7, 9])
    data = ArrayData({"inputs": inputs, "targets": targets})
    spec = ClassDenoiserSpec(image_size=8, channels=(8, 8), groups=4, heads=2, attention=4, conditions=10)
    task = Diffusion(conditions=10)
    split = Split.from_ids(data, range(COUNT))
    return Stage(task, *_models(spec.build), split, *_draws(task, (3, 8, 8)))


def _models(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The original, and one moved away from it; weights from one seed, whatever torch's version draws."""
    draws = np.random.default_rng(SEED)
    found = [build().eval(), build().eval()]
    with torch.no_grad():
        for (name, one), other in zip(found[0].named_parameters(), found[1].parameters(), strict=True):
            scale = one[0].numel() ** -0.5 if one.ndim > 1 else 0.1
            if one.ndim > 1:
                one.copy_(torch.from_numpy(draws.normal(0, scale, one.shape)))
            elif not bool((one == 1).all()):  # a bias, as against the weights of a norm
                one.zero_()
            moves = float(name.startswith("unet."))  # text encoders are the same
            other.copy_(one + moves * torch.from_numpy(draws.normal(0, 0.2 * scale, one.shape)))
    return found[0], found[1]


def _draws(task: Diffusion, shape: tuple[int, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draws = np.random.default_rng([SEED, 2])
    noise, steps = {}, {}
    for part in ("forget", "retain"):
        noise[part] = torch.from_numpy(draws.normal(0, 1, (COUNT, *shape))).float()
        half = torch.from_numpy(draws.integers(0, task.timesteps, COUNT // 2 + 1))
        steps[part] = torch.cat([half, task.timesteps - 1 - half])[:COUNT]
    return noise, steps


def trained(model: nn.Module, names: Callable[[str], bool] = lambda name: True) -> dict[str, nn.Parameter]:
    """The denoiser's parameters by name, those that ``names`` takes."""
    return {n: p for n, p in model.named_parameters() if n.startswith("unet.") and names(n)}


def measured(terms: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> tuple[float, Gradients]:
    """The sum of the terms and its gradient, by parameter."""
    value = torch.stack([term.float() for term in terms.values()]).sum()
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    named = zip(parameters, found, strict=True)
    return float(value.detach()), {name: g.numpy() for name, g in named if g is not None}


Found = tuple[float, Gradients]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Args:
        source: repository and commit.
        run: what of theirs was run.
        ours, theirs: the values, or None where theirs are weights.
        gradient: norm of the difference of the gradients (or weights) over the norm of theirs.
        intended: whether the two are meant to differ.
        tolerance: of the difference, over the value where that is above 1, and of ``gradient``.
    """

    key: str
    method: str
    source: tuple[str, str]
    run: str
    ours: float
    theirs: float
    gradient: float | None
    explanation: str = "Rounding."
    measure: str = "loss"
    intended: bool = False
    tolerance: float = 1e-5

    @property
    def close(self) -> bool:
        """Whether value and gradient are the same but for rounding."""
        apart = abs(self.ours - self.theirs) / max(1.0, abs(self.theirs))
        return max(apart, self.gradient or 0.0) <= self.tolerance


def row(key: str, ours: Found, theirs: Found, **fields: Any) -> Row:
    """A row of two values with their gradients."""
    names = ours[1].keys() | theirs[1].keys()
    square = sum(float(np.square(ours[1].get(n, 0.0) - theirs[1].get(n, 0.0)).sum()) for n in names)
    size = sum(float(np.square(g).sum()) for g in theirs[1].values()) ** 0.5
    return Row(
        key=key, ours=ours[0], theirs=theirs[0], gradient=square**0.5 / size if size else None, **fields
    )
