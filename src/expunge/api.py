"""The verbs: train, unlearn, evaluate, search, run. A string names a built-in; an object is taken as is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from expunge import config
from expunge.data.arrays import Data
from expunge.data.split import Split, as_data
from expunge.errors import ConfigError
from expunge.evaluation.evaluate import DEFAULT, HISTOGRAM_EDGES, Candidate, Evaluation
from expunge.evaluation.metric import Metric
from expunge.evaluation.metric import metrics as known_metrics
from expunge.evaluation.report import Report
from expunge.evaluation.table import Table
from expunge.experiment import Experiment, read
from expunge.methods.base import Method, methods
from expunge.pictures import pictures
from expunge.provenance import hardware, versions
from expunge.runner import execute
from expunge.searches.base import Found, Search, searches
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
        model: the model that has forgotten, in evaluation mode.
        original: the model that was handed in.
        split, task, method: what was asked.
        cost: ``seconds`` and, where it can be measured, ``memory`` in MiB.
        session: seed and engine of the call.
    """

    model: nn.Module
    original: nn.Module
    split: Split
    task: Task
    method: Method
    cost: Mapping[str, float]
    session: Session


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
    """
    examples = as_data(data)
    recipe.task.check(examples, "train")
    return recipe.train(examples, Session(seed, engine or Engine(), tuple(callbacks)))


def unlearn(
    model: nn.Module,
    split: Split,
    method: str | Mapping[str, Any] | Method,
    *,
    task: str | Mapping[str, Any] | Task,
    recipe: Recipe | None = None,
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
        seed: the same seed gives the same weights, byte for byte, on the same machine.

    Raises:
        ConfigError: an unknown method or field.
        DataError, CheckpointError: data that does not fit the task, NaN in the weights.
        Unsupported: the method cannot run on this model or task; no other was run instead.
    """
    chosen, purpose = config.build(methods, method, "method"), config.build(tasks, task, "task")
    for part, data in split.parts().items():
        purpose.check(data, part)
    check_finite(model)
    session = Session(seed, engine or Engine(), tuple(callbacks), recipe)
    with metered(session.engine.torch_device) as cost:
        result = chosen.unlearn(model, split, purpose, session)
    return Unlearned(result, model, split, purpose, chosen, cost, session)


def evaluate(
    result: Unlearned | Sequence[Unlearned],
    against: Recipe | nn.Module | Sequence[nn.Module],
    *,
    retrained: int = 2,
    metrics: Sequence[str | Mapping[str, Any] | Metric] = DEFAULT,
    name: str = "evaluation",
) -> Report:
    """Judges one or more unlearned models against the original and retrained ones.

    Args:
        result: what ``unlearn`` gave; several must share model, split and task.
        against: the recipe to retrain with, or models retrained without the forget set.
        retrained: how many models a recipe trains; 2 or more show the noise between them.
        metrics: names, mappings or objects.

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
    candidates += references(against, first.split, first.session, retrained)
    names: dict[str, int] = {}
    for item in results:
        label = methods.name_of(item.method)
        names[label] = names.get(label, 0) + 1
        label = label if names[label] == 1 else f"{label} {names[label]}"
        candidates.append(Candidate(label, "unlearned", item.model, item.cost, config.dump(item.method)))
    chosen = [config.build(known_metrics, metric, "metrics") for metric in metrics]
    return compare(name, candidates, first.split, first.task, first.session, chosen)


def compare(
    name: str,
    candidates: Sequence[Candidate],
    split: Split,
    task: Task,
    session: Session,
    metrics: Sequence[Metric] = DEFAULT,
) -> Report:
    """A report on models of one forget set, however they were made; the original must be among them.

    Raises:
        MissingEvidence: there is no original.
    """
    evaluation = Evaluation(candidates, split, task, replace(session, recipe=None))
    table = Table(
        name="forget",
        description="chosen by the caller",
        size=len(split.forget),
        train_size=len(split.forget) + len(split.retain),
        rows=tuple(evaluation.rows(metrics)),
        fingerprint=split.fingerprint(),
        bins=list(HISTOGRAM_EDGES),
        pictures=pictures(split.forget),
    )
    origin = {
        "seed": session.seed,
        "versions": versions(),
        "hardware": hardware(session.engine.torch_device),
        "task": config.dump(task),
        "score_name": task.score_name,
    }
    return Report(name, (table,), origin)


def search(
    model: nn.Module,
    train: Data | object,
    task: str | Mapping[str, Any] | Task,
    *,
    method: str | Mapping[str, Any] | Search = "bilevel",
    seed: int = 0,
    engine: Engine | None = None,
    callbacks: Sequence[Callback] = (),
) -> Found:
    """Chooses a forget set for a trained model, by default the hardest one.

    Raises:
        DataError: the asked size does not fit the data.
        Unsupported: the search needs classes that the task does not have.
    """
    chosen, purpose = config.build(searches, method, "method"), config.build(tasks, task, "task")
    examples = as_data(train)
    purpose.check(examples, "train")
    chosen.check(examples, purpose)
    check_finite(model)
    return chosen.search(model, examples, purpose, Session(seed, engine or Engine(), tuple(callbacks)))


def run(
    experiment: Experiment | str | Path,
    directory: str | Path,
    *,
    overrides: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
) -> Report:
    """Runs an experiment, a YAML file or a packaged suite in a directory; continues an interrupted run.

    Raises:
        ConfigError: a mistake in the experiment; with its place.
        RunError: the directory cannot be written, or another run is working in it.
    """
    if not isinstance(experiment, Experiment):
        experiment = read(experiment, overrides)
    elif overrides:
        raise ConfigError("overrides apply to a file or suite; change the Experiment object instead.")
    return execute(experiment, Path(directory), callbacks)


def references(
    against: Recipe | nn.Module | Sequence[nn.Module], split: Split, session: Session, count: int = 2
) -> list[Candidate]:
    """Models that never saw the forget set: those given, or ``count`` trained by the recipe.

    Raises:
        ConfigError: none given, or a count below 1.
    """
    if isinstance(against, Recipe):
        if count < 1:
            raise ConfigError(f"must be at least 1, got {count}.", "retrained")
        found = []
        for index in range(count):
            child = session.child("retrained", index)
            with metered(child.engine.torch_device) as cost:
                model = against.train(split.retain, child, f"retrained {index + 1}")
            found.append(Candidate(f"retrained {index + 1}", "retrained", model, cost))
        return found
    models = [against] if isinstance(against, nn.Module) else list(against)
    if not models:
        raise ConfigError("give a recipe or at least one retrained model.", "against")
    return [Candidate(f"retrained {i + 1}", "retrained", model) for i, model in enumerate(models)]
