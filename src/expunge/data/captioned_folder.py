"""Folders of captioned images of known concepts, as what a pipeline's denoiser works on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.data.captions import CaptionedImages
from expunge.data.download import cache_folder, found_folder
from expunge.data.image_folder import METADATA, encode_images, read_metadata
from expunge.data.pipeline_folder import PipelineFolder
from expunge.data.source import DataSource, Sourced, sources
from expunge.errors import ConfigError, DataError

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}

Labelled = tuple[Path, str, tuple[str, ...]]
"""An image, its caption, and the name of its concept in each domain."""


@sources.register("captioned_folder")
@dataclass(frozen=True, kw_only=True)
class CaptionedFolder(DataSource):
    """Captioned images of styles and objects in a folder, for a pipeline of diffusers.

    The folder has one of two layouts. With a ``metadata.jsonl`` each of its lines names an image, its caption
    and its concepts: ``{"file_name": "1.png", "text": "a star in mosaic style", "style": "mosaic", "object":
    "star"}``. Without one, folders stand in folders, a level for each domain, as UnlearnCanvas has them:
    ``mosaic/star/1.jpg``; ``prompt`` then makes the captions.

    Columns: ``inputs``, the latents that the pipeline's autoencoder makes of the images, scaled and cut to
    the size that it draws; ``input_ids`` and ``empty.input_ids`` by its tokenizer; a column for each domain.
    Latents are kept in ``$EXPUNGE_CACHE``, by the images' names, sizes and dates and the autoencoder's files.

    Args:
        path: the folder, or its name in ``$EXPUNGE_DATA``.
        pipeline: the pipeline's folder, or its name in ``$EXPUNGE_DATA``.
        domains: columns of the metadata; levels of the folders, from the outermost.
        prompt: of folders in folders; ``{style}`` stands for the style's name.
        names: of concepts, where not the folder's name with spaces for underscores.
        only: concepts that are read of a domain; by default all.
        per_cell: at most so many images of each combination of concepts, the first by name or line.
        test_fraction: of each combination, its last images, at least one: where the same scene has the same
            name in every style it is tested on in all of them or in none.

    Raises:
        ConfigError: a prompt without a domain's name, or an image count below 2.
    References: Zhang et al., UnlearnCanvas, NeurIPS 2024 Datasets and Benchmarks, arXiv:2402.11846.
    """

    path: Path
    pipeline: Path
    domains: tuple[str, ...] = ("style", "object")
    prompt: str = "A {object} image in {style} style."
    names: dict[str, str] = field(default_factory=dict)
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)
    per_cell: int | None = None
    test_fraction: float = 0.2

    def __post_init__(self) -> None:
        if not self.domains or len(set(self.domains)) < len(self.domains):
            raise ConfigError("name at least one domain, each once.", "domains")
        if self.per_cell is not None and self.per_cell < 2:
            raise ConfigError(f"must be at least 2, one to test on, got {self.per_cell}.", "per_cell")
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"must be above 0 and below 1, got {self.test_fraction}.", "test_fraction")

    def load(self) -> Sourced:
        folder, pipeline = found_folder(self.path), PipelineFolder(found_folder(self.pipeline))
        read = self._listed(folder) if (folder / METADATA).is_file() else self._nested(folder)
        found = self._chosen(read, folder)
        concepts = {
            domain: tuple(sorted({names[place] for _, _, names in found}))
            for place, domain in enumerate(self.domains)
        }
        columns = {
            domain: torch.tensor([concepts[domain].index(names[place]) for _, _, names in found])
            for place, domain in enumerate(self.domains)
        }
        latents = _latents([path for path, _, _ in found], pipeline)
        tokenizer, captions = pipeline.tokenizer(), [caption for _, caption, _ in found]
        train, test = (
            CaptionedImages(
                latents[rows],
                [captions[row] for row in rows.tolist()],
                tokenizer,
                concepts=concepts,
                columns={domain: column[rows] for domain, column in columns.items()},
            )
            for rows in self._parts([names for _, _, names in found])
        )
        return Sourced(train, test, image_shape=(3, *pipeline.size))

    def _parts(self, cells: Sequence[tuple[str, ...]]) -> tuple[Tensor, Tensor]:
        """Rows to train and to test on."""
        rows: dict[tuple[str, ...], list[int]] = {}
        for row, cell in enumerate(cells):
            rows.setdefault(cell, []).append(row)
        held = set()
        for cell, known in rows.items():
            count = max(1, round(self.test_fraction * len(known)))
            if count == len(known):
                raise DataError(
                    f"there is nothing to train on of {' '.join(cell)}: of {len(known)} images {count} are "
                    "tested on. Add images, or lower test_fraction."
                )
            held |= set(known[-count:])
        tested = torch.tensor([row in held for row in range(len(cells))])
        return (~tested).nonzero()[:, 0], tested.nonzero()[:, 0]

    def _listed(self, folder: Path) -> list[Labelled]:
        found = []
        for path, caption, line in read_metadata(folder):
            names = tuple(line.get(domain) for domain in self.domains)
            for domain, name in zip(self.domains, names, strict=True):
                if not isinstance(name, str) or not name.strip():
                    raise DataError(
                        f"'{folder / METADATA}' does not say the {domain} of '{path.name}'. Write "
                        f'"{domain}": "…" into its line, or name other domains.'
                    )
            found.append((path, caption, tuple(str(name).strip() for name in names)))
        return found

    def _nested(self, folder: Path) -> list[Labelled]:
        depth = len(self.domains)
        files = [
            file
            for file in sorted(folder.glob("/".join(["*"] * (depth + 1))))
            if file.suffix.lower() in SUFFIXES and file.is_file()
        ]
        if not files:
            layout = "/".join(f"<{domain}>" for domain in self.domains)
            raise DataError(
                f"'{folder}' has no {METADATA} and no images in {layout}/. Give a folder of either layout."
            )
        found = []
        for file in files:
            parts = file.relative_to(folder).parts[:depth]
            names = tuple(self.names.get(part, part).replace("_", " ") for part in parts)
            found.append((file, self._caption(names), names))
        return found

    def _caption(self, names: Sequence[str]) -> str:
        caption = self.prompt
        for domain, name in zip(self.domains, names, strict=True):
            if f"{{{domain}}}" not in self.prompt:
                raise ConfigError(f"has no {{{domain}}}, the name of the {domain}.", "prompt")
            caption = caption.replace(f"{{{domain}}}", name)
        return caption

    def _chosen(self, read: list[Labelled], folder: Path) -> list[Labelled]:
        """Those of the concepts that are wanted, and no more of each combination than asked for."""
        for domain, wanted in self.only.items():
            if domain not in self.domains:
                raise ConfigError(f"there is no domain '{domain}', only {', '.join(self.domains)}.", "only")
            place = self.domains.index(domain)
            known = {names[place] for _, _, names in read}
            if absent := [name for name in wanted if name not in known]:
                raise DataError(f"'{folder}' has no {domain} '{absent[0]}'. It has {_some(known)}.")
            read = [entry for entry in read if entry[2][place] in wanted]
        counts: dict[tuple[str, ...], int] = {}
        found = []
        for entry in read:
            counts[entry[2]] = counts.get(entry[2], 0) + 1
            if self.per_cell is None or counts[entry[2]] <= self.per_cell:
                found.append(entry)
        return found


def _some(names: set[str], most: int = 8) -> str:
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _latents(paths: Sequence[Path], pipeline: PipelineFolder) -> Tensor:
    """Latents of images, each made once for the same autoencoder."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    told = json.dumps([stats, pipeline.encoder_digest(), pipeline.size])
    file = cache_folder() / "latents" / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.safetensors"
    try:
        known: Tensor = load_file(file)["latents"]
        return known
    except (OSError, SafetensorError, KeyError):
        found = encode_images(paths, pipeline.size, pipeline.encoder())
    _keep({"latents": found}, file)
    return found


def _keep(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Writes a file whole or not at all; a cache that cannot be written is none."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
        os.replace(partial, file)
    except OSError:
        partial.unlink(missing_ok=True)
