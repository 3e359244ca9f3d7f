"""What an experiment is made of: models, forget sets and rows, each found again by what it depends on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from expunge import config, provenance, reference_models
from expunge.data.poison import unmanipulated
from expunge.data.split import Split
from expunge.errors import Diverged, RunError, Unsupported
from expunge.evaluation.evaluate import HISTOGRAM_EDGES, Candidate, Evaluation
from expunge.evaluation.evidence import Compute, Tensors
from expunge.evaluation.shadows import Shadows
from expunge.evaluation.table import Row, Table
from expunge.evaluation.thumbnails import thumbnails
from expunge.experiment import Experiment
from expunge.methods.base import methods
from expunge.searches.base import Search, searches
from expunge.searches.result import SearchResult
from expunge.store import Store, facts, key_of
from expunge.training.checkpoint import load_weights
from expunge.training.meter import metered
from expunge.training.parameters import check_finite
from expunge.training.session import Callback, Event, Session

STORE = "store"


def _on_base(experiment: Experiment, store: Store, session: Session) -> Experiment:
    """The experiment with the weights of its base, trained once, as those that every model starts from."""
    if experiment.base is None:
        return experiment
    data, recipe = experiment.base_data, replace(experiment.recipe, training=experiment.base.train)
    kinds = [facts(experiment.model), config.dump(experiment.task), config.identity(experiment.base)]
    kinds += [config.identity(experiment.engine), data.fingerprint(), session.seed, provenance.versions()]
    key = key_of(*kinds)

    def compute() -> tuple[dict[str, Any], nn.Module]:
        with metered(session.engine.torch_device) as cost:
            model = recipe.train(data, session.child("base"), "base")
        return {"cost": cost}, model

    store.model("base", key, partial(recipe.initial, session), compute)
    return replace(experiment, base=None, model=replace(experiment.model, weights=store.weights("base", key)))


class Pieces:
    """Everything that is made for one experiment, each piece once and kept in the directory.

    ``done`` counts those that were made or found, of ``total``.
    """

    def __init__(self, experiment: Experiment, directory: Path, callbacks: Sequence[Callback]) -> None:
        self.store = Store(directory / STORE)
        self.experiment = experiment = _on_base(experiment, self.store, experiment.session(callbacks))
        self.session = experiment.session(callbacks)
        self.total = _count(experiment)
        self.done = 0
        self.ready: dict[str, Mapping[str, Tensor]] = {}
        self.base = key_of(
            facts(experiment.model),
            config.dump(experiment.task),
            config.identity(experiment.train),
            config.identity(experiment.engine),
            experiment.sourced.train.fingerprint(),
            experiment.seed,
            provenance.versions(),
        )

    def shared(self) -> None:
        """What many of the others need: the original, shadow models, what methods prepare."""
        _ = self.original, self._shadows
        for name, method in self.experiment.methods.items():
            if method.prepared_by:
                self._prepared(name)

    def model(self, name: str, which: int | str) -> None:
        """A retrained model by its number, or the unlearned ones of a method by its name."""
        _, _, split, key = self.forgotten(name)
        if isinstance(which, int):
            self._retrained(name, which, key, split)
        else:
            self._unlearned(name, which, key, split)

    @cached_property
    def original(self) -> nn.Module:
        """The model to unlearn from: the given weights, or trained once."""
        weights = self.experiment.original
        session = self.session.child("original")

        def compute() -> tuple[dict[str, Any], nn.Module]:
            if weights is not None:
                return {}, self._load(weights)
            with metered(self.session.engine.torch_device) as cost:
                model = self.experiment.recipe.train(self.experiment.sourced.train, session, "original")
            return {"cost": cost}, model

        _, model = self._model("original", key_of(self.base, self._origin), compute)
        assert model is not None
        return model

    def _load(self, weights: Path) -> nn.Module:
        model = self._blank()
        load_weights(model, weights)
        check_finite(model, str(weights))
        return model.eval()

    def _blank(self) -> nn.Module:
        return self.experiment.recipe.initial(self.session)

    def table(self, name: str) -> Table:
        original = self.original
        found, overlap, split, key = self.forgotten(name)
        candidates = [Candidate("original", "original", original)]
        candidates += [self._retrained(name, k, key, split) for k in range(self.experiment.retrained)]
        rows, floors = self._rows(name, key, candidates, split)
        return Table(
            name=name,
            description=found.description + _oracle(split),
            size=len(found.ids),
            train_size=len(self.experiment.sourced.train),
            rows=tuple(rows),
            fingerprint=split.fingerprint(),
            overlap=overlap,
            bins=list(HISTOGRAM_EDGES),
            pictures=thumbnails(
                split.forget, self.experiment.task, original, self.experiment.sourced.class_names
            ),
            margins=self.experiment.margins,
            floors=floors,
            names=list(self.experiment.sourced.class_names or ()),
        )

    def forgotten(self, name: str) -> tuple[SearchResult, dict[str, float], Split, str]:
        """What the search found, its overlap with another's, the split, and the key of what depends on it."""
        found, overlap = self._search(name)
        key = key_of(self.base, self._origin, found.ids.tolist())
        return found, overlap, self.experiment.split(found.ids), key

    @property
    def _plan(self) -> Any:
        return config.dump(self.experiment.shadows)

    @cached_property
    def _shadows(self) -> Shadows | None:
        """The reference models, shared by all forget sets and methods."""
        sourced = self.experiment.sourced
        keep = partial(self._tensors, key_of(self.base, self._plan, sourced.test.fingerprint()))
        return reference_models.shadows(self.experiment, self.session, keep)

    def _treated(self, name: str, key: str, split: Split) -> Shadows | None:
        """The same after the methods that some metric wants them to go through."""
        if self._shadows is None:
            return None
        methods = facts(list(self.experiment.methods.values()))
        keep = partial(self._tensors, key_of(key, self._plan, methods))
        return reference_models.treated(self._shadows, self.experiment, name, split, self.session, keep)

    @cached_property
    def _origin(self) -> list[Any]:
        return facts(self.experiment.original)

    def _search(self, name: str) -> tuple[SearchResult, dict[str, float]]:
        search = self.experiment.forget[name]
        experiment, train = self.experiment, self.experiment.sourced.train
        session = self.session.child("search", name)
        if search.prepared_by:
            session = replace(session, prepared=self._prepared_search(search))

        def compute() -> dict[str, Any]:
            found = search.search(self.original, train, experiment.task, session)
            found = replace(found, fingerprint=train.fingerprint(), search=_dumped(search, session.seed))
            overlap = {}
            if (baseline := search.baseline()) is not None:
                other = baseline.search(self.original, train, experiment.task, session)
                overlap["loss_ranking"] = found.overlap(other)
            return {**found.to_json(), "overlap": overlap}

        key = key_of(self.base, self._origin, facts(search), name)
        value = self._value(f"search {name}", key, compute)
        return SearchResult.from_json(value), value["overlap"]

    def _retrained(self, name: str, index: int, key: str, split: Split) -> Candidate:
        session = self.session.child("retrained", name, index)

        def compute() -> tuple[dict[str, Any], nn.Module]:
            with metered(session.engine.torch_device) as cost:
                data = unmanipulated(split.retain)
                model = self.experiment.recipe.train(data, session, f"retrained {index + 1}")
            return {"cost": cost}, model

        value, model = self._model(f"{name} retrained {index + 1}", key_of(key, index), compute)
        return Candidate(f"retrained {index + 1}", "retrained", model, value["cost"])

    def _unlearned(self, name: str, method_name: str, key: str, split: Split) -> Candidate:
        first, *others = (
            self._once(name, method_name, key, split, run) for run in range(self.experiment.repeats)
        )
        return replace(first, siblings=tuple(other.model for other in others if other.model is not None))

    def _once(self, name: str, method_name: str, key: str, split: Split, run: int) -> Candidate:
        """One run of a method; its first has the seed that it would have alone."""
        method = self.experiment.methods[method_name]
        session = self.session.child("unlearn", name, method_name, *([run] if run else []))

        def compute() -> tuple[dict[str, Any], nn.Module | None]:
            try:
                ready = replace(session, prepared=self._prepared(method_name) if method.prepared_by else None)
                with metered(session.engine.torch_device) as cost:
                    model = method.unlearn(self.original, split, self.experiment.task, ready)
            except (Diverged, Unsupported) as error:
                return {"cost": {}, "error": str(error)}, None
            return {"cost": cost, "error": None}, model

        stage = key_of(key, method_name, facts(method), *([run] if run else []))
        what = f"{name} {method_name}" + (f" run {run + 1}" if run else "")
        value, model = self._model(what, stage, compute, lambda: method.blank(self._blank(), split))
        return Candidate(method_name, "unlearned", model, value["cost"], config.dump(method), value["error"])

    def _prepared(self, method_name: str) -> Mapping[str, Tensor]:
        """What methods of a kind make once for all forget sets, shared by those that would make the same."""
        if method_name not in self.ready:
            experiment, method = self.experiment, self.experiment.methods[method_name]
            kind = methods.name_of(method)
            session = self.session.child("prepare", kind)

            def compute() -> tuple[dict[str, Any], dict[str, Tensor]]:
                with metered(session.engine.torch_device) as cost:
                    tensors = method.prepare(experiment.sourced.train, experiment.task, session)
                return {"cost": cost}, tensors

            fields = {name: getattr(method, name) for name in method.prepared_by}
            keep = partial(self._tensors, self.base)
            self.ready[method_name] = keep(f"prepare {kind}", (kind, facts(fields)), compute)
        return self.ready[method_name]

    def _prepared_search(self, search: Search) -> Mapping[str, Tensor]:
        """What searches of a kind make once, shared by those that would make the same."""
        kind = searches.name_of(search)
        fields = {name: getattr(search, name) for name in search.prepared_by}
        experiment, session = self.experiment, self.session.child("prepare", kind)

        def compute() -> tuple[dict[str, Any], dict[str, Tensor]]:
            with metered(session.engine.torch_device) as cost:
                tensors = search.prepare(experiment.sourced.train, experiment.task, session)
            return {"cost": cost}, tensors

        return self._kept(f"prepare {kind}", (kind, facts(fields)), compute)

    def _kept(self, name: str, depends: tuple[Any, ...], compute: Compute) -> Tensors:
        """A piece within others, which does not count by itself."""
        return self.store.tensors(name, key_of(self.base, *depends), compute)[1]

    def _rows(
        self, name: str, key: str, references: Sequence[Candidate], split: Split
    ) -> tuple[list[Row], dict[str, float]]:
        """The rows of all models and controls, and what always giving one answer is worth.

        Original and retrained models stay in memory; each method's is made, judged and let go.
        """
        experiment, metrics = self.experiment, self.experiment.metrics
        session = self.session.child("evaluate", name)
        shadows = self._treated(name, key, split)
        evaluation = Evaluation(references, split, experiment.task, session, shadows, self._kept)
        test = experiment.sourced.test.fingerprint()
        judged = key_of(key, config.dump(metrics), test, experiment.retrained, self._plan)

        def row(label: str, made: object, candidate: Callable[[], Candidate]) -> Row:
            def compute() -> dict[str, Any]:
                return evaluation.row(candidate(), metrics).to_json()

            return Row.from_json(self._value(f"{name} row {label}", key_of(judged, label, made), compute))

        def of(candidate: Candidate) -> Row:
            return row(candidate.name, [candidate.method, len(candidate.siblings)], lambda: candidate)

        rows = [of(candidate) for candidate in references]
        rows += [of(self._unlearned(name, method, key, split)) for method in experiment.methods]
        rows += [row(c, "control", partial(evaluation.candidate, c)) for c in experiment.controls]
        return rows, self._value(f"{name} floors", key_of(judged, "floors"), evaluation.floors)

    def _value(self, name: str, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with self._piece(name, key):
            return self.store.value(name, key, compute)

    def _tensors(self, base: str, name: str, depends: tuple[Any, ...], compute: Compute) -> Tensors:
        key = key_of(base, *depends)
        with self._piece(name, key):
            return self.store.tensors(name, key, compute)[1]

    def _model(
        self,
        name: str,
        key: str,
        compute: Callable[[], tuple[dict[str, Any], nn.Module | None]],
        blank: Callable[[], nn.Module] | None = None,
    ) -> tuple[dict[str, Any], nn.Module | None]:
        with self._piece(name, key):
            value, model = self.store.model(name, key, blank or self._blank, compute)
        if model is None and value.get("error") is None:
            raise RunError(
                f"the weights of '{name}' are gone from '{self.store.folder}'. Delete it and run again."
            )
        return value, model

    @contextmanager
    def _piece(self, name: str, key: str) -> Iterator[None]:
        """Tells the listeners how many seconds the piece took; 0 where it was there already."""
        there, start = self.store.has(name, key), time.perf_counter()
        yield
        self.done += 1
        seconds = 0.0 if there else time.perf_counter() - start
        self.session.emit(Event("step", "run", self.done, self.total, {name: seconds}))


def _oracle(split: Split) -> str:
    """What is to be known of the retrained models where some of the manipulated examples stay."""
    unseen = len(split.retain) - len(unmanipulated(split.retain))
    if not unseen:
        return ""
    return f"; the retrained models saw none of the {unseen} others that nobody found either"


def _dumped(search: Search, seed: int) -> dict[str, Any]:
    return {**config.dump(search), "seed": seed}


def _count(experiment: Experiment) -> int:
    """Pieces of a run: the original; for each forget set its search, its models, their rows, the floors."""
    models = experiment.retrained + len(experiment.methods)
    further = (experiment.repeats - 1) * len(experiment.methods) + len(experiment.controls)
    further += len(reference_models.treated_methods(experiment))
    prepared = sum(bool(method.prepared_by) for method in experiment.methods.values())
    once = 1 + prepared + (experiment.shadows is not None)
    return once + len(experiment.forget) * (3 + 2 * models + further)
