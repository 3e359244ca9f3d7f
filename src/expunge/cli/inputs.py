"""From an experiment file and files of weights and ids to checked objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.errors import ConfigError, RunError

if TYPE_CHECKING:
    from torch import nn

    from expunge.data.split import Split
    from expunge.experiment import Experiment
    from expunge.methods.base import Method
    from expunge.searches.base import Search
    from expunge.searches.given import Given


def narrowed(
    source: str,
    model: Path | None,
    search: Search,
    methods: Mapping[str, Method] | None = None,
    overrides: Sequence[str] = (),
) -> Experiment:
    """The experiment with these weights, one forget set and no other methods than these, checked.

    ``model`` is None where what is to be judged is read later, ``overrides`` are ``key=value``.

    Raises:
        ExpungeError: whatever is wrong with any of it.
    """
    from expunge.experiment import check, read

    forget, chosen = {"ids": search}, dict(methods or {})
    experiment = replace(read(source, overrides), original=model, forget=forget, methods=chosen)
    check(experiment, prepares=False)
    return experiment


def forgotten(forget: Path) -> Given:
    """The forget set in a file of ids, or the data's own of that name: a name has no ending."""
    from expunge.searches.given import Given

    named = not forget.suffix and not forget.exists()
    return Given(name=str(forget)) if named else Given(path=forget)


def split(experiment: Experiment) -> Split:
    """The split of a narrowed experiment whose forget set is given.

    Raises:
        DataError: no such set or file, or ids that are not in the data.
    """
    from torch import nn

    (search,) = experiment.forget.values()
    found = search.search(nn.Identity(), experiment.sourced.train, experiment.task, experiment.session())
    return experiment.split(found.ids)


def load(experiment: Experiment, weights: Path) -> nn.Module:
    """The experiment's network with these weights, in evaluation mode, under the file's forget vector if any.

    Raises:
        CheckpointError: they cannot be read or do not fit.
    """
    from expunge.methods.guards import forget_vector

    model = experiment.recipe.initial(experiment.session())
    forget_vector.load(model, weights)
    return model.eval()


def inline(option: str, text: str | None) -> Any:
    """The value of an option that may be YAML: ``small_cnn``, ``{kind: small_cnn, width: 8}``.

    Raises:
        ConfigError: it is not YAML.
    """
    from expunge import config

    if text is None or not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return config.override({}, [f"value={text}"])["value"]
    except ConfigError:
        raise ConfigError(
            f"{text!r} is not valid YAML. Quote it as a whole: '{{key: value}}'.", option
        ) from None


def listed(option: str, text: str) -> list[Any]:
    """The values of an option that is a list: ``svc,accuracy``, ``svc,{kind: accuracy, part: test}``.

    Raises:
        ConfigError: it is not YAML, or names nothing.
    """
    found = inline(option, text if text.lstrip().startswith("[") else f"[{text}]")
    if not isinstance(found, list) or not found:
        raise ConfigError("name at least one.", option)
    return found


def writable(path: Path) -> None:
    """Makes the folder of an output file, before hours of work turn out to have nowhere to go.

    Raises:
        RunError: the file could not be written.
    """
    probe = path.with_name(f".{path.name}.probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
    except OSError as error:
        raise RunError(
            f"cannot write '{path}': {error.strerror}. Choose another place with --directory or --output."
        ) from None
