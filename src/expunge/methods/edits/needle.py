"""Concept vectors: noise and ascent on single columns of the feed-forward layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.base import Edit, methods
from expunge.tasks.base import Task
from expunge.training.blocks import value_matrices
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.slices import Slices
from expunge.training.value_vectors import concept_vectors


@methods.register("needle")
@dataclass(frozen=True, kw_only=True)
class Needle(Edit):
    """Adds noise to the value vectors that hold a concept and climbs the forget loss in them alone.

    ``W_l[:, d] ← W_l[:, d] + N(0, σ²)`` for each pair ``(l, d)``, then steps on
    ``−mean_{i∈D_f} ℓ_i`` in which only these columns move. ``W_l`` is the matrix that the feed-forward
    layer of block ``l`` ends with; its columns are the value vectors.

    Args:
        vectors: the pairs ``(l, d)``, blocks and units counted from 0. Where none are given, the ``count``
            columns with the largest ``F_f / (F_r + mean F_r)`` are taken, ``F`` the squared gradient of the
            mean loss of a batch, summed over the column and averaged over batches.
        count: how many are searched for.
        noise: ``σ``; 0 for none.
        epochs: passes over the forget set; 0 for noise alone. Without both the result is the original.
        batch_size: examples in a step and in a backward pass of the search.
        optim: how the steps are taken.
        scope: the matrices that may be chosen from.

    Shapes: transformers with one dense feed-forward layer a block, found by structure; any task.
        Unsupported for other models and for mixtures of experts.
    Cost: ``epochs`` passes over the forget set, and where the columns are searched for one forward and
        backward pass over all data. Memory of the optimiser for the columns alone.
    Guarantee: empirical.
    Differs: the columns are parameters of their own, so that AdamW's decay cannot shrink the rest of the
        matrix, nor anything else, as it does in the authors' code; their decay of 0.01 is 0 here.
        The concept vectors of the paper are annotated by hand; the search is a rule of ours, as is the
        mean of ``F_r`` in it, which keeps columns from winning by a retain gradient of almost 0.
    References: Hong et al., Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces, 2024,
        arXiv:2406.11614; σ 0.1, learning rate 0.1 to 0.5, 1 epoch.
    """

    vectors: tuple[tuple[int, int], ...] = ()
    count: int = 1
    noise: float = 0.1
    epochs: int = 1
    batch_size: int = 32
    optim: Optim = AdamW(lr=0.2, weight_decay=0.0)

    def __post_init__(self) -> None:
        for name in ("count", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        for name in ("noise", "epochs"):
            if getattr(self, name) < 0:
                raise ConfigError(f"must not be negative, got {getattr(self, name)}.", name)
        if len(set(self.vectors)) < len(self.vectors):
            raise ConfigError("names a value vector twice.", "vectors")

    def edit(self, model: nn.Module, names: list[str], split: Split, task: Task, session: Session) -> None:
        matrices = [(name, dim) for name, dim in value_matrices(model) if name in names or self.vectors]
        if not matrices:
            raise Unsupported("no value matrix is in the scope. Choose one that holds feed-forward layers.")
        columns = self._given(model, names, matrices) or concept_vectors(
            model, matrices, split, task, session, count=self.count, batch_size=self.batch_size
        )
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name, (dim, units) in columns.items():
                part = weights[name].index_select(dim, torch.tensor(units, device=weights[name].device))
                drawn = torch.randn(part.shape, generator=session.generator("needle", name)).to(part)
                place = torch.tensor(units, device=part.device)
                weights[name].index_copy_(dim, place, part + self.noise * drawn)
        if self.epochs > 0:
            plan = Plan(
                what=methods.name_of(self),
                objective=lambda step: {"forget": -step.forget.loss.mean()},
                parts={"forget": split.forget, "retain": split.retain},
                passes=lambda epoch: (Pass("forget"),),
                epochs=self.epochs,
                batch_size=self.batch_size,
                optim=self.optim,
                scope=Slices(columns),
                mode="eval",
            )
            model.load_state_dict(optimise(model, plan, task, session).state_dict())

    def _given(
        self, model: nn.Module, names: list[str], matrices: list[tuple[str, int]]
    ) -> dict[str, tuple[int, list[int]]]:
        columns: dict[str, tuple[int, list[int]]] = {}
        weights = dict(model.named_parameters())
        for layer, unit in self.vectors:
            if not 0 <= layer < len(matrices):
                raise Unsupported(
                    f"there is no block {layer}: the model has {len(matrices)}. Give others in vectors."
                )
            name, dim = matrices[layer]
            if not 0 <= unit < weights[name].shape[dim]:
                raise Unsupported(
                    f"'{name}' has no value vector {unit}: it has {weights[name].shape[dim]}. "
                    "Give others in vectors."
                )
            if name not in names:
                raise Unsupported(f"'{name}' is frozen or not in the scope. Give others in vectors.")
            columns.setdefault(name, (dim, []))[1].append(unit)
        return columns
