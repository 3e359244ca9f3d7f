"""The verbs: train, unlearn, evaluate, search, run. A string names a built-in; an object is taken as is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from expunge import config
from expunge.data.arrays import Data, digest
from expunge.data.poison import unmanipulated
from expunge.data.split import Split, as_data
from expunge.errors import ConfigError, fitting_memory
from expunge.evaluation.evaluate import DEFAULT, HISTOGRAM_EDGES, Candidate, Evaluation, check_margins
from expunge.evaluation.evidence import Keep
from expunge.evaluation.metric import Metric
from expunge.evaluation.metric import metrics as known_metrics
from expunge.evaluation.report import Report
from expunge.evaluation.shadows import ShadowPlan, Shadows, train_shadows
from expunge.evaluation.table import Table
from expunge.evaluation.thumbnails import thumbnails
from expunge.experiment import Experiment, read
from expunge.methods.base import Method, check_layers, methods
from expunge.provenance import hardware, versions
from expunge.runner import execute
from expunge.searches.base import Search, searches
from expunge.searches.result import SearchResult
from expunge.store import Store, key_of
from expunge.tasks.base import Task, tasks
from expunge.training.engine import Engine
from expunge.training.meter import metered
from expunge.training.parameters import check_finite
from expunge.training.recipe import Recipe
from expunge.training.session import Callback, Session


@dataclass(frozen=True)
class Unlearned:
    """What ``unlearn`` gives back.

    Attributes:
        model, original: the one that has forgotten, in evaluation mode, and the one that was handed in.
        split, task, method: what was asked.
        cost: ``seconds`` and, where it can be measured, ``memory`` in MiB.
        session: seed, engine and recipe of the call.
        siblings: the models of further runs with other seeds, where they were asked for.
    """

    model: nn.Module
    original: nn.Module
    split: Split
    task: Task
    method: Method
    cost: Mapping[str, float]
    session: Session
    siblings: tuple[nn.Module, ...] = ()


@fitting_memory()
def train(
    recipe: Recipe,
    data: Data | object,
    *,
    seed: int = 0,
    engine: Engine | None = None,
    callbacks: Sequence[Callback] = (),
) -> nn.Module:
    """Trains a model from scratch.

    Args:
        recipe: model, task, optimiser and epochs.
        data: a ``Data``, a map-style data set, or an (inputs, targets) pair.

    Raises:
        DataError: the data does not fit the task.
        Diverged: the loss or a weight became NaN.
        OutOfMemory: the memory is full; it says which settings take less.
    """
    examples = as_data(data)
    recipe.task.check(examples, "train")
    return recipe.train(examples, Session(seed, engine or Engine(), tuple(callbacks)))


@fitting_memory()
def unlearn(
    model: nn.Module,
    split: Split,
    method: str | Mapping[str, Any] | Method,
    *,
    task: str | Mapping[str, Any] | Task,
    recipe: Recipe | None = None,
    repeats: int = 1,
    seed: int = 0,
    engine: Engine | None = None,
    callbacks: Sequence[Callback] = (),
) -> Unlearned:
    """A model that has forgotten ``split.forget``. The model passed in is never changed.

    Args:
        model: any trained ``nn.Module``.
        split: what to forget and what to keep.
        method: a name, ``{"kind": name, …}``, or a method object.
        task: what the model is for, likewise.
        recipe: how the model was trained, for methods that retrain.
        repeats: runs of the method with different seeds; metrics that compare distributions over models
            need many.
        seed: the same seed gives the same weights, byte for byte, on the same machine.

    Raises:
        ConfigError: an unknown method or field.
        DataError, CheckpointError: data that does not fit the task, NaN in the weights.
        Unsupported: the method cannot run on this model or task; no other was run instead.
    """
    chosen, purpose = config.build(methods, method, "method"), config.build(tasks, task, "task")
    for part, data in split.parts().items():
        purpose.check(data, part)
    if repeats < 1:
        raise ConfigError(f"must be at least 1, got {repeats}.", "repeats")
    check_layers(model, methods.name_of(chosen))
    check_finite(model)
    session = Session(seed, engine or Engine(), tuple(callbacks), recipe)
    with metered(session.engine.torch_device) as cost:
        result = chosen.unlearn(model, split, purpose, session)
    siblings = tuple(
        chosen.unlearn(model, split, purpose, session.child("run", run)) for run in range(1, repeats)
    )
    return Unlearned(result, model, split, purpose, chosen, cost, session, siblings)


@fitting_memory()
def evaluate(
    result: Unlearned | Sequence[Unlearned],
    against: Recipe | nn.Module | Sequence[nn.Module],
    *,
    retrained: int = 3,
    metrics: Sequence[str | Mapping[str, Any] | Metric] = DEFAULT,
    controls: Sequence[str] = (),
    shadows: Shadows | None = None,
    margins: Mapping[str, float] | None = None,
    cache: str | Path | None = None,
    name: str = "evaluation",
) -> Report:
    """Judges one or more unlearned models against the original and retrained ones.

    Args:
        result: what ``unlearn`` gave; several must share model, split and task.
        against: the recipe to retrain with, or models retrained without the forget set.
        retrained: how many models a recipe trains; with fewer than 3 hardly any verdict can be reached.
        metrics: names, mappings or objects.
        controls: models that must never win, beside the others: ``collapsed``, ``constant``,
            ``never_trained``.
        shadows: reference models for per-example membership attacks, from ``expunge.shadows``.
        margins: differences that are negligible, by a metric's name, a score's or its id; elsewhere 2.65
            times the noise, see ``expunge.evaluation.verdict``.
        cache: a folder that keeps retrained models by what they depend on, for the next call.

    Raises:
        ConfigError: results of different splits, an unknown metric.
    """
    results = [result] if isinstance(result, Unlearned) else list(result)
    if not results:
        raise ConfigError("there is no result to evaluate.")
    first = results[0]
    if any(other.original is not first.original or other.split is not first.split for other in results):
        raise ConfigError("results of different models or splits cannot share a table; evaluate each alone.")
    candidates = [Candidate("original", "original", first.original)]
    candidates += references(against, first.split, first.session, retrained, cache)
    names: dict[str, int] = {}
    for item in results:
        label = methods.name_of(item.method)
        names[label] = names.get(label, 0) + 1
        label = label if names[label] == 1 else f"{label} {names[label]}"
        dumped = config.dump(item.method)
        candidates.append(
            Candidate(label, "unlearned", item.model, item.cost, dumped, siblings=item.siblings)
        )
    session = first.session
    if session.recipe is None and isinstance(against, Recipe):
        session = replace(session, recipe=against)
    return compare(
        name,
        candidates,
        first.split,
        first.task,
        session,
        [config.build(known_metrics, metric, "metrics") for metric in metrics],
        controls=controls,
        shadows=shadows,
        margins=margins,
    )


def compare(
    name: str,
    candidates: Sequence[Candidate],
    split: Split,
    task: Task,
    session: Session,
    metrics: Sequence[Metric] = DEFAULT,
    *,
    controls: Sequence[str] = (),
    shadows: Shadows | None = None,
    margins: Mapping[str, float] | None = None,
    keep: Keep | None = None,
) -> Report:
    """A report on models of one forget set, however they were made; the original must be among them.

    ``controls``, ``shadows`` and ``margins`` are those of ``evaluate``; ``keep`` keeps what metrics train for
    themselves.

    Raises:
        MissingEvidence: there is no original.
        ConfigError: no such control.
    """
    evaluation = Evaluation(candidates, split, task, session, shadows, keep)
    check_margins(margins or {}, metrics, evaluation.evidence(candidates[0]))
    everyone = [*candidates, *(evaluation.candidate(control) for control in controls)]
    table = Table(
        name="forget",
        description="chosen by the caller",
        size=len(split.forget),
        train_size=len(split.forget) + len(split.retain),
        rows=tuple(evaluation.row(candidate, metrics) for candidate in everyone),
        fingerprint=split.fingerprint(),
        bins=list(HISTOGRAM_EDGES),
        pictures=thumbnails(split.forget, task, candidates[0].model),
        margins=dict(margins or {}),
        floors=evaluation.floors(),
    )
    origin = {
        "seed": session.seed,
        "versions": versions(),
        "hardware": hardware(session.engine.torch_device),
        "task": config.dump(task),
        "score_name": task.score_name,
    }
    return Report(name, (table,), origin)


@fitting_memory()
def search(
    model: nn.Module,
    train: Data | object,
    task: str | Mapping[str, Any] | Task,
    *,
    method: str | Mapping[str, Any] | Search = "bilevel",
    recipe: Recipe | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    callbacks: Sequence[Callback] = (),
) -> SearchResult:
    """Chooses a forget set for a trained model, by default the hardest one.

    Args:
        method: a search by name, ``{"kind": name, …}``, or a search object.
        recipe: how the model was trained, for searches that train models of their own.

    Raises:
        DataError: the asked size does not fit the data.
        Unsupported: the search needs classes that the task does not have.
        MissingEvidence: the search trains models, and there is no recipe.
    """
    chosen, purpose = config.build(searches, method, "method"), config.build(tasks, task, "task")
    examples = as_data(train)
    purpose.check(examples, "train")
    chosen.check(examples, purpose)
    check_finite(model)
    session = Session(seed, engine or Engine(), tuple(callbacks), recipe)
    found = chosen.search(model, examples, purpose, session)
    made = {**config.dump(chosen), "seed": seed}
    return replace(found, fingerprint=examples.fingerprint(), search=made)


@fitting_memory()
def shadows(
    recipe: Recipe,
    train: Data | object,
    test: Data | object,
    *,
    count: int = 16,
    seed: int = 0,
    engine: Engine | None = None,
    callbacks: Sequence[Callback] = (),
    plan: ShadowPlan | None = None,
) -> Shadows:
    """Reference models on random halves of the training and test examples, for ``lira`` and ``rmia``.

    Args:
        train, test: the same data that the split was made of.
        count: number of models; or give a whole ``plan``.

    Raises:
        ConfigError: fewer than 2 models, or an odd number of them.
        DataError: data that cannot be pooled.
    """
    session = Session(seed, engine or Engine(), tuple(callbacks), recipe)
    return train_shadows(recipe, as_data(train), as_data(test), plan or ShadowPlan(count=count), session)


@fitting_memory()
def run(
    experiment: Experiment | str | Path,
    directory: str | Path,
    *,
    overrides: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    jobs: int = 1,
) -> Report:
    """Runs an experiment, a YAML file or a packaged suite in a directory; continues an interrupted run.

    So many ``jobs`` are processes that share the work; above 1 a script needs ``if __name__ == "__main__":``.

    Raises:
        ConfigError: a mistake in the experiment; with its place.
        RunError: the directory cannot be written, or another run is working in it.
    """
    if not isinstance(experiment, Experiment):
        experiment = read(experiment, overrides)
    elif overrides:
        raise ConfigError("overrides apply to a file or suite; change the Experiment object instead.")
    return execute(experiment, Path(directory), callbacks, jobs)


def references(
    against: Recipe | nn.Module | Sequence[nn.Module],
    split: Split,
    session: Session,
    count: int = 3,
    cache: str | Path | None = None,
) -> list[Candidate]:
    """Models that never saw the forget set: those given, or ``count`` trained by the recipe.

    With a ``cache`` each is trained once for the same recipe, retained data, seed and versions: its
    key is a hash of all of them, the freshly initialised weights included.

    Raises:
        ConfigError: none given, or a count below 1.
        RunError: the cache cannot be written.
    """
    if isinstance(against, Recipe):
        if count < 1:
            raise ConfigError(f"must be at least 1, got {count}.", "retrained")
        store = Store(Path(cache)) if cache is not None else None
        return [_retrained(against, split, session.child("retrained", i), i, store) for i in range(count)]
    models = [against] if isinstance(against, nn.Module) else list(against)
    if not models:
        raise ConfigError("give a recipe or at least one retrained model.", "against")
    return [Candidate(f"retrained {i + 1}", "retrained", model) for i, model in enumerate(models)]


def reference_shadows(
    plan: ShadowPlan, recipe: Recipe | None, split: Split, session: Session, cache: str | Path | None = None
) -> Shadows:
    """Reference models of the split's training and test examples, from the cache where they are in it.

    Raises:
        ConfigError: no recipe to train them by, or no test examples.
        RunError: the cache cannot be written.
    """
    if recipe is None or split.test is None:
        needed = "how a fresh model is trained" if recipe is None else "test examples"
        raise ConfigError(f"reference models need {needed}, which was not given.", "shadows")
    train, test, inner = split.train(), split.test, session.child("shadows")
    if cache is None:
        return train_shadows(recipe, train, test, plan, inner)
    made = recipe.initial(inner)
    settings = [config.dump(recipe.task), config.identity(recipe.training), config.identity(session.engine)]
    data = [train.fingerprint(), test.fingerprint()]
    key = key_of(_digest(made), str(made), settings, config.dump(plan), data, inner.seed, versions())

    def compute() -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {}, train_shadows(recipe, train, test, plan, inner).tensors()

    return Shadows.from_tensors(Store(Path(cache)).tensors("shadows", key, compute)[1])


def _digest(model: nn.Module) -> str:
    return digest(sorted((key, tensor.cpu()) for key, tensor in model.state_dict().items()))


def _retrained(recipe: Recipe, split: Split, session: Session, index: int, store: Store | None) -> Candidate:
    """One retrained model, from the store where it holds the same already."""
    name = f"retrained {index + 1}"

    def compute() -> tuple[dict[str, Any], nn.Module]:
        with metered(session.engine.torch_device) as cost:
            model = recipe.train(unmanipulated(split.retain), session, name)
        return {"cost": cost}, model

    if store is None:
        value, model = compute()
        return Candidate(name, "retrained", model, value["cost"])
    start = recipe.initial(session)
    settings = [config.dump(recipe.task), config.identity(recipe.training), config.identity(session.engine)]
    key = key_of(_digest(start), str(start), settings, split.retain.fingerprint(), session.seed, versions())
    found, kept = store.model("retrained", key, lambda: start, compute)
    return Candidate(name, "retrained", kept, found["cost"])
