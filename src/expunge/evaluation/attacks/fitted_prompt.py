"""What attacks have in common that fit a few tokens of each prompt to images of the concept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.arrays import Batch
from expunge.data.captions import CaptionedImages
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.evaluation import gallery as galleries
from expunge.evaluation.attacks.cases import Cases
from expunge.evaluation.attacks.prompt_slots import Slots, words
from expunge.evaluation.attacks.revival import Progress, Revival
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import registered
from expunge.tasks.base import model_output
from expunge.tasks.diffusion import ELEMENTS, Diffusion
from expunge.training.denoisers import token_table
from expunge.training.engine import Engine
from expunge.training.still import still


@dataclass(frozen=True, eq=False)
class Fitting:
    """Everything that a fit needs, for all cases at once.

    Attributes:
        model: under attack; ``original`` as it was before unlearning.
        slots: the captions with free places, one for each case.
        allowed: the tokens that may stand there, ``(A,)``, and their embeddings ``table`` ``(A, D)``.
        draws: a generator for each case, so that what one case draws does not depend on the others.
    """

    model: nn.Module
    original: nn.Module
    task: Diffusion
    engine: Engine
    cases: Cases
    slots: Slots
    allowed: Tensor
    table: Tensor
    draws: tuple[torch.Generator, ...]

    def noisy(self, rows: Tensor, timesteps: Tensor) -> Batch:
        """The original's latents of some cases, each at all of its timesteps ``(n, L)``, with fresh noise.

        Shapes: ``n L`` examples, those of the first case first.
        """
        clean = self.cases.latents[rows]
        levels = timesteps.shape[1]
        drawn = [torch.randn(levels, *clean.shape[1:], generator=self.draws[k]) for k in rows.tolist()]
        batch = {"inputs": clean.repeat_interleave(levels, 0), "noise": torch.cat(drawn)}
        batch = {name: value.to(self.table.device) for name, value in batch.items()}
        steps = timesteps.flatten().to(self.table.device)
        return {
            **batch,
            "timesteps": steps,
            "noisy": self.task.noised(batch["inputs"], batch["noise"], steps),
        }

    def said(self, model: nn.Module, batch: Batch, hidden: Tensor) -> Tensor:
        """A prediction of each example, ``(n L, E)``, for captions encoded once a case, ``(n, T, D)``."""
        told = hidden.repeat_interleave(len(batch["noisy"]) // len(hidden), 0)
        with self.engine.autocast():
            found = cast(Any, model).predict(batch["noisy"], batch["timesteps"], told)
        return model_output(found).flatten(1).float()

    def gradient(self, batch: Batch, goal: Tensor, slots: Slots, tokens: Tensor) -> Tensor:
        """``∂ℓ_i/∂e_i`` of ``ℓ_i = mean_t mean (f_θ(z_t, t, c_i) − y)²`` by the embeddings in the places.

        Shapes: ``goal`` ``y`` ``(n L, E)``, ``tokens`` indices into ``allowed`` ``(n, K)``, to ``(n, K, D)``.
        """
        with torch.enable_grad():
            vectors = self.table[tokens].clone().requires_grad_()
            with self.engine.autocast():
                hidden = slots.encoded(self.model, self.allowed[tokens], vectors)
            away = (self.said(self.model, batch, hidden) - goal).square().mean(1)
            loss = away.view(len(tokens), -1).mean(1).sum()
            (found,) = torch.autograd.grad(loss, [vectors])
        if not torch.isfinite(found).all():
            raise DataError("the gradient of a prompt becomes NaN or infinite. The model's outputs are not.")
        return found.float()


class Fit(ABC):
    """A fit of all cases: numbers ``(N, …)`` of which every case has its own, and their optimiser."""

    def __init__(self, numbers: Tensor, optimizer: torch.optim.Optimizer) -> None:
        self.numbers, self.optimizer = numbers, optimizer

    def step(self, rows: Tensor, together: int) -> None:
        """One step of these cases, ``together`` of them in a batch; what the others have is void after it."""
        gradient = torch.zeros_like(self.numbers)
        for part in rows.split(together):
            gradient[part] = self.gradient(part).to(gradient)
        self.numbers.grad = gradient
        self.optimizer.step()

    @abstractmethod
    def gradient(self, rows: Tensor) -> Tensor:
        """The gradient of each case's loss by its numbers, ``(n, …)``."""

    @abstractmethod
    def tokens(self, rows: Tensor) -> Tensor:
        """The tokens that stand in the places now, indices into ``allowed``, ``(n, K)``."""


@dataclass(frozen=True, kw_only=True)
class FittedPrompt(Revival):
    """An attack that fits tokens to each case by the gradient of a denoising loss.

    All cases and several timesteps of each go through the model in one batch. A case draws from a generator
    of its own and its optimiser acts on its own numbers, so that it finds the same prompt in any company; one
    that has given in leaves the batch. Images are drawn from what the tokenizer makes of the prompt as text.
    """

    tokens: int
    steps: tuple[int, ...]
    levels: int
    lr: float
    weight_decay: float
    x_label = "optimiser steps"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tokens", "levels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if not self.lr > 0:
            raise ConfigError(f"must be above 0, got {self.lr}.", "lr")
        if not self.weight_decay >= 0:
            raise ConfigError(f"must not be negative, got {self.weight_decay}.", "weight_decay")

    @property
    def budgets(self) -> tuple[int, ...]:
        return self.steps

    @property
    def budget_name(self) -> str:
        return "steps"

    @property
    def words(self) -> list[str]:
        return [f"{self.tokens}-tokens", f"{self.steps[-1]}-steps"]

    @abstractmethod
    def slots(self, tokenizer: Any, input_ids: Tensor) -> Slots:
        """Where the tokens stand."""

    @abstractmethod
    def fit(self, fitting: Fitting) -> Fit:
        """A fit that has not begun."""

    def check(self, evidence: Evidence) -> None:
        choices(evidence)

    def attack(self, evidence: Evidence, cases: Cases, progress: Progress) -> Iterator[None]:
        fitting = self.fitting(evidence, cases)
        fit = self.fit(fitting)
        tried = same = 0
        for number in range(1, self.steps[-1] + 1):
            with fitting.engine.frozen(fitting.model), still(fitting.model):
                fit.step(progress.left, self._together(cases))
            if number not in self.steps:
                continue
            rows = progress.left
            tokens = fitting.allowed[fit.tokens(rows)]
            slots = fitting.slots.among(rows)
            texts, typed = slots.typed(tokens)
            shown = self.shown(evidence, fitting.model, cases, rows, condition=typed)
            progress.mark(rows, shown, texts)
            tried += len(rows)
            same += int((typed == slots.filled(tokens)).all(1).sum())
            progress.facts["typed_alike"] = same / tried
            yield

    def fitting(self, evidence: Evidence, cases: Cases) -> Fitting:
        """What a fit needs.

        Raises:
            Unsupported: there are no captions, or a model has no text encoder.
            DataError: no tokens to choose from, or no room for them.
        """
        tokenizer, allowed = choices(evidence)
        model, original = evidence.subject.placed, evidence.original.placed
        table = token_table(model).weight.detach()
        session = evidence.session.child(registered(self))
        draws = (seeding.generator(session.seed, "case", seed) for seed in cases.seeds)
        assert isinstance(evidence.task, Diffusion)
        return Fitting(
            model,
            original,
            evidence.task,
            evidence.session.engine,
            cases,
            self.slots(tokenizer, cases.condition),
            allowed,
            table[allowed.to(table.device)].float(),
            tuple(draws),
        )

    def _together(self, cases: Cases) -> int:
        """As many cases as have at most 2²⁰ numbers in their noisy latents together."""
        return max(1, ELEMENTS // (self.levels * cases.latents[0].numel()))


def choices(evidence: Evidence) -> tuple[Any, Tensor]:
    """The captions' tokenizer and the tokens that may stand in a prompt, ``(A,)``.

    Raises:
        Unsupported: the model draws classes, or reads no prompts.
        DataError: as ``prompt_slots.words``.
    """
    data = galleries.training(evidence)
    if not isinstance(data, CaptionedImages):
        raise Unsupported("a model of classes has no prompts to search among. Use relearn_images.")
    size = token_table(evidence.subject.placed).num_embeddings
    allowed = evidence.original.once("words", lambda: words(data.tokenizer))
    return data.tokenizer, allowed[allowed < size]
