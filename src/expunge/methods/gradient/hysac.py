"""HySAC: hyperbolic safety-aware CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from expunge.data.split import Split
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.tasks.image_text import ImageText
from expunge.training import hyperbolic
from expunge.training.clip_models import HyperbolicPair
from expunge.training.engine import Engine
from expunge.training.loop import Pass, optimise
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.step import Step

IMAGES, CAPTIONS = "safe.inputs", "safe.input_ids"
"""The columns of what is safe in place of an example to forget."""


@methods.register("hysac")
@dataclass(frozen=True, kw_only=True)
class HySAC(GradientMethod):
    """Orders safe and unsafe images and captions in hyperbolic space, the unsafe ones farther from its root.

    With points ``T`` of captions and ``V`` of images, safe ``s`` and unsafe ``u`` (the examples to forget)::

        min  Σ_7 w L / Σ_7 w
        contrast, w = 1:  (V_s, T_s), (V_u, T_u), (V_u, T_s), (V_s, T_u)
        entail,   w = λ:  T_s → V_s,  T_u → V_u,  V_s → T_u

    ``contrast`` is the symmetric cross-entropy within the batch of ``−e^s d(V, T)`` with geodesic distances
    ``d``; ``x → y`` is ``max(0, angle(x, y) − asin(2K / (√c ‖x‖)))``. The result is a ``HyperbolicPair``: its
    ``embed_images`` and ``embed_texts`` with ``redirect=True`` move what lies farther from the root than
    ``quantile`` of the safe points of its kind along the geodesic to the root, to that distance.

    Args:
        entailment: ``λ``.
        constant: ``K``, the size of the cones.
        quantile: of the safe distances from the root.

    Shapes: pairs of an image and a text encoder under task ``image_text``; examples to forget have columns
        ``safe.inputs`` and ``safe.input_ids``. Unsupported for other tasks. The retain set is not used.
    Cost: ``epochs`` passes over the forget set with two forward passes and one backward pass each, and one
        forward pass over the safe ones at the end. One copy of the weights besides the model.
    Guarantee: empirical.
    Differs: redirection is in terms of geodesic distance and for any number of points. The authors' code
        compares a geodesic distance with the bound, then makes the bound the Euclidean norm of the space
        component, after a shift by ``tanh + 1``, and takes one embedding at a time. There, the weighted mean
        of the seven is divided by 7 once more, which only changes the step. All weights move, in place of
        LoRA adapters of rank 16 on a ViT-L/14; ``λ`` is a choice of ours. Negatives are of one process, as in
        effect they are there. Captions are read at their end token, so that padding of any kind is not read.
    References: Poppi et al., Hyperbolic Safety-Aware Vision-Language Models, CVPR 2025, arXiv:2503.12127;
        learning rate, weight decay, batches of 32, ``K`` and the 95th percentile as in its code. Cones and
        maps: Desai et al., Hyperbolic Image-Text Representations, ICML 2023, arXiv:2304.09172.
    """

    epochs: int = 50
    batch_size: int = 32
    optim: Optim = AdamW(lr=1e-4, weight_decay=0.2, betas=(0.9, 0.98))
    entailment: float = 0.2
    constant: float = 0.1
    quantile: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.entailment < 0:
            raise ConfigError(f"must not be negative, got {self.entailment}.", "entailment")
        for name in ("constant", "quantile"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"must be in (0, 1], got {getattr(self, name)}.", name)

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        if not isinstance(task, ImageText):
            raise Unsupported(
                f"hysac matches images and captions, and task '{type(task).__name__}' does not. Use a method "
                "for every task: grad_diff, npo."
            )
        for name in (IMAGES, CAPTIONS):
            try:
                split.forget.column(name)
            except DataError:
                raise Unsupported(
                    f"hysac needs what is safe in place of each example to forget. Give a column '{name}'."
                ) from None

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget"),)

    def blank(self, model: nn.Module, split: Split) -> nn.Module:
        measure = getattr(model, "text_features", None)
        if measure is None:
            raise Unsupported("the model has no text_features. Give a ClipPair of training.clip_models.")
        with torch.no_grad():
            row = split.forget.column("input_ids")[:1].to(next(model.parameters()).device)
            return HyperbolicPair(model, measure(row).shape[1])

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        pair = self.blank(session.engine.copy(model), split)
        result = optimise(pair, self.plan(pair, split, task, session), task, session)
        if not isinstance(result, HyperbolicPair):
            raise Unsupported("the scope gives back another kind of model. Set scope to everything.")
        self.bound(result, split, task, session)
        return result

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Engine:
        return session.engine

    def bound(self, model: HyperbolicPair, split: Split, task: Task, session: Session) -> None:
        """Sets how far from the root safe images and captions may lie."""
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        order = split.forget.fixed_order(task.batch_size(split.forget))
        with session.engine.frozen(model):
            for batch in split.forget.batches(order, device=session.engine.torch_device):
                points = model.embed_images(batch[IMAGES]), model.embed_texts(batch[CAPTIONS])
                for known, x in zip(found, points, strict=True):
                    known.append(hyperbolic.from_root(x, model.curvature))
            model.image_bound.copy_(torch.cat(found[0]).quantile(self.quantile))
            model.text_bound.copy_(torch.cat(found[1]).quantile(self.quantile))

    def objective(self, step: Step) -> dict[str, Tensor]:
        engine: Engine = step.state
        batch, model = step.forget.batch, cast(HyperbolicPair, step.model)
        with engine.autocast():
            shown_u, shown_s = (model.embed_images(batch[name]) for name in ("inputs", IMAGES))
            told_u, told_s = (model.embed_texts(batch[name]) for name in ("input_ids", CAPTIONS))
        c, weight = model.curvature, self.entailment
        pairs = (
            ("ss", shown_s, told_s),
            ("uu", shown_u, told_u),
            ("us", shown_u, told_s),
            ("su", shown_s, told_u),
        )
        terms = {f"contrast_{name}": contrast(model.match(shown, told)) for name, shown, told in pairs}
        for name, x, y in (
            ("safe", told_s, shown_s),
            ("unsafe", told_u, shown_u),
            ("order", shown_s, told_u),
        ):
            terms[f"entail_{name}"] = weight * self.entail(x, y, c)
        return {name: value / (4 + 3 * weight) for name, value in terms.items()}

    def entail(self, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        """How far each ``y`` is out of the cone of its ``x``, in radians, on average."""
        outside = hyperbolic.angle(x, y, c) - hyperbolic.aperture(x, c, self.constant)
        return outside.clamp(min=0).mean()


def contrast(scores: Tensor) -> Tensor:
    """``½ CE(S, i) + ½ CE(Sᵀ, i)`` of scores ``(N, N)``, a mean."""
    rows = torch.arange(len(scores), device=scores.device)
    return (cross_entropy(scores, rows) + cross_entropy(scores.T, rows)) / 2
