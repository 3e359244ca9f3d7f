"""Who says what an image shows: classifiers trained on the data's own images, or the user's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from expunge import config
from expunge.data.arrays import ArrayData, Data
from expunge.errors import ConfigError, DataError, MissingEvidence
from expunge.evaluation import gallery as galleries
from expunge.evaluation.evidence import Evidence, Tensors
from expunge.evaluation.gallery import Gallery, Pictures
from expunge.tasks.base import model_output
from expunge.tasks.classification import Classification
from expunge.training import features, functions
from expunge.training.engine import Engine
from expunge.training.optim import AdamW, Optim
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

TRUSTED = 0.9
"""The accuracy on held-out images below which a judge's numbers cannot be trusted."""

CLEAN = "clean_"
"""What the column of a domain is called before it where captions are wrong on purpose."""

FEATURES, FIELDS = 128, 4
"""Features of a judge, and fields along a side of the image that they see apart."""

_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Which classifiers say what an image shows, one for each domain.

    By default a ``PictureClassifier``, trained on all training images, those to forget among them, by the
    loop that trains everything. Its accuracy on the test images is in the details of every score.

    Args:
        width: channels of its first stage.
        epochs, batch_size, optim: of its training.
        steps: there are more epochs where images are so few that there would be fewer steps than this.
        seed: of its training; the same judge for all models and forget sets.
        load: your own instead, ``module:function`` or ``file.py:function``, called with ``domain`` and
            ``concepts`` (its names in order): it returns a module that takes ``(N, C, H, W)`` in [0, 1] to
            ``(N, len(concepts))`` logits. Its features are what its last linear layer is given.

    Raises:
        ConfigError: a size below 1.
    """

    width: int = 24
    epochs: int = 5
    batch_size: int = 64
    optim: Optim = AdamW(lr=2e-3, schedule="cosine")
    steps: int = 100
    seed: int = 0
    load: str = ""

    def __post_init__(self) -> None:
        for name in ("width", "epochs", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)


class Passes(Protocol):
    """Who is trained for so many epochs, and no fewer steps."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def steps(self) -> int: ...


def epochs(who: Passes, examples: int) -> int:
    """``max(epochs, ⌈steps / ⌈examples / batch_size⌉⌉)``."""
    return max(who.epochs, math.ceil(who.steps / math.ceil(examples / who.batch_size)))


class PictureClassifier(nn.Module):
    """Three stages of a 3×3 convolution, batch norm and pooling, then 128 features and logits.

    The features see where in the image something is, in 4 × 4 fields: an average over all places, as of
    ``small_cnn``, says little of shapes.

    Args:
        in_channels: colours of images ``(N, C, H, W)``.
        classes: number of logits.
        width: channels of the first stage; the others have 2 and 4 times as many.
    """

    def __init__(self, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for before, after in ((in_channels, width), (width, 2 * width), (2 * width, 4 * width)):
            stages += [nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            stages.append(nn.MaxPool2d(2, ceil_mode=True))
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(FIELDS), nn.Flatten())
        self.inner = nn.Linear(4 * width * FIELDS**2, FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(self.body(images))))  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Seen:
    """What judges say of images.

    Shapes: ``cells`` ``(N, D)``, the concept of each domain; ``features`` ``(N, F)`` float32, those of all
        judges side by side.
    """

    cells: Tensor
    features: Tensor


@dataclass(frozen=True, eq=False)
class Judges:
    """One classifier for each domain, and its accuracy on held-out real images."""

    models: Mapping[str, nn.Module]
    accuracy: Mapping[str, float]

    def look(self, images: Tensor, engine: Engine) -> Seen:
        """Their verdicts on images ``(N, C, H, W)`` uint8.

        Raises:
            DataError: a judge answers in another shape, or with NaN or infinite values.
            Unsupported: a judge has no last linear layer.
        """
        looks = [_look(model, images, engine) for model in self.models.values()]
        return Seen(
            torch.stack([said.argmax(1) for said, _ in looks], 1), torch.cat([f for _, f in looks], 1)
        )

    @property
    def details(self) -> dict[str, Any]:
        """What every score says of them: their accuracies, and a note where they cannot be trusted."""
        weak = {domain: share for domain, share in self.accuracy.items() if share < TRUSTED}
        found: dict[str, Any] = {"judges": dict(self.accuracy)}
        if weak:
            said = ", ".join(f"{share:.1%} of the {domain}s" for domain, share in weak.items())
            found["note"] = (
                f"These numbers cannot be trusted: the judge is right on only {said} of real images that it "
                f"was not trained on, below {TRUSTED:.0%}. Train it longer, or bring your own."
            )
        return found


def judges(evidence: Evidence, judge: Judge) -> Judges:
    """The judges of this data, trained or loaded once.

    Raises:
        MissingEvidence: there are no test images to know their accuracy by.
        ConfigError: ``load`` names no function that returns a module.
        Unsupported, DataError: as ``gallery.training`` and ``gallery.domains``.
    """
    return evidence.original.once(("judges", judge), lambda: _judges(evidence, judge))


def seen(evidence: Evidence, gallery: Gallery, judge: Judge) -> tuple[Pictures, Seen, Judges]:
    """What the subject draws and what the judges say of it; each made once.

    Raises:
        ExpungeError: as ``gallery.pictures`` and ``judges``.
    """
    who = judges(evidence, judge)
    drawn = galleries.pictures(evidence, gallery)
    key = ("seen", gallery, judge)
    said = evidence.subject.once(key, lambda: who.look(drawn.images, evidence.session.engine))
    return drawn, said, who


def real(evidence: Evidence, part: str, judge: Judge) -> tuple[Tensor, Seen]:
    """The concepts ``(N, D)`` of a part's real images, through the codec, and what the judges say of them.

    Raises:
        MissingEvidence: there is no such part.
    """

    def look() -> tuple[Tensor, Seen]:
        if part not in evidence.parts:
            raise MissingEvidence(f"there are no {part} images. Give the split {part}=….")
        data = evidence.parts[part]
        who, found = judges(evidence, judge), galleries.prompts(evidence).domains
        images = galleries.decoded(evidence, data.column("inputs"))
        return galleries.cells(data, found), who.look(images, evidence.session.engine)

    return evidence.original.once(("real", part, judge), look)


def _judges(evidence: Evidence, judge: Judge) -> Judges:
    train, found = galleries.training(evidence), galleries.prompts(evidence).domains
    if "test" not in evidence.parts:
        raise MissingEvidence(
            "a judge's accuracy is measured on test images, and there are none. Give the split test=…."
        )
    test = evidence.parts["test"]
    images = galleries.decoded(evidence, test.column("inputs"))
    known = None if judge.load else galleries.decoded(evidence, train.column("inputs"))
    models, accuracy = {}, {}
    for place, (domain, names) in enumerate(found.items()):
        if known is None:
            model = loaded(judge, domain, names)
        else:
            labels = _labels(train, found, place)
            model = _trained(evidence, judge, domain, ArrayData({"inputs": known, "targets": labels}))
        said, _ = _look(model, images, evidence.session.engine)
        if said.shape[1] != len(names):
            raise DataError(
                f"the judge of the domain '{domain}' gives {said.shape[1]} logits for {len(names)} concepts. "
                "Give one for each, in the order of the data."
            )
        models[domain] = model
        accuracy[domain] = float((said.argmax(1) == _labels(test, found, place)).double().mean())
    return Judges(models, accuracy)


def _labels(data: Data, domains: Mapping[str, tuple[str, ...]], place: int) -> Tensor:
    """What images show in a domain, ``(N,)``: what they really show where captions are wrong."""
    try:
        return data.column(f"{CLEAN}{list(domains)[place]}")
    except DataError:
        return galleries.cells(data, domains)[:, place]


def _trained(evidence: Evidence, judge: Judge, domain: str, data: ArrayData) -> nn.Module:
    count = len(galleries.prompts(evidence).domains[domain])
    if count < 2:
        raise DataError(f"the data has a single {domain}, so that there is nothing to tell apart.")
    model = partial(PictureClassifier, data.column("inputs").shape[1], count, judge.width)
    training = Training(epochs=epochs(judge, len(data)), batch_size=judge.batch_size, optim=judge.optim)
    recipe = Recipe(model, Classification(count), training)
    session = Session(judge.seed, evidence.session.engine, evidence.session.callbacks).child("judge", domain)

    def compute() -> tuple[dict[str, Any], Tensors]:
        made = recipe.train(data, session, f"judge of {domain}")
        return {}, {name: value.cpu() for name, value in made.state_dict().items()}

    depends = (config.dump(judge), domain, data.fingerprint())
    tensors = evidence.kept(f"judge of {domain}", depends, compute)
    network = recipe.initial(session)
    network.load_state_dict(tensors)
    return evidence.session.engine.place(network).eval()


def loaded(judge: Judge, domain: str, names: tuple[str, ...]) -> nn.Module:
    """The user's own judge of a domain.

    Raises:
        ConfigError: no such function, or no module from it.
    """
    made = functions.call(judge.load, {"domain": domain, "concepts": names})
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"'{judge.load}' returned {type(made).__name__}; expected a torch nn.Module.", "judge.load"
        )
    return made.eval()


def _look(model: nn.Module, images: Tensor, engine: Engine) -> tuple[Tensor, Tensor]:
    """Logits ``(N, K)`` and features ``(N, F)``, on the CPU."""
    placed, said = engine.placed(model), []
    with engine.frozen(placed), features.captured(placed) as found:
        for part in images.split(_BATCH):
            said.append(model_output(placed(part.to(engine.torch_device).float() / 255)).float().cpu())
    logits, inner = torch.cat(said), torch.cat([row.flatten(1).float().cpu() for row in found])
    if not (torch.isfinite(logits).all() and torch.isfinite(inner).all()):
        raise DataError("a judge's answers are NaN or infinite. Train it again, or bring another.")
    return logits, inner
