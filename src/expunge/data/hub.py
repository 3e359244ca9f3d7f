"""Models of the Hugging Face Hub by their id, as the folders that they are kept in."""

from __future__ import annotations

import re
from pathlib import Path

from expunge.errors import CheckpointError, MissingExtra

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_OTHER = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".py", ".npz", ".json", ".jsonl", ".yaml", ".txt")


def is_id(reference: Path | str) -> bool:
    """Whether it can only be an id of the Hub: ``owner/name``, and nothing here of the owner's name."""
    path = Path(reference)
    return (
        _ID.fullmatch(str(reference)) is not None and path.suffix not in _OTHER and not path.parent.exists()
    )


def local(reference: Path | str) -> Path:
    """The folder of a model: itself, or where the Hub's files of that id are; they are fetched once.

    Configuration, tokenizer and weights as safetensors are fetched, and no code. An id that is in the cache
    needs no connection. What is no id is given back as it is.

    Raises:
        CheckpointError: there is no such model, or no connection to fetch it by.
        MissingExtra: huggingface_hub is not installed.
    """
    if not is_id(reference):
        return Path(reference)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtra(f"the model '{reference}' of the Hugging Face Hub", "llm") from None
    found = None
    for offline in (True, False):
        try:
            found = Path(snapshot_download(str(reference), allow_patterns=_FILES, local_files_only=offline))
        except Exception as error:  # huggingface_hub, httpx and the operating system each raise their own
            if offline:
                continue
            said = " ".join(str(error).split())[:150].rstrip(".")
            raise CheckpointError(
                f"'{reference}' is no folder here, and no model of the Hugging Face Hub that can be fetched: "
                f"{said}. Check the name and the connection, or give a folder that save_pretrained wrote."
            ) from None
        if any(found.glob("*.safetensors")):
            break
    assert found is not None
    return found
