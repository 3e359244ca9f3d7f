import warnings

import pytest
import torch
from torch import nn

from expunge.errors import ConfigError
from expunge.training import engine as module
from expunge.training.engine import Engine, computes_bfloat16


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())


def test_a_copy_is_equal_and_shares_nothing(model):
    copy = Engine(channels_last=True).copy(model)
    pairs = zip(model.state_dict().values(), copy.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)
    assert copy[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[0].weight.is_contiguous()


def test_bfloat16_holds_inside_autocast_alone(model):
    engine, x = Engine(device="cpu", dtype="bfloat16"), torch.randn(2, 3, 5, 5)
    with engine.autocast():
        inside = model[0](x)
    assert inside.dtype == torch.bfloat16
    assert model[0](x).dtype == torch.float32
    assert model[0].weight.dtype == torch.float32


def test_float32_is_float32_without_a_warning_whatever_the_caller_set(model):
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16):
        warnings.simplefilter("error")
        with Engine(device="cpu").autocast():
            assert model[0](torch.randn(2, 3, 5, 5)).dtype == torch.float32


def test_frozen_means_evaluation_without_gradients_and_every_mode_comes_back(model):
    model.train()
    model[1].eval()
    with Engine().frozen(model) as frozen:
        assert frozen is model
        assert not any(module.training for module in model.modules())
        assert not model(torch.randn(2, 3, 5, 5)).requires_grad
    assert [module.training for module in model] == [True, False, True, True]
    assert torch.is_grad_enabled()


def test_they_come_back_after_an_error_too(model):
    with pytest.raises(ZeroDivisionError), Engine().frozen(model.train()):
        _ = 1 / 0
    assert all(module.training for module in model.modules())


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Engine().torch_device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Engine().torch_device == torch.device("cuda")
    assert Engine(device="cuda:1").torch_device == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"accumulate": 0}, "accumulate: must be at least 1, got 0"),
        ({"device": "gpu"}, "device: 'gpu' is not a device. Use auto, cpu or cuda"),
        ({"device": "cuda"}, "device: no CUDA device is available. Use device=cpu"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(fields, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=said):
        Engine(**fields)


@pytest.mark.parametrize(
    ("fields", "units", "warns"),
    [
        ({"dtype": "bfloat16", "device": "cpu"}, False, True),
        ({"dtype": "bfloat16", "device": "auto"}, False, True),
        ({"dtype": "bfloat16", "device": "cpu"}, True, False),
        ({"dtype": "float32", "device": "cpu"}, False, False),
        ({"dtype": "bfloat16", "device": "cuda"}, False, False),
    ],
)
def test_bfloat16_is_warned_of_on_a_cpu_without_it_and_never_changed(fields, units, warns, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: fields["device"] == "cuda")
    monkeypatch.setattr(module, "computes_bfloat16", lambda: units)
    engine = Engine(**fields)
    assert bool(engine.caution) == warns
    assert engine.dtype == fields["dtype"]


def test_without_one_dnn_no_cpu_computes_bfloat16(monkeypatch):
    assert isinstance(computes_bfloat16(), bool)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not computes_bfloat16()


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="torch says not what the CPU has")
def test_what_is_said_of_this_cpu_is_what_its_instructions_say():
    can = torch.cpu.get_capabilities()
    if can["architecture"] != "x86_64":
        pytest.skip("known for x86 alone")
    assert computes_bfloat16() == bool(can["avx512_bw"] or can["avx_ne_convert"])
