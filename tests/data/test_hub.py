"""Models of the Hub by their id; nothing is fetched here."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from expunge.data import hub
from expunge.errors import CheckpointError


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, bool]]:
    """A Hub with one model, which is not in the cache at first."""
    calls: list[tuple[str, bool]] = []
    folder = tmp_path / "cache" / "models--ada--tiny"

    def snapshot_download(repo_id: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        calls.append((repo_id, local_files_only))
        assert not any(pattern.endswith(".py") or pattern == "*" for pattern in allow_patterns)
        if local_files_only and not folder.exists():
            raise FileNotFoundError("not in the cache")
        if repo_id != "ada/tiny":
            raise ConnectionError("no route\nto host.")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").touch()
        return str(folder)

    fake = types.ModuleType("huggingface_hub")
    fake.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.chdir(tmp_path)
    return calls


def test_an_id_is_fetched_once_and_then_read_from_the_cache(fetched) -> None:
    first = hub.local("ada/tiny")
    assert fetched == [("ada/tiny", True), ("ada/tiny", False)]
    assert hub.local(Path("ada/tiny")) == first
    assert fetched[2:] == [("ada/tiny", True)]


def test_what_is_here_or_is_no_id_is_never_asked_for(fetched, tmp_path) -> None:
    (tmp_path / "runs").mkdir()
    for path in (
        "runs/modle",
        "runs",
        "nowhere",
        "a/b/c",
        "models/weights.safetensors",
        "/ada/tiny",
        "./x/y",
    ):
        assert hub.local(path) == Path(path)
    assert fetched == []
    assert all(hub.is_id(name) for name in ("Qwen/Qwen2.5-0.5B", "EleutherAI/pythia-70m", "ada/tiny"))


def test_without_a_connection_one_line_says_both_what_it_is_not_and_what_failed(fetched) -> None:
    with pytest.raises(CheckpointError) as caught:
        hub.local("ada/other")
    assert str(caught.value) == (
        "'ada/other' is no folder here, and no model of the Hugging Face Hub that can be fetched: no route "
        "to host. Check the name and the connection, or give a folder that save_pretrained wrote."
    )
