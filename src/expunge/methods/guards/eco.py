"""Embedding-corrupted prompts: what is asked about the forget set reaches the model as noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.errors import ConfigError, MissingEvidence
from expunge.methods import prompts
from expunge.methods.base import Guard, methods
from expunge.methods.guarded import Call, LanguageGuard, Table, Watch
from expunge.methods.prompts import Features
from expunge.tasks.base import Task
from expunge.training.session import Session


class Corrupted(Watch):
    """Noise on the embeddings of the prompts that the classifier takes."""

    needs_prompt: ClassVar[bool] = True

    def __init__(self, method: Guard, learned: Mapping[str, Tensor]) -> None:
        super().__init__(method, learned)
        self.spoilt: Tensor | None = None
        self.table: Table | None = None

    def opened(self, model: nn.Module) -> None:
        cast(Any, model).get_input_embeddings().register_forward_hook(self.noise)

    def before(self, model: nn.Module, call: Call) -> None:
        self.spoilt = None
        if call.prompt.any():
            method = cast(ECO, self.method)
            x = prompts.asked(model, call, method.features)
            taken = prompts.probability(self.learned(), x) > method.threshold
            self.spoilt = call.prompt & (call.answer < 0) & taken[:, None]

    def noise(self, _: nn.Module, __: tuple[Tensor, ...], embedded: Tensor) -> Tensor | None:
        """Adds to the output of the embedding layer; its forward hook."""
        if self.call is None or self.spoilt is None:
            return None
        width = embedded.shape[-1]
        dims = min(cast(ECO, self.method).dims or width, width)
        if self.table is None:
            self.table = Table(int(self.get_buffer("seed")), dims)
        drawn = self.table.at(self.call.position).to(embedded) * self.get_buffer("strength").to(embedded)
        drawn = drawn * self.spoilt[..., None]
        return embedded + torch.nn.functional.pad(drawn, (0, width - dims))


@methods.register("eco")
@dataclass(frozen=True, kw_only=True)
class ECO(LanguageGuard):
    """Recognises prompts about the forget set and adds noise to their embeddings before the frozen model.

    ``e_t ← e_t + σ ε_t`` on the first ``dims`` dimensions of every token of a prompt but its last, where a
    classifier of the prompt says ``C(x) > τ``. ``C`` is a logistic regression on the mean over the prompt
    of the frozen model's hidden states. ``ε_t`` is drawn once for each position. ``σ`` is given, or searched
    by ``σ ← max(σ − η (f(σ + h) − f(σ − h)) / (2h), σ_min)``, where ``f`` is the distance of the mean token
    loss on the forget set from the one that is ``expected`` of a model that never saw it. The prompt is known
    from the labels when an answer is scored, and from the length of the input inside ``generate``, with and
    without a cache; a plain forward pass takes all its tokens as the prompt.

    Args:
        strength: ``σ``, in the embeddings' units; where the search starts, if there is one.
        dims: of the embedding, from the first; all by default.
        threshold: ``τ``.
        features: ``hidden`` states of the last layer, or ``embeddings``, which cost no forward pass.
        ridge: ``C`` of the logistic regression, the inverse of its penalty.
        expected: the loss that is to be reached: a number, or that of the original on ``test`` or ``holdout``
            data. By default there is no search.
        steps, lr, step: number of steps, ``η`` and ``h`` of the search.
        floor: ``σ_min``.
        tolerance: the search ends where ``f`` is below.

    Shapes: a causal language model of transformers; a forget set whose prompts differ from the retained.
    Cost: a forward pass over all prompts; for a search ``2 steps`` over the forget set; no gradient. At
        inference one more forward pass over each prompt (none with ``embeddings``).
    Guarantee: empirical; about prompts that the classifier takes, and never about the weights.
    Differs: the authors train a RoBERTa classifier, and corrupt names found by an entity tagger; ours is on
        the model's own states, so that it sees chat templates as it learnt them, and their fall-back, all
        tokens but the last, is what is corrupted. They tune ``σ`` or the zeroed dimensions for each split on
        the metric that they report; here it is the loss of the forget set. ``τ`` is 0.99 to 0.9999 in theirs
        and 0.5 here, with classes of equal weight. The noise is a fixed function of the position, so that
        scores and answers are of the same model; theirs is drawn anew, and skips sequences of length 1.
        ``σ`` 1, ``η`` 1 and ``h`` 0.1 are choices of ours.
    References: Liu et al., Large Language Model Unlearning via Embedding-Corrupted Prompts, NeurIPS 2024,
        arXiv:2406.07933.
    """

    strength: float = 1.0
    dims: int | None = None
    threshold: float = 0.5
    features: Features = "hidden"
    ridge: float = 1.0
    expected: float | Literal["test", "holdout"] | None = None
    steps: int = 10
    lr: float = 1.0
    step: float = 0.1
    floor: float = 0.0
    tolerance: float = 0.0

    watch = Corrupted

    def __post_init__(self) -> None:
        for name in ("strength", "floor", "tolerance"):
            if getattr(self, name) < 0:
                raise ConfigError(f"must not be negative, got {getattr(self, name)}.", name)
        for name in ("ridge", "lr", "step"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"must be above 0, got {getattr(self, name)}.", name)
        for name in ("steps", "dims"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"is a probability, got {self.threshold}.", "threshold")

    def learn(self, model: nn.Module, split: Split, task: Task, session: Session) -> dict[str, Tensor]:
        found = [
            prompts.features(model, data, task, session, self.features)
            for data in (split.forget, split.retain)
        ]
        learned = prompts.logistic(found[0], found[1], self.ridge)
        learned["seed"] = torch.tensor(seeding.derive(session.seed, "noise") % 2**62)
        learned["strength"] = torch.tensor(self.strength)
        if self.expected is None:
            return learned
        wanted, copied = self._wanted(model, split, task, session), session.engine.copy(model)

        def distance(strength: float) -> float:
            taken = {**learned, "strength": torch.tensor(strength)}
            guarded = replace(self, threshold=0.0).attach(copied, taken)
            return abs(mean_loss(guarded, split.forget, task, session) - wanted)

        learned["strength"] = torch.tensor(self.searched(distance))
        return learned

    def searched(self, distance: Callable[[float], float]) -> float:
        """``σ`` after the steps, where ``distance`` is ``f``."""
        strength = self.strength
        for _ in range(self.steps):
            if distance(strength) < self.tolerance:
                break
            slope = (distance(strength + self.step) - distance(strength - self.step)) / (2 * self.step)
            strength = max(strength - self.lr * slope, self.floor)
        return strength

    def _wanted(self, model: nn.Module, split: Split, task: Task, session: Session) -> float:
        if isinstance(self.expected, float):
            return self.expected
        part = split.parts().get(str(self.expected))
        if part is None:
            raise MissingEvidence(
                f"there is no {self.expected} data to take the expected loss of. Give the split some, or set "
                "expected to a number."
            )
        return mean_loss(session.engine.placed(model), part, task, session)


def mean_loss(model: nn.Module, data: Data, task: Task, session: Session) -> float:
    """The mean over examples of the task's loss, in evaluation mode."""
    losses = []
    with session.engine.frozen(model) as still, session.engine.autocast():
        for batch in prompts.batches(data, task, session):
            losses.append(task.loss(task.said(still, batch), batch).float())
    return float(torch.cat(losses).mean())
