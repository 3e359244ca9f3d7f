"""UCE: unified concept editing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from expunge.data.captions import CaptionedImages, tokenise, word_positions
from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.anchors import Anchor, anchor_captions, concept_terms
from expunge.methods.base import Edit, methods
from expunge.methods.conditions import conditional
from expunge.methods.scopes.denoiser import Denoiser
from expunge.tasks.base import Task
from expunge.training.cross_attention import cross_attention
from expunge.training.scope import Scope
from expunge.training.session import Session


class Texts(NamedTuple):
    """States of tokens as rows, float64: of the concept, what each turns into, and what is preserved."""

    concept: Tensor
    anchor: Tensor
    kept: Tensor


@methods.register("uce")
@dataclass(frozen=True, kw_only=True)
class UCE(Edit):
    """Edits every key and value matrix so that the tokens of a concept are read as those of its anchor.

    Each matrix ``W`` of the cross-attention becomes the minimum of
    ``e Σ_i ‖W' c_i − v_i‖² + p Σ_j ‖W' k_j − W k_j‖² + λ ‖W' − W‖²``, which is
    ``(e Σ v_i c_iᵀ + p W Σ k_j k_jᵀ + λ W) (e Σ c_i c_iᵀ + p Σ k_j k_jᵀ + λ I)⁻¹``. ``c_i`` are the states of
    the forget captions' tokens from the last one of the concept's words to the end of the text and its
    padding, ``a_i`` those of the anchor captions at the same distance from the end of the text, ``k_j``
    those of all tokens of the retained captions and of the empty prompt; every caption counts once.

    Args:
        technique: ``replace``: ``v_i = W a_i``; ``tensor``: ``W a_i`` without its component along ``W c_i``.
        anchor: what the concept turns into: see ``anchored``.
        concept: its words, where the captions do not tell.
        erase: ``e``.
        preserve: ``p``; ``null`` is ``max(0.1, 1 / number of preserved captions)``.
        ridge: ``λ``.
        matrices: how many matrices must be found; ``null`` for whatever there are, two for each layer of
            cross-attention, 32 in Stable Diffusion 1.
        scope: further narrows which of these matrices are edited.

    Shapes: text-to-image models. Unsupported for others, and for adapters around the matrices.
    Cost: a forward pass of the text encoder for each caption and one ``D × D`` inversion, float64, for all
        matrices together. No training.
    Guarantee: empirical.
    Differs: all sums and the solution are float64; the code of UnlearnCanvas computes them under float16. The
        number of matrices is checked: that code finds layers by class names, which a release of diffusers
        changed. The values of all layers are not computed anew for each layer. Where the anchor is another
        caption altogether its tokens are aligned by their distance from the end of the text, those before the
        first by the first. ``tensor`` projects token by token, a choice of ours.
    References: Gandikota et al., Unified Concept Editing in Diffusion Models, WACV 2024, arXiv:2308.14761;
        ``e`` 1 and ``λ`` 0.5 are the defaults of its command line. UnlearnCanvas, arXiv:2402.11846, takes
        0.05 and 1 for styles, 0.01 and 10 for objects, with further captions for styles.
    """

    scope: Scope = Denoiser(part="key_value")
    technique: Literal["replace", "tensor"] = "replace"
    anchor: Anchor = "next"
    concept: str = ""
    erase: float = 1.0
    preserve: float | None = None
    ridge: float = 0.5
    matrices: int | None = None

    def __post_init__(self) -> None:
        for name in ("erase", "ridge"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"must be above 0, got {getattr(self, name)}.", name)
        if self.preserve is not None and self.preserve < 0:
            raise ConfigError(f"must not be negative, got {self.preserve}.", "preserve")

    def reads_inputs(self) -> tuple[str, ...]:
        return ()

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        conditional(split, task, "uce")
        if not isinstance(split.forget, CaptionedImages) or not isinstance(split.retain, CaptionedImages):
            raise Unsupported(
                "uce edits how captions are read, and there are none. Use esd or sa for classes."
            )

    def edit(self, model: nn.Module, names: list[str], split: Split, task: Task, session: Session) -> None:
        edited = self.layers(model, names)
        kept = sorted({*cast(CaptionedImages, split.retain).captions, ""})
        texts = self.texts(model, split, kept, session)
        weight = max(0.1, 1 / len(kept)) if self.preserve is None else self.preserve
        stay = weight * texts.kept.T @ texts.kept + self.ridge * torch.eye(texts.kept.shape[1]).double()
        whole = stay + self.erase * texts.concept.T @ texts.concept
        for layer in edited:
            old = layer.weight.detach().double().cpu()
            values = self.values(old, texts)
            right = old @ stay + self.erase * values.T @ texts.concept
            new = torch.linalg.solve(whole, right, left=False)
            with torch.no_grad():
                layer.weight.copy_(new.to(layer.weight))

    def values(self, weight: Tensor, texts: Texts) -> Tensor:
        """``v_i`` as rows, ``(n, out)``, of a matrix ``(out, D)``."""
        wanted: Tensor = texts.anchor @ weight.T
        if self.technique == "replace":
            return wanted
        own = texts.concept @ weight.T
        own = own / own.norm(dim=1, keepdim=True).clamp(min=1e-12)
        along: Tensor = (wanted * own).sum(1, keepdim=True) * own
        return wanted - along

    def layers(self, model: nn.Module, names: Iterable[str]) -> list[nn.Linear]:
        """The matrices of keys and values that are edited.

        Raises:
            Unsupported: one is no linear layer, none is in the scope, or there are others than ``matrices``.
        """
        chosen, found = set(names), []
        for path, module in cross_attention(model):
            for end in ("to_k", "to_v"):
                layer = getattr(module, end)
                if not isinstance(layer, nn.Linear):
                    raise Unsupported(
                        f"'{path}.{end}' is a {type(layer).__name__}, no linear layer. Give the model "
                        "without adapters."
                    )
                if f"{path}.{end}.weight" in chosen:
                    found.append(layer)
        if not found or (self.matrices is not None and len(found) != self.matrices):
            wanted = "" if self.matrices is None else f", not {self.matrices}"
            raise Unsupported(
                f"the model has {len(found)} matrices of keys and values of captions in the scope{wanted}. "
                "Set matrices, or the scope, to what the model has."
            )
        return found

    def texts(self, model: nn.Module, split: Split, kept: list[str], session: Session) -> Texts:
        """The states that the edit is made of.

        Raises:
            DataError: as ``anchored``.
            Unsupported: a model without a text encoder.
        """
        encode: Any = getattr(model, "encode_text", None)
        if encode is None:
            raise Unsupported("uce needs the model's text encoder. Use a text-to-image model.")
        forget = cast(CaptionedImages, split.forget)
        tokenizer = forget.tokenizer
        others = anchor_captions(split, session, self.anchor, concept=self.concept, model=model)
        pairs = sorted(set(zip(forget.captions, others, strict=True)))
        device = session.engine.torch_device

        def states(written: list[str]) -> tuple[Tensor, Tensor]:
            ids = tokenise(tokenizer, written)
            with session.engine.frozen(model):
                found = [encode(part.to(device)).double().cpu() for part in ids.split(64)]
            return ids, torch.cat(found)

        ids, said = states([own for own, _ in pairs])
        other_ids, other = states([new for _, new in pairs])
        ends = [(row == tokenizer.eos_token_id).long().argmax(1) for row in (ids, other_ids)]
        start = self._start(split, tokenizer, ids)
        concept, anchor = [], []
        for row in range(len(pairs)):
            rows = torch.arange(int(start[row]), ids.shape[1])
            places = rows - ends[0][row] + ends[1][row]
            rows, places = rows[places < ids.shape[1]], places[places < ids.shape[1]].clamp(min=0)
            concept.append(said[row, rows])
            anchor.append(other[row, places])
        return Texts(torch.cat(concept), torch.cat(anchor), states(kept)[1].flatten(0, 1))

    def _start(self, split: Split, tokenizer: Any, ids: Tensor) -> Tensor:
        """The place of the last token of the concept's words, ``(N,)``; of several phrases the first one."""
        places = torch.arange(1, ids.shape[1] + 1)
        last = [
            (word_positions(tokenizer, ids, term) * places).argmax(1)
            for term in concept_terms(split, self.concept)
        ]
        return torch.stack(last).min(0).values
