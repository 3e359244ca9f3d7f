"""Checkpoint folders of Hugging Face: ``config.json`` and weights, as ``save_pretrained`` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.errors import CheckpointError, MissingExtra

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def pretrained(
    folder: Path, causal: bool = False, *, dtype: torch.dtype | None = torch.float32, **options: Any
) -> nn.Module:
    """The image classifier, or (vision-)language model, in a folder; in evaluation mode.

    Nothing is downloaded and no code from the folder is run. The normalisation and resizing that its
    image processor would do are not applied: the model gets the data as it is.

    Args:
        dtype: of the parameters; ``None`` leaves them as they are loaded.
        options: of transformers' ``from_pretrained``.

    Raises:
        CheckpointError: no configuration, no weights, damaged ones, or weights that do not fill the
            model (a backbone without its head).
        MissingExtra: transformers is not installed.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"'{folder}' is a folder without config.json, so it is no Hugging Face checkpoint. Give a folder "
            "that save_pretrained wrote, a file of weights, or module:function."
        )
    if not any(found for pattern in _WEIGHTS for found in folder.glob(pattern)):
        raise CheckpointError(
            f"'{folder}' has a config.json but no weights. Add its model.safetensors, or save the model "
            "again with save_pretrained."
        )
    model, missing = _load(folder, causal, options)
    if missing:
        names = ", ".join(f"'{name}'" for name in missing[:3]) + (" and more" if len(missing) > 3 else "")
        raise CheckpointError(
            f"'{folder}' has no weights for {names} of {type(model).__name__}: it is not a trained model of "
            "this kind. Give the checkpoint that was fine-tuned."
        )
    if dtype == torch.float32:
        model = model.float()
    elif dtype is not None:
        for parameter in model.parameters():  # not the buffers: rotary frequencies need float32
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def _load(folder: Path, causal: bool, options: dict[str, Any]) -> tuple[nn.Module, list[str]]:
    """The model and the names of the parameters that its files do not hold."""
    try:
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForImageClassification,
            AutoModelForImageTextToText,
        )
    except ImportError:
        raise MissingExtra(f"the Hugging Face checkpoint '{folder}'", "llm") from None
    kind: Any = AutoModelForImageClassification
    if causal:
        kind = AutoModelForImageTextToText if _sees(folder) else AutoModelForCausalLM
    try:
        with silent():
            model, loading = kind.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, **options
            )
    except Exception as error:  # transformers, tokenizers, safetensors and pickle each raise their own
        said = " ".join(str(error).split())
        said = said if len(said) <= 200 else f"{said[:197]}..."
        raise CheckpointError(
            f"'{folder}' cannot be loaded by {kind.__name__}: {said.rstrip('.')}. Copy or save it again, or "
            "give a module:function that loads it."
        ) from None
    return model, sorted(loading["missing_keys"])


def _sees(folder: Path) -> bool:
    """Whether the configuration has a vision tower."""
    try:
        return "vision_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # transformers says what is wrong with it


@contextmanager
def silent(library: str = "transformers") -> Iterator[None]:
    """Keeps progress bars and warnings of transformers or diffusers off the terminal."""
    logging: Any = import_module(f"{library}.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
