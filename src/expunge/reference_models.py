"""Reference models of a run, kept in its store: shadow models, and shadow models that unlearned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from expunge.data.split import Split
from expunge.evaluation.attacks.ulira import ULiRA
from expunge.evaluation.evidence import Keep, Tensors
from expunge.evaluation.shadows import Shadows, train_shadows, treat
from expunge.experiment import Experiment
from expunge.training.session import Session


def treated_methods(experiment: Experiment) -> tuple[str, ...]:
    """The methods that the shadow models have to go through, for the metrics that ask for it."""
    if experiment.shadows is None:
        return ()
    asked = {metric.method for metric in experiment.metrics if isinstance(metric, ULiRA)}
    return tuple(name for name in experiment.methods if "" in asked or name in asked)


def shadows(experiment: Experiment, session: Session, keep: Keep) -> Shadows | None:
    """The shadow models that the experiment asks for; with the models where they are to unlearn."""
    plan, sourced = experiment.shadows, experiment.sourced
    if plan is None:
        return None
    needed = bool(treated_methods(experiment))

    def compute() -> tuple[dict[str, Any], Tensors]:
        made = train_shadows(experiment.recipe, sourced.train, sourced.test, plan, session.child("shadows"))
        tensors = made.tensors()
        for i, model in enumerate(made.models if needed else ()):
            tensors |= {f"{i}.{name}": value.cpu() for name, value in model.state_dict().items()}
        ensemble = made.ensemble
        assert ensemble is not None
        facts = {"how": ensemble.how, "reason": ensemble.reason, "seconds": ensemble.seconds}
        return {**facts, "models_per_minute": ensemble.models_per_minute}, tensors

    tensors = keep("shadows", (needed,), compute)
    found = Shadows.from_tensors(tensors)
    if not needed:
        return found
    models = tuple(_model(experiment, session, tensors, i) for i in range(plan.count))
    return replace(found, models=models)


def treated(
    shadows: Shadows, experiment: Experiment, name: str, split: Split, session: Session, keep: Keep
) -> Shadows:
    """The shadow models with what they say after each method that has to be run on them."""
    found = {}
    for method in treated_methods(experiment):

        def compute(method: str = method) -> tuple[dict[str, Any], Tensors]:
            child = session.child("shadows", name, method)
            data = (split.forget.ids, experiment.sourced.train, experiment.sourced.test)
            made = treat(shadows, experiment.methods[method], *data, experiment.task, child)
            return {}, made.tensors()

        found[method] = Shadows.from_tensors(keep(f"{name} {method} shadows", (method,), compute))
    return replace(shadows, treated=found)


def _model(experiment: Experiment, session: Session, tensors: Tensors, index: int) -> nn.Module:
    model = experiment.recipe.initial(session)
    prefix = f"{index}."
    state = {k.removeprefix(prefix): value for k, value in tensors.items() if k.startswith(prefix)}
    model.load_state_dict(state)
    return model.eval()
