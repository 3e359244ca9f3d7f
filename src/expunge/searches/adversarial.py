"""The forget set that exposes unlearning methods, where doing nothing is not already right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.split import Split
from expunge.errors import ConfigError, Diverged, MissingEvidence, Unsupported
from expunge.evaluation.shadows import ShadowPlan, halves
from expunge.evaluation.subject import Reading
from expunge.methods.base import Method
from expunge.methods.gradient.finetune import Finetune
from expunge.searches.base import Search, Sized, chosen, reading, searches
from expunge.searches.entanglement import Entanglement
from expunge.searches.loss_ranking import LossRanking
from expunge.searches.result import SearchResult
from expunge.searches.units import Units
from expunge.tasks.base import Task
from expunge.training.ensemble import train_many
from expunge.training.session import Event, Session

FINALISTS = 2
"""Sets that are judged by true retraining before one is chosen."""

NO_RECIPE = "adversarial trains reference models and needs the recipe of the original. Give recipe=…."

LEAST = 1.2
"""The headroom that a set must have for full credit, in that of random sets."""


@searches.register("adversarial")
@dataclass(frozen=True, kw_only=True)
class Adversarial(Sized):
    """The ``m`` units on which methods stay furthest from retraining, for what there was to forget.

    With ``p_i(θ)`` the confidence in example ``i``, and ``r_i`` and ``s_i²`` mean and variance of it over
    the ``n_i`` reference models that were trained without ``i``,

    ``D²(S) = mean_{i∈S} [(p_i(θ_u(S)) − r_i)² − s_i²/n_i]``,

    ``H²(S) = mean_{i∈S} [(p_i(θ_o) − r_i)² − s_i²/n_i]``

    estimate the mean squared distances from retraining of the unlearned model and of doing nothing,
    without the bias that few reference models have. The exposure of a method on a set is
    ``E(S) = D(S) / max(H(S), H̄)``, where headroom counts as at least ``H̄``, 1.2 times that of random sets,
    since the truth about a set that looks empty may be that it is. The set
    has the largest mean exposure over the methods. The methods are run on candidate sets: those of
    ``starts``, that of the most headroom and a random one; then ``rounds`` times on ``sets`` new ones. New
    sets are drawn by the cross-entropy method from what was learnt: a ridge regression on what is known of
    every example (``r``, ``s``, ``p(θ_o)``, class, principal components of the original's outputs) and its
    own residual where it was in a set predict ``D²_i``. One set is the best by prediction; the others keep
    the better half of the best sets so far and are filled up by prediction with Gumbel noise. At last
    the best of the first sets and the best of the new ones are judged by the truth: one model retrained
    without each, and another run of the methods. For the reference knows single examples gone and not a
    whole set, whose members may have known each other.

    Args:
        size: ``m``, a number of units or their fraction of all.
        unit: what is forgotten whole: ``example``, ``class``, ``subject`` or ``prompt``.
        methods: which are to be exposed.
        starts: searches whose sets are tried first; their size and unit are those of this one.
        rounds: how often new sets are drawn.
        sets: sets in a round.
        models: reference models.
        fraction: of the training examples that each is trained on; ``models · fraction`` must be whole.

    Cost: ``starts + 2 + rounds · sets + 2`` runs of each method with a forward pass for each, 14 by
        default, and two retrainings; and once for all sets of one training set ``models`` trainings on
        ``fraction`` of it, which ``prepare`` keeps.
    Differs: our own. Sets that are hardest in the published sense (``bilevel``, ``loss_ranking``) have
        no headroom: doing nothing is right on them, so they show damage done by a method, not what it
        left. The reference sees single examples gone and not the set, so the truth about a set takes
        retraining without it: the table that judges it does that.
    References: the cross-entropy method: Rubinstein, Methodology and Computing in Applied Probability
        1, 1999; reference models as in Carlini et al., S&P 2022, arXiv:2112.03570.
    """

    methods: tuple[Method, ...] = (Finetune(),)
    starts: tuple[Search, ...] = (
        LossRanking(mode="worst"),
        LossRanking(mode="easiest"),
        Entanglement(mode="easiest"),
        Entanglement(mode="worst"),
    )
    rounds: int = 2
    sets: int = 3
    models: int = 40
    fraction: float = 0.9

    needs_recipe: ClassVar[bool] = True
    prepared_by = ("models", "fraction")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rounds", "sets"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if not all(isinstance(start, Sized) for start in self.starts):
            raise ConfigError("take searches that have a size, for example loss_ranking.", "starts")
        if not self.methods:
            raise ConfigError("name at least one method to expose.", "methods")
        ShadowPlan(count=self.models, fraction=self.fraction)
        if self.models * (1 - self.fraction) < 2 - 1e-9:
            raise ConfigError(
                f"every example must be left out by at least 2 models; with {self.models} models trained on "
                f"{self.fraction:g} of the data it is left out by {self.models * (1 - self.fraction):g}.",
                "models",
            )

    def check(self, train: Data, task: Task) -> None:
        super().check(train, task)
        if self.unit != "class" and any(method.forgets == "classes" for method in self.methods):
            raise ConfigError("these methods forget whole classes. Set unit=class.", "methods")

    def baseline(self) -> Search:
        return LossRanking(size=self.size, unit=self.unit, mode="easiest")

    def prepare(self, train: Data, task: Task, session: Session) -> dict[str, Tensor]:
        """Confidence of reference models without the example: its mean, and that one's variance, ``(N,)``."""
        if session.recipe is None:
            raise MissingEvidence(NO_RECIPE)
        plan = ShadowPlan(count=self.models, fraction=self.fraction)
        inside = halves(len(train), plan, session.generator("reference"))
        data = [train.subset(train.ids[row]) for row in inside]
        sessions = [session.child("reference", i) for i in range(self.models)]
        made = train_many(session.recipe, data, sessions, what="reference")
        values = torch.stack([reading(model, train, task, session).confidence for model in made.models])
        outside = torch.where(inside, torch.nan, values.double())
        mean = outside.nanmean(0)
        count = (~inside).sum(0)
        variance = (outside - mean).square().nansum(0) / (count - 1)
        return {"mean": mean, "error": variance / count, "variance": variance}

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> SearchResult:
        self.check(train, task)
        units = Units.read(train, task, self.unit)
        m = units.count(self.size)
        known = session.prepared or self.prepare(train, task, session)
        before = reading(model, train, task, session)
        hunt = _Hunt(units, m, _features(before, known, train, task), _squares(before, known))
        draws, plain = session.generator("adversarial"), replace(session, prepared=None)
        total = len(self.starts) + 2 + self.rounds * self.sets + FINALISTS
        done = 0

        def run(pieces: Tensor, known: Mapping[str, Tensor] = known) -> Tensor:
            nonlocal done
            rows = units.rows(pieces)
            found = self._residuals(model, train, rows, known, task, plain.child("adversarial", done))
            done += 1
            session.emit(Event("step", "adversarial", done, total))
            return found

        firsts = [self._start(start, units, model, train, task, plain) for start in self.starts]
        for pieces in (*firsts, *hunt.first(draws)):
            hunt.learn(pieces, run(pieces))
        for index in range(self.rounds):
            for pieces in hunt.next(self.sets, index, draws):
                hunt.learn(pieces, run(pieces))
        judged = []
        for number, tried in enumerate(hunt.finalists(len(self.starts) + 2)):
            truth = self._truth(train, units.rows(tried.pieces), known, task, plain.child("judge", number))
            headroom = _squares(before, truth)[units.rows(tried.pieces)].mean()
            judged.append(hunt.tried_as(tried.pieces, run(tried.pieces, truth), float(headroom), least=1.0))
        best = max(judged, key=lambda tried: tried.exposure)
        found = chosen(train, units.rows(best.pieces), "those that expose the methods most", self.unit)
        return replace(found, details=hunt.story(best))

    def _start(
        self, start: Search, units: Units, model: nn.Module, train: Data, task: Task, session: Session
    ) -> Tensor:
        """The units of another search's set."""
        assert isinstance(start, Sized)  # as __post_init__ saw to
        sized = replace(start, size=self.size, unit=self.unit)
        ids = sized.search(model, train, task, session.child("start", searches.name_of(start))).ids
        pieces: Tensor = torch.unique(units.of[torch.isin(train.ids, ids)])
        return pieces

    def _truth(
        self, train: Data, rows: Tensor, known: Mapping[str, Tensor], task: Task, session: Session
    ) -> dict[str, Tensor]:
        """What is known, where these examples are concerned from one model retrained without them."""
        if session.recipe is None:
            raise MissingEvidence(NO_RECIPE)
        split = Split.from_ids(train, train.ids[rows])
        retrained = session.recipe.train(split.retain, session, "judge")
        found = {name: value.clone() for name, value in known.items()}
        found["mean"][rows] = reading(
            retrained, train.subset(train.ids[rows]), task, session
        ).confidence.double()
        found["error"][rows] = known["variance"][rows]
        return found

    def _residuals(
        self,
        model: nn.Module,
        train: Data,
        rows: Tensor,
        known: Mapping[str, Tensor],
        task: Task,
        session: Session,
    ) -> Tensor:
        """``D²_i`` of every method that runs, ``(methods, m)``."""
        found = []
        split = Split.from_ids(train, train.ids[rows])
        for number, method in enumerate(self.methods):
            try:
                unlearned = method.unlearn(model, split, task, session.child("method", number))
            except Diverged:
                continue  # it says nothing of this set; the others do
            after = reading(unlearned, train.subset(train.ids[rows]), task, session)
            found.append(_squares(after, {name: value[rows] for name, value in known.items()}))
        if not found:
            raise Unsupported("every method diverged on a candidate set. Lower their learning rates.")
        return torch.stack(found)


@dataclass(frozen=True, eq=False)
class _Tried:
    """A set that was run: its units, distance ``D``, headroom ``H`` and exposure."""

    pieces: Tensor
    distance: float
    headroom: float
    exposure: float


class _Hunt:
    """What is known of every unit, and the sets that were tried."""

    def __init__(self, units: Units, m: int, features: Tensor, headroom: Tensor) -> None:
        self.units, self.m = units, m
        self.sizes = torch.bincount(units.of, minlength=len(units)).double()
        self.headroom = units.mean(headroom)
        self.floor = LEAST**2 * max(float(headroom.mean()), torch.finfo(torch.float64).tiny)
        self.features = torch.stack([units.mean(column) for column in features.T], 1)
        self.sums = torch.zeros(len(units), dtype=torch.float64)
        self.counts = torch.zeros(len(units), dtype=torch.float64)
        self.tried: list[_Tried] = []

    def first(self, draws: torch.Generator) -> list[Tensor]:
        """The most headroom, and a random set."""
        ranked = self.headroom.argsort(descending=True, stable=True)
        return [ranked[: self.m], torch.randperm(len(self.units), generator=draws)[: self.m]]

    def next(self, sets: int, index: int, draws: torch.Generator) -> list[Tensor]:
        """The best set by prediction, and the better halves of good sets filled up with noise."""
        predicted = self._predicted()
        found = [self._best(predicted)]
        scale = float(predicted.std()) * 0.5**index
        elite = sorted(self.tried, key=lambda tried: -tried.exposure)
        for number in range(sets - 1):
            uniform = torch.rand(len(predicted), generator=draws, dtype=torch.float64).clamp_min(1e-12)
            noisy = predicted - scale * torch.log(-torch.log(uniform))
            parent = elite[number % len(elite)].pieces
            kept: Tensor = parent[
                predicted[parent].argsort(descending=True, stable=True)[: (self.m + 1) // 2]
            ]
            found.append(self._best(noisy, kept))
        return found

    def finalists(self, first: int) -> list[_Tried]:
        """The best of the first sets, and the best of those after them."""
        return [
            max(found, key=lambda tried: tried.exposure) for found in (self.tried[:first], self.tried[first:])
        ]

    def learn(self, pieces: Tensor, residuals: Tensor) -> None:
        """Takes in ``D²_i`` ``(methods, n)`` of the examples of these units, ascending."""
        of = self.units.of[self.units.rows(pieces)]
        each = residuals.mean(0)
        for sums, values in ((self.sums, each), (self.counts, torch.ones_like(each))):
            sums.index_add_(0, of, values)
        self.tried.append(self.tried_as(pieces, residuals, self._mean(self.headroom, pieces)))

    def tried_as(self, pieces: Tensor, residuals: Tensor, headroom: float, least: float = LEAST) -> _Tried:
        """What came of a set, given its ``H²``."""
        distance = float(residuals.mean(1).clamp_min(0).sqrt().mean())
        exposure = distance / max(headroom, self.floor * (least / LEAST) ** 2) ** 0.5
        return _Tried(pieces, distance, max(headroom, 0.0) ** 0.5, exposure)

    def story(self, best: _Tried) -> dict[str, Any]:
        return {
            "exposure": best.exposure,
            "distance": best.distance,
            "headroom": best.headroom,
            "headroom of random sets": self.floor**0.5 / LEAST,
            "exposure of each set tried": [tried.exposure for tried in self.tried],
        }

    def _predicted(self) -> Tensor:
        """Mean ``D²`` of each unit: ridge regression, and its own residuals where it was in a set."""
        seen = self.counts > 0
        own = self.sums[seen] / self.counts[seen]
        x, y = self.features[seen], own - own.mean()
        square = x.T @ x + torch.eye(x.shape[1], dtype=x.dtype)
        predicted: Tensor = self.features @ torch.linalg.solve(square, x.T @ y) + own.mean()
        weight = self.counts / (self.counts + self.sizes)
        predicted[seen] = weight[seen] * own + (1 - weight[seen]) * predicted[seen]
        return predicted

    def _best(self, distance: Tensor, kept: Tensor | None = None) -> Tensor:
        """The set of largest ``D / max(H, H̄)`` among the largest ``D²_u − η H²_u``, over ``η``.

        It holds the units ``kept`` in any case.
        """
        top = max(tried.exposure for tried in self.tried) ** 2
        ranked: list[tuple[float, Tensor]] = []
        for eta in torch.linspace(-1, 2, 13, dtype=torch.float64):
            value = (distance - eta * top * self.headroom) * self.sizes / self.sizes.mean()
            if kept is not None:
                value[kept] = torch.inf
            pieces = value.argsort(descending=True, stable=True)[: self.m]
            headroom = max(self._mean(self.headroom, pieces), self.floor)
            ranked.append((self._mean(distance, pieces) / headroom, pieces))
        return max(ranked, key=lambda pair: pair[0])[1]

    def _mean(self, values: Tensor, pieces: Tensor) -> float:
        return float((values[pieces] * self.sizes[pieces]).sum() / self.sizes[pieces].sum())


def _squares(found: Reading, known: Mapping[str, Tensor]) -> Tensor:
    """``(p − r)² − s²/n``, ``(N,)`` float64: without bias for the squared distance from the true mean."""
    squared: Tensor = (found.confidence.double() - known["mean"]).square()
    return squared - known["error"]


def _features(before: Reading, known: Mapping[str, Tensor], train: Data, task: Task) -> Tensor:
    """What is known of every example before anything is forgotten, standardised, ``(N, F)``."""
    columns: list[Tensor] = [
        before.confidence.double(), before.margin.double().clamp(-20, 20), _squares(before, known),
        known["mean"].double(), known["error"].double().sqrt(),
    ]  # fmt: skip
    outputs = before.outputs.flatten(1).double()
    centred = outputs - outputs.mean(0)
    keep = min(8, *centred.shape)
    columns += list((torch.linalg.svd(centred, full_matrices=False).U[:, :keep] * len(outputs) ** 0.5).T)
    columns += _classes(train, task)
    table = torch.stack(columns, 1)
    return (table - table.mean(0)) / table.std(0).clamp_min(1e-9)


def _classes(train: Data, task: Task) -> Sequence[Tensor]:
    """An indicator for each class, where there are not too many."""
    try:
        labels = task.groups(train)
    except Unsupported:
        return ()
    found = torch.unique(labels)
    return [(labels == label).double() for label in found] if len(found) <= 100 else ()
