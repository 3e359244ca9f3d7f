"""The adversarial task: one loss whose gradient is each network's of its own, and the small model."""

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from expunge.errors import ConfigError, DataError, Unsupported
from expunge.tasks import GAN
from expunge.training.gan_models import Gan, GanSpec


def batch(count=4):
    rows = {"ids": torch.arange(count), "inputs": torch.randn(count, 1, 8, 8)}
    return GAN(latent=3).prepare(rows, torch.Generator().manual_seed(0))


def test_each_network_gets_the_gradient_of_its_own_loss_alone():
    torch.manual_seed(0)
    model, rows, task = GanSpec(image_size=8, in_channels=1, latent=3, width=4)(), batch(), GAN(latent=3)
    task.loss(task.outputs(model, rows), rows).mean().backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    real, drawn = model.discriminator(rows["inputs"]), model.generator(rows["latents"])
    assert drawn.shape == rows["inputs"].shape
    losses = {
        "discriminator": softplus(-real).mean() + softplus(model.discriminator(drawn.detach())).mean(),
        "generator": softplus(-model.discriminator(drawn)).mean(),
    }
    for part, loss in losses.items():
        own = dict(model.get_submodule(part).named_parameters())
        for (name, _), gradient in zip(own.items(), torch.autograd.grad(loss, own.values()), strict=True):
            assert torch.allclose(together[f"{part}.{name}"], gradient, atol=1e-6)
    assert all(p.requires_grad for p in model.parameters())


def test_the_loss_by_hand():
    task, outputs = GAN(), torch.tensor([[0.0, 0.0, 0.0], [2.0, -1.0, -1.0]])
    expected = [3 * 0.6931472, 0.1269280 + 0.3132617 + 1.3132617]
    assert torch.allclose(task.loss(outputs, {}), torch.tensor(expected))
    assert task.score(outputs, {})[0] == 0.5
    assert task.divergence(outputs[:1], outputs[1:], {}, 2.0).item() == (4 + 1 + 1) / 3 / 2


def test_in_evaluation_an_id_has_one_latent_in_any_company():
    rows = {"ids": torch.tensor([5, 9]), "inputs": torch.zeros(2, 1)}
    both = GAN(latent=3).prepare(rows, None)["latents"]
    alone = GAN(latent=3).prepare({name: value[1:] for name, value in rows.items()}, None)["latents"]
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both[0], both[1])


def test_bad_input_is_refused():
    model = Gan(nn.Linear(2, 1), nn.Linear(1, 1), 2)
    with pytest.raises(DataError, match="Set the task's latent to 2"):
        model(torch.zeros(1, 1), torch.zeros(1, 3))
    with pytest.raises(Unsupported, match="Give a Gan"):
        GAN().outputs(lambda x, z: x, {"inputs": torch.zeros(2, 1), "latents": torch.zeros(2, 32)})
    with pytest.raises(ConfigError):
        GAN(latent=0)
    for size in (4, 12, 18):
        with pytest.raises(ConfigError):
            GanSpec(image_size=size)
