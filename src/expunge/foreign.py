"""Judging models that were not made here: checkpoints, weights and functions to a report.

Everything is an object or a string, and the strings are those of ``expunge evaluate``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge import api, config, seeding
from expunge.data.arrays import Data
from expunge.data.files import ImageFolder, Npz
from expunge.data.hub import is_id, local
from expunge.data.source import DataSource, Sourced, sources
from expunge.data.split import Split, as_data, read_ids
from expunge.errors import CheckpointError, ConfigError, DataError, ExpungeError, did_you_mean
from expunge.evaluation.controls import CONTROLS
from expunge.evaluation.evaluate import DEFAULT, Candidate
from expunge.evaluation.metric import Metric
from expunge.evaluation.metric import metrics as known_metrics
from expunge.evaluation.metrics.cost import Cost
from expunge.evaluation.report import Report
from expunge.evaluation.shadows import ShadowPlan, Shadows
from expunge.methods.guards import forget_vector
from expunge.store import keeper
from expunge.tasks.base import Task, tasks
from expunge.tasks.causal_lm import CausalLM
from expunge.training.engine import Engine
from expunge.training.functions import call
from expunge.training.models import ModelSpec, models
from expunge.training.parameters import check_finite
from expunge.training.pretrained import pretrained
from expunge.training.probe import probe
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Callback, Session

Model = nn.Module | str | Path
"""A model, or where it is: a checkpoint folder, a file of weights, ``module:function``."""

Network = Callable[[], nn.Module]
"""Builds a network that weights can be loaded into, or that can be trained."""

_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


METRICS = tuple(metric for metric in DEFAULT if not isinstance(metric, Cost))
"""What is measured when nothing else is asked for; what the models cost to make is not known."""


def audit(
    original: Model,
    unlearned: Model | Sequence[Model] | Mapping[str, Model],
    *,
    split: Split | None = None,
    data: object = None,
    forget: str | Path | Sequence[int] | Tensor | None = None,
    retrained: Model | Sequence[Model] = (),
    train: Training | Mapping[str, Any] | None = None,
    trainings: int = 3,
    model: str | Mapping[str, Any] | Network | None = None,
    task: str | Mapping[str, Any] | Task | None = None,
    metrics: Sequence[str | Mapping[str, Any] | Metric] = METRICS,
    controls: Sequence[str] = (),
    shadows: Shadows | ShadowPlan | None = None,
    margins: Mapping[str, float] | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    callbacks: Sequence[Callback] = (),
    cache: str | Path | None = None,
    name: str = "audit",
) -> Report:
    """Judges models that were made anywhere. None of them is changed.

    A model is an ``nn.Module`` or a string: the folder of a Hugging Face checkpoint, a file of weights
    (``.safetensors``, or a state dict that ``torch.save`` wrote; needs ``model``), or
    ``module:function`` or ``file.py:function``, a function that returns the trained model.

    Models may differ in architecture. Where one answers in another shape than the task needs, or with
    NaN, the scores that need its answers carry the reason and the others are computed. Without
    retrained models nothing can be said about forgetting: there are values but no verdicts.

    Args:
        original: the model before unlearning.
        unlearned: after it: one, several, or several by name.
        split: the data and what was to be forgotten of it; or give ``data`` and ``forget``.
        data: the pair (train, test), or a string as ``read_data`` takes it.
        forget: ids of training examples, or a ``.txt``, ``.npy`` or ``.json`` file of them.
        retrained: models trained without the forget set; with fewer than 3 hardly any verdict can be
            reached.
        train: how a fresh ``model`` is trained; ``trainings`` further models are then trained here
            without the forget set, each a fresh ``model``.
        model: the network that weights are loaded into, as ``read_network`` takes it.
        task: what the models are for; by default classification, with as many classes as the largest
            training label says.
        metrics: names, mappings or objects; by default those of ``evaluate`` without the costs.
        shadows: reference models as in ``evaluate``, or the plan of those to be trained here by ``train``.
        controls, margins, cache: as in ``evaluate``.
        name: what the report is called.

    Raises:
        ConfigError, DataError, CheckpointError: what cannot be read or does not fit, the argument named.
    """
    engine = engine or Engine()
    split = _split(split, data, forget)
    purpose = read_task(task, split.forget, split.retain)
    for part, examples in split.parts().items():
        purpose.check(examples, part)
    network = None if model is None else read_network(model, purpose, split.forget)
    chosen = [config.build(known_metrics, metric, "metrics") for metric in metrics]
    recipe = None if train is None else _recipe(network, purpose, train)
    session = Session(seed, engine, tuple(callbacks), recipe)
    read = _Reader(network, purpose, split.forget, session, counted=task is None)
    candidates = [Candidate("original", "original", read(original, "original"))]
    several = [retrained] if isinstance(retrained, (nn.Module, str, Path)) else retrained
    given = [read(item, "retrained") for item in several]
    judged = [
        Candidate(name, "unlearned", read(item, "unlearned")) for name, item in named(unlearned).items()
    ]
    if given:
        candidates += api.references(given, split, session)
    if recipe is not None and trainings:
        trained = api.references(recipe, split, session, trainings, cache)
        candidates += [
            replace(item, name=f"retrained {len(given) + i + 1}") for i, item in enumerate(trained)
        ]
    if isinstance(shadows, ShadowPlan):
        shadows = api.reference_shadows(shadows, recipe, split, session, cache)
    return api.compare(
        name,
        [*candidates, *judged],
        split,
        purpose,
        session,
        chosen,
        controls=controls,
        shadows=shadows,
        margins=margins,
        keep=keeper(cache, session),
    )


def read_model(reference: Model, network: Network | None = None, *, causal: bool = False) -> nn.Module:
    """A trained model, in evaluation mode.

    Args:
        reference: see ``audit``.
        network: what weights from a file are loaded into.
        causal: whether a checkpoint folder holds a causal language model; an image classifier
            otherwise.

    Raises:
        CheckpointError: it does not exist, is damaged, or does not fit the network; NaN in the weights.
        ConfigError: a file of weights without a network, no such function, or no ``nn.Module`` from it.
    """
    found = reference if isinstance(reference, nn.Module) else _read(str(reference), network, causal)
    check_finite(found, "the model" if isinstance(reference, nn.Module) else f"'{reference}'")
    return found if found is reference else found.eval()


def _read(reference: str, network: Network | None, causal: bool) -> nn.Module:
    path = local(reference) if causal else Path(reference)
    if path.is_dir():
        return pretrained(path, causal)
    if path.is_file() or path.suffix in _FILES:
        if network is None and path.is_file():
            raise ConfigError(
                f"'{path}' holds weights only. Say with model (--model) which network they are of, for "
                "example resnet20 or mymodels.py:build."
            )
        with seeding.seeded(0):
            fresh = network() if network is not None else nn.Identity()
        forget_vector.load(fresh, path)  # which says that there is no such file
        return fresh
    if ":" not in reference:
        raise CheckpointError(
            f"there is no '{reference}'. Give the folder of a Hugging Face checkpoint (nothing is "
            "downloaded), a .safetensors or .pt file, or module:function."
        )
    with _without_path():
        made = call(reference)
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"'{reference}' returned {type(made).__name__}; expected a trained torch nn.Module."
        )
    return made


def read_data(reference: object) -> Sourced:
    """Training and test data.

    Args:
        reference: ``Sourced`` or a ``DataSource``; the pair (train, test) of anything that
            ``Split.from_ids`` takes; a mapping with ``kind``; or a string: the name of a data set, an
            ``.npz`` file, a folder with one sub-folder of images for each class, or
            ``module:function``, a function that returns the pair.

    Raises:
        ConfigError, DataError: it is none of these, or cannot be read.
    """
    if isinstance(reference, Sourced):
        return reference
    if isinstance(reference, DataSource):
        return reference.load()
    if isinstance(reference, Mapping) or (isinstance(reference, str) and reference in sources):
        return config.build(sources, reference, "data").load()
    if isinstance(reference, (tuple, list)) and len(reference) == 2:
        return Sourced(as_data(reference[0], "train"), as_data(reference[1], "test"))
    if not isinstance(reference, (str, Path)):
        raise DataError(f"data is {type(reference).__name__}; expected the pair (train, test) or a string.")
    path = Path(reference)
    if path.suffix == ".npz":
        return Npz(path=path).load()
    if path.is_dir():
        return ImageFolder(path=path).load()
    if ":" not in str(reference):
        raise ConfigError(
            f"'{reference}' is no data set, .npz file, folder or module:function."
            f"{did_you_mean(str(reference), sources)}"
        )
    with _without_path():
        found = call(str(reference))
    if isinstance(found, Sourced) or (isinstance(found, (tuple, list)) and len(found) == 2):
        return read_data(found)
    raise DataError(f"'{reference}' returned {type(found).__name__}; expected the pair (train, test).")


def read_task(task: str | Mapping[str, Any] | Task | None, *training: Data) -> Task:
    """The task; a classification without ``classes`` has as many as the largest training label says.

    Raises:
        ConfigError: an unknown task or field, or no integer labels to count.
    """
    if task is not None and task not in ("classification", {"kind": "classification"}):
        return config.build(tasks, task, "task")
    try:
        targets = torch.cat([data.column("targets") for data in training])
    except DataError:
        raise ConfigError("the data has no targets, so say what the models are for.", "task") from None
    if targets.is_floating_point() or targets.ndim != 1:
        raise ConfigError(
            f"the targets are not class labels ({targets.dtype}, of shape {tuple(targets.shape)}). Say what "
            "the models are for, for example regression.",
            "task",
        )
    return config.build(tasks, {"kind": "classification", "classes": int(targets.max()) + 1}, "task")


def read_network(model: str | Mapping[str, Any] | Network, task: Task, data: Data) -> Network:
    """What builds a network: a callable, a registered kind with its fields, or ``module:function``.

    Fields that the data decides (``classes``, ``in_channels``, ``image_size``, ``inputs``,
    ``outputs``, ``vocabulary``) need not be given.

    Raises:
        ConfigError: no such kind or function, a missing or unknown field.
    """
    if callable(model):
        return model
    if isinstance(model, str) and ":" in model:
        model = {"kind": "load", "function": model}
    given = {"kind": model} if isinstance(model, str) else dict(model)
    if isinstance(given.get("kind"), str) and given["kind"] in models:
        known = {field.name for field in fields(models.get(given["kind"]))}
        given = {**{key: size for key, size in _sizes(task, data).items() if key in known}, **given}
    with _at("model"):
        spec: ModelSpec = config.build(models, given)
        with seeding.seeded(0):
            spec()  # a mistake in it is not one of the weights
    return spec


def _sizes(task: Task, data: Data) -> dict[str, int]:
    """What the data and the task say about the fields of a network."""
    if isinstance(task, CausalLM):
        return {"vocabulary": task.vocabulary}
    (batch,) = data.batches([torch.tensor([0])], device="cpu")
    inputs, targets = batch["inputs"], batch.get("targets")
    classes = getattr(task, "classes", None)
    sizes = {"inputs": inputs[0].numel()}
    if targets is not None:
        sizes["outputs"] = classes or targets[0].numel()
    if classes:
        sizes["classes"] = classes
    if inputs.ndim == 4:
        sizes |= {"in_channels": inputs.shape[1], "image_size": inputs.shape[2]}
    return sizes


def _split(split: Split | None, data: object, forget: object) -> Split:
    if split is not None:
        if data is not None or forget is not None:
            raise ConfigError("give a split, or data and forget, not both.", "split")
        return split
    if data is None or forget is None:
        raise ConfigError("give a split, or data and forget.", "forget" if forget is None else "data")
    sourced = read_data(data)
    ids: Any = read_ids(forget) if isinstance(forget, (str, Path)) else forget
    return Split.from_ids(sourced.train, ids, test=sourced.test)


@dataclass(frozen=True)
class _Reader:
    """Reads models and tries each on a few examples before anything else is done.

    Args:
        counted: whether the classes of the task were counted and not stated.
    """

    network: Network | None
    task: Task
    data: Data
    session: Session
    counted: bool

    def __call__(self, reference: Model, argument: str) -> nn.Module:
        """The model. Only the original's answers must fit the task; the scores of others say why not."""
        name = "the model" if isinstance(reference, nn.Module) else f"'{reference}'"
        with _at(argument):
            model = read_model(reference, self.network, causal=isinstance(self.task, CausalLM))
            complaint = probe(model, self.data, self.task, self.session.engine, name)
        if complaint and argument == "original":
            hint = " The classes were counted in the training labels; state them with task." * self.counted
            raise DataError(f"{argument}: {complaint}{hint}")
        return model


def named(unlearned: Model | Sequence[Model] | Mapping[str, Model]) -> dict[str, Model]:
    """The models by the names of their rows, which are distinct and none of the other rows'."""
    if isinstance(unlearned, Mapping):
        for name in unlearned:
            if not name or name.startswith(("original", "retrained", *CONTROLS)):
                raise ConfigError(f"'{name}' cannot be used as a name; choose another.", "unlearned")
        return dict(unlearned)
    found: dict[str, Model] = {}
    several = [unlearned] if isinstance(unlearned, (nn.Module, str, Path)) else list(unlearned)
    if not several:
        raise ConfigError("there is no model to judge.", "unlearned")
    for item in several:
        name = first = row_name(item)
        count = 1
        while name in found:
            count += 1
            name = f"{first} {count}"
        found[name] = item
    return found


def row_name(reference: Model) -> str:
    """What a model is called in tables: its file, folder or function."""
    if isinstance(reference, nn.Module):
        return "unlearned"
    text = str(reference)
    name = text.rpartition(":")[2] if ":" in text else Path(text).stem or text
    if is_id(text):
        name = text.partition("/")[2]
    if Path(text).is_dir():
        name = Path(text).resolve().name
    return f"unlearned {name}" if name.startswith(("original", "retrained", *CONTROLS)) else name


def _recipe(network: Network | None, task: Task, train: Training | Mapping[str, Any]) -> Recipe:
    if network is None:
        raise ConfigError("training needs a network that can be built. Give model.", "model")
    training = train if isinstance(train, Training) else config.parse(Training, train, "train")
    return Recipe(network, task, training)


@contextmanager
def _at(argument: str) -> Iterator[None]:
    """Says of an error inside the block which argument it is about."""
    try:
        yield
    except ConfigError as error:
        raise error.under(argument) from None
    except ExpungeError as error:
        raise type(error)(f"{argument}: {error}") from None


@contextmanager
def _without_path() -> Iterator[None]:
    """Errors of a function, which name it, without the field that an experiment would have it in."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.message) from None
