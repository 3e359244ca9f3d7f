"""Language models and pipelines in a folder of Hugging Face and back, with the guard beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from expunge import config
from expunge.data.hub import local
from expunge.data.pipeline_folder import INDEX
from expunge.errors import CheckpointError, RunError, Unsupported
from expunge.methods.base import Guard, methods
from expunge.methods.guarded import GUARD
from expunge.store import write_text
from expunge.tasks.diffusion import Diffusion
from expunge.training.checkpoint import read_weights
from expunge.training.diffusion_models import TextToImage, pretrained_pipeline
from expunge.training.pretrained import pretrained, silent

TENSORS, SETTINGS = "guard.safetensors", "guard.json"


def save(
    model: nn.Module, directory: Path | str, tokenizer: Any = None, task: Diffusion | None = None
) -> None:
    """Writes a folder that ``load`` reads, and ``from_pretrained`` of transformers or diffusers too.

    ``from_pretrained`` sees the model without its guard: ``config.json`` and the weights are the frozen
    model's. The guard is in ``guard.safetensors``, what was learnt, and ``guard.json``, the method's
    settings and the shapes.

    Args:
        model: of transformers, or a ``TextToImage``, guarded or not.
        tokenizer: is saved with it; a ``TextToImage`` that came from a pipeline has its own.
        task: of a ``TextToImage`` that came from none: its noise schedule is saved.

    Raises:
        ConfigError: a ``TextToImage`` without tokenizer or noise schedule.
        Unsupported: a model that transformers did not make.
        RunError: the folder cannot be written.
    """
    if not (isinstance(model, TextToImage) or hasattr(model, "save_pretrained")):
        raise Unsupported(
            f"{type(model).__name__} is no model of transformers and no TextToImage, which alone are saved "
            "as a folder. Use expunge.training.checkpoint.save_weights for its weights."
        )
    folder, guard = Path(directory), getattr(model, GUARD, None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with silent():
            if isinstance(model, TextToImage):
                model.pipeline(tokenizer, task).save_pretrained(folder)
            else:
                cast(Any, model).save_pretrained(folder, state_dict=_own(model))
                if tokenizer is not None:
                    tokenizer.save_pretrained(folder)
        for name in (TENSORS, SETTINGS):
            (folder / name).unlink(missing_ok=True)
        if hasattr(guard, "learned"):
            _save_guard(guard, folder)
    except OSError as error:
        raise RunError(f"cannot write '{folder}': {error.strerror or error}.") from None


def load(directory: Path | str) -> nn.Module:
    """The model in a folder, or of the Hub by its id, under its guard if it has one.

    It is in evaluation mode, in the type it was saved in.

    Raises:
        CheckpointError: no such folder, damaged or missing files, or a guard that does not fit the model.
        MissingExtra: transformers or diffusers is not installed.
        Unsupported: a pipeline that is none of text to image, as ``TextToImage.from_pipeline``.
    """
    folder = local(directory)
    if not folder.is_dir():
        raise CheckpointError(f"'{folder}' is not a folder. Give one that expunge.save wrote.")
    if (folder / INDEX).exists():
        model: nn.Module = pretrained_pipeline(folder, dtype=None)
    else:
        model = pretrained(folder, causal=True, dtype=None)
    if not (folder / SETTINGS).exists():
        if (folder / TENSORS).exists():
            raise CheckpointError(f"'{folder}' has {TENSORS} but no {SETTINGS}. Copy the whole folder again.")
        return model
    try:
        written = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        settings, shapes = written["method"], written["shapes"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"'{folder / SETTINGS}' is damaged. Save the model again.") from None
    method = config.build(methods, settings, str(folder / SETTINGS))
    learned = read_weights(folder / TENSORS)
    found = {name: list(value.shape) for name, value in learned.items()}
    if found != shapes or not isinstance(method, Guard):
        raise CheckpointError(
            f"'{folder / TENSORS}' does not hold what {SETTINGS} says. Copy the whole folder again."
        )
    return method.attach(model, learned).eval()


def _own(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without what its guard learnt."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(f"{GUARD}.")}


def _save_guard(guard: Any, folder: Path) -> None:
    learned = {name: value.detach().cpu().contiguous() for name, value in guard.learned().items()}
    save_file(learned, folder / TENSORS, metadata={"format": "pt"})
    shapes = {name: list(value.shape) for name, value in learned.items()}
    written = {"method": config.dump(guard.method), "shapes": shapes, "torch": torch.__version__}
    write_text(folder / SETTINGS, json.dumps(written, indent=1))
