"""Folders of text-to-image pipelines: made to forget a concept, and asked to draw."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge import config
from expunge.api import Unlearned, unlearn
from expunge.data.captions import CaptionedImages, word_positions
from expunge.data.download import cache_folder
from expunge.data.hub import local
from expunge.data.image_folder import encode_images, read_captions
from expunge.data.prompted import CONCEPT, Side, prompted, read_prompts
from expunge.data.split import Split
from expunge.drawing import Drawing, Folder, drawn, sample, unguarded
from expunge.errors import ConfigError, DataError, RunError, Unsupported, fitting_memory
from expunge.methods.anchors import KINDS, concept_terms
from expunge.methods.base import Method, methods
from expunge.methods.gradient.sfd import SFD
from expunge.methods.guarded import GUARD
from expunge.saved import save
from expunge.store import write_text
from expunge.tasks.diffusion import Diffusion
from expunge.training.diffusion_models import TextToImage
from expunge.training.engine import Engine
from expunge.training.session import Callback, Session

__all__ = ["Drawing", "Request", "card", "forget", "request", "sample", "told", "write"]

CARD = "README.md"

NETWORKS = ("text_encoder", "unet", "vae")

CHUNK = 16
"""Images that are read and encoded at once."""


@dataclass(frozen=True)
class Request:
    """A pipeline and the concept that it is to forget.

    Attributes:
        folder: where it came from.
        model: float32, in evaluation mode; never changed.
        task: its noise schedule and prediction.
        concept: the words.
        keep: names of the concepts to keep; the first of them is the anchor ``next``.
        sides: of ``forget`` and ``retain``; where nothing is to be kept, retain is the empty prompt alone.
        kept: whether there is anything to retain.
    """

    folder: Path
    model: TextToImage
    task: Diffusion
    concept: str
    keep: tuple[str, ...]
    sides: Mapping[str, Side]
    kept: bool

    @property
    def split(self) -> Split:
        """Forget and retain; inputs are zeros where there are no images."""
        return self.filled({})

    @property
    def forget(self) -> CaptionedImages:
        assert isinstance(self.split.forget, CaptionedImages)
        return self.split.forget

    def filled(self, drawn: Mapping[str, Tensor]) -> Split:
        """The split with these latents for parts that have none."""
        first, other = self.sides["forget"], self.sides["retain"]
        inputs = [
            drawn.get(part, side.latents if side.latents is not None else self._zeros(len(side.captions)))
            for part, side in self.sides.items()
        ]
        data = CaptionedImages(
            torch.cat(inputs),
            [*first.captions, *other.captions],
            self.model.companions.tokenizer,
            concepts={"concept": (self.concept, *self.keep)} if self.keep else {},
            columns={"concept": torch.tensor([*first.concepts, *other.concepts])},
        )
        return Split.from_ids(data, range(len(first.captions)))

    def _zeros(self, count: int) -> Tensor:
        return torch.zeros(1, *self.model.latent_shape).expand(count, -1, -1, -1)


@fitting_memory()
def request(
    pipeline: Folder,
    concept: str = "",
    *,
    prompts: Sequence[str] = (),
    keep: Sequence[str] = (),
    forget: Folder | None = None,
    retain: Folder | Sequence[str] | None = None,
    examples: int = 200,
    engine: Engine | None = None,
) -> Request:
    """Reads a pipeline of diffusers and what is to be forgotten; finds mistakes before anything is trained.

    Args:
        pipeline: its folder; a Stable Diffusion pipeline or one like it.
        concept: its words; may be left out with a ``forget`` folder whose captions tell.
        prompts: prompts with ``{}`` in the place of a concept; by default the concept by itself and two
            short ones, see ``expunge.data.prompted``.
        keep: concepts to be kept, in the same prompts; what the anchors ``next``, ``random`` and ``nearest``
            are chosen from.
        forget: a folder of captioned images of the concept (see ``expunge.data.image_folder``).
        retain: the same of what is to be kept, a file with one prompt a line, or prompts.
        examples: of each part that has no images, its prompts by turns, each with noise of its own.

    Raises:
        CheckpointError: no pipeline there, or one that cannot be read.
        Unsupported: a pipeline without a text encoder or with two, or one under a guard.
        DataError: a concept that the tokenizer cannot see or that captions lack, one that is also to be kept,
            an image that cannot be read or that the autoencoder makes NaN of.
        ConfigError: nothing to forget, or keep and retain at once.
    """
    if not concept.strip() and forget is None:
        raise ConfigError("say what to forget, for example --concept 'mosaic style'.", "concept")
    if keep and retain is not None:
        raise ConfigError("keep names concepts and retain has prompts or images. Give one of the two.")
    if examples < 1:
        raise ConfigError(f"must be at least 1, got {examples}.", "examples")
    folder = local(pipeline)
    model = unguarded(folder)
    words = " ".join(concept.split())
    _visible(model.companions.tokenizer, words)
    names = tuple(" ".join(name.split()) for name in keep)
    sides = {
        "forget": _images(model, forget, engine)
        if forget is not None
        else prompted([words], prompts, examples, first=0),
        "retain": _retained(model, retain, names, prompts, examples, engine),
    }
    asked = Request(folder, model, model.task, words, names, sides, bool(names) or retain is not None)
    asked = replace(asked, concept=words or " ".join(concept_terms(asked.split)))
    _apart(asked)
    return asked


@fitting_memory()
def forget(
    asked: Request,
    method: str | Mapping[str, Any] | Method,
    *,
    drawing: Drawing | None = None,
    cache: Folder | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    callbacks: Sequence[Callback] = (),
) -> Unlearned:
    """A model that has forgotten; ``expunge.unlearn`` on what ``request`` read.

    The method is told the concept's words where it does not name them. Its anchor ``next`` is ``empty`` where
    no concepts to keep were named.

    Args:
        drawing: let the original draw the images that the method looks at and that were not given.
        cache: keeps them for the next call; by default ``drawn`` in ``$EXPUNGE_CACHE``.

    Raises:
        ConfigError: an unknown method or field, or one that needs images or something to keep.
        Unsupported, Diverged: as ``expunge.unlearn``.
    """
    chosen = told(asked, config.build(methods, method, "method"))
    name, looked = methods.name_of(chosen), chosen.reads_inputs()
    if isinstance(chosen, SFD):
        raise Unsupported(
            "sfd makes a generator of one step, which no pipeline draws with. Use expunge.unlearn on "
            "the model."
        )
    if "retain" in looked and not asked.kept:
        raise ConfigError(
            f"{name} needs something to keep. Give --keep 'photo style' and the like, or --retain; or use "
            "uce or esd."
        )
    lacking = [part for part in asked.sides if part in looked and asked.sides[part].latents is None]
    if lacking and drawing is None:
        raise ConfigError(
            f"{name} looks at images, and there are none to {' and to '.join(lacking)}. Give --forget and "
            "--retain folders of captioned images, let the pipeline draw them with --draw, or use uce or esd."
        )
    session = Session(seed, engine or Engine(), tuple(callbacks))
    place = cache_folder() / "drawn" if cache is None else Path(cache)
    data = asked.split.parts()
    images = {
        part: drawn(asked.model, data[part], part, drawing, place, session)  # type: ignore[arg-type]
        for part in lacking
        if drawing is not None
    }
    return unlearn(
        asked.model,
        asked.filled(images),
        chosen,
        task=asked.task,
        seed=seed,
        engine=engine,
        callbacks=callbacks,
    )


def told(asked: Request, method: Method) -> Method:
    """The method with the concept's words, and an anchor that there is."""
    fields: Any = {item.name for item in dataclasses.fields(method)}  # type: ignore[arg-type]
    known: Any = method
    if "concept" in fields and not known.concept:
        known = replace(known, concept=asked.concept)
    if "anchor" in fields and known.anchor in KINDS and not asked.keep:
        known = replace(known, anchor="empty")
    found: Method = known
    return found


def write(result: Unlearned, asked: Request, folder: Folder, drawing: Drawing | None = None) -> list[str]:
    """Writes a folder that ``from_pretrained`` of diffusers reads, with a card.

    Components that the method left as they are keep the files of the original, byte for byte.

    Returns:
        Names of the networks that changed; none under a guard, which only ``expunge.load`` reads.

    Raises:
        ConfigError: the folder is the original's.
        RunError: it cannot be written.
    """
    folder = Path(folder)
    if folder.resolve() == asked.folder.resolve():
        raise ConfigError("the pipeline that is read is never changed. Name another folder.", "output")
    save(result.model, folder)
    changed = [name for name in NETWORKS if _differ(asked.model, result.model, name)]
    try:
        for source in asked.folder.iterdir():
            target = folder / source.name
            if source.is_dir() and target.is_dir() and source.name not in changed:
                shutil.rmtree(target)
                shutil.copytree(source, target)
        for name in changed:
            _without_origin(folder / name / "config.json")
        (folder / CARD).write_text(card(result, asked, changed, drawing), encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write '{folder}': {error.strerror or error}.") from None
    return changed


def card(result: Unlearned, asked: Request, changed: Sequence[str], drawing: Drawing | None = None) -> str:
    """What was done, in Markdown: the pipeline's card."""
    method, guarded = methods.name_of(result.method), hasattr(result.model, GUARD)
    settings = "\n".join(f"- `{key}`: {value}" for key, value in config.dump(result.method).items())
    kept = ", ".join(asked.keep) or (
        f"{len(asked.sides['retain'].captions)} examples" if asked.kept else "nothing"
    )
    images = "It looked at no images. "
    if looked := result.method.reads_inputs():
        given = all(asked.sides[part].latents is not None for part in looked)
        images = "It looked at the images that were given. "
        if not given and drawing is not None:
            images = (
                f"It looked at images that the original drew for the prompts, in {drawing.steps} steps with "
                f"guidance {drawing.guidance:g}. "
            )
    where = f"Changed: {', '.join(changed)}; everything else is the original's, file by file. "
    if guarded:
        where = (
            "**The weights are the original's, and `from_pretrained` of diffusers draws the concept as "
            "before.** The guard is read by `expunge.load`; its `.pipeline()` draws under it. "
        )
    return (
        f"# {asked.folder.resolve().name}, after unlearning\n\n"
        f'`{method}` was asked to forget "{asked.concept}"; to be kept: {kept}. {images}{where}'
        f"Seed {result.session.seed}, {result.cost['seconds']:.1f} seconds.\n\n"
        "This card says what was done, not that it worked: compare with a pipeline that never saw the "
        "concept, and attack it with prompts that do not name it.\n\n"
        f"## Settings\n\n{settings}\n"
    )


def _retained(
    model: TextToImage,
    retain: Folder | Sequence[str] | None,
    keep: Sequence[str],
    prompts: Sequence[str],
    examples: int,
    engine: Engine | None,
) -> Side:
    if keep:
        return prompted(keep, [one for one in prompts if CONCEPT in one], examples, first=1)
    if retain is None:
        return Side(("",), (0,))
    if isinstance(retain, (str, Path)):
        if Path(retain).is_dir():
            return _images(model, retain, engine)
        retain = read_prompts(Path(retain))
    return prompted(list(retain), (CONCEPT,), examples, first=0)


def _images(model: TextToImage, folder: Folder, engine: Engine | None) -> Side:
    """Images of a folder as latents, in the size that the pipeline draws."""
    entries, placed = read_captions(folder), (engine or Engine()).placed(model)
    assert isinstance(placed, TextToImage)
    device = next(placed.parameters()).device
    settings: Any = model.vae.config
    factor = 2 ** (len(settings.block_out_channels) - 1)  # as pipelines of diffusers take it
    size = (model.latent_shape[1] * factor, model.latent_shape[2] * factor)
    latents = encode_images(
        [path for path, _ in entries], size, lambda images: placed.encode(images.to(device)), CHUNK
    )
    captions = tuple(caption for _, caption in entries)
    return Side(captions, (0,) * len(captions), latents)


def _visible(tokenizer: Any, concept: str) -> None:
    """Refuses words that become no token or an unknown one.

    Raises:
        DataError: names the first of them.
    """
    for word in concept.split():
        tokens = tokenizer(word, add_special_tokens=False)["input_ids"]
        if not tokens or (tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokens):
            raise DataError(
                f"the tokenizer cannot see '{word}' of the concept '{concept}': it has no tokens for it, so "
                "the pipeline never heard of it. Name the concept with words that it knows."
            )


def _apart(asked: Request) -> None:
    """Refuses a concept that a forget caption lacks or a retained one has.

    Raises:
        DataError: names the caption.
    """
    split = asked.split
    terms, retain = concept_terms(split, asked.concept), split.retain
    assert isinstance(retain, CaptionedImages)
    ids = retain.column("input_ids")
    there = torch.stack([word_positions(retain.tokenizer, ids, term).any(1) for term in terms]).all(0)
    if there.any():
        caption = retain.captions[int(there.nonzero()[0])]
        raise DataError(
            f"'{caption}' is to be kept and names the concept '{asked.concept}'. Take it out, or name the "
            "concept more closely."
        )


def _without_origin(path: Path) -> None:
    """Takes out of a configuration where on this machine the original was."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.pop("_name_or_path", None) is not None:
        write_text(path, json.dumps(settings, indent=2) + "\n")


def _differ(one: TextToImage, other: Any, name: str) -> bool:
    """Whether a network has other weights."""
    first, second = (getattr(model, name).state_dict() for model in (one, other))
    return first.keys() != second.keys() or any(
        not torch.equal(first[key].cpu(), second[key].cpu()) for key in first
    )
