"""What exact methods on shards and slices share: stages, their checkpoints, deletion by them."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from expunge import config
from expunge.data.arrays import Data, batch_count, check_ids
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError, MissingEvidence, Unsupported
from expunge.methods.base import Method, methods
from expunge.methods.exact.sequences import Prefix, intact, prefixes
from expunge.tasks.base import Task
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.recipe import Recipe, Training
from expunge.training.scope import Scope
from expunge.training.session import Session
from expunge.training.sharding import ShardedModel, dealt, mixes_probabilities

State = dict[str, Tensor]
"""``ids`` and ``cells`` ``(N,)`` of what was trained on (a cell is ``shard · slices + slice``), ``seed``,
``made_of``, and for each stage ``shard/slices/name`` for every tensor that the stage changed."""


@dataclass(frozen=True)
class Revision:
    """What a deletion does to the stages: those that fall, and which shards are trained again.

    Attributes:
        fallen: by shard, the stages that were trained on a slice with a deleted example.
        retrained: the shards whose fallen stages are trained again.
    """

    fallen: Mapping[int, tuple[Prefix, ...]]
    retrained: frozenset[int]


@dataclass(frozen=True)
class Deletion:
    """What a deletion took.

    Attributes:
        deleted: examples that were deleted.
        retrained: by shard, the stages that were trained again.
        steps: optimiser steps that this took.
        full: optimiser steps of training all shards anew on what is left.
        served: the slices, in order, that the model of each shard has been trained on.
    """

    deleted: int
    retrained: Mapping[int, tuple[Prefix, ...]]
    steps: int
    full: int
    served: tuple[Prefix, ...]

    @property
    def share(self) -> float:
        """The fraction of a full retraining."""
        return self.steps / self.full


class ShardedMethod(Method):
    """A method whose model is an ensemble of shards, each trained on growing prefixes of its slices.

    A stage is a shard and a prefix of one of the orders of its slices. It goes on from the stage before
    and is trained on the slices so far, with a seed of its own; its checkpoint is what it changed. Hence
    a stage is the same, bit for bit, in any training whose data have the same examples in its slices.
    """

    guarantee = "exact"
    needs_recipe = True

    shards: int
    slices: int

    def __post_init__(self) -> None:
        for name in ("shards", "slices"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)

    @abstractmethod
    def orders(self) -> tuple[Prefix, ...]:
        """The orders in which the slices of every shard are trained."""

    @abstractmethod
    def training(self, recipe: Recipe) -> Training:
        """How a stage is trained."""

    @abstractmethod
    def initial(self, recipe: Recipe, session: Session, shard: int) -> nn.Module:
        """What the first stages of a shard start from.

        Raises:
            Unsupported: the method cannot train such a model.
        """

    @abstractmethod
    def scope(self, model: nn.Module, depth: int) -> Scope:
        """What the stage after ``depth`` others may move."""

    def merged(self, model: nn.Module) -> nn.Module:
        """A trained stage as a model of the recipe."""
        return model

    def cells(self, data: Data, seed: int) -> Tensor:
        """The cell of each example, ``(N,)``; a function of its id and the seed alone."""
        return dealt(data.ids, self.shards * self.slices, seed)

    @abstractmethod
    def retrains(self, usable: Sequence[Prefix]) -> bool:
        """Whether a shard that has lost a stage and still has these must be trained again."""

    def check_training(self, train: Data, recipe: Recipe) -> None:
        mixes_probabilities(recipe.task)
        self.check_sizes(self.cells(train, 0), self.training(recipe).batch_size)

    def check_request(self, split: Split, recipe: Recipe, session: Session) -> None:
        train = split.train()
        planned = {"ids": train.ids, "cells": self.cells(train, session.seed)}
        self.revision(planned, split.retain.ids, self.training(recipe).batch_size, self.may_retrain)

    def check_sizes(self, cells: Tensor, batch_size: int, when: str = "") -> None:
        """Refuses shards that are smaller than a batch.

        Raises:
            Unsupported: names the first such shard.
        """
        sizes = torch.bincount(cells // self.slices, minlength=self.shards)
        for shard, size in enumerate(sizes.tolist()):
            if size < batch_size:
                raise Unsupported(
                    f"{methods.name_of(self)}: shard {shard} of {self.shards} holds {size} examples{when}, "
                    f"fewer than a batch of {batch_size}. Set fewer shards or a smaller batch size."
                )

    def revision(self, state: Mapping[str, Tensor], kept: Tensor, batch_size: int, retrain: bool) -> Revision:
        """What has to be done so that only the examples with the ids ``kept`` have any influence.

        Raises:
            Unsupported: a shard would be smaller than a batch, or is due for retraining without leave.
        """
        there = torch.isin(state["ids"], kept)
        self.check_sizes(state["cells"][there], batch_size, " after the deletion")
        stages = prefixes(self.orders())
        fallen: dict[int, tuple[Prefix, ...]] = {}
        due = set()
        for shard in range(self.shards):
            gone = state["cells"][~there & (state["cells"] // self.slices == shard)] % self.slices
            usable = intact(stages, gone.unique().tolist())
            if len(usable) < len(stages):
                fallen[shard] = tuple(stage for stage in stages if stage not in usable)
                if self.retrains(usable):
                    due.add(shard)
        if due and not retrain:
            raise Unsupported(
                f"{methods.name_of(self)}: no order of slices is left in shard {min(due)} "
                f"({len(due)} of {self.shards} shards), so retraining is due. Set retrain=auto, or call "
                "delete(ids, retrain=True)."
            )
        return Revision(fallen, frozenset(due))

    def prepare(self, train: Data, task: Task, session: Session) -> State:
        recipe = self._recipe(task, session)
        state = self._planned(train, session.seed)
        self.check_sizes(state["cells"], self.training(recipe).batch_size)
        mixes_probabilities(task)
        stages = _Stages(self, recipe, session, state)
        for shard in range(self.shards):
            stages.train(shard, prefixes(self.orders()), train)
        return state

    def deploy(self, recipe: Recipe, train: Data, session: Session | None = None) -> Deployment:
        """The trained ensemble, ready to take requests; ``session.prepared`` spares the training."""
        return Deployment(self, recipe, train, session or Session())

    def blank(self, model: nn.Module, split: Split) -> nn.Module:
        return ShardedModel([copy.deepcopy(model) for _ in range(self.shards)])

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        recipe, train = self._recipe(task, session), split.train()
        if session.prepared is None:
            self.check_request(split, recipe, session)
        deployment = self.deploy(recipe, train, session)
        deployment.delete(split.forget.ids)
        return deployment.model

    @property
    def may_retrain(self) -> bool:
        """Whether a shard may be trained again without being asked for."""
        return True

    def made_of(self, train: Data) -> Tensor:
        """A digest of the settings and the data, ``(32,)`` uint8, by which checkpoints are recognised."""
        ordered = train.subset(train.ids.sort().values)
        facts = json.dumps([config.dump(self), ordered.fingerprint()], sort_keys=True)
        return torch.tensor(list(hashlib.sha256(facts.encode()).digest()), dtype=torch.uint8)

    def _planned(self, train: Data, seed: int) -> State:
        return {
            "ids": train.ids.clone(),
            "cells": self.cells(train, seed),
            "seed": torch.tensor(seed),
            "made_of": self.made_of(train),
        }

    def _recipe(self, task: Task, session: Session) -> Recipe:
        if session.recipe is None:
            raise MissingEvidence(
                f"{methods.name_of(self)} trains its shards itself and needs the recipe: "
                "pass recipe=expunge.Recipe(model, task, training)."
            )
        return replace(session.recipe, task=task)


class Deployment:
    """An ensemble of shards in service: ``model`` answers, ``delete`` takes requests one after another.

    After every deletion the model is what the same method, recipe and seed give on data without the
    deleted examples: for SISA the whole ensemble, for S3T the stages that still serve. It is equal bit
    for bit where the arithmetic is deterministic (a CPU with one number of threads).

    Attributes:
        data: the examples that are left.
        state: checkpoints; those of fallen stages are deleted with the examples.
        model: the ensemble, in evaluation mode.

    Raises:
        DataError: ``session.prepared`` was made of other data or by other settings.
    """

    def __init__(self, method: ShardedMethod, recipe: Recipe, train: Data, session: Session) -> None:
        self.method, self.recipe, self.data = method, recipe, train
        if session.prepared is None:
            state = method.prepare(train, recipe.task, replace(session, recipe=recipe))
        else:
            state = dict(session.prepared)
            if not torch.equal(state.get("made_of", torch.empty(0)).cpu(), method.made_of(train)):
                raise DataError(
                    "what was prepared belongs to other training data or settings. Give what prepare made "
                    "with this method of these data."
                )
        self.session = replace(session, seed=int(state["seed"]), prepared=None)
        self.state: State = state
        self.model = self._serve()

    def delete(self, ids: Tensor | Sequence[int], retrain: bool | None = None) -> Deletion:
        """Deletes examples and everything that was trained on them; nothing changes if it is refused.

        The data set that was handed in keeps the examples: to erase them from it is the caller's part.

        Args:
            ids: of examples that are still there.
            retrain: whether shards that have nothing left to serve may be trained again; by default as
                the method is set.

        Raises:
            DataError: ids that are not there (any more).
            Unsupported: nothing left to serve and no leave to retrain, or a shard smaller than a batch.
        """
        gone = check_ids(ids, self.data.ids, "ids to delete")
        kept = self.data.ids[~torch.isin(self.data.ids, gone)]
        batch = self.method.training(self.recipe).batch_size
        allowed = self.method.may_retrain if retrain is None else retrain
        revision = self.method.revision(self.state, kept, batch, allowed)
        data = self.data.subset(kept)
        state = self._without(revision, kept)
        stages = _Stages(self.method, self.recipe, self.session, state)
        steps = 0
        retrained = {shard: revision.fallen[shard] for shard in sorted(revision.retrained)}
        for shard, again in retrained.items():
            steps += stages.train(shard, again, data)
        self.data, self.state = data, state
        self.model = self._serve()
        everything = prefixes(self.method.orders())
        full = sum(stages.steps(shard, everything, data) for shard in range(self.method.shards))
        return Deletion(len(gone), retrained, steps, full, self.served)

    @property
    def served(self) -> tuple[Prefix, ...]:
        """For each shard the longest stage that stands; of equally long ones that of more examples."""
        return tuple(self._best(shard) for shard in range(self.method.shards))

    def _best(self, shard: int) -> Prefix:
        cells = self.state["cells"]
        gone = cells[~torch.isin(self.state["ids"], self.data.ids) & (cells // self.method.slices == shard)]
        lost = (gone % self.method.slices).unique().tolist()
        stages = _Stages(self.method, self.recipe, self.session, self.state)
        usable = intact(prefixes(self.method.orders()), lost)
        return max(usable, key=lambda stage: (len(stage), len(stages.rows(shard, stage, self.data))))

    def _without(self, revision: Revision, kept: Tensor) -> State:
        """The state without fallen stages; retrained shards also forget the ids of what is deleted."""
        gone = {_key(shard, stage) for shard, fallen in revision.fallen.items() for stage in fallen}
        state = {name: value for name, value in self.state.items() if name.rpartition("/")[0] not in gone}
        again = torch.tensor(sorted(revision.retrained), dtype=torch.long)
        stays = torch.isin(state["ids"], kept) | ~torch.isin(state["cells"] // self.method.slices, again)
        return {**state, "ids": state["ids"][stays], "cells": state["cells"][stays]}

    def _serve(self) -> nn.Module:
        stages = _Stages(self.method, self.recipe, self.session, self.state)
        members = []
        for shard, stage in enumerate(self.served):
            member = self.recipe.initial(self.session)
            member.load_state_dict(self.method.merged(stages.checkpoint(shard, stage)).state_dict())
            members.append(member)
        model = ShardedModel(members, mixes_probabilities(self.recipe.task))
        return self.session.engine.place(model).eval()


class _Stages:
    """Trains stages into a state and reads them from it."""

    def __init__(self, method: ShardedMethod, recipe: Recipe, session: Session, state: State) -> None:
        self.method, self.recipe, self.session, self.state = method, recipe, session, state
        self.training = method.training(recipe)

    def rows(self, shard: int, stage: Prefix, data: Data) -> Tensor:
        """The ids that a stage is trained on, ascending."""
        cells = torch.tensor([shard * self.method.slices + item for item in stage])
        ids = self.state["ids"][torch.isin(self.state["cells"], cells)]
        return ids[torch.isin(ids, data.ids)].sort().values

    def steps(self, shard: int, stages: Sequence[Prefix], data: Data) -> int:
        """Optimiser steps of these stages; a stage of fewer than two examples has none."""
        sizes = [len(self.rows(shard, stage, data)) for stage in stages]
        return sum(self.training.epochs * batch_count(n, self.training.batch_size) for n in sizes if n > 1)

    def train(self, shard: int, stages: Sequence[Prefix], data: Data) -> int:
        """Trains stages, shorter ones first, and returns the optimiser steps."""
        for stage in stages:
            ids = self.rows(shard, stage, data)
            if len(ids) > 1:  # batch norm cannot be trained on one example, nothing on none
                before = self.checkpoint(shard, stage[:-1])
                plan = Plan(
                    what=f"{methods.name_of(self.method)} shard {shard}, slices {list(stage)}",
                    objective=self.training.objective,
                    parts={"retain": data.subset(ids)},
                    passes=lambda epoch: (Pass("retain"),),
                    epochs=self.training.epochs,
                    batch_size=self.training.batch_size,
                    optim=self.training.optim,
                    scope=self.method.scope(before, len(stage) - 1),
                )
                session = self.session.child("shard", shard, "slices", *stage)
                after = optimise(before, plan, self.recipe.task, session)
                self._keep(_key(shard, stage), before, after)
        return self.steps(shard, stages, data)

    def checkpoint(self, shard: int, stage: Prefix) -> nn.Module:
        """The model of a shard after a stage."""
        model = self.method.initial(self.recipe, self.session, shard)
        for depth in range(1, len(stage) + 1):
            start = _key(shard, stage[:depth]) + "/"
            changed = {k.removeprefix(start): v for k, v in self.state.items() if k.startswith(start)}
            model.load_state_dict(changed, strict=False)
        return model

    def _keep(self, key: str, before: nn.Module, after: nn.Module) -> None:
        old = before.state_dict()
        for name, value in after.state_dict().items():
            value = value.detach().cpu()
            if not torch.equal(value, old[name].cpu()):
                self.state[f"{key}/{name}"] = value.clone()


def _key(shard: int, stage: Prefix) -> str:
    return f"{shard}/{'-'.join(map(str, stage))}"
