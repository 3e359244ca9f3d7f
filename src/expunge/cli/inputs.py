"""From an experiment file and files of weights and ids to checked objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.errors import RunError

if TYPE_CHECKING:
    from torch import nn

    from expunge.experiment import Experiment
    from expunge.methods.base import Method
    from expunge.searches.base import Search


def narrowed(
    source: str, model: Path, search: Search, methods: Mapping[str, Method] | None = None
) -> Experiment:
    """The experiment with these weights, one forget set and no other methods than these, checked.

    Raises:
        ExpungeError: whatever is wrong with any of it.
    """
    from expunge.experiment import check, read

    forget, chosen = {"ids": search}, dict(methods or {})
    experiment = replace(read(source), original=model, forget=forget, methods=chosen)
    check(experiment)
    return experiment


def load(experiment: Experiment, weights: Path) -> nn.Module:
    """The experiment's network with these weights, in evaluation mode.

    Raises:
        CheckpointError: they cannot be read or do not fit.
    """
    from expunge.training.checkpoint import load_weights

    model = experiment.recipe.initial(experiment.session())
    load_weights(model, weights)
    return model.eval()


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
        raise RunError(f"cannot write '{path}': {error.strerror}. Choose another with --output.") from None
