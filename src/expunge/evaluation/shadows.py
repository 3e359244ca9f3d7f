"""Reference models trained on random halves of the data, and what they say of every example."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.pool import pooled
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError, MissingEvidence
from expunge.evaluation.subject import Subject
from expunge.methods.base import Method
from expunge.tasks.base import Task
from expunge.training.ensemble import Ensemble, How, train_many
from expunge.training.recipe import Recipe
from expunge.training.session import Session


@dataclass(frozen=True, kw_only=True)
class ShadowPlan:
    """How many reference models, each on which fraction of the data: ``shadows:`` of an experiment.

    Args:
        count: number of models.
        fraction: of all training and test examples that each is trained on. ``count · fraction`` must
            be whole: in so many models every example is.
        how: ``stacked``: all at once; ``sequential``: one after another; ``auto``: by the rule of
            ``training.ensemble.stacking``.
        dtype: precision of the training; ``auto`` is bfloat16 on a GPU and the engine's own on a CPU.
            The models are read in the engine's precision.
        group: at most so many are stacked at once.

    Raises:
        ConfigError: fewer than two models, a fraction that leaves an example in none or in all of them
            or in a number that is not whole, a group below 1.
    """

    count: int = 16
    fraction: float = 0.5
    how: How = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    group: int = 16

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ConfigError(f"must be at least 2, got {self.count}.", "count")
        inside = self.count * self.fraction
        if not 0 < self.fraction < 1 or abs(inside - round(inside)) > 1e-9:
            raise ConfigError(
                f"every example is to be in {self.count} · {self.fraction:g} = {inside:g} models, which must "
                f"be a whole number above 0 and below {self.count}.",
                "fraction",
            )
        if self.group < 1:
            raise ConfigError(f"must be at least 1, got {self.group}.", "group")

    def precisely(self, session: Session) -> Session:
        """The session in the precision that the models are trained in."""
        dtype = self.dtype
        if dtype == "auto":
            gpu = session.engine.torch_device.type == "cuda"
            dtype = "bfloat16" if gpu else session.engine.dtype
        return replace(session, engine=replace(session.engine, dtype=dtype))


@dataclass(frozen=True, kw_only=True, eq=False)
class Shadows:
    """``R`` reference models' readings of a pool of ``P`` examples: the training, then the test examples.

    Args:
        members: which model was trained on which example, ``(R, P)`` of booleans.
        loss, margin: of each model and example, ``(R, P)`` float32; the margin is the logit-scaled
            confidence ``log p − log(1 − p)``.
        train_ids, test_ids: ids of the pool's examples in their own data sets, ``(N,)`` and ``(P − N,)``.
        audited: the examples that every model that had them has unlearned, ``(P,)``; none of them where
            the models are as they were trained.
        parts: positions in the pool of the examples of each part; set by ``on``.
        models: the models themselves, where they were kept.
        treated: the same models after an unlearning method, by the name of its row.
        ensemble: how they were trained, where that was just now.
    """

    members: Tensor
    loss: Tensor
    margin: Tensor
    train_ids: Tensor
    test_ids: Tensor
    audited: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    models: tuple[nn.Module, ...] = ()
    treated: Mapping[str, Shadows] = field(default_factory=dict)
    ensemble: Ensemble | None = None

    def __post_init__(self) -> None:
        shape = (len(self.members), len(self.train_ids) + len(self.test_ids))
        for name in ("members", "loss", "margin"):
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise DataError(
                    f"the shadow models' {name} has the shape {found}; {shape[0]} models and {shape[1]} "
                    f"examples need {shape}."
                )

    def __len__(self) -> int:
        return len(self.members)

    @classmethod
    def read(
        cls,
        models: Sequence[nn.Module],
        members: Tensor,
        train: Data,
        test: Data,
        task: Task,
        session: Session,
        ensemble: Ensemble | None = None,
    ) -> Self:
        """The readings of trained models, one forward pass each over both data sets."""
        rows = []
        for i, model in enumerate(models):
            subject = Subject(f"shadow {i + 1}", model, {"train": train, "test": test}, task, session)
            readings = [subject.read(part) for part in ("train", "test")]
            rows.append([torch.cat([getattr(r, name) for r in readings]) for name in ("loss", "margin")])
        loss, margin = (torch.stack(column) for column in zip(*rows, strict=True))
        return cls(
            members=members,
            loss=loss,
            margin=margin,
            train_ids=train.ids,
            test_ids=test.ids,
            models=tuple(models),
            ensemble=ensemble,
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The readings that ``tensors`` gave, without the models."""
        audited = tensors.get("audited")
        return cls(
            members=tensors["members"].bool(),
            loss=tensors["loss"],
            margin=tensors["margin"],
            train_ids=tensors["train_ids"],
            test_ids=tensors["test_ids"],
            audited=None if audited is None else audited.bool(),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All that the attacks read, to be stored."""
        names = ("members", "loss", "margin", "train_ids", "test_ids", "audited")
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def on(self, parts: Mapping[str, Data]) -> Self:
        """The same readings, addressed by the parts of one split.

        Forget and retain examples are looked up among the training examples, test examples among the
        test examples, all by id; other parts are not in the pool.
        """
        known = {"forget": (self.train_ids, 0), "retain": (self.train_ids, 0)}
        known["test"] = (self.test_ids, len(self.train_ids))
        places = {}
        for name in known.keys() & parts.keys():
            ids, offset = known[name]
            places[name] = offset + _positions(parts[name].ids, ids, name)
        treated = {name: shadows.on(parts) for name, shadows in self.treated.items()}
        return replace(self, parts=places, treated=treated)

    def first(self, count: int) -> Self:
        """The first so many models alone; pairs of them are balanced if the whole is."""
        if not 1 <= count <= len(self):
            raise MissingEvidence(f"{count} shadow models are asked for, there are {len(self)}. Train more.")
        return self._models(torch.arange(count))

    def without(self, model: int) -> Self:
        """All models but one."""
        kept = torch.arange(len(self))
        return self._models(kept[kept != model])

    def losses(self, part: str) -> Tensor:
        """``(R, N)``, in the order of the part's ids."""
        return self.loss[:, self._place(part)]

    def margins(self, part: str) -> Tensor:
        """``(R, N)``, in the order of the part's ids."""
        return self.margin[:, self._place(part)]

    def inside(self, part: str) -> Tensor:
        """Which model was trained on which example of a part, ``(R, N)`` of booleans."""
        return self.members[:, self._place(part)]

    def judged(self, part: str) -> Tensor:
        """The examples of a part that the treated models unlearned, ``(N,)`` of booleans."""
        if self.audited is None:
            return torch.zeros(len(self._place(part)), dtype=torch.bool)
        return self.audited[self._place(part)]

    def _models(self, rows: Tensor) -> Self:
        kept = tuple(self.models[i] for i in rows.tolist()) if self.models else ()
        return replace(
            self, members=self.members[rows], loss=self.loss[rows], margin=self.margin[rows], models=kept
        )

    def _place(self, part: str) -> Tensor:
        if part not in self.parts:
            raise MissingEvidence(
                f"the shadow models know nothing of the {part} examples: they are trained on halves of the "
                "training and test examples. Use against=test."
            )
        return self.parts[part]


def _positions(ids: Tensor, known: Tensor, part: str) -> Tensor:
    ordered, order = known.sort()
    rows = torch.searchsorted(ordered, ids.contiguous()).clamp(max=len(known) - 1)
    absent = ids[ordered[rows] != ids]
    if len(absent):
        raise DataError(
            f"{part} example {int(absent[0])} is not among the {len(known)} examples that the shadow models "
            "were made for. Train them on the same data."
        )
    return order[rows]


def halves(examples: int, plan: ShadowPlan, generator: torch.Generator) -> Tensor:
    """Which model is trained on which example, ``(R, P)`` of booleans.

    Every example is in exactly ``count · fraction`` models, and all models have equally many examples
    where that is possible. With ``a/b = fraction`` in lowest terms, each run of ``b`` models deals the
    examples, in an order of its own, to ``b`` hands; model ``j`` gets the hands ``j, …, j + a − 1`` (modulo
    ``b``). At a half the models are pairs, one trained on what the other is not, so the first ``2 k``
    models are balanced too.
    """
    inside = round(plan.count * plan.fraction)
    shared = math.gcd(plan.count, inside)
    a, b = inside // shared, plan.count // shared
    members = torch.zeros(plan.count, examples, dtype=torch.bool)
    for first in range(0, plan.count, b):
        hands = torch.empty(examples, dtype=torch.long)
        hands[torch.randperm(examples, generator=generator)] = torch.arange(examples) % b
        for j in range(b):
            members[first + j] = (hands - j) % b < a
    return members


def train_shadows(recipe: Recipe, train: Data, test: Data, plan: ShadowPlan, session: Session) -> Shadows:
    """Reference models by the recipe on random halves of training and test examples together.

    So the forget set and the test examples, its non-members, both have models that were trained with
    and without each of them. A half of both together is smaller than the training set where there are
    fewer test than training examples; the models then fit what they saw a little more closely.

    Raises:
        DataError: data sets that cannot be pooled.
        Unsupported: ``how="stacked"`` for models that cannot be stacked.

    Cost: ``count`` trainings on ``fraction`` of all examples, and a forward pass of each over all.
    """
    pool = pooled(train, test)
    members = halves(len(pool), plan, session.generator("halves"))
    inner = plan.precisely(replace(session, recipe=None))
    ensemble = train_many(
        recipe,
        [pool.subset(row.nonzero()[:, 0]) for row in members],
        [inner.child("shadow", i) for i in range(plan.count)],
        plan.how,
        plan.group,
    )
    return Shadows.read(ensemble.models, members, train, test, recipe.task, session, ensemble)


def treat(
    shadows: Shadows, method: Method, forget: Tensor, train: Data, test: Data, task: Task, session: Session
) -> Shadows:
    """The shadow models after unlearning, each of those audited examples that it was trained on.

    Audited are the forget set and equally many test examples (all, if there are fewer), drawn at random:
    of both, each model was trained on about half, so each unlearns about as many examples as the
    request has.

    Args:
        shadows: with their models.
        method: the method under test; its session has the recipe where ``session`` has one.
        forget: ids of the forget set, ``(N_f,)``.

    Raises:
        MissingEvidence: the models were not kept.
        DataError: a model was trained on none of the audited examples.
        Unsupported: the method cannot run on these models.

    Cost: one unlearning for each model, and a forward pass over all examples.
    """
    if not shadows.models:
        raise MissingEvidence(
            "the shadow models were not kept, only what they said. Keep them to treat them."
        )
    pool, n = pooled(train, test), len(train)
    audited = torch.zeros(len(pool), dtype=torch.bool)
    audited[_positions(forget, train.ids, "forget")] = True
    drawn = torch.randperm(len(test), generator=session.generator("audited"))[: len(forget)]
    audited[n + drawn] = True
    models = []
    for i, (model, inside) in enumerate(zip(shadows.models, shadows.members, strict=True)):
        gone, kept = ((inside & rows).nonzero()[:, 0] for rows in (audited, ~audited))
        if not len(gone) or not len(kept):
            raise DataError(
                f"shadow model {i + 1} was trained on {len(gone)} audited and {len(kept)} other examples; "
                "unlearning needs some of both."
            )
        split = Split(pool.subset(gone), pool.subset(kept))
        models.append(method.unlearn(model, split, task, session.child("shadow", i)))
    found = Shadows.read(models, shadows.members, train, test, task, session)
    return replace(found, audited=audited, parts=shadows.parts)
