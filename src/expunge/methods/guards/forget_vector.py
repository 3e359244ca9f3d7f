"""Forget vectors: one perturbation of all inputs under which a frozen model no longer knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.base import Guard, methods
from expunge.methods.scopes.modules import Modules
from expunge.tasks.base import Task
from expunge.tasks.classification import Classification
from expunge.training.checkpoint import fill, read_weights
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import SGD, Optim
from expunge.training.session import Session
from expunge.training.step import Step

VECTOR = "forget_vector"
"""The buffer of a guarded model that holds what is added to its inputs."""

Bounds = tuple[float, float] | None


@methods.register("forget_vector")
@dataclass(frozen=True, kw_only=True)
class ForgetVector(Guard):
    """Learns one vector that is added to every input, so that the forget set is misclassified.

    ``min_δ (1/B) [ α Σ_{i∈r} ℓ_i(x_i + δ) + β Σ_{i∈f} max(f_y − max_{k≠y} f_k, −τ)(x_i + δ) + λ ‖δ‖₂ ]``
    over batches of ``B`` examples drawn from all data, ``r`` and ``f`` those of the retain and of the
    forget set in it. The model is frozen, in evaluation mode. The result is a copy of it that adds
    ``δ`` to whatever it is asked: its four numbers (forget, retain and test accuracy, membership) are
    measured on perturbed inputs, as in the paper. Its weights are the original's and know all that
    they knew. The modules and weights keep their names; the state dict has one entry more,
    ``forget_vector``; another request on the result adds a vector to it. ``combine`` learns
    ``δ = Σ_c w_c δ_c`` from the vectors of several such models.

    Args:
        alpha, beta: weights of keeping and of forgetting.
        margin: ``τ``, by how much another class must win before an example is left alone.
        norm: ``λ``.
        bounds: the range to which perturbed inputs are clipped, in the inputs' units; none by default.

    Shapes: ``δ`` as one input, ``(…)`` for inputs ``(N, …)`` of floating-point numbers; classification
        only, any forget set.
    Cost: ``epochs`` passes over all data with gradients with respect to the inputs; one copy of the
        model. At inference one addition an input; what is stored is one input.
    Guarantee: empirical; about perturbed inputs only.
    Differs: no weight decay on ``δ`` by default: the authors' 5e-4 duplicates ``λ``. The rate falls to 0
        along a cosine, theirs as ``0.9^epoch``. The number of epochs is given, where theirs (12 to 190)
        is chosen for each class by looking at the metrics, as is ``β`` (3 to 10): 20 and 5 are
        choices of ours. ``B`` in ``λ / B`` is the same for all batches, the last too. As in their code
        nothing is clipped unless asked, and the vector comes before the model's own normalisation.
    References: Sun et al., Forget Vectors at Play, 2024, arXiv:2412.16780.
    """

    epochs: int = 20
    batch_size: int = 128
    optim: Optim = SGD(lr=0.2, schedule="cosine")
    alpha: float = 1.0
    beta: float = 5.0
    margin: float = 1.0
    norm: float = 1.0
    bounds: Bounds = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if not self.beta > 0:
            raise ConfigError(f"must be above 0, got {self.beta}.", "beta")
        for name in ("alpha", "margin", "norm"):
            if getattr(self, name) < 0:
                raise ConfigError(f"must not be negative, got {getattr(self, name)}.", name)
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ConfigError(f"the lower must be below the upper, got {list(self.bounds)}.", "bounds")

    def check(self, split: Split, task: Task) -> None:
        if not isinstance(task, Classification):
            raise Unsupported(
                f"a forget vector makes another class win, and task '{type(task).__name__}' has no classes "
                "to choose from. Use it with the task classification, or another method."
            )
        if not _example(split.forget).is_floating_point():
            raise Unsupported("a forget vector is added to inputs of numbers. Give floating-point inputs.")

    def blank(self, model: nn.Module, split: Split) -> nn.Module:
        return guarded(model, torch.zeros_like(_example(split.forget)), self.bounds)

    def learn(self, model: nn.Module, split: Split, task: Task, session: Session) -> dict[str, Tensor]:
        start = torch.zeros_like(_example(split.forget), device=session.engine.torch_device).unsqueeze(0)
        shifted = Shifted(session.engine.copy(model), start, torch.ones(1).to(start), self.bounds)
        return {VECTOR: self._optimised(shifted, "vectors", split, task, session).shift()}

    def attach(self, model: nn.Module, learned: Mapping[str, Tensor]) -> nn.Module:
        return guarded(model, learned[VECTOR], self.bounds)

    def combine(
        self, model: nn.Module, vectors: Sequence[Tensor], split: Split, task: Task, session: Session
    ) -> tuple[nn.Module, Tensor]:
        """The model under ``δ = Σ_c w_c δ_c``, the weights learned for another forget set.

        The same objective, with ``λ ‖w‖₂`` in place of ``(λ / B) ‖δ‖₂``; it starts at ``w = 0``.

        Args:
            model: the original.
            vectors: ``K`` of them, each shaped like one input: ``result.get_buffer("forget_vector")``.

        Returns:
            a model like those of ``unlearn``, saved and loaded like them, and ``w`` ``(K,)``.

        Raises:
            DataError: no vectors, or not shaped like one input.
        """
        self.check(split, task)
        shape = _example(split.forget).shape
        if not vectors or any(vector.shape != shape for vector in vectors):
            shapes = [tuple(vector.shape) for vector in vectors]
            raise DataError(f"the vectors must be shaped like one input, {tuple(shape)}; got {shapes}.")
        stacked = torch.stack(list(vectors)).to(session.engine.torch_device)
        start = torch.zeros(len(stacked)).to(stacked)
        shifted = Shifted(session.engine.copy(model), stacked, start, self.bounds)
        learned = self._optimised(shifted, "weights", split, task, session)
        weights = learned.weights.detach().cpu()
        return guarded(session.engine.copy(model), learned.shift(), self.bounds).eval(), weights

    def _optimised(
        self, shifted: Shifted, learns: str, split: Split, task: Task, session: Session
    ) -> Shifted:
        if self.bounds is not None and hasattr(shifted.model, VECTOR):
            raise Unsupported("a model that adds a vector already would clip twice. Set bounds to null.")
        train = split.train()
        ids = split.forget.ids.to(session.engine.torch_device)
        norm = self.norm / min(self.batch_size, len(train)) if learns == "vectors" else self.norm

        def objective(step: Step) -> dict[str, Tensor]:
            view = step.retain
            forgets = torch.isin(view.batch["ids"], ids)
            margins = _margins(view.outputs.float(), view.batch["targets"]).clamp(min=-self.margin)
            return {
                "retain": self.alpha * torch.where(forgets, 0.0, view.loss).mean(),
                "forget": self.beta * torch.where(forgets, margins, 0.0).mean(),
                "norm": norm * torch.linalg.vector_norm(step.model.get_parameter(learns)),
            }

        plan = Plan(
            what=methods.name_of(self),
            objective=objective,
            parts={"retain": train},
            passes=lambda _: (Pass("retain"),),
            epochs=self.epochs,
            batch_size=self.batch_size,
            optim=self.optim,
            scope=Modules(patterns=(learns,)),
            mode="eval",
        )
        learned = optimise(shifted, plan, task, session)
        assert isinstance(learned, Shifted)
        return learned


def load(model: nn.Module, path: Path | str) -> None:
    """Fills a network from a file of weights; where the file holds a vector it adds that to its inputs.

    Inputs are not clipped: the file does not say the ``bounds`` that the vector may have been learned with.

    Raises:
        CheckpointError: as ``load_weights``.
    """
    loaded = read_weights(path)
    if VECTOR in loaded and not hasattr(model, VECTOR):
        guarded(model, torch.zeros_like(loaded[VECTOR]))
    fill(model, loaded, path)


def added(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The state dict of one model under ``δ = Σ_c w_c δ_c``, from those of the same model under each ``δ_c``.

    Raises:
        DataError: no states, as many weights as states are not given, a state without a vector, or states
            whose models or vectors are not of one kind; states are counted from 1.
    """
    if not states or len(weights) != len(states):
        raise DataError(f"got {len(weights)} weights for {len(states)} vectors. Give one for each.")
    first = states[0]
    for number, state in enumerate(states, 1):
        if VECTOR not in state:
            raise DataError(f"file {number} holds no '{VECTOR}'. Give what the method forget_vector wrote.")
        other = [n for n in first if n not in state or state[n].shape != first[n].shape]
        other = other or [n for n in state if n not in first]
        other = other or [n for n in first if n != VECTOR and not torch.equal(first[n], state[n])]
        if other:
            raise DataError(
                f"files 1 and {number} are not of one model: '{other[0]}' differs. Give vectors that were "
                "learned on the same weights."
            )
    total = sum((w * state[VECTOR] for w, state in zip(weights, states, strict=True)), 0 * first[VECTOR])
    return {**first, VECTOR: total}


class Shifted(nn.Module):
    """``f(x + Σ_k w_k v_k)`` while the vectors or the weights are learned: both are parameters."""

    def __init__(self, model: nn.Module, vectors: Tensor, weights: Tensor, bounds: Bounds) -> None:
        super().__init__()
        self.model, self.bounds = model, bounds
        self.vectors, self.weights = nn.Parameter(vectors), nn.Parameter(weights)

    def shift(self) -> Tensor:
        """``Σ_k w_k v_k``, shaped like one input; without gradient outside of a forward pass."""
        return torch.einsum("k,k...->...", self.weights, self.vectors)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(_perturbed(inputs, self.shift(), self.bounds))  # type: ignore[no-any-return]


def guarded(model: nn.Module, vector: Tensor, bounds: Bounds = None) -> nn.Module:
    """``model`` itself, which from now on adds the vector to its inputs; it keeps all its names.

    A model that added one before adds the sum.
    """
    if hasattr(model, VECTOR):
        vector = vector + model.get_buffer(VECTOR)
    else:
        model.register_forward_pre_hook(partial(_before, bounds=bounds))
    model.register_buffer(VECTOR, vector.detach())
    return model


def _before(model: nn.Module, arguments: tuple[Tensor, ...], bounds: Bounds) -> tuple[Tensor, ...]:
    inputs, *rest = arguments
    return _perturbed(inputs, model.get_buffer(VECTOR), bounds), *rest


def _perturbed(inputs: Tensor, vector: Tensor, bounds: Bounds) -> Tensor:
    return inputs + vector if bounds is None else (inputs + vector).clamp(*bounds)


def _margins(logits: Tensor, targets: Tensor) -> Tensor:
    """``f_y − max_{k≠y} f_k``, ``(N,)``."""
    own = targets.unsqueeze(-1)
    return logits.gather(-1, own).squeeze(-1) - logits.scatter(-1, own, -torch.inf).amax(-1)


def _example(data: Data) -> Tensor:
    """One input as the model sees it."""
    (batch,) = data.batches([torch.zeros(1, dtype=torch.long)], device="cpu")
    return batch["inputs"][0]
