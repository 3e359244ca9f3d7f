"""Textual inversion of the erased concept: whether a new word for it can be learnt from a few images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch
from expunge.data.captions import CaptionedImages, word_positions
from expunge.errors import ConfigError, DataError
from expunge.evaluation import gallery as galleries
from expunge.evaluation.attacks.cases import Cases
from expunge.evaluation.attacks.fitted_prompt import choices
from expunge.evaluation.attacks.prompt_slots import Slots
from expunge.evaluation.attacks.revival import Progress, Revival, draws
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.gallery import Target
from expunge.evaluation.metric import metrics
from expunge.tasks.base import model_output
from expunge.tasks.diffusion import Diffusion
from expunge.training.denoisers import token_table
from expunge.training.still import still


@metrics.register("textual_inversion")
@dataclass(frozen=True, kw_only=True)
class TextualInversion(Revival):
    """How often the erased concept comes back under a new word, learnt from a few of its images.

    In the captions of ``images`` images that were to be forgotten a new token takes the place of each token
    of the concept's name, and only its embedding ``v`` is fitted:
    ``min_v  E_{x, t, ε} ‖f_θ(z_t(x), t, c(v)) − y_t‖² / D``. Then the prompt of each case is drawn with the
    new word in the place of the name, with the case's noise, and judged. No weight of the model moves: what
    comes back, it can still draw. One word is learnt for all cases. ``details["curve"]`` is over steps;
    curve, excess and interval are as of ``unlearn_diff_atk``; the chance of the fit itself is not in the
    interval. The images may show a model something that it never knew, and the retrained models are shown
    the same: only the excess is what was left.

    Ideal: the retrained models' value.

    Args:
        images: drawn once, the same for all models.
        steps: after how many steps images are drawn and judged.
        batch_size: noisy images in a step.
        lr: Adam's learning rate, in standard deviations of the model's embeddings.
        gallery, judge, cases, precision: how images are drawn, who says what they show, and which cases
            count.

    Cost: ``steps`` forward and backward passes over a batch, and one image of each case left at each of
        ``steps``; on the original and the retrained models too.
    Differs: captions are those of the data, theirs templates; the rate is relative, theirs 5e-3 in CLIP's
        embeddings. It begins with the embedding of a random word, not of one that is near. Vectors cannot be
        typed: this is an attack with access to the model.
    References: Gal et al., An Image is Worth One Word, ICLR 2023, arXiv:2208.01618; Pham et al.,
        Circumventing Concept Erasure Methods for Text-to-Image Generative Models, ICLR 2024,
        arXiv:2308.01508.
    """

    images: int = 8
    steps: tuple[int, ...] = (10, 20, 50, 100)
    batch_size: int = 16
    lr: float = 0.1
    x_label = "optimiser steps"
    title = "textual inversion"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("images", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if not self.lr > 0:
            raise ConfigError(f"must be above 0, got {self.lr}.", "lr")

    @property
    def budgets(self) -> tuple[int, ...]:
        return self.steps

    @property
    def budget_name(self) -> str:
        return "steps"

    @property
    def words(self) -> list[str]:
        return [f"{self.images}-images", f"{self.steps[-1]}-steps"]

    def check(self, evidence: Evidence) -> None:
        choices(evidence)

    def attack(self, evidence: Evidence, cases: Cases, progress: Progress) -> Iterator[None]:
        fit = _Fit(self, evidence, cases)
        for number in range(1, self.steps[-1] + 1):
            fit.step()
            if number in self.steps:
                rows = progress.left
                condition, empty = torch.arange(len(rows))[:, None], torch.tensor([[len(rows)]])
                told = fit.told(rows)
                shown = self.shown(evidence, told, cases, rows, condition=condition, empty=empty)
                progress.mark(rows, shown)
                yield


class Told(nn.Module):
    """A text-to-image model whose captions are encoded already: a condition ``(N, 1)`` is their number."""

    def __init__(self, model: nn.Module, hidden: Tensor) -> None:
        super().__init__()
        self.model, self.hidden = model, hidden

    def encode_text(self, numbers: Tensor) -> Tensor:
        return self.hidden[numbers[:, 0]]

    def predict(self, noisy: Tensor, timesteps: Tensor, hidden_states: Tensor) -> Tensor:
        return model_output(cast(Any, self.model).predict(noisy, timesteps, hidden_states))


class _Fit:
    """The embedding of the new word, and its optimiser."""

    def __init__(self, attack: TextualInversion, evidence: Evidence, cases: Cases) -> None:
        tokenizer, allowed = choices(evidence)
        assert isinstance(evidence.task, Diffusion)
        self.task, self.engine, self.cases = evidence.task, evidence.session.engine, cases
        self.model, self.size = evidence.subject.placed, attack.batch_size
        self.draws = draws(attack, evidence, "draws")
        self.data = _images(evidence, attack.images, self.draws)
        table = token_table(self.model).weight.detach()
        self.token = allowed[torch.randint(len(allowed), (1,), generator=self.draws)]
        self.vector = table[self.token.to(table.device)].float().clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.vector], lr=attack.lr * float(table.std()))
        rows = self.data.column("input_ids")
        shown = galleries.cells(self.data, galleries.prompts(evidence).domains)
        self.captions = _named(evidence, tokenizer, rows, shown, cases.goal)
        self.prompts = _named(evidence, tokenizer, cases.condition, cases.cells, cases.goal)

    def hidden(self, slots: Slots) -> Tensor:
        """Hidden states of captions with the new word, ``(N, T, D)``."""
        count, width = slots.places.shape[1], self.vector.shape[1]
        vectors = self.vector.expand(len(slots.places), count, width)
        return slots.encoded(self.model, self.token.expand(len(slots.places), count), vectors)

    def step(self) -> None:
        rows = torch.randint(len(self.data), (self.size,), generator=self.draws)
        batch = self._noisy(rows)
        goal = self.task.target(batch).flatten(1)
        model: Any = self.model
        with self.engine.frozen(self.model), still(self.model), torch.enable_grad():
            with self.engine.autocast():
                hidden = self.hidden(self.captions.among(rows))
                said = model_output(model.predict(batch["noisy"], batch["timesteps"], hidden))
            loss = (said.flatten(1).float() - goal).square().mean()
            (self.vector.grad,) = torch.autograd.grad(loss, [self.vector])
        self.optimizer.step()
        if not torch.isfinite(self.vector).all():
            raise DataError("the new word becomes NaN or infinite. Choose a smaller lr.")

    @torch.no_grad()
    def told(self, rows: Tensor) -> Told:
        """The model with the prompts of some cases, and the empty one after them."""
        assert self.cases.empty is not None
        device = next(self.model.parameters()).device
        with self.engine.frozen(self.model), self.engine.autocast():
            hidden = self.hidden(self.prompts.among(rows))
            empty = cast(Any, self.model).encode_text(self.cases.empty.to(device))
        return Told(self.model, torch.cat([hidden, empty]))

    def _noisy(self, rows: Tensor) -> Batch:
        clean = self.data.column("inputs")[rows]
        steps = torch.randint(self.task.timesteps, (len(rows),), generator=self.draws)
        batch = {"inputs": clean, "noise": torch.randn(clean.shape, generator=self.draws), "timesteps": steps}
        batch["noisy"] = self.task.noised(clean, batch["noise"], steps)
        return {name: value.to(self.engine.torch_device) for name, value in batch.items()}


def _images(evidence: Evidence, count: int, draws: torch.Generator) -> CaptionedImages:
    """Some of the images to forget.

    Raises:
        DataError: there are fewer.
    """
    data = evidence.parts["forget"]
    assert isinstance(data, CaptionedImages)
    if len(data) < count:
        raise DataError(f"there are {len(data)} images to forget, fewer than images={count}. Lower it.")
    return data.subset(data.ids[torch.randperm(len(data), generator=draws)[:count]])


def _named(evidence: Evidence, tokenizer: Any, input_ids: Tensor, cells: Tensor, goal: Target) -> Slots:
    """Captions with the tokens of the concept's name for free places.

    Raises:
        DataError: a caption does not name it, or with other numbers of tokens.
    """
    found = galleries.prompts(evidence).domains
    columns = range(len(found)) if goal.is_pair else [goal.column]
    there = torch.zeros_like(input_ids, dtype=torch.bool)
    for column in columns:
        names = list(found.values())[column]
        for row, cell in enumerate(cells[:, column].tolist()):
            here = word_positions(tokenizer, input_ids[row : row + 1], names[cell])
            if not here.any():
                raise DataError(f"a caption does not name '{names[cell]}', so no word can take its place.")
            there[row : row + 1] |= here
    counts = there.sum(1)
    if len(counts.unique()) > 1:
        raise DataError("the concept's name has other numbers of tokens in some captions. Use one name.")
    return Slots(tokenizer, input_ids, there.nonzero()[:, 1].view(len(there), -1))
