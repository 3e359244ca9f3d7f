"""Concept poisoning: wrong labels for the examples that show the concepts of a class most."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.arrays import Data, fixed_order
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.tasks.classification import Classification
from expunge.training import features
from expunge.training.optim import SGD, Optim
from expunge.training.session import Session
from expunge.training.step import Step

_RIDGE = 0.01
"""The penalty of the linear fits, as a share of the mean variance of what they are fitted on."""


@methods.register("concept_poison")
@dataclass(frozen=True, kw_only=True)
class ConceptPoison(GradientMethod):
    """Finds the concepts that carry a class and trains its most typical examples on wrong labels.

    With penultimate features ``h``, concept directions ``v_k`` and scores
    ``a_ik = v_kᵀ(h_i − mean h)``, divided by their deviation over all data, a linear bottleneck
    ``W = argmin Σ_i ‖W a_i − onehot(y_i)‖² + ridge`` says how much concept ``k`` speaks for class
    ``c``. For a forgotten class the ``strongest`` concepts ``S_c`` by ``W_ck`` are taken, and its
    ``fraction`` of examples with the largest ``Σ_{k∈S_c} W_ck a_ik``, the set ``P``. Then
    ``min_θ mean_{i∈P} ℓ(f_θ(x_i), y'_i) + mean_{i∈D_r} ℓ_i(θ)``, ``y'`` a class that is retained.

    Args:
        concepts: how many concepts are inferred where there is no bank.
        bank: the column of the data ``(N, K)`` that says with 1 or 0 which concepts an example shows;
            None infers them from the features alone.
        strongest: concepts of a class that are poisoned.
        fraction: share of a class's examples that are.
        labels: ``random``: each example has one label drawn from the retained classes; ``targeted``:
            all of a class have the same.
        target: the label of ``targeted``; None: the retained class that the original finds likeliest.

    Shapes: features ``(N, D)`` of the last linear layer; classification only, whole classes.
    Cost: one forward pass over all data, linear fits on its features, then ``epochs`` passes over the
        poisoned examples with a retain batch beside each batch; no copy of the model.
    Guarantee: empirical.
    Differs: no code of the authors was found and the details of the paper are not verified, so these
        are choices of ours: without a bank the concepts are the directions from the mean of all features
        to the centres of ``concepts`` clusters of them (k-means); with one, concept directions are
        regularised least-squares fits of the bank on the features, where concept activation vectors
        commonly come from a support vector machine; the bottleneck is a least-squares fit too; weights,
        epochs, ``strongest`` and ``fraction``. The label is never the true one nor that of another
        forgotten class. Examples of the class that are not chosen are not trained on.
    References: Class Machine Unlearning for Complex Data via Concepts Inference and Data Poisoning,
        2024, arXiv:2405.15662. Clusters as concepts: Ghorbani et al., NeurIPS 2019, arXiv:1902.03129.
        Concept bottleneck: Yuksekgonul et al., ICLR 2023, arXiv:2205.15480.
    """

    epochs: int = 10
    batch_size: int = 32
    optim: Optim = SGD(lr=0.01)
    concepts: int = 10
    bank: str | None = None
    strongest: int = 3
    fraction: float = 0.5
    labels: Literal["random", "targeted"] = "random"
    target: int | None = None

    forgets = "classes"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("concepts", 2), ("strongest", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"must be at least {least}, got {getattr(self, name)}.", name)
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"is a fraction in (0, 1], got {self.fraction}.", "fraction")
        if self.target is not None and self.labels == "random":
            raise ConfigError("is the label of labels=targeted; with random labels leave it out.", "target")

    def check(self, split: Split, task: Task) -> None:
        if not isinstance(task, Classification):
            raise Unsupported(
                f"concept_poison needs class labels, and task '{type(task).__name__}' has none. "
                "Use a method for every task: grad_diff, npo, scrub."
            )
        super().check(split, task)
        kept = torch.unique(task.groups(split.retain)).tolist()
        if self.target is not None and self.target not in kept:
            raise Unsupported(f"target {self.target} is no retained class. Choose one of {kept}.")
        if self.bank is None and self.concepts > len(split.retain) + len(split.forget):
            raise Unsupported(
                f"{self.concepts} concepts cannot be inferred from "
                f"{len(split.retain) + len(split.forget)} examples. Set concepts to less."
            )

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        poisoned = split.forget.subset(self.poisoned(model, split, task, session))
        return super().unlearn(model, replace(split, forget=poisoned), task, session)

    def poisoned(self, model: nn.Module, split: Split, task: Task, session: Session) -> Tensor:
        """The ids ``(P,)`` of the forget examples that show the concepts of their class most."""
        train = split.train()
        hidden = features.penultimate(model, train, task, session).cpu()
        hidden = hidden - hidden.mean(0)
        scores = _standardised(hidden @ self._directions(hidden, train, session))
        classes = task.groups(train)
        onehot = nn.functional.one_hot(classes).float()
        weights = _least_squares(scores, onehot - onehot.mean(0))
        chosen = []
        for label in torch.unique(task.groups(split.forget)).tolist():
            rows = (classes == label).nonzero()[:, 0]
            weight, strongest = weights[:, label].topk(min(self.strongest, len(weights)))
            presence = scores[rows][:, strongest] @ weight
            order = presence.argsort(descending=True, stable=True)
            chosen.append(train.ids[rows[order[: math.ceil(self.fraction * len(rows))]]])
        return torch.cat(chosen)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> tuple[Task, Tensor]:
        """The task, and the wrong labels at the places of the poisoned examples' ids."""
        ids, kept = split.forget.ids, torch.unique(task.groups(split.retain))
        if self.labels == "random":
            wrong = kept[torch.randint(len(kept), (len(ids),), generator=session.generator("labels"))]
        elif self.target is not None:
            wrong = torch.full((len(ids),), self.target)
        else:
            wrong = self._likeliest(model, split, task, session, kept)
        labels = torch.full((int(ids.max()) + 1,), -1)
        labels[ids] = wrong
        return task, labels.to(session.engine.torch_device)

    def objective(self, step: Step) -> dict[str, Tensor]:
        task, labels = step.state
        batch = {**step.forget.batch, "targets": labels[step.forget.batch["ids"]]}
        poison = task.loss(step.forget.outputs, batch).mean()
        return {"forget": poison, "retain": step.retain.loss.mean()}

    def _directions(self, hidden: Tensor, train: Data, session: Session) -> Tensor:
        """The concept directions as columns, ``(D, K)``, of centred features ``(N, D)``."""
        if self.bank is not None:
            shown = train.column(self.bank).float()
            if shown.ndim != 2 or shown.shape[1] < 2:
                raise DataError(
                    f"the concept bank '{self.bank}' has shape {tuple(shown.shape)}; expected (N, K), K ≥ 2."
                )
            return _least_squares(hidden, shown - shown.mean(0))
        seed = session.child("concepts").seed % 2**32
        with seeding.seeded(seed):  # the first import of scikit-learn draws from python's generator
            from sklearn.cluster import KMeans

            found = KMeans(self.concepts, n_init=3, random_state=seed).fit(hidden.numpy())
        return torch.from_numpy(found.cluster_centers_).to(hidden).T

    def _likeliest(
        self, model: nn.Module, split: Split, task: Task, session: Session, kept: Tensor
    ) -> Tensor:
        """For each poisoned example the retained class that its class resembles most, ``(P,)``."""
        with session.engine.frozen(session.engine.copy(model)) as original:
            order = fixed_order(len(split.forget), self.batch_size)
            batches = split.forget.batches(order, device=session.engine.torch_device)
            logits = torch.cat([task.outputs(original, task.prepare(b, None)).cpu() for b in batches])
        classes, wrong = task.groups(split.forget), torch.empty(len(logits), dtype=torch.long)
        for label in torch.unique(classes):
            own = classes == label
            wrong[own] = kept[logits[own].log_softmax(1).mean(0)[kept].argmax()]
        return wrong


def _standardised(scores: Tensor) -> Tensor:
    """Columns of mean 0 and deviation 1; a column without spread stays 0."""
    centred = scores - scores.mean(0)
    deviation = centred.square().mean(0).sqrt()
    return centred / torch.where(deviation > 0, deviation, 1.0)


def _least_squares(inputs: Tensor, targets: Tensor) -> Tensor:
    """``(XᵀX / N + λ s I)⁻¹ XᵀY / N`` with ``s`` the mean of the diagonal of the first term, ``(D, K)``."""
    count, width = inputs.shape
    gram = inputs.T @ inputs / count
    penalty = _RIDGE * gram.diagonal().mean() * torch.eye(width)
    solution: Tensor = torch.linalg.solve(gram + penalty, inputs.T @ targets / count)
    return solution
