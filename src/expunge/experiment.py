"""An experiment written down: data, model, forget sets, methods, references, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch

from expunge import config
from expunge.data.arrays import Data
from expunge.data.source import DataSource, Sourced
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError, Diverged, ExpungeError, Unsupported, did_you_mean
from expunge.evaluation.controls import CONTROLS
from expunge.evaluation.evaluate import DEFAULT, Candidate, Evaluation, check_margins
from expunge.evaluation.metric import Metric
from expunge.evaluation.shadows import ShadowPlan
from expunge.methods.base import Method, check_layers, methods
from expunge.methods.classes import is_whole
from expunge.searches.base import Search
from expunge.tasks.base import Task
from expunge.training.checkpoint import load_weights
from expunge.training.engine import Engine
from expunge.training.models import ModelSpec
from expunge.training.probe import probe
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Callback, Session

GROUPS = ("forget", "methods")
"""Sections whose entries have names: a mapping, or a list of names that are kinds as well."""

TRIAL_SIZE = 4
"""Examples of each part in the trial run that ``check`` makes."""

CLASS_TRIAL_SIZE = 64
"""The same for methods that forget whole classes, some of which look for structure inside the class."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """What every model starts from: the same network, trained on other data before.

    Args:
        train: how.
        data: what it is trained on; only the training examples are used. By default what the experiment's
            data brings for it, as ``people`` does.
    """

    train: Training = Training()
    data: DataSource | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a result, and nothing else.

    Args:
        name: what reports call it.
        data: where train and test examples come from.
        model: the network.
        task: what it is for.
        train: how the original and the retrained models are trained.
        base: trained once before them; the original and every retrained model start from its weights.
        forget: the forget sets, by name, each as the search that chooses it.
        methods: the unlearning methods, by name.
        retrained: number of retrained models for each forget set; with fewer than 3 hardly any
            verdict can be reached.
        repeats: how often each method runs, each time with another seed; the first run is judged, the
            others serve metrics that compare distributions over models, and ``over_runs``.
        controls: models that must never win, beside the others: ``collapsed``, ``constant``,
            ``never_trained``.
        shadows: reference models on random halves of the data, for per-example membership attacks.
        original: trained weights to unlearn from; without it the original is trained.
        metrics: what is measured.
        margins: differences from retraining that are negligible, by a metric's name, a score's or its id;
            elsewhere 2.65 times the noise, see ``expunge.evaluation.verdict``.
        engine: device and precision.
        seed: decides every random draw.
    """

    name: str
    data: DataSource
    model: ModelSpec
    task: Task
    train: Training = Training()
    base: Base | None = None
    forget: dict[str, Search]
    methods: dict[str, Method]
    retrained: int = 3
    repeats: int = 1
    controls: tuple[Literal["collapsed", "constant", "never_trained"], ...] = ()
    shadows: ShadowPlan | None = None
    original: Path | None = None
    metrics: tuple[Metric, ...] = DEFAULT
    margins: dict[str, float] = field(default_factory=dict)
    engine: Engine = field(default_factory=Engine)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.retrained < 1:
            raise ConfigError(
                f"at least 1 retrained model is the reference of every number, got {self.retrained}.",
                "retrained",
            )
        if self.base is not None and self.model.weights is not None:
            raise ConfigError("the model has weights to start from already. Leave one of both out.", "base")
        if self.repeats < 1:
            raise ConfigError(f"must be at least 1, got {self.repeats}.", "repeats")
        for name, margin in self.margins.items():
            if not margin > 0:
                raise ConfigError(f"a negligible difference is above 0, got {margin}.", f"margins.{name}")
        if not self.name or not set(self.name).isdisjoint("/\\\n"):
            raise ConfigError(f"must be a word that can name a folder, got {self.name!r}.", "name")
        if not self.forget:
            raise ConfigError("name at least one forget set, for example random: random_set.", "forget")
        for group in (self.forget, self.methods):
            for name in group:
                if not name or name.startswith(("original", "retrained", *CONTROLS)) or "/" in name:
                    raise ConfigError(f"'{name}' cannot be used as a name; choose another.")

    @cached_property
    def sourced(self) -> Sourced:
        """The data, loaded once."""
        return self.data.load()

    @cached_property
    def base_data(self) -> Data:
        """What the base is trained on.

        Raises:
            ConfigError: neither the base nor the experiment's data says.
        """
        given = self.base.data if self.base is not None else None
        found = self.sourced.base if given is None else given.load().train
        if found is None:
            raise ConfigError("the data brings nothing to train a base on. Name other data.", "data")
        return found

    @property
    def recipe(self) -> Recipe:
        """How the original and the retrained models are trained."""
        return Recipe(self.model, self.task, self.train)

    def session(self, callbacks: Sequence[Callback] = ()) -> Session:
        return Session(self.seed, self.engine, tuple(callbacks), self.recipe)

    def split(self, ids: torch.Tensor) -> Split:
        """Forget these training examples, keep the others, test on the test data."""
        sourced = self.sourced
        return Split.from_ids(sourced.train, ids, test=sourced.test, probes=sourced.probes)


def parse(value: Mapping[str, Any]) -> Experiment:
    """An experiment from a mapping; a forget set or method without ``kind`` is of the kind of its name.

    Raises:
        ConfigError: with the path of the first mistake.
    """
    named = _by_name(value)
    for group in GROUPS:
        if isinstance(named.get(group), Mapping):
            named[group] = {name: _with_kind(name, item) for name, item in named[group].items()}
    return config.parse(Experiment, named)


def read(source: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """An experiment from a YAML file or the name of a packaged suite, with ``key=value`` overrides.

    Raises:
        ConfigError: no such file or suite, or a mistake in it.
    """
    path = Path(source)
    if not path.is_file():
        known = suites()
        if str(source) not in known:
            hint = did_you_mean(str(source), known)
            raise ConfigError(f"'{source}' is neither a file nor a packaged suite.{hint}")
        path = known[str(source)]
    return parse(config.override(_by_name(config.read_yaml(path)), overrides))


def suites() -> dict[str, Path]:
    """The packaged experiments by name."""
    folder = Path(str(resources.files("expunge") / "suites"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def check(experiment: Experiment, prepares: bool = True) -> None:
    """Finds what can be known to fail before anything is trained.

    Loads the data and looks at every label, builds the model, asks every search for its size, and
    runs each method for one epoch on a handful of examples, from random weights. A method is refused
    where it cannot run on any of the forget sets; one that can on some says in the rows of the others why.

    Args:
        prepares: whether methods prepare once for all forget sets, as in a run.

    Raises:
        ExpungeError: the first mistake.
    """
    sourced, task = experiment.sourced, experiment.task
    for part, data in (("train", sourced.train), ("test", sourced.test)):
        task.check(data, part)
    if experiment.base is not None:
        with _at("base"):
            task.check(experiment.base_data, "train")
    session = experiment.session()
    with _at("model"):
        model = experiment.recipe.initial(session)
    if experiment.original is not None:
        load_weights(model, experiment.original)
    _probe(experiment, model)
    for name, search in experiment.forget.items():
        with _at(f"forget.{name}"):
            search.check(sourced.train, task)
    if len(sourced.train) < 4:
        raise DataError(
            f"the training data has {len(sourced.train)} examples; too few to forget and to keep."
        )
    known = _known(experiment, model)
    small = _handful(sourced.train, known)
    trial = Evaluation([Candidate("original", "original", model)], small, task, session)
    check_margins(experiment.margins, experiment.metrics, trial.evidence(trial.candidates[0]))
    for name, method in experiment.methods.items():
        with _at(f"methods.{name}"):
            if method.forgets == "classes":
                _check_classes(name, experiment, known)
            method.check_training(sourced.train, experiment.recipe)
            if prepares and method.prepared_by:
                _check_requests(method, experiment, known)
            check_layers(model, methods.name_of(method))
            if not method.needs_recipe:
                classes = method.forgets == "classes"
                _trial(method, model, _whole_class(sourced, task) if classes else small, experiment)


def _known(experiment: Experiment, model: torch.nn.Module) -> list[Split]:
    """The forget sets of searches that read no model, as a run will find them."""
    train, found = experiment.sourced.train, []
    for name, search in experiment.forget.items():
        if not search.reads_model:
            session = experiment.session().child("search", name)
            found.append(experiment.split(search.search(model, train, experiment.task, session).ids))
    return found


def _handful(train: Data, known: Sequence[Split]) -> Split:
    """A few examples to forget and to keep, of the first forget set that is known: it may be one concept."""
    few = train.ids[: 2 * TRIAL_SIZE]
    forget, keep = few[: len(few) // 2], few[len(few) // 2 :]
    if known:
        forget, keep = (
            part.ids[torch.linspace(0, len(part) - 1, min(TRIAL_SIZE, len(part))).long()]
            for part in (known[0].forget, known[0].retain)
        )
    return Split.from_ids(train.subset(torch.cat([forget, keep])), forget)


def _check_requests(method: Method, experiment: Experiment, known: Sequence[Split]) -> None:
    """Refuses a method that can delete none of the forget sets from what it prepares.

    Raises:
        Unsupported: why not the first of them.
    """
    session, refused = experiment.session().child("prepare", methods.name_of(method)), []
    for split in known:
        try:
            method.check_request(split, experiment.recipe, session)
        except Unsupported as error:
            refused.append(error)
    if refused and len(refused) == len(experiment.forget):
        raise refused[0]


def _check_classes(name: str, experiment: Experiment, known: Sequence[Split]) -> None:
    """Refuses a method for classes where no forget set is made of classes.

    Raises:
        ConfigError: and says which search gives such sets.
        Unsupported: the task has no classes.
    """
    experiment.task.groups(experiment.sourced.train)
    whole = any(search.gives_classes for search in experiment.forget.values())
    if not whole and not any(is_whole(split, experiment.task) for split in known):
        raise ConfigError(
            f"{name} forgets whole classes, and no forget set is made of classes. Give one that is, for "
            "example class_0: {kind: class_set, classes: [0]}, or use another method."
        )


def _whole_class(sourced: Sourced, task: Task) -> Split:
    """A handful of examples of one class to forget, and of others to keep."""
    labels = task.groups(sourced.train)
    rows = (labels == labels[0], labels != labels[0])
    forget, keep = (sourced.train.ids[row.nonzero().flatten()[:CLASS_TRIAL_SIZE]] for row in rows)
    return Split.from_ids(sourced.train.subset(torch.cat([forget, keep])), forget)


def _probe(experiment: Experiment, model: torch.nn.Module) -> None:
    """One forward pass, so that images of the wrong shape are found now and said in words."""
    complaint = probe(model, experiment.sourced.train, experiment.task, experiment.engine)
    if complaint:
        raise DataError(complaint)


def _trial(method: Method, model: torch.nn.Module, split: Split, experiment: Experiment) -> None:
    short = replace(method, epochs=1) if hasattr(method, "epochs") else method  # type: ignore[type-var]
    try:
        short.unlearn(model, split, experiment.task, experiment.session())
    except Diverged:
        return  # says nothing about the real run, which starts from trained weights


@contextmanager
def _at(path: str) -> Iterator[None]:
    """Says of an error inside the block where in the configuration its cause is."""
    try:
        yield
    except ConfigError as error:
        raise error.under(path) from None
    except ExpungeError as error:
        raise type(error)(f"{path}: {error}") from None


def _by_name(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same mapping with forget sets and methods by name where they were listed."""
    named = dict(value)
    for group in named.keys() & set(GROUPS):
        entries = named[group]
        if isinstance(entries, list) and all(isinstance(name, str) for name in entries):
            entries = dict.fromkeys(entries)
        if isinstance(entries, Mapping):
            named[group] = {str(name): item for name, item in entries.items()}
    return named


def _with_kind(name: str, item: object) -> object:
    if item is None:
        return {"kind": name}
    if isinstance(item, Mapping) and "kind" not in item:
        return {"kind": name, **item}
    return item
