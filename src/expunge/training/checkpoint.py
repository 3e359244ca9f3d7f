"""Weights to a file and back: safetensors, never code."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.errors import CheckpointError, RunError


def save_weights(model: nn.Module, path: Path | str) -> None:
    """Writes the state dict as safetensors; the file is complete or not there at all.

    A tensor that several names share is written once, under its first name.

    Raises:
        RunError: the file cannot be written (no space, no permission), or the model keeps state
            that is not a tensor.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise RunError(f"cannot save '{name}': it is {type(value).__name__}, not a tensor.")
    write_weights({names[0]: _alone(state[names[0]]) for names in _shared(state)}, path)


def write_weights(tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """The same of tensors by name, no two of which share memory.

    Raises:
        RunError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode  # safetensors would make the file private
        save_file(dict(tensors), partial, metadata={"format": "pt"})
        partial.chmod(mode)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise RunError(f"cannot write weights to '{path}': {reason}.") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Fills a model from a file; it is left as it was unless everything fits.

    Raises:
        CheckpointError: what ``read_weights`` raises, or names or shapes that do not fit the model.
    """
    fill(model, read_weights(path), path)


def fill(model: nn.Module, loaded: Mapping[str, Tensor], path: Path | str) -> None:
    """The same with the tensors that are in the file already at hand."""
    for child, module in model.named_children():
        adopt: Any = getattr(module, "adopt", None)
        if adopt is not None:  # a guard: what it holds has the shapes of what it learnt
            adopt({n.removeprefix(f"{child}."): t for n, t in loaded.items() if n.startswith(f"{child}.")})
    state = model.state_dict()
    groups = _shared(state)
    missing = [names[0] for names in groups if not any(name in loaded for name in names)]
    unexpected = [name for name in loaded if name not in state]
    if missing or unexpected:
        parts = [f"misses {_first_three(missing)}"] if missing else []
        parts += [f"has unexpected {_first_three(unexpected)}"] if unexpected else []
        raise CheckpointError(
            f"'{path}' is not a checkpoint of this {type(model).__name__}: it {' and '.join(parts)}. "
            "Give the weights of the same architecture."
        )
    for name, tensor in loaded.items():
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"'{path}' does not fit: '{name}' has shape {tuple(tensor.shape)} in the file and "
                f"{tuple(state[name].shape)} in the model. Give the sizes the model was trained with."
            )
    model.load_state_dict(loaded, strict=False)  # names that share a tensor may be left out


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors in a ``.safetensors`` file, or in a state dict that ``torch.save`` wrote, on the CPU.

    Raises:
        CheckpointError: no such file, a damaged one, one that holds more than tensors, or a NaN or
            infinity in a tensor.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint '{path}' {what}. Give a .safetensors file or a state dict.")
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except SafetensorError as error:
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"'{path}' is truncated or not a safetensors file ({said}). Copy or save it again."
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read '{path}': {error.strerror or error}.") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"'{path}' holds NaN or infinite weights in '{name}'. Use a checkpoint from before the "
                "training diverged."
            )
    return tensors


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise CheckpointError(
                f"'{path}' holds more than tensors, and loading it could run code. Save the state dict "
                "alone: torch.save(model.state_dict(), path)."
            ) from None
        raise CheckpointError(
            f"'{path}' is truncated or not a PyTorch checkpoint. Copy it again, or save it with "
            "torch.save(model.state_dict(), path)."
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        held = type(state).__name__
        if isinstance(state, Mapping):
            held = f"a mapping of {_first_three(map(str, state))}"
        raise CheckpointError(
            f"'{path}' is not a state dict: it holds {held}. Save torch.save(model.state_dict(), path)."
        )
    return dict(state)


def _shared(state: Mapping[str, Tensor]) -> list[list[str]]:
    """The names, grouped where they stand for the very same tensor; groups and names in order."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name, tensor in state.items():
        alone = tensor.numel() == 0 or tensor.is_meta
        same = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        groups[name if alone else same].append(name)
    return list(groups.values())


def _alone(tensor: Tensor) -> Tensor:
    """The tensor on the CPU in memory of its own."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _first_three(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more
