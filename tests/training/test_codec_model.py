"""The codec as an autoencoder of diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expunge.data.patch_codec import PatchCodecSpec

pytest.importorskip("diffusers")


@pytest.mark.parametrize(("patch", "channels"), [(1, 3), (2, 6), (4, 24)])
def test_it_computes_what_the_data_s_codec_does(patch: int, channels: int) -> None:
    from expunge.training.codec_model import PatchVAE

    vae, spec = PatchVAE(patch=patch, channels=channels), PatchCodecSpec(patch=patch, channels=channels)
    images = 2 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    latents = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
    assert torch.allclose(latents, spec.latents(images))
    back = vae.decode(latents / vae.config.scaling_factor).sample
    assert torch.allclose(back, spec.images(latents), atol=1e-6)
    assert torch.equal(back, vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0])
    posterior = vae.encode(images).latent_dist
    assert torch.equal(posterior.sample(), posterior.mode())
    assert 2 ** (len(vae.config.block_out_channels) - 1) == patch, "the pipelines' vae_scale_factor"
    assert vae.config.latent_channels == channels
    assert not list(vae.parameters())


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    from expunge.training.codec_model import PatchVAE

    vae = PatchVAE(patch=2, channels=8)
    vae.save_pretrained(tmp_path)
    loaded = PatchVAE.from_pretrained(tmp_path)
    images = torch.rand(1, 3, 4, 4)
    assert torch.equal(loaded(images).sample, vae(images).sample)
    assert {**loaded.config}["channels"] == 8
    assert torch.equal(loaded.basis, vae.basis)
