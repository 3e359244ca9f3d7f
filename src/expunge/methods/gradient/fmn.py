"""FMN: forget-me-not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch
from expunge.data.captions import CaptionedImages, word_positions
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.anchors import concept_terms
from expunge.methods.base import GradientMethod, methods
from expunge.methods.conditions import conditional
from expunge.methods.scopes.denoiser import Denoiser
from expunge.tasks.base import Task
from expunge.tasks.diffusion import Diffusion
from expunge.training.attention_maps import attention_maps
from expunge.training.engine import Engine
from expunge.training.loop import Pass, Plan
from expunge.training.optim import AdamW, Optim
from expunge.training.scope import Scope
from expunge.training.session import Session
from expunge.training.step import Step


@dataclass
class Attention:
    """One run: which tokens are the concept's, and how much attention they had and have.

    Args:
        shares: ``L`` over that of the original, of each image since the latest step began.
    """

    original: nn.Module
    task: Diffusion
    engine: Engine
    tokenizer: Any
    terms: Sequence[str]
    end: bool
    shares: list[Tensor] = field(default_factory=list)

    def places(self, ids: Tensor) -> Tensor:
        """Whether a token is the concept's, ``(N, T)``; with ``end`` also the first end of the text."""
        rows = torch.stack([word_positions(self.tokenizer, ids, term) for term in self.terms]).any(0)
        if self.end:
            is_end = ids == self.tokenizer.eos_token_id
            rows = rows | (is_end & (is_end.cumsum(1) == 1))
        return rows

    def norms(self, model: nn.Module, batch: Batch) -> Tensor:
        """``‖A_l[:, :, concept tokens]‖₂`` over all layers ``l`` together, of each image, ``(N,)``."""
        with self.engine.autocast(), attention_maps(model) as maps:
            self.task.outputs(model, batch)
        return attended(maps, self.places(batch["input_ids"]))

    def share(self, norms: Tensor, batch: Batch) -> Tensor:
        """The norms over those of the original on the same batch, ``(N,)``."""
        with self.engine.frozen(self.original) as model:
            return norms.detach() / self.norms(model, batch)

    def reached(self, floor: float) -> bool:
        """Whether attention fell to this share of the original's; a new step begins."""
        shares = torch.cat(self.shares)
        self.shares.clear()
        return float(shares.mean()) <= floor


def attended(maps: Mapping[str, Tensor], places: Tensor) -> Tensor:
    """The norm over layers, heads, pixels and the tokens at ``places`` ``(N, T)``, of an image, ``(N,)``."""
    here = places[:, None, None].to(next(iter(maps.values())))
    squares = [(found.square() * here).sum((1, 2, 3)) for found in maps.values()]
    return torch.stack(squares).sum(0).sqrt()


@methods.register("fmn")
@dataclass(frozen=True, kw_only=True)
class FMN(GradientMethod):
    """Suppresses the attention that images of a concept pay to the concept's words.

    ``min_θ  mean_i ‖concat_l A_l(x_t, t, c)[:, :, tokens of the concept]‖₂`` with ``A_l`` the cross-attention
    probabilities of layer ``l``, ``(heads, pixels, tokens)``, and ``x_t`` a noised image ``i`` of the concept
    under its caption ``c``. The norm is not squared, and there is no term that denoises.

    Args:
        concept: its words, where the captions do not tell; their places are found with the tokenizer.
        captions: use other captions of the examples than their own, by name: ``style``, ``object``.
        end: also suppress the attention to the first end-of-text token (the authors' ``use_pooler``).
        samples: images of the concept, drawn once; ``null`` for all of them.
        floor: stop as soon as the attention is at most this share of the original's on the same batch; 0
            goes through all epochs.
        scope: the authors train cross-attention for styles and the whole denoiser (``all``) for objects.

    Shapes: text-to-image models with captioned images. Unsupported for others, and for attention that
        normalises queries and keys.
    Cost: ``epochs`` forward and backward passes over the samples; with a floor one more forward pass of the
        original each.
    Guarantee: empirical. Strength grows with learning rate and steps, and the model soon draws nothing of
        use: stop early, by ``floor`` or few epochs.
    Differs: the norm is of each image, averaged over the batch. The authors' code tiles the mask of the
        concept's tokens by heads while the probabilities are laid out by examples, so that it suppresses
        other tokens unless the batch is one image; here heads are an axis of their own. Probabilities are
        computed from queries and keys beside the model's own attention, fused or not; theirs replaces it.
        The first stage, which learns new tokens for the concept by textual inversion, is left out: a concept
        with words needs none. ``floor`` is ours, as is the choice of images by chance; theirs are given.
    References: Zhang et al., Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models, 2023,
        arXiv:2303.17591. Batch 1, decay 0.01, clipping at 1; 2e-5 and 100 steps on 20 images as in
        UnlearnCanvas, arXiv:2402.11846 (2e-6 and 35 steps in the authors' code).
    """

    batch_size: int = 1
    optim: Optim = AdamW(lr=2e-5, weight_decay=0.01, clip=1.0)
    scope: Scope = Denoiser(part="cross_attention")
    mode: Literal["train", "eval"] = "eval"
    concept: str = ""
    captions: str = ""
    end: bool = False
    samples: int | None = 20
    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"must be at least 1, got {self.samples}.", "samples")
        if not 0 <= self.floor < 1:
            raise ConfigError(f"is a share in [0, 1), got {self.floor}.", "floor")

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        conditional(split, task, "fmn")
        if not isinstance(split.forget, CaptionedImages):
            raise Unsupported(
                "fmn suppresses attention to words, and there are none. Use esd or sa for classes."
            )

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget"),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Attention:
        forget, denoising = cast(CaptionedImages, split.forget), conditional(split, task, "fmn")
        terms = concept_terms(split, self.concept)
        original, tokenizer = session.engine.placed(model), forget.tokenizer
        state = Attention(original, denoising, session.engine, tokenizer, terms, self.end)
        key = f"{self.captions}.input_ids" if self.captions else "input_ids"
        if self.captions and self.captions not in forget.names:
            raise Unsupported(
                f"the data has no '{self.captions}' captions; it has: {', '.join(forget.names)}. "
                "Give them by with_captions, or set captions to one of these."
            )
        if not replace(state, end=False).places(forget.column(key)).any(1).all():
            raise DataError(
                f"some '{self.captions}' captions have no word of the concept '{' '.join(terms)}'. Name "
                "other captions, or the concept with words that stand in all of them."
            )
        return state

    def plan(self, model: nn.Module, split: Split, task: Task, session: Session) -> Plan:
        plan, chosen = super().plan(model, split, task, session), split.forget
        if self.samples is not None and self.samples < len(chosen):
            order = torch.randperm(len(chosen), generator=session.generator("samples"))
            chosen = chosen.subset(chosen.ids[order[: self.samples].sort().values])
        state: Attention = plan.state
        after = (lambda _, __: state.reached(self.floor)) if self.floor else None
        return replace(plan, parts={**plan.parts, "forget": chosen}, after=after)

    def objective(self, step: Step) -> dict[str, Tensor]:
        state: Attention = step.state
        batch = step.forget.batch
        if self.captions:
            batch = state.task.instead(batch, self.captions)
        norms = state.norms(step.model, batch)
        if self.floor:
            state.shares.append(state.share(norms, batch))
        return {"forget": norms.mean()}
