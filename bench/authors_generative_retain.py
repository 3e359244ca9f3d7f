"""Comparisons with SalUn's code: its losses and its masks, of classes and of captions."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from authors_generative_setup import (
    COUNT,
    FORGOTTEN,
    SESSION,
    Found,
    Row,
    Stage,
    classes,
    measured,
    pictures,
    row,
    trained,
)
from authors_generative_theirs import (
    Compvis,
    Optimiser,
    Script,
    borrowed,
    conditional_model,
    gradients,
    repeated,
    stopped,
)
from torch import Tensor

from expunge.methods.anchors import anchored
from expunge.methods.gradient.salun import SalUn
from expunge.methods.modifiers.saliency_mask import SaliencyMask
from expunge.tasks import Diffusion
from expunge.training import parameters as weights

SALUN = ("OPTML-Group/Unlearn-Saliency", "a6e89fd")
FOLDERS = SimpleNamespace(path=os.path, makedirs=lambda *_, **__: None)


GUIDED = "Theirs is of the guided prediction, and clips each batch's gradient to 1 before it adds them up."
ODD = "Of an odd number of weights ours keeps one more."


def rows(root: Path) -> list[Row]:
    """All of them; ``root`` holds the authors' checkouts by owner and name."""
    return [
        *_salun_pictures(root / SALUN[0]),
        *_salun_classes(root / SALUN[0]),
        *_masks(root / SALUN[0]),
    ]


class Clock:
    """A progress bar that shows nothing."""

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.items = arguments[0] if arguments else ()

    def __enter__(self) -> Clock:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __iter__(self) -> Any:
        return iter(self.items)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def _salun_pictures(folder: Path) -> list[Row]:
    stage, alpha = pictures(), 0.5
    file = folder / "SD/train-scripts/random_label.py"
    losses = latent_losses(folder)

    def theirs(posterior: float) -> Found:
        model = Compvis(
            stage, stage.changed, losses, posterior, (stage.noise["retain"], stage.timesteps["retain"])
        )
        draws = Script(
            torch,
            randint=repeated(stage.timesteps["forget"]),
            randn_like=repeated(stage.noise["forget"]),
            optim=SimpleNamespace(Adam=Optimiser),
        )
        found = borrowed(
            file,
            "certain_label",
            torch=draws,
            tqdm=Clock,
            setup_model=lambda *_: model,
            setup_remain_data=lambda *_: (_loader(stage, "retain"), _captions(stage)),
            setup_forget_data=lambda *_: (_loader(stage, "forget"), _captions(stage)),
            LMSDiscreteScheduler=lambda **_: None,
        )
        arguments = (0, "full", alpha, COUNT, 1, 1e-5, "", "", None, "", "cpu")
        local = stopped(found.certain_label, *arguments)
        return float(local.loss.detach()), gradients(stage.changed)

    ours = _salun(stage, alpha, _first_anchor(stage))
    said = (
        "Theirs encodes the image for each of its two captions, and each time draws from the posterior; the "
    )
    said += "stand-in for the autoencoder has a standard deviation of 0.1, in the next row of 0."
    common = {"method": "salun", "source": SALUN}
    run = "certain_label, full, alpha 0.5"
    return [
        row(
            "salun-pictures-posterior", ours, theirs(0.1), run=run, explanation=said, intended=True, **common
        ),
        row("salun-pictures", ours, theirs(0.0), run=f"{run}, images encoded to their mode", **common),
    ]


def latent_losses(folder: Path) -> Any:
    """``p_losses`` and ``get_loss`` of the latent diffusion model in SalUn's checkout."""
    file = folder / "SD/ldm/models/diffusion/ddpm.py"
    names = {"DDPM": object, "default": lambda value, other: other() if value is None else value}
    latent = borrowed(file, "LatentDiffusion", torch=torch, **names).LatentDiffusion
    get_loss = borrowed(file, "get_loss", torch=torch).get_loss
    return SimpleNamespace(p_losses=latent.p_losses, get_loss=get_loss)


def _loader(stage: Stage, part: str) -> list[tuple[Tensor, list[int]]]:
    first = 0 if part == "forget" else COUNT
    images = getattr(stage.split, part).column("inputs")
    return [(images, list(range(first, first + COUNT)))]


def _captions(stage: Stage) -> dict[int, str]:
    """Captions by label: theirs names the pseudo class by the label after the forgotten one, 0."""
    forget, retain = stage.split.forget, stage.split.retain
    return dict(enumerate([*forget.captions, *retain.captions]))  # type: ignore[attr-defined]


def _first_anchor(stage: Stage) -> str:
    """The caption of label 1, which is their pseudo caption for label 0, as an anchor for all examples."""
    return f"prompt: {_captions(stage)[1]}"


def _salun(stage: Stage, alpha: float, anchor: str) -> Found:
    split = anchored(stage.split, stage.task, SESSION, anchor)
    method = SalUn(anchor=anchor, retain_weight=alpha)
    return measured(method.objective(stage.step(split=split)), trained(stage.changed))


def runner(folder: Path, stage: Stage, drops: bool, **config: Any) -> tuple[Any, dict[str, Any], Any]:
    """``self`` of their runner, the names that its methods use, and the network in its wrapping."""
    made = conditional_model(folder / "models/diffusion.py", config.get("net", stage.changed), drops)
    state = torch.nn.DataParallel(made(None)).state_dict()
    forget, retain = stage.split.forget, stage.split.retain
    loaders = [[(d.column("inputs"), d.column("targets"))] for d in (retain, forget)]
    training = SimpleNamespace(
        n_iters=config.pop("n_iters", 1), log_freq=9, snapshot_freq=9, save_freq=99, lmbda=10.0, gamma=1.0
    )
    model = SimpleNamespace(type="simple", ema=False)
    data = SimpleNamespace(channels=3, image_size=8, n_classes=10, num_workers=0)
    optim = SimpleNamespace(**({"grad_clip": config["clip"]} if "clip" in config else {}))
    args = SimpleNamespace(
        label_to_forget=FORGOTTEN, mask_path=None, ckpt_folder="", method="rl",
        alpha=1e-3, cond_scale=config.get("cond_scale", 2.0), n_chunks=config.get("n_chunks", 20),
    )  # fmt: skip
    betas = 1 - stage.task.signal_left / torch.cat([torch.ones(1), stage.task.signal_left[:-1]])
    owner = SimpleNamespace(
        args=args, device="cpu", betas=betas, num_timesteps=stage.task.timesteps,
        config=SimpleNamespace(training=training, model=model, data=data, optim=optim, ckpt_dir=""),
    )  # fmt: skip
    registry = borrowed(folder / "functions/losses.py", "noise_estimation_loss_conditional", torch=torch)
    names = {
        "Conditional_Model": made,
        "get_forget_dataset": lambda *_: loaders,
        "cycle": borrowed(folder / "functions/__init__.py", "cycle").cycle,
        "data_transform": lambda _, x: x,
        "loss_registry_conditional": {"simple": registry.noise_estimation_loss_conditional},
        "get_optimizer": lambda _, parameters: Optimiser(parameters),
        "os": FOLDERS,
        "time": SimpleNamespace(time=lambda: 0.0),
        "logging": SimpleNamespace(info=lambda *_: None),
    }
    return owner, names, state


def _salun_classes(folder: Path) -> list[Row]:
    stage, file = classes(), folder / "DDPM/runners/diffusion.py"

    def theirs(drops: bool) -> Found:
        owner, names, state = runner(folder / "DDPM", stage, drops)
        half = [stage.timesteps[part][: COUNT // 2 + 1] for part in ("retain", "forget")]
        draws = Script(
            torch,
            load=lambda *_, **__: [state],
            randint=repeated(*half),
            randn_like=repeated(stage.noise["retain"], stage.noise["forget"]),
        )
        found = borrowed(file, "saliency_unlearn", torch=draws, **names)
        torch.manual_seed(8)
        local = stopped(found.saliency_unlearn, owner)
        return float(local.loss.detach()), gradients(stage.changed)

    anchor = str((FORGOTTEN + 1) % 10)
    split = anchored(stage.split, stage.task, SESSION, anchor)
    method = SalUn(anchor=anchor, retain_weight=1e-3 * 3 * 8 * 8)
    ours = measured(method.objective(stage.step(split=split)), trained(stage.changed))
    scale = (
        "Theirs adds up the squares of the retain loss alone: alpha 1e-3 is a weight of 0.192 at 3 × 8 × 8."
    )
    drop = "Theirs drops a tenth of the conditions in every branch, the target's included. "
    common = {"method": "salun", "source": SALUN}
    run = "saliency_unlearn, rl, alpha 1e-3"
    return [
        row(
            "salun-classes-drop",
            ours,
            theirs(True),
            run=run,
            explanation=drop + scale,
            intended=True,
            **common,
        ),
        row(
            "salun-classes",
            ours,
            theirs(False),
            run=f"{run}, no condition dropped",
            explanation=f"Rounding. {scale}",
            **common,
        ),
    ]


class Fixed(Diffusion):
    """The task with the bench's draws in the place of others, by the id of an example."""

    draws: tuple[dict[int, Tensor], dict[int, Tensor]]

    def prepare(self, batch: dict[str, Tensor], generator: Any) -> dict[str, Tensor]:
        noise, steps = (torch.stack([drawn[int(i)] for i in batch["ids"]]) for drawn in self.draws)
        noisy = self.noised(batch["inputs"], noise, steps)
        return {**batch, "noise": noise, "timesteps": steps, "noisy": noisy}


def fixed(stage: Stage, part: str, steps: Tensor | None = None) -> Diffusion:
    """The stage's task with its draws for a part, or with other timesteps."""
    task, ids = stage.task, getattr(stage.split, part).ids.tolist()
    ends = {"beta_start": task.beta_start, "beta_end": task.beta_end, "schedule": task.schedule}
    found = Fixed(task.timesteps, task.conditions, **ends)
    steps = stage.timesteps[part] if steps is None else steps
    draws = tuple(dict(zip(ids, values, strict=True)) for values in (stage.noise[part], steps))
    object.__setattr__(found, "draws", draws)
    return found


def _masks(folder: Path) -> list[Row]:
    """Masks of the weights of the changed model."""
    stage, task = classes(), fixed(classes(), "forget")
    file = folder / "DDPM/runners/diffusion.py"
    mask = SaliencyMask(batch_size=2).prepare(stage.changed, stage.split, task, SESSION).movable

    def theirs(**config: Any) -> dict[str, Tensor]:
        owner, names, state = runner(folder / "DDPM", stage, False, **config)
        owner.config.optim.__dict__.update({"grad_clip": config["clip"]} if "clip" in config else {})
        forget = stage.split.forget
        halves = [slice(0, 2), slice(2, 4)]
        images, labels = forget.column("inputs"), forget.column("targets")
        names["get_forget_dataset"] = lambda *_: ([], [(images[h], labels[h]) for h in halves])
        names["get_optimizer"] = lambda _, parameters: Optimiser(parameters)
        kept: dict[str, Any] = {}
        steps, noise = stage.timesteps["forget"], stage.noise["forget"]
        draws = Script(
            torch,
            load=lambda *_, **__: [state],
            save=lambda found, *_: kept.update(found),
            cat=_paired(steps),
            randn_like=repeated(noise[:2], noise[2:]),
        )
        borrowed(file, "generate_mask", torch=draws, print=lambda *_: None, **names).generate_mask(owner)
        return {name.removeprefix("module.net."): found.bool() for name, found in kept.items()}

    common = {"method": "salun", "source": SALUN}
    return [
        _mask_row(
            "salun-mask-guided",
            mask,
            theirs(cond_scale=2.0, clip=1.0),
            run="generate_mask, cond_scale 2",
            explanation=GUIDED,
            intended=True,
            **common,
        ),
        _mask_row(
            "salun-mask",
            mask,
            theirs(cond_scale=0),
            run="generate_mask, cond_scale 0, no clipping",
            explanation=ODD,
            tolerance=1e-4,
            **common,
        ),
        *_picture_masks(folder),
    ]


def _paired(steps: Tensor) -> Any:
    """``torch.cat`` that answers with the bench's timesteps where two draws of timesteps are joined."""
    turn = [0]

    def cat(parts: list[Tensor], *rest: Any, **named: Any) -> Tensor:
        if parts[0].dtype is torch.int64:
            turn[0] += 1
            return torch.cat([steps[:2], steps[2:]] if turn[0] % 2 else [steps[2:], steps[:2]])
        return torch.cat(parts, *rest, **named)

    return cat


def _mask_row(key: str, ours: dict[str, Tensor], theirs: dict[str, Tensor], **fields: Any) -> Row:
    assert ours.keys() == theirs.keys()
    apart = sum(int((ours[name] != theirs[name]).sum()) for name in ours)
    count = sum(mask.numel() for mask in ours.values())
    kept = [sum(int(mask.sum()) for mask in found.values()) / count for found in (ours, theirs)]
    return Row(
        key=key, ours=kept[0], theirs=kept[1], gradient=apart / count,
        measure="share of weights in the mask; gradient: that are in one of the two", **fields,
    )  # fmt: skip


def _picture_masks(folder: Path) -> list[Row]:
    stage = pictures()
    task = fixed(stage, "forget")
    chosen = trained(stage.changed)
    scores = SaliencyMask(batch_size=COUNT).scores(stage.changed, list(chosen), stage.split, task, SESSION)
    mask = weights.largest(scores, 0.5)

    def theirs(guidance: float) -> dict[str, Tensor]:
        model, kept = Compvis(stage, stage.changed), dict[str, Any]()
        draws = Script(
            torch,
            randint=repeated(stage.timesteps["forget"]),
            randn_like=repeated(stage.noise["forget"]),
            save=lambda found, *_: kept.update(found),
        )
        found = borrowed(
            folder / "SD/train-scripts/generate_mask.py",
            "generate_mask",
            torch=draws,
            tqdm=Clock,
            os=FOLDERS,
            setup_model=lambda *_: model,
            setup_forget_data=lambda *_: (_loader(stage, "forget"), _captions(stage)),
        )
        found.generate_mask("0", guidance, COUNT, 1, 1e-5, "", "", "", "cpu")
        gradients(stage.changed)
        names = dict(zip((n for n, _ in model.model.diffusion_model.named_parameters()), chosen, strict=True))
        return {names[name]: value.bool() for name, value in kept.items()}

    said = "Theirs is of the guided prediction (1 + w) f(c) − w f(∅)."
    common = {"method": "salun", "source": SALUN}
    return [
        _mask_row(
            "salun-pictures-mask-guided",
            mask,
            theirs(7.5),
            run="generate_mask of SD, c_guidance 7.5",
            explanation=said,
            intended=True,
            **common,
        ),
        _mask_row(
            "salun-pictures-mask",
            mask,
            theirs(0.0),
            run="generate_mask of SD, c_guidance 0",
            explanation="The same weights.",
            **common,
        ),
    ]
