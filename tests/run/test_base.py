"""A stage of training that every model starts from."""

import pytest
import torch

from expunge.errors import ConfigError, DataError
from expunge.experiment import check, parse
from expunge.runner import execute
from expunge.training.checkpoint import load_weights

PLAIN = {
    "name": "based",
    "data": "digits",
    "model": {"kind": "mlp", "inputs": 64, "outputs": 10, "hidden": [8]},
    "task": {"kind": "classification", "classes": 10},
    "base": {"data": {"kind": "digits", "seed": 5}, "train": {"epochs": 2}},
    "train": {"epochs": 1, "optim": {"lr": 1e-12, "weight_decay": 0.0, "momentum": 0.0}},
    "forget": {"few": {"kind": "random_set", "size": 3}},
    "methods": {"finetune": {"epochs": 1}},
    "metrics": [{"kind": "accuracy", "part": "test"}],
    "retrained": 2,
}


def test_original_and_retrained_models_start_from_the_base_which_is_trained_once(tmp_path) -> None:
    setup = parse(PLAIN)
    execute(setup, tmp_path)
    store = tmp_path / "store"
    (base,) = store.glob("base-*")
    weights = {}
    for place in (base, *store.glob("original-*"), *store.glob("few_retrained_*")):
        model = setup.model.build()
        load_weights(model, place / "model.safetensors")
        weights[place.name] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert len(weights) == 4
    first, *others = weights.values()
    assert all(torch.allclose(first, other, atol=1e-6) for other in others)
    pieces = {path.name for path in store.iterdir()}
    report = execute(setup, tmp_path)
    assert {path.name for path in store.iterdir()} == pieces
    assert report.provenance["config"]["base"]["train"]["epochs"] == 2


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"model": {**PLAIN["model"], "weights": "x.safetensors"}},
            ConfigError,
            "base: the model has weights",
        ),
        ({"base": {"data": {"kind": "linear"}}}, DataError, "base: "),
    ],
)
def test_a_base_that_cannot_be_is_refused_before_anything_is_trained(change, error, said) -> None:
    with pytest.raises(error, match=said):
        check(parse({**PLAIN, **change}))


def test_a_base_without_data_is_trained_on_what_the_data_brings_for_it() -> None:
    with pytest.raises(ConfigError, match="base.data: the data brings nothing to train a base on"):
        check(parse({**PLAIN, "base": {"train": {"epochs": 1}}}))
    people = {"kind": "people", "people": 4, "background": 4, "held_out": 4}
    setup = parse({**PLAIN, "data": people, "base": {}, "forget": {"one": {"kind": "random_set", "size": 1}}})
    assert setup.base_data is setup.sourced.base
