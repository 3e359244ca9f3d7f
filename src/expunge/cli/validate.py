"""``expunge validate``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from expunge.cli.arguments import Settings, Source

if TYPE_CHECKING:
    from expunge.experiment import Experiment

EXAMPLE = "expunge validate my_experiment.yaml train.epochs=100"


def command(experiment: Source, settings: Settings = None) -> None:
    """Finds the mistakes in an experiment without training anything, and says what would run.

    Loads the data, builds the model, and tries every method on a handful of examples. Exit code 0 means that
    `expunge run` with the same arguments will not stop because of a mistake in them.
    """
    from expunge.cli.output import warn
    from expunge.experiment import check, read

    parsed = read(experiment, settings or ())
    check(parsed)
    warn(parsed.engine)
    for line in _plan(parsed):
        print(line)


def _plan(experiment: Experiment) -> Iterator[str]:
    from expunge.methods.base import methods

    sourced, sets = experiment.sourced, len(experiment.forget)
    model = experiment.recipe.initial(experiment.session())
    size = sum(parameter.numel() for parameter in model.parameters())
    yield f"{experiment.name}: no mistakes found."
    yield f"  data      {len(sourced.train):,} training and {len(sourced.test):,} test examples"
    yield f"  model     {type(model).__name__}, {size:,} parameters, on {experiment.engine.torch_device}"
    for name, search in experiment.forget.items():
        # A search's baseline finds as many examples as the search itself, without training.
        quick = search.baseline() or search
        found = quick.search(model, sourced.train, experiment.task, experiment.session())
        share = len(found.ids) / len(sourced.train)
        yield f"  forget    {name}: {len(found.ids):,} examples ({share:.1%})"
    for name, method in experiment.methods.items():
        kind = methods.name_of(method)
        yield f"  method    {name}" + (f" ({kind})" if kind != name else "")
    original = 0 if experiment.original else 1
    trainings = original + sets * experiment.retrained
    yield (
        f"  to do     {trainings} trainings ({original} original, {experiment.retrained} retrained for each "
        f"of {sets} forget sets), {sets * len(experiment.methods)} unlearnings"
    )
