"""Comparisons with SPM's code: its losses, and what its membranes do at inference."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from authors_generative_esd import TOLD, one
from authors_generative_setup import SEED, SESSION, Found, Row, measured, pictures, row
from authors_generative_theirs import Optimiser, Script, borrowed, repeated, stopped
from torch import Tensor, nn

from expunge.data.arrays import Batch
from expunge.data.captions import CaptionedImages, tokenise
from expunge.methods.guards.spm import SPM, Erasure, Transported
from expunge.methods.membranes import MEMBRANE, Membranes, adapted_layers

EDITING = ("rohitgandikota/unified-concept-editing", "28c81ed")
CANVAS = ("OPTML-Group/UnlearnCanvas", "920cfd1")
SEMI = ("Con6924/SPM", "3dd762e")
KEPT_CAPTION = "a circle image in sketch style"
FACTORS = ("down", "up")


ALIKE = (
    "Theirs is the cosine of all states, of start and padding too, ours of the state at the end of the "
    "text less that of the empty prompt; in the next row transport=reference."
)
SQUARE = (
    "Theirs scales both factors by the opening, so that its square counts, ours their product; in the next "
    "row transport=reference."
)


def rows(root: Path) -> list[Row]:
    """All of them; ``root`` holds the authors' checkouts by owner and name."""
    return [*_spm(root / SEMI[0]), *_transport(root / SEMI[0])]


@dataclass(frozen=True)
class Given(Erasure):
    """SPM's run with latents and timesteps that others drew."""

    latents: Tensor = torch.empty(0)
    timesteps: Tensor = torch.empty(0)

    def drawn(self, model: nn.Module, batch: Batch, index: int) -> Batch:
        return {**batch, "noisy": self.latents, "timesteps": self.timesteps}


def _factors() -> dict[str, Tensor]:
    """Factors of all layers, in the model's order."""
    draws, found = torch.Generator().manual_seed(5), {}
    for name, layer in adapted_layers(pictures().original).items():
        outputs, *inputs = layer.weight.shape
        shapes = {"down": (1, *inputs), "up": (outputs, 1, *[1] * (len(inputs) - 1))}
        for which in FACTORS:
            key = f"{which}/{name.replace('.', '/')}"
            found[key] = 0.2 * torch.randn(shapes[which], generator=draws)
    return found


def _filled(parameters: Sequence[Any]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, _factors().values(), strict=True):
            parameter.copy_(value)


def _parts(folder: Path) -> dict[str, Any]:
    """What their training and their inference share."""
    quiet: dict[str, Any] = {"torch": torch, "print": lambda *_: None}
    made = borrowed(folder / "src/models/spm.py", "SPMLayer", "SPMNetwork", nn=nn, math=math, **quiet)
    names = ("encode_prompts", "text_tokenize", "text_encode", "predict_noise", "diffusion")
    more = ("concat_embeddings", "get_initial_latents", "get_random_noise")
    sizes = {"UNET_IN_CHANNELS": 4, "VAE_SCALE_FACTOR": 8, "tqdm": lambda items: items}
    util = borrowed(folder / "src/engine/train_util.py", *names, *more, **quiet, **sizes)
    return {
        "SPMLayer": made.SPMLayer,
        "SPMNetwork": made.SPMNetwork,
        "train_util": util,
        "DEVICE_CUDA": torch.device("cpu"),
        "flush": lambda: None,
        "Path": Path,
        "print": lambda *_: None,
    }


def _denoiser() -> Any:
    unet: Any = SESSION.engine.copy(pictures().original).unet
    unet.enable_xformers_memory_efficient_attention = lambda: None
    return unet


def _training(folder: Path, anchors: int) -> SimpleNamespace:
    """The local names of their ``train`` at its first step, 12 of 30 steps of sampling."""
    from diffusers import DDIMScheduler

    stage, task = pictures(), pictures().task
    tokenizer = cast(Any, stage.split.forget).tokenizer
    ends = {"beta_start": task.beta_start, "beta_end": task.beta_end, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**ends, clip_sample=False)
    prompt = SimpleNamespace(
        target=TOLD, positive=TOLD, neutral="", unconditional="", use_template=False, guidance_scale=1.0,
        resolution=64, dynamic_resolution=False, batch_size=1, dynamic_crops=False, action="erase_with_la",
        la_strength=1000.0, sampling_batch_size=anchors, json=lambda: "",
    )  # fmt: skip
    no = SimpleNamespace(use_wandb=False, verbose=False)
    train = SimpleNamespace(
        precision="", noise_scheduler="", text_encoder_lr=0, unet_lr=0, lr=0, iterations=1,
        max_denoising_steps=30, max_grad_norm=0,
    )  # fmt: skip
    config = SimpleNamespace(
        network=SimpleNamespace(rank=1, alpha=1.0), save=SimpleNamespace(path="."), logging=no, train=train,
        pretrained_model=SimpleNamespace(name_or_path="", v2=False, v_pred=False), json=lambda: "",
    )  # fmt: skip
    loaded = tokenizer, cast(Any, stage.original).text_encoder, _denoiser(), scheduler, None
    parts = _parts(folder)
    prompts = borrowed(
        folder / "src/configs/prompt.py", "PromptEmbedsPair", "PromptEmbedsCache", random=random
    )

    def optimiser(_: Any, groups: list[dict[str, Any]]) -> tuple[str, str, Optimiser]:
        _filled(groups[0]["params"])
        return "", "", Optimiser(groups[0]["params"])

    parts["train_util"].get_optimizer = optimiser
    parts["train_util"].get_scheduler_fix = lambda *_: None
    found = borrowed(
        folder / "train_spm.py",
        "train",
        torch=Script(torch, randint=repeated(torch.tensor([0]), torch.tensor([12]))),
        tqdm=lambda items: items,
        model_util=SimpleNamespace(load_models=lambda *_, **__: loaded),
        config_pkg=SimpleNamespace(parse_precision=lambda _: torch.float32),
        sample=borrowed(folder / "src/engine/sampling.py", "sample", torch=torch, random=random).sample,
        PromptEmbedsPair=prompts.PromptEmbedsPair,
        PromptEmbedsCache=prompts.PromptEmbedsCache,
        **parts,
    )
    torch.manual_seed(6)
    random.seed(6)
    return stopped(found.train, config, [prompt])


def _spm(folder: Path) -> list[Row]:
    common: dict[str, Any] = {"method": "spm", "source": SEMI}
    single, four = _training(folder, 1), _training(folder, 4)
    told = int(single.current_timestep)
    single.noise_scheduler.set_timesteps(30)
    at = int(single.noise_scheduler.timesteps[12])
    level = (
        f"Theirs tells the model timestep {told} of latents at {at}, ours {at}; in the next row {told} too."
    )
    halves = (
        "Theirs joins the empty prompt and each anchor in turn and takes the second half of these for the "
    )
    halves += "anchors: of four it sees two, and the empty prompt twice. Its first row above has one anchor."
    run = "train, erase_with_la, 12 of 30 steps"
    return [
        row(
            "spm-level",
            _ours(single, at),
            _theirs(single),
            run=f"{run}, 1 anchor",
            explanation=level,
            intended=True,
            **common,
        ),
        row("spm", _ours(single, told), _theirs(single), run=f"{run}, 1 anchor", **common),
        row(
            "spm-anchors",
            _ours(four, told),
            _theirs(four),
            run=f"{run}, 4 anchors",
            explanation=halves,
            intended=True,
            **common,
        ),
        row(
            "spm-two-anchors",
            _ours(four, told, seen=True),
            _theirs(four),
            run=f"{run}, 4 anchors; ours of what it sees",
            **common,
        ),
    ]


def _theirs(local: SimpleNamespace) -> Found:
    pairs = [
        p for layer in local.network.unet_spm_layers for p in (layer.lora_down.weight, layer.lora_up.weight)
    ]
    found = {name: p.grad.numpy() for name, p in zip(_factors(), pairs, strict=True)}
    return float(local.loss["loss"].detach()), found


def _ours(local: SimpleNamespace, timestep: int, seen: bool = False) -> Found:
    stage, model = pictures(), SESSION.engine.copy(pictures().original)
    Membranes(model, 1, 1.0, torch.Generator())
    membranes = getattr(model, MEMBRANE)
    _filled(list(membranes.parameters()))
    states = local.anchors[len(local.anchors) // 2 :] if seen else local.anchors[1::2]
    method = SPM(anchors=len(states))
    given = Given(
        stage.original, stage.task, SESSION.engine, SEED, method,
        latents=local.denoised_latents, timesteps=torch.tensor([timestep]),
    )  # fmt: skip
    step = replace(stage, changed=model).step(given, forget=one(stage))
    with mock.patch("expunge.methods.guards.spm.drawn_states", return_value=states):
        return measured(given.objective(step), dict(membranes.named_parameters()))


def _transport(folder: Path) -> list[Row]:
    """Openings for a retained caption, and what the denoiser predicts for it there."""
    opening, prediction = _inference(folder)
    own = {name: _guarded(name) for name in ("end", "reference")}
    common: dict[str, Any] = {"method": "spm", "source": SEMI}
    score, weights = (
        "calculate_matching_score, clipcos_tokenuni, of a retained caption",
        "infer_with_spm, the same caption",
    )
    with mock.patch.object(Transported, "open", lambda _, ids, states: torch.full((len(ids),), opening)):
        linear = _guarded("end")[1]
    change = {"measure": "norm of the change of the prediction; gradient: of the prediction"}
    return [
        row(
            "spm-opening-end",
            (own["end"][0], {}),
            (opening, {}),
            run=score,
            explanation=ALIKE,
            intended=True,
            measure="opening",
            **common,
        ),
        row("spm-opening", (own["reference"][0], {}), (opening, {}), run=score, measure="opening", **common),
        row(
            "spm-square",
            linear,
            prediction,
            run=weights,
            explanation=SQUARE,
            intended=True,
            **change,
            **common,
        ),
        row("spm-strength", own["reference"][1], prediction, run=weights, **change, **common),
    ]


def _asked(predict: Any) -> Tensor:
    """What a denoiser predicts of one fixed input."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return cast(Tensor, predict(x, torch.tensor([300])))


def _change(said: Tensor) -> Found:
    original, ids = cast(Any, pictures().original), _retained()
    plain = _asked(lambda x, t: original(x, t, ids))
    return float((said - plain).norm()), {"prediction": said.numpy()}


def _retained() -> Tensor:
    return tokenise(cast(CaptionedImages, pictures().split.forget).tokenizer, [KEPT_CAPTION])


def _guarded(transport: Any) -> tuple[float, Found]:
    """Our opening for the caption, and the prediction there."""
    stage, method = pictures(), SPM(transport=transport)
    learned = {**_factors(), **method.compared(stage.original, stage.split, SESSION)}
    model: Any = method.attach(SESSION.engine.copy(stage.original), learned)
    said = _asked(lambda x, t: model(x, t, _retained()))
    return float(model.guard.opening[0]), _change(said)


def _inference(folder: Path) -> tuple[float, Found]:
    """The same of theirs."""
    stage, unet, kept = pictures(), _denoiser(), dict[str, Any]()
    tokenizer, encoder = cast(Any, stage.split.forget).tokenizer, cast(Any, stage.original).text_encoder
    parts = _parts(folder)
    network = parts["SPMNetwork"](_denoiser(), rank=1, alpha=1.0)
    _filled([p for layer in network.unet_spm_layers for p in (layer.lora_down.weight, layer.lora_up.weight)])
    state = {name: value for name, value in network.state_dict().items() if name.startswith("lora")}
    told = {"rank": "1", "alpha": "1.0", "prompts": "mosaic"}

    def pipe(prompt_embeds: Tensor, **_: Any) -> SimpleNamespace:
        kept["said"] = _asked(lambda x, t: unet(x, t, encoder_hidden_states=prompt_embeds).sample)
        return SimpleNamespace(images=[])

    found = borrowed(
        folder / "infer_spm.py",
        "infer_with_spm",
        "calculate_matching_score",
        torch=torch,
        parse_precision=lambda _: torch.float32,
        model_util=SimpleNamespace(load_checkpoint_model=lambda *_, **__: (tokenizer, encoder, unet, pipe)),
        load_state_dict=lambda *_: (state, told),
        **parts,
    )
    score = found.calculate_matching_score
    found.infer_with_spm.__globals__["calculate_matching_score"] = lambda *a, **k: kept.setdefault(
        "m", score(*a, **k)
    )
    settings = SimpleNamespace(
        prompts=[KEPT_CAPTION], unconditional_prompt="", negative_prompt="", width=8, height=8, seed=0,
        num_inference_steps=1, guidance_scale=1.0, generate_num=1, save_path="./{}-{}.png",
    )  # fmt: skip
    found.infer_with_spm([Path("none")], settings, "clipcos_tokenuni")
    return float(kept["m"][0]), _change(kept["said"])
