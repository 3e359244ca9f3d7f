"""What every registered method promises. A new method file is tested without a change here, unless it only
runs on language models of transformers: ``LANGUAGE`` names those."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.conftest import NAMES, WHOLE_CLASS

from expunge import config
from expunge.errors import Unsupported
from expunge.methods import Edit, GradientMethod, methods
from expunge.methods.base import Guard
from expunge.tasks import Classification, Diffusion, Regression
from expunge.training.checkpoint import load_weights, save_weights
from expunge.training.engine import Engine
from expunge.training.modifier import modifiers
from expunge.training.optim import optimisers
from expunge.training.parameters import distance
from expunge.training.recipe import Recipe
from expunge.training.scope import scopes
from expunge.training.session import Session

CLASSES = [name for name in methods.names() if methods.get(name).forgets == "classes"]
"""They refuse the settings in which single examples are to be forgotten, and run where a class is."""

LANGUAGE = ["dpo", "eco", "flat", "guard", "idk", "key_space", "neuron_adjust", "o3", "uld", "whp_inference"]
"""They refuse models without an architecture of transformers, or data without other answers."""

DRAW_NOTHING = {"guard", "key_space"}
"""What they learn is computed from the data and the model alone."""

GRADIENT = [name for name in methods.names() if issubclass(methods.get(name), GradientMethod)]
SMALL = {
    "epochs": 2, "batch_size": 4, "shards": 2, "slices": 2, "retrain": "auto", "models": 4, "oracles": 2,
    "iterations": 8, "samples": 12, "base": {"epochs": 3, "batch_size": 8},
}  # fmt: skip
NEEDED = {"modules": {"patterns": ["*head*"]}}
"""Values of the fields that have no default."""

every_method = pytest.mark.parametrize("name", methods.names())
every_run = pytest.mark.parametrize(
    ("setting", "name"),
    [
        *itertools.product(NAMES, methods.names()),
        *itertools.product([WHOLE_CLASS], CLASSES),
        *itertools.product(["llama"], LANGUAGE),
    ],
    indirect=["setting"],
)


def build(name, **fields):
    """The method with its defaults, but in few and small steps."""
    known = {field.name for field in dataclasses.fields(methods.get(name))}
    small = {key: value for key, value in SMALL.items() if key in known}
    return config.build(methods, {"kind": name, **small, **fields})


def steady(name):
    """Fields under which Adam does not blow up the rounding of gradients that are zero (biases of keys)."""
    optim = config.dump(build(name)).get("optim", {})
    return {"optim": {**optim, "eps": 1e-4}} if "eps" in optim else {}


def unlearn(name, setting, *, model=None, task=None, session=None, **fields):
    """The result, or None where the method says that it cannot run and what to do instead."""
    arguments = (model or setting.original, setting.split, task or setting.task, session or setting.session)
    try:
        return build(name, **fields).unlearn(*arguments)
    except Unsupported as error:
        refusal = str(error)
    assert re.search(r"\b(Use|Give|Choose|Set)\b", refusal), f"says not what to do: {refusal}"
    return None


@functools.cache
def reference(name, setting):
    return unlearn(name, setting)


def snapshot(model):
    tensors = {name: value.clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    gradients = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    return tensors, (flags, modes, gradients)


def same_bytes(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def storages(model):
    tensors = (*model.parameters(), *model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel() > 0}


def generators():
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()


@every_run
def test_the_original_and_the_callers_generators_stay_and_so_does_a_frozen_parameter(name, setting):
    """Weights, buffers, flags, modes and gradients of the original; all from one run, which takes time."""
    model = setting.fresh().train()
    list(model.modules())[-1].eval()
    frozen, parameter = next(iter(model.named_parameters()))
    parameter.requires_grad_(False)
    (tensors, rest), drawn = snapshot(model), generators()
    result = unlearn(name, setting, model=model)
    assert generators() == drawn
    after, rest_after = snapshot(model)
    assert rest_after == rest
    assert all(torch.equal(after[key], tensors[key]) for key in tensors)
    if result is not None and methods.get(name).guarantee != "empirical":  # trained from the recipe
        trained = [value for key, value in result.named_parameters() if key.endswith(frozen)]
        assert trained
        assert not any(torch.equal(value, parameter) for value in trained)
    elif result is not None:
        assert torch.equal(dict(result.named_parameters())[frozen], parameter)
        assert not dict(result.named_parameters())[frozen].requires_grad


@every_run
def test_the_same_seed_gives_the_same_bytes_whatever_the_callers_generators_say(name, setting):
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    first, again = reference(name, setting), unlearn(name, setting)
    assert (first is None) == (again is None)
    assert first is None or same_bytes(first, again)


@every_run
def test_another_seed_gives_other_weights_where_the_method_draws(name, setting):
    other = unlearn(name, setting, session=replace(setting.session, seed=2))
    if other is not None and not issubclass(methods.get(name), Edit):
        assert same_bytes(reference(name, setting), other) == (name in DRAW_NOTHING)


@every_run
def test_the_result_is_finite_in_evaluation_mode_and_built_like_the_original(name, setting):
    result = reference(name, setting)
    if result is None:
        return
    original = build(name).blank(setting.fresh(), setting.split).state_dict()
    state = result.state_dict()
    own = state.keys() if not issubclass(methods.get(name), Guard) else state.keys() & original.keys()
    assert {key: (state[key].shape, state[key].dtype) for key in own} == {
        key: (v.shape, v.dtype) for key, v in original.items()
    }
    assert all(torch.isfinite(value).all() for value in state.values())
    assert not any(module.training for module in result.modules())
    assert all(p.requires_grad and p.grad is None for p in result.parameters())


@every_run
def test_the_result_shares_no_memory_with_the_original(name, setting):
    result = reference(name, setting)
    if result is not None:
        assert result is not setting.original
        assert not storages(result) & storages(setting.original)


@every_method
def test_the_configuration_survives_a_round_trip(name):
    method = build(name)
    assert config.build(methods, config.dump(method)) == method
    assert config.dump(method)["kind"] == name


@every_run
def test_the_weights_survive_saving_and_loading(name, setting, tmp_path):
    result = reference(name, setting)
    if result is None:
        return
    save_weights(result, tmp_path / "model.safetensors")
    loaded = build(name).blank(setting.recipe.initial(Session(seed=9)), setting.split)
    load_weights(loaded, tmp_path / "model.safetensors")
    assert same_bytes(result, loaded)


@every_method
def test_the_file_the_name_and_the_class_are_one_word(name):
    cls = methods.get(name)
    assert cls.__module__.rpartition(".")[2] == name
    assert cls.__name__.lower() == name.replace("_", "")


@every_method
@pytest.mark.parametrize("section", ["Shapes", "Cost", "Guarantee", "Differs", "References"])
def test_the_docstring_has_the_section(name, section):
    assert re.search(rf"^\s*{section}: \S", inspect.getdoc(methods.get(name)), re.MULTILINE)


@every_method
def test_the_docstring_states_the_guarantee_that_the_class_declares(name):
    stated = re.search(r"Guarantee: (\w+)", inspect.getdoc(methods.get(name))).group(1)
    assert stated == methods.get(name).guarantee


TRAINS = {"datamodel_match", "oracle_match"}
"""They train models from scratch, stacked where batches are whole: rounding grows along the way. Their own
tests compare halves on models where it cannot."""


@every_run
def test_gradients_of_half_batches_add_up_to_the_same_weights(name, setting):
    fields = steady(name)
    halves = unlearn(name, setting, session=replace(setting.session, engine=Engine(accumulate=2)), **fields)
    if halves is None:
        return
    state = halves.state_dict()
    assert all(torch.isfinite(value).all() for value in state.values())
    if setting.name != "classification" and name not in TRAINS:  # batch norm sees half of each batch
        whole = unlearn(name, setting, **fields) if fields else reference(name, setting)
        before = build(name).blank(setting.fresh(), setting.split)
        assert distance(halves, whole) <= 1e-3 * distance(whole, before)


@every_run
def test_bfloat16_gives_finite_float32_weights(name, setting):
    result = unlearn(name, setting, session=replace(setting.session, engine=Engine(dtype="bfloat16")))
    if result is not None:
        floating = [v for v in result.state_dict().values() if v.is_floating_point()]
        assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in floating)


RELABELS = {"amnesiac", "random_labels", "salun"}
SMOOTHS = {"ugradsl", "ugradsl_plus"}
"""Methods that smooth labels over the classes of the task."""
CONDITIONS = {"erase_diff", "sa", "sfd"}
"""Methods that turn what a denoiser is told into something else; the others of their kind refuse denoisers
without cross-attention by default."""
WITHOUT_TARGETS = {
    "regression": (Regression(), r"Give Regression\(low=…, high=…\), or use a method that does not relabel"),
    "diffusion": (Diffusion(timesteps=20), "Use a method that does not relabel: grad_ascent, grad_diff, npo"),
}


@every_method
@pytest.mark.parametrize("setting", ["regression", "diffusion"], indirect=True)
def test_without_targets_to_replace_only_relabelling_methods_refuse(name, setting):
    task, said = WITHOUT_TARGETS[setting.name]
    session = replace(setting.session, recipe=Recipe(setting.recipe.model, task, setting.recipe.training))
    if name in RELABELS:
        with pytest.raises(Unsupported, match=said):
            build(name).unlearn(setting.original, setting.split, task, session)
    elif name in SMOOTHS:
        with pytest.raises(Unsupported, match="has no classes to smooth over. Use a method for every task"):
            build(name).unlearn(setting.original, setting.split, task, session)
    elif name in CONDITIONS and setting.name == "diffusion":
        with pytest.raises(Unsupported, match="is told nothing. Use grad_ascent, grad_diff or npo"):
            build(name).unlearn(setting.original, setting.split, task, session)
    else:
        result = unlearn(name, setting, task=task, session=session)
        # a method that runs with targets must not need them: it refuses this kind of task, or nothing
        assert (result is None) == (reference(name, setting) is None)
        if result is not None:
            assert all(torch.isfinite(value).all() for value in result.state_dict().values())


def _pairs(*axes):
    """Few combinations in which every two values of two axes meet."""
    axes = [list(axis) for axis in axes]
    todo = {
        frozenset([(i, x), (j, y)])
        for (i, a), (j, b) in itertools.combinations(enumerate(axes), 2)
        for x in a
        for y in b
    }
    grid = {
        row: set(map(frozenset, itertools.combinations(enumerate(row), 2)))
        for row in itertools.product(*axes)
    }
    chosen = []
    while todo:
        best = max(grid, key=lambda row: len(grid[row] & todo))
        todo -= grid[best]
        chosen.append(best)
    return chosen


AXES = ["none", *modifiers.names()], scopes.names(), optimisers.names()
ADAPTS = ["gs_lora", "gs_lora_plus"]
"""Methods that train adapters and refuse every other scope."""
ON_TEXT = ["everything", "last_blocks", "lora"], ["adamw", "sophia"]
WITH_EXPERTS = ["none", "router_anchor"], ["everything", "expert", "lora"], ["adamw", "sgd"]
COMBINATIONS = [
    *((name, "classification", *rest) for name, *rest in _pairs(sorted(set(GRADIENT) - set(CLASSES)), *AXES)),
    *((name, WHOLE_CLASS, *rest) for name, *rest in _pairs(sorted(set(CLASSES) - set(ADAPTS)), *AXES)),
    *((name, WHOLE_CLASS, *rest) for name, *rest in _pairs(ADAPTS, AXES[0], ["lora"], AXES[2])),
    *((name, "llama", *rest) for name, *rest in _pairs(["dpo", "flat", "idk"], AXES[0], *ON_TEXT)),
    *((name, "moe", *rest) for name, *rest in _pairs(["grad_diff", "idk", "npo", "rmu"], *WITH_EXPERTS)),
]


@pytest.mark.parametrize(
    ("name", "setting", "modifier", "scope", "optimiser"), COMBINATIONS, indirect=["setting"]
)
def test_any_objective_runs_with_any_modifier_scope_and_optimiser(setting, name, modifier, scope, optimiser):
    if scope in ("lora", "fila"):
        pytest.importorskip("peft")
    if optimiser == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    result = unlearn(
        name,
        setting,
        epochs=1,
        batch_size=16,
        modifiers=[] if modifier == "none" else [{"kind": modifier, **NEEDED.get(modifier, {})}],
        scope={"kind": scope, **NEEDED.get(scope, {})},
        optim={"kind": optimiser, "lr": 1e-3, **NEEDED.get(optimiser, {})},
    )
    if result is not None:
        assert all(torch.isfinite(value).all() for value in result.state_dict().values())
        assert not same_bytes(result, setting.original)
        assert result.state_dict().keys() == setting.original.state_dict().keys()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("setting", [*NAMES, WHOLE_CLASS], indirect=True)
def test_class_methods_run_where_a_class_is_forgotten_and_only_there(name, setting):
    assert (reference(name, setting) is not None) == (setting.name == WHOLE_CLASS)
    if setting.name == "classification":
        said = "only whole classes can be forgotten.*Use a search that gives classes"
        with pytest.raises(Unsupported, match=said):
            build(name).unlearn(setting.original, setting.split, setting.task, setting.session)


@pytest.mark.parametrize("name", ADAPTS)
@pytest.mark.parametrize("setting", [WHOLE_CLASS], indirect=True)
def test_methods_that_train_adapters_refuse_every_other_scope(name, setting):
    others = [scope for scope in scopes.names() if not issubclass(scopes.get(scope), scopes.get("lora"))]
    for scope in others:
        method = build(name, scope={"kind": scope, **NEEDED.get(scope, {})})
        with pytest.raises(Unsupported, match="trains adapters. Set scope to lora"):
            method.unlearn(setting.original, setting.split, setting.task, setting.session)


SECOND_NORM = {"body.4.weight", "body.4.bias"} | {
    f"body.4.{statistic}" for statistic in ("running_mean", "running_var", "num_batches_tracked")
}
SCOPES = [
    ({"kind": "modules", "patterns": ["head"]}, {"head.weight", "head.bias"}),
    ({"kind": "modules", "patterns": ["body.4.*"]}, SECOND_NORM),
    ({"kind": "modules", "patterns": ["body.3", "body.4"]}, SECOND_NORM | {"body.3.weight"}),
    ({"kind": "modules", "patterns": ["body.3"]}, {"body.3.weight"}),
    ({"kind": "last_layers"}, {"head.weight", "head.bias"}),
    ({"kind": "lora", "targets": ["head"], "rank": 2}, {"head.weight"}),
]


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
@pytest.mark.parametrize(
    ("scope", "moves"), SCOPES, ids=lambda value: str(value)[:60] if isinstance(value, dict) else ""
)
@pytest.mark.parametrize(
    "optim", [{"kind": "sgd", "weight_decay": 0.1}, {"kind": "adamw", "weight_decay": 0.1}]
)
def test_what_is_outside_the_scope_keeps_every_byte_batch_norm_statistics_included(
    setting, scope, moves, optim
):
    if scope["kind"] == "lora":
        pytest.importorskip("peft")
    result = unlearn("grad_diff", setting, scope=scope, optim=optim).state_dict()
    before = setting.original.state_dict()
    moved = {name for name in before if not torch.equal(before[name], result[name])}
    assert moved == moves


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_everything_moves_under_the_scope_everything(setting):
    result = unlearn("grad_diff", setting).state_dict()
    assert not [
        name for name, value in setting.original.state_dict().items() if torch.equal(value, result[name])
    ]


@pytest.mark.parametrize("setting", ["classification", WHOLE_CLASS], indirect=True)
def test_the_methods_that_relabel_are_the_ones_this_file_names(setting):
    class Silent(Classification):
        def relabel(self, batch, generator):
            raise Unsupported("no targets. Use another method.")

    asked = methods.names() if setting.name == "classification" else CLASSES
    runs = [name for name in asked if reference(name, setting) is not None]
    relabel = {name for name in runs if unlearn(name, setting, task=Silent(3)) is None}
    assert relabel == RELABELS & set(asked)
