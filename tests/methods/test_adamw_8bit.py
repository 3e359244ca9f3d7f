import importlib.util
import sys
import types

import pytest
import torch

from expunge.errors import ConfigError, MissingExtra, Unsupported
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.modifiers.retain_projection import RetainProjection
from expunge.methods.optimisers.adamw_8bit import AdamW8bit
from expunge.training.optim import AdamW

here = importlib.util.find_spec("bitsandbytes") is not None


def test_without_bitsandbytes_it_says_what_to_install(linear, monkeypatch):
    monkeypatch.setattr("expunge.methods.optimisers.adamw_8bit.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"optimiser 'adamw_8bit'.*expunge\[quantised\]"):
        linear.run(GradDiff(epochs=1, optim=AdamW8bit()))


@pytest.fixture
def stand_in(monkeypatch):
    """A module with bitsandbytes' name in which AdamW8bit is torch's AdamW, and what it was called with."""
    called = []

    class Quantised(torch.optim.AdamW):
        def __init__(self, params, **fields):
            called.append(fields)
            super().__init__(params, **fields)

    package, optim = types.ModuleType("bitsandbytes"), types.ModuleType("bitsandbytes.optim")
    package.__spec__ = importlib.util.spec_from_loader("bitsandbytes", loader=None)
    package.__path__, optim.AdamW8bit = [], Quantised
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    return called


def test_every_field_is_handed_on_and_the_steps_are_the_optimisers(linear, stand_in):
    fields = {"lr": 0.02, "weight_decay": 0.3, "betas": (0.8, 0.9), "eps": 1e-6, "schedule": "cosine"}
    found, expected = (
        linear.run(GradDiff(epochs=3, batch_size=4, optim=kind(**fields))) for kind in (AdamW8bit, AdamW)
    )
    assert torch.equal(found, expected)
    assert {key: stand_in[0][key] for key in ("betas", "eps", "weight_decay")} == {
        key: fields[key] for key in ("betas", "eps", "weight_decay")
    }


def test_the_projection_that_reads_second_moments_refuses_it(linear, stand_in):
    method = GradDiff(epochs=1, optim=AdamW8bit(), modifiers=(RetainProjection(),))
    with pytest.raises(Unsupported, match="Use it with sgd or adamw"):
        linear.run(method)


@pytest.mark.skipif(not here, reason="bitsandbytes is not installed")
def test_with_bitsandbytes_the_weights_move_and_stay_finite(linear):
    moved = linear.run(GradDiff(epochs=2, optim=AdamW8bit())) - linear.start
    assert torch.isfinite(moved).all()
    assert (moved != 0).all()


def test_fields_out_of_range_are_refused_by_name():
    with pytest.raises(ConfigError, match="betas: both must be in"):
        AdamW8bit(betas=(0.9, 1.0))
