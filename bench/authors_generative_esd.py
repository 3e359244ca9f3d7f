"""Comparisons with ESD's code: its latest script, and the first one as SalUn's repository has it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from authors_generative_retain import SALUN, Clock
from authors_generative_setup import (
    SEED,
    SESSION,
    Found,
    Row,
    Stage,
    measured,
    pictures,
    row,
    trained,
)
from authors_generative_theirs import (
    Compvis,
    Optimiser,
    Script,
    block,
    borrowed,
    gradients,
    repeated,
    stopped,
)
from torch import Tensor, nn

from expunge.data.arrays import Batch
from expunge.data.captions import CaptionedImages, tokenise
from expunge.methods.gradient.esd import ESD, Erasure
from expunge.methods.scopes.denoiser import Denoiser
from expunge.training.sampling import sample

ERASING = ("rohitgandikota/erasing", "25613d2")
ABLATION = ("nupurkmr9/concept-ablation", "c11fb1b")
FORGET = ("SHI-Labs/Forget-Me-Not", "a4a81e8")
TOLD = "a circle image in mosaic style"


LEVEL = (
    "Theirs tells the model timestep {told}, and z is at {at}: the sampler's last timestep was dropped, and "
    "another is drawn above the one where it stopped. Ours tells the level of z; in the next row theirs."
)
LAYERS = (
    "Theirs moves every linear and convolutional layer but those of the cross-attention, so also the "
    "embedding of time and the last convolution, and no norms; ours is the set of the first script, in "
    "the next rows."
)


def rows(root: Path) -> list[Row]:
    """All of them; ``root`` holds the authors' checkouts by owner and name."""
    compvis = _esd_compvis(root / SALUN[0])
    found = [*_esd(root / ERASING[0]), *compvis]
    scopes = sorted((r for r in found if r.key.endswith("-scope")), key=lambda r: not r.intended)
    return [*(r for r in found if not r.key.endswith("-scope")), *scopes]


@dataclass(frozen=True)
class Given(Erasure):
    """ESD's run with latents and timesteps that others drew."""

    latents: Tensor = torch.empty(0)
    timesteps: Tensor = torch.empty(0)

    def drawn(self, model: nn.Module, batch: Batch, index: int) -> Batch:
        return {**batch, "noisy": self.latents, "timesteps": self.timesteps}


def one(stage: Stage, caption: str = TOLD) -> Batch:
    """The first example to forget alone, under a caption."""
    forget = cast(CaptionedImages, stage.split.forget)
    batch = {name: value[:1] for name, value in stage.batch("forget").items()}
    return {**batch, "input_ids": tokenise(forget.tokenizer, [caption])}


def _ours(latents: Tensor, timesteps: Tensor, strength: float, part: Any) -> Found:
    stage = pictures()
    given = Given(
        stage.original, stage.task, SESSION.engine, SEED, 10, 3.0, latents=latents, timesteps=timesteps
    )
    terms = ESD(negative_guidance=strength).objective(stage.step(given, forget=one(stage)))
    names = set(Denoiser(part=part).names(stage.changed))
    return measured(terms, trained(stage.changed, names.__contains__))


def _drawn(by: nn.Module, start: Tensor, until: int) -> tuple[Tensor, Tensor]:
    """Latents that a model draws from ``start`` in ``until`` of 10 steps, and the level that they are at."""
    stage = pictures()
    ids, empty = (tokenise(cast(Any, stage.split.forget).tokenizer, [text]) for text in (TOLD, ""))
    return sample(by, stage.task, ids, empty=empty, steps=10, guidance=3.0, start=start, until=until)


def _esd(folder: Path) -> list[Row]:
    """The latest script: it draws with the original, and ``--negative_guidance 2`` is ours of 1."""
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(11))
    common: dict[str, Any] = {"method": "esd", "source": ERASING}
    found = []
    for part, theirs_part in (("cross_attention", "esd-x"), ("rest", "esd-u")):
        value, names = _script(folder, theirs_part)
        theirs = value[0], {n: g for n, g in value[1].items() if n in set(names)}
        own = set(Denoiser(part=cast(Any, part)).names(pictures().changed))
        shared = {n: g for n, g in theirs[1].items() if n in own}
        said = (
            "Theirs draws the latents with the original, ours with the model being edited. In the next row "
        )
        said += "ours does so too, with our sampler. Its negative guidance of 2 is ours of 1."
        run = f"script, {theirs_part}, 10 steps, stopped after 4"
        drawn, same = (_drawn(m, start, 4) for m in (pictures().changed, pictures().original))
        ours = {n: g for n, g in _ours(*same, 1.0, part)[1].items() if n in shared}
        key = f"esd-{theirs_part[-1]}"
        found += [
            row(
                f"{key}-drawn",
                _ours(*drawn, 1.0, part),
                theirs,
                run=run,
                explanation=said,
                intended=True,
                **common,
            ),
            row(
                key,
                (_ours(*same, 1.0, part)[0], ours),
                (theirs[0], shared),
                run=f"{run}; weights that both move",
                **common,
            ),
        ]
        found.append(_scope_row(f"{key}-scope", set(names), own, theirs_part, common))
    return found


def _scope_row(key: str, theirs: set[str], ours: set[str], name: str, common: dict[str, Any]) -> Row:
    only = theirs - ours, ours - theirs
    return Row(
        key=key,
        ours=len(ours),
        theirs=len(theirs),
        gradient=sum(map(len, only)) / len(theirs),
        explanation=LAYERS if any(only) else "The same weights.",
        run=f"get_esd_trainable_parameters, {name}",
        measure="tensors that move; gradient: those that one of the two moves, over theirs",
        intended=bool(only[0] or only[1]),
        **common,
    )


def _script(folder: Path, method: str) -> tuple[Found, list[str]]:
    """Value and gradients of their script's first step, and the names of what it trains."""
    import importlib.util

    stage = pictures()
    spec = importlib.util.spec_from_file_location("theirs_sd_utils", folder / "utils/sd_utils.py")
    assert spec is not None
    assert spec.loader is not None
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    tokenizer = cast(Any, stage.split.forget).tokenizer
    pipe: Any = cast(Any, stage.original).pipeline(tokenizer, stage.task)
    pipe.__class__ = type("Theirs", (type(pipe),), {"__call__": utils.esd_sd_call})
    edited = cast(Any, stage.changed).unet
    settings = {"num_inference_steps": 10, "guidance_scale": 3.0, "negative_guidance": 2.0, "iterations": 1}
    settings |= {"erase_concept": TOLD, "erase_from": None, "train_method": method, "lr": 1e-5}
    options = SimpleNamespace(**settings, save_path=".", device="cpu")
    parser = SimpleNamespace(add_argument=lambda *_, **__: None, parse_args=lambda: options)
    sets = borrowed(folder / "esd_sd.py", "get_esd_trainable_parameters").get_esd_trainable_parameters
    adam = SimpleNamespace(Adam=lambda p, lr: Optimiser(p, then=[lambda _: None]))
    draws = Script(torch, bfloat16=torch.float32, optim=adam)
    kept = block(
        folder / "esd_sd.py",
        "if __name__",
        until="loss.backward()",
        constants={1024: 16},
        argparse=SimpleNamespace(ArgumentParser=lambda **_: parser),
        os=SimpleNamespace(makedirs=lambda *_, **__: None),
        random=SimpleNamespace(randint=lambda low, high: 4 if high == 9 else 11),
        tqdm=lambda items, **_: _Silent(items),
        torch=draws,
        load_sd_models=lambda **_: (pipe, pipe.unet, edited),
        get_esd_trainable_parameters=sets,
    )
    names = [f"unet.{name}" for name in kept.esd_param_names]
    return (float(kept.loss.detach()), gradients(stage.changed)), names


class _Silent(Clock):
    def __iter__(self) -> Any:
        return iter(self.items)


def _esd_compvis(folder: Path) -> list[Row]:
    """The first script, of which SalUn's repository has a copy."""
    stage, common = pictures(), {"method": "esd", "source": SALUN}
    found = []
    for method, part in (("xattn", "cross_attention"), ("noxattn", "rest")):
        local = _train_esd(folder, method)
        theirs = float(local.loss.detach()), gradients(stage.changed)
        own = set(Denoiser(part=cast(Any, part)).names(stage.changed))
        theirs = theirs[0], {n: g for n, g in theirs[1].items() if n in own}
        z, told = local.z, local.t_enc_ddpm
        at = torch.tensor([_level(local)])
        said = LEVEL.format(told=int(told), at=int(at))
        run = f"train_esd, {method}, 50 steps, stopped at 20"
        key = f"esd-{method}"
        found += [
            row(
                f"{key}-level",
                _ours(z, at, 1.0, part),
                theirs,
                run=run,
                explanation=said,
                intended=True,
                **common,
            ),
            row(key, _ours(z, told, 1.0, part), theirs, run=f"{run}; its z and timestep", **common),
        ]
        names = {id(p): n for n, p in trained(stage.changed).items()}
        found.append(
            _scope_row(f"{key}-scope", {names[id(p)] for p in local.parameters}, own, method, common)
        )
    return [replace(r, run=r.run.replace("get_esd_trainable_parameters", "train_esd")) for r in found]


def _train_esd(folder: Path, method: str) -> SimpleNamespace:
    stage = pictures()
    ddim = folder / "SD/ldm/models/diffusion/ddim.py"
    util = folder / "SD/ldm/modules/diffusionmodules/util.py"
    names = ("make_ddim_timesteps", "make_ddim_sampling_parameters", "noise_like", "extract_into_tensor")
    parts = borrowed(util, *names, torch=torch, np=np, print=lambda *_: None)
    made = {name: getattr(parts, name) for name in names}
    plain = Script(torch, device=lambda _: torch.device("cpu"))
    sampler = borrowed(ddim, "DDIMSampler", torch=plain, np=np, tqdm=Clock, **made).DDIMSampler
    edited, original = Compvis(stage, stage.changed), Compvis(stage, stage.original)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(12))
    draws = Script(
        torch,
        randint=repeated(torch.tensor([20]), torch.tensor([409])),
        randn=lambda *_: start,
        optim=SimpleNamespace(Adam=Optimiser),
    )
    file = folder / "SD/train-scripts/train-esd.py"
    found = borrowed(
        file,
        "train_esd",
        "sample_model",
        torch=draws,
        tqdm=Clock,
        print=lambda *_: None,
        random=SimpleNamespace(sample=lambda words, _: words),
        get_models=lambda *_: (original, None, edited, sampler(edited)),
    )
    return stopped(
        found.train_esd, TOLD, method, 3.0, 1.0, 1, 1e-5, "", "", None, "", ["cpu", "cpu"], image_size=64
    )


def _level(local: SimpleNamespace) -> int:
    """The DDPM timestep whose level of noise the last step of their sampler went to."""
    kept = cast(Tensor, local.sampler.ddim_alphas_prev)
    reached = float(torch.as_tensor(kept)[int(local.t_enc) - 1])
    return int((local.sampler.alphas_cumprod - reached).abs().argmin())
