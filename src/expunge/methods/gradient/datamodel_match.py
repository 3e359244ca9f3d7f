"""Datamodel matching: predict what a retrained model would say, then fine-tune to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.arrays import Data, fixed_order
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError, MissingEvidence, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.training.ensemble import train_many
from expunge.training.loop import Pass
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.step import Step, View

BATCH_SIZE = 500
"""Examples in a forward pass of a model whose outputs are collected."""


@dataclass(frozen=True)
class Targets:
    """Outputs to be matched: ids ascending ``(N,)``, and a row for each ``(N, D)``."""

    ids: Tensor
    outputs: Tensor

    def of(self, view: View) -> Tensor:
        """The rows of the examples in a batch, ``(n, D)``."""
        rows = torch.searchsorted(self.ids, view.batch["ids"].cpu())
        return self.outputs[rows].to(view.batch["ids"].device)


@methods.register("datamodel_match")
@dataclass(frozen=True, kw_only=True)
class DatamodelMatch(GradientMethod):
    """Fine-tunes to the outputs that linear datamodels predict for a model without the forget set.

    ``M`` models ``f_m`` are trained on random halves ``S_m`` of the data, once for all requests. A linear
    datamodel fits each output of each example, ``f_m(x) ≈ b(x) + Σ_i β_i(x) 1[i ∈ S_m]``, so that
    ``f̂(x) = f_o(x) − κ Σ_{i∈D_f} β_i(x)``. Then ``min_θ mean_{i ∈ D_f ∪ D'} ‖f_θ(x_i) − f̂(x_i)‖² / D`` with
    ``D'`` ``retain_ratio`` times as many retain examples as ``D_f`` has, drawn anew in each epoch.

    The fit minimises ``(1/2M) Σ_m (f_m − …)² + (λ/2) ‖β‖²`` (``ridge``) or ``… + λ ‖β‖₁`` (``lasso``), or is
    the difference of two means ``β_i = mean_{m: i∈S_m} f_m − mean_{m: i∉S_m} f_m`` (``means``). With
    fewer models than examples ``ridge`` shrinks ``β`` to about ``M/N`` of its size; ``means`` is
    unbiased and its noise grows with ``√(n_f / M)``; ``lasso`` keeps the few large ones, of which an
    example's influence on itself is mostly the largest. Of what all examples have in common, halves of one
    size say nothing: ``Σ_i β_i`` is 0 (with ``lasso``, the median).

    Args:
        models: ``M``.
        fit: how the datamodels are fitted.
        penalty: ``λ``; not used by ``means``.
        kappa: ``κ``. Where an example's influence falls as one over the number of examples, training on
            halves doubles it, and ½ is right.
        retain_ratio: retain examples beside each forget example.
        batch_size: forget examples in a step; ``retain_ratio`` times as many retain examples come on top.

    Shapes: outputs of any fixed shape, as ``D`` numbers; ``M · N · D`` numbers are kept. Unsupported where
        the outputs of an example are random (diffusion).
    Cost: once: ``models`` trainings on half the data and a forward pass of each over all. A request: one
        forward pass over all data, the fit (``M² (N + N D)`` for ``ridge`` and ``means``; ``N D`` fits by
        scikit-learn for ``lasso``), then ``epochs`` passes over ``1 + retain_ratio`` times the forget set.
    Guarantee: empirical.
    Differs: the sums over the forget set are computed without the matrix of all ``β``. The authors fit
        ``lasso`` on thousands of models; the number here is what is affordable, and what can be
        predicted with it has to be measured. Batches are in random order and mix both parts (the authors'
        loader does not shuffle); the retain examples change from epoch to epoch; the rate is constant
        instead of × 0.95 an epoch. Targets are those of the examples without augmentation. Where the
        data are augmented in training, augmented examples are to have these outputs as well.
    References: Georgiev et al., Attribute-to-Delete: Machine Unlearning via Datamodel Matching, ICLR 2025,
        arXiv:2410.23232; Ilyas et al., Datamodels, ICML 2022, arXiv:2202.00622; Feldman and Zhang, What
        Neural Networks Memorize and Why, NeurIPS 2020, arXiv:2008.03703 (``means``).
    """

    needs_recipe = True
    prepared_by = ("models",)

    epochs: int = 5
    batch_size: int = 128
    optim: Optim = AdamW(lr=5e-4, weight_decay=0.0)
    models: int = 100
    fit: Literal["ridge", "lasso", "means"] = "ridge"
    penalty: float = 0.01
    kappa: float = 1.0
    retain_ratio: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.models < 2:
            raise ConfigError(f"must be at least 2, got {self.models}.", "models")
        if self.retain_ratio < 1:
            raise ConfigError(f"must be at least 1, got {self.retain_ratio}.", "retain_ratio")
        if not self.penalty > 0:
            raise ConfigError(f"must be above 0, got {self.penalty}.", "penalty")

    def check(self, split: Split, task: Task) -> None:
        if task.random_outputs:
            raise Unsupported(
                f"datamodels predict one output for each example, and those of task '{type(task).__name__}' "
                "depend on noise drawn for them. Use oracle_match, or another method."
            )

    def prepare(self, train: Data, task: Task, session: Session) -> dict[str, Tensor]:
        """The ids ``(N,)``, which model had which example ``(M, N)``, and what each says ``(M, N, D)``."""
        if session.recipe is None:
            raise MissingEvidence(
                "datamodel_match needs the recipe that the model was trained with: "
                "pass recipe=expunge.Recipe(model, task, training)."
            )
        ids = train.ids.sort().values
        draws = session.generator("halves")
        members = torch.zeros(self.models, len(ids), dtype=torch.bool)
        for row in members:
            row[torch.randperm(len(ids), generator=draws)[: len(ids) // 2]] = True
        sessions = [replace(session.child("datamodel", i), recipe=None) for i in range(self.models)]
        halves = [train.subset(ids[row]) for row in members]
        trained = train_many(session.recipe, halves, sessions, what="datamodel")
        ordered = train.subset(ids)
        said = torch.stack([_outputs(model, ordered, task, session) for model in trained.models])
        return {"ids": ids, "members": members, "outputs": said}

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Targets:
        train = split.train()
        made = session.prepared if session.prepared is not None else self.prepare(train, task, session)
        if not torch.equal(made["ids"], train.ids):
            raise DataError(
                f"the datamodels were prepared for {len(made['ids'])} training examples, which are not the "
                f"{len(train)} of this split. Prepare them for the same data."
            )
        forget = torch.isin(train.ids, split.forget.ids)
        change = self.effect(made["members"].bool(), made["outputs"], forget)
        return Targets(train.ids, _outputs(model, train, task, session) - self.kappa * change)

    def effect(self, members: Tensor, outputs: Tensor, forget: Tensor) -> Tensor:
        """``Σ_{i∈D_f} β_i(x)`` of every example and output.

        Shapes: ``members (M, N)`` and ``forget (N,)`` booleans, ``outputs (M, N, D)`` to ``(N, D)``.
        """
        masks = members.double() - members.double().mean(0)  # (M, N)
        said = outputs.double().flatten(1)
        said = said - said.mean(0)  # (M, N · D)
        if self.fit == "lasso":
            found = self._lasso(masks, said, forget)
        else:
            gone = forget.double()
            if self.fit == "means":
                # mean inside − mean outside = Σ_m z_m f_m / Σ_m z_m², as the masks are centred
                weights = masks @ (gone / masks.square().sum(0).clamp(min=1e-12))
            else:
                kernel = masks @ masks.T + len(masks) * self.penalty * torch.eye(len(masks)).double()
                weights = torch.linalg.solve(kernel, masks @ gone)
            found = weights @ said
        return found.view(outputs.shape[1:]).float()

    def _lasso(self, masks: Tensor, said: Tensor, forget: Tensor) -> Tensor:
        with seeding.seeded(0):  # the first import of scikit-learn draws from python's generator
            from sklearn.linear_model import Lasso

        fitted = Lasso(alpha=self.penalty, fit_intercept=False, precompute=True, max_iter=5000)
        sums = [
            torch.as_tensor(fitted.fit(masks.numpy(), column.numpy()).coef_)[..., forget].sum(-1).view(-1)
            for column in said.split(64, dim=1)
        ]
        return torch.cat(sums)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget", beside="retain", beside_ratio=self.retain_ratio),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        share = 1 / (1 + self.retain_ratio)
        forget, retain = (
            (view.outputs.float().flatten(1) - step.state.of(view)).square().mean()
            for view in (step.forget, step.retain)
        )
        return {"forget": share * forget, "retain": (1 - share) * retain}


def _outputs(model: nn.Module, data: Data, task: Task, session: Session) -> Tensor:
    """What a model says of every example in evaluation mode, ``(N, D)`` float32 on the CPU."""
    engine, rows = session.engine, []
    with engine.frozen(engine.copy(model)) as placed:
        for batch in data.batches(fixed_order(len(data), BATCH_SIZE), device=engine.torch_device):
            with engine.autocast():
                rows.append(task.outputs(placed, task.prepare(batch, None)).float().flatten(1).cpu())
    return torch.cat(rows)
