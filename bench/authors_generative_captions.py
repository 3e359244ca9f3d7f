"""Comparisons with the code of concept ablation and of forget-me-not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from authors_generative_setup import (
    COUNT,
    SESSION,
    Found,
    Row,
    measured,
    pictures,
    row,
    trained,
)
from authors_generative_theirs import (
    Script,
    block,
    borrowed,
    gradients,
    repeated,
)
from torch import Tensor, nn

from expunge.data.arrays import Batch
from expunge.data.captions import CaptionedImages
from expunge.methods.anchors import anchored, concept_terms
from expunge.methods.gradient.ca import CA, first_token_still
from expunge.methods.gradient.fmn import FMN, Attention
from expunge.methods.scopes.denoiser import Denoiser

ERASING = ("rohitgandikota/erasing", "25613d2")
ABLATION = ("nupurkmr9/concept-ablation", "c11fb1b")
FORGET = ("SHI-Labs/Forget-Me-Not", "a4a81e8")


PRIOR = (
    "Theirs regularises on a second batch of images, here the retained ones, ours on those of the first "
    "under the anchor's captions. In the next row these are its second batch."
)
NOISE = (
    "Ours has no noise-based variant: this is the denoising loss of the anchor images under the concept's "
    "captions, which is fine-tuning on them, with a gradient at keys and values of the first token."
)
TILED = (
    "Theirs tiles the concept's places by heads where the probabilities are laid out by examples, so that "
    "they are of other captions, and takes one norm of all images, ours the mean of each one's. The next "
    "row has one image."
)


def rows(root: Path) -> list[Row]:
    """All of them; ``root`` holds the authors' checkouts by owner and name."""
    return [*_ca(root / ABLATION[0] / "diffusers"), *_fmn(root / FORGET[0])]


def _ca(folder: Path) -> list[Row]:
    stage, common = pictures(), cast(dict[str, Any], {"method": "ca", "source": ABLATION})
    split = anchored(stage.split, stage.task, SESSION, "next")
    batch = stage.batch("forget", split)
    names = set(Denoiser(part="key_value").names(stage.changed))
    chosen = trained(stage.changed, names.__contains__)

    def ours(weight: float) -> Found:
        return measured(CA(regularisation=weight).objective(stage.step(forget=batch)), chosen)

    def theirs(kind: str, prior: Batch | None) -> Found:
        value, found = _ablation(folder, batch, kind, prior)
        return value, {name: g for name, g in found.items() if name in names}

    other, noise = stage.batch("retain"), _noise_based(batch, chosen)
    with first_token_still(stage.changed):
        still = _noise_based(batch, chosen)
    run, based = "train.py, model-based", "train.py, noise-based"
    priors = f"{run}, with_prior_preservation, weight 0.2"
    prior, first = ({"explanation": said, "intended": True} for said in (PRIOR, NOISE))
    anchor = {**batch, "input_ids": batch["anchor.input_ids"]}
    return [
        row("ca", ours(0.0), theirs("model-based", None), run=run, **common),
        row("ca-prior-images", ours(0.2), theirs("model-based", other), run=priors, **prior, **common),
        row("ca-prior", ours(0.2), theirs("model-based", anchor), run=f"{priors}, of anchors", **common),
        row("ca-noise-first", noise, theirs("noise-based", None), run=based, **first, **common),
        row("ca-noise", still, theirs("noise-based", None), run=f"{based}; ours without these", **common),
    ]


def _noise_based(batch: Batch, chosen: dict[str, nn.Parameter]) -> Found:
    return measured({"forget": pictures().step(forget=batch).forget.loss.mean()}, chosen)


def _ablation(folder: Path, batch: Batch, kind: str, prior: Batch | None) -> Found:
    """Value and gradients of a step of their loop, with their attention in the model."""
    from diffusers.models.attention_processor import Attention as CrossAttention
    from packaging import version

    stage = pictures()
    made = borrowed(
        folder / "model_pipeline.py",
        "CustomDiffusionAttnProcessor",
        torch=torch,
        CrossAttention=CrossAttention,
        version=version,
        diffusers=__import__("diffusers"),
    )
    edited = SESSION.engine.copy(stage.changed)
    model: Any = edited
    model.unet.set_attn_processor(made.CustomDiffusionAttnProcessor())
    parts = [batch] if prior is None else [batch, prior]
    joined = {n: torch.cat([p[n] for p in parts]) for n in ("inputs", "noise", "timesteps", "input_ids")}
    latents = SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda: joined["inputs"]))
    scheduler = SimpleNamespace(
        config=SimpleNamespace(num_train_timesteps=1000, prediction_type="epsilon"),
        add_noise=stage.task.noised,
    )
    draws = Script(torch, randn_like=repeated(joined["noise"]), randint=repeated(joined["timesteps"]))
    given = {"pixel_values": joined["inputs"], "mask": torch.ones_like(joined["inputs"])}
    given |= {"input_ids": joined["input_ids"], "input_anchor_ids": batch["anchor.input_ids"]}
    kept = block(
        folder / "train.py",
        "with accelerator.accumulate(",
        until="accelerator.backward",
        torch=draws,
        F=torch.nn.functional,
        args=SimpleNamespace(
            parameter_group="cross-attn",
            loss_type_reverse=kind,
            with_prior_preservation=prior is not None,
            prior_loss_weight=0.2,
        ),
        accelerator=SimpleNamespace(backward=lambda loss: loss.backward()),
        vae=SimpleNamespace(encode=lambda _: latents, config=SimpleNamespace(scaling_factor=1.0)),
        weight_dtype=torch.float32,
        batch=given,
        noise_scheduler=scheduler,
        unet=model.unet,
        text_encoder=model.text_encoder,
    )
    return float(kept.loss.detach()), gradients(edited)


def _fmn(folder: Path) -> list[Row]:
    stage, common = pictures(), {"method": "fmn", "source": FORGET}
    forget = cast(CaptionedImages, stage.split.forget)
    batch = stage.batch("forget")
    moved = (torch.arange(COUNT) % 2 == 0)[:, None]  # captions in which the concept stands at other places
    batch["input_ids"] = torch.where(moved, batch["input_ids"], batch["style.input_ids"])
    terms = concept_terms(stage.split)
    state = Attention(stage.original, stage.task, SESSION.engine, forget.tokenizer, terms, False)
    names = set(Denoiser(part="cross_attention").names(stage.changed))
    chosen = trained(stage.changed, names.__contains__)

    def pair(rows: slice) -> tuple[Found, Found]:
        some = {name: value[rows] for name, value in batch.items()}
        ours = measured(FMN().objective(stage.step(state, forget=some)), chosen)
        value, found = _attention(folder, some, state.places(some["input_ids"]))
        return ours, (value, {name: g for name, g in found.items() if name in names})

    whole, single = pair(slice(None)), pair(slice(0, 1))
    run = "AttnController in main of train_attn.py"
    return [
        row("fmn-batch", *whole, run=f"{run}, batch of 4", explanation=TILED, intended=True, **common),
        row("fmn", *single, run=f"{run}, batch of 1", **common),
    ]


def _attention(folder: Path, batch: Batch, places: Tensor) -> Found:
    edited: Any = SESSION.engine.copy(pictures().changed)
    theirs = borrowed(folder / "src/train_attn.py", "AttnController", "MyCrossAttnProcessor", torch=torch)
    controller = theirs.AttnController()
    for name, module in edited.unet.named_modules():
        if name.endswith("attn2"):
            module.set_processor(theirs.MyCrossAttnProcessor(controller, name))
    controller.set_concept_positions(places)
    edited.predict(batch["noisy"], batch["timesteps"], edited.encode_text(batch["input_ids"]))
    loss = controller.loss()
    loss.backward()
    return float(loss.detach()), gradients(edited)
