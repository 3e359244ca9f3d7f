"""ItD: interpret, then deactivate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from expunge.data.captions import CaptionedImages, tokenise, word_positions
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.anchors import concept_terms
from expunge.methods.base import methods
from expunge.methods.caption_guards import Beside, CaptionGuard, text_encoder_of
from expunge.tasks.base import Task
from expunge.training.blocks import blocks
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.sparse_autoencoder import SparseAutoencoder, fit_autoencoder


class Deactivating(Beside):
    """States of one layer without a concept's features, in the captions that the detector takes."""

    def opened(self, text_encoder: nn.Module) -> None:
        _, block = layer_of(text_encoder, cast(ITD, self.method).layer)
        block.register_forward_hook(self.leave)

    def leave(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        """After the layer's forward pass; its output is the states or begins with them."""
        if not self.learned():
            return output
        states = output[0] if isinstance(output, tuple) else output
        edited, detected = self.edited(states)
        states = torch.where(detected[:, None, None], edited, states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def edited(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """``x̂'`` of states ``(N, T, D)``, and whether it takes their place, ``(N,)``."""
        encode, decode, latent, centre = map(self.get_buffer, ("encode", "decode", "latent", "centre"))
        autoencoder = SparseAutoencoder(encode, decode, latent, centre, cast(ITD, self.method).active)
        edited = deactivated(autoencoder, states, self.get_buffer("chosen"), cast(ITD, self.method).factor)
        return edited, distances(edited, states) >= self.get_buffer("threshold")


class Prompts(NamedTuple):
    """Captions that name the concept, to learn from and held out, and those that do not."""

    erase: list[str]
    held: list[str]
    remain: list[str]


@methods.register("itd")
@dataclass(frozen=True, kw_only=True)
class ITD(CaptionGuard):
    """Deactivates the features of a sparse autoencoder that fire on a concept and on nothing retained.

    A top-k autoencoder reads the states ``x`` ``(T, D)`` of one layer of the text encoder, without those of
    the first token: ``f = relu(top_k(W_e (x − b) + c))``, ``x̂ = W_dᵀ f + b``. A concept's features are the
    ``top`` strongest of each caption that names it (the maximum over its tokens), less those of the captions
    that do not. They are multiplied by ``factor``, which gives ``x̂'`` and ``d = mean (x̂' − x)²`` over a
    caption's tokens. A caption is taken for one of the concept, and read as ``x̂'``, if ``d ≥ τ``; all others
    pass bit for bit. ``τ`` is ``margin`` times the smallest ``d`` of the concept's captions; some of them are
    held out for it: neither the autoencoder nor the choice of features saw them. The weights are the
    original's.

    Args:
        factor: 0 deactivates; a negative one turns against the features.
        features, active: size of the autoencoder and ``k``.
        top: strongest features of a caption that are looked at.
        layer: whose output is read, from 0; by default the one at two thirds, 8 of 12.
        concept: its words, where the captions do not tell.
        held_out: share of the captions of the concept that only ``τ`` looks at, at least one.
        spared: captions that are to be scored: nothing is learnt from them, and ``τ`` is not theirs.
        margin: 0 edits every caption.
        epochs, batch_size, optim: of the autoencoder, in captions.

    Shapes: text-to-image models with captioned images; at least two captions that name the concept.
        Unsupported for other models.
    Cost: ``epochs`` passes of the autoencoder over the different captions of the data, one of the text
        encoder, none of the denoiser. At inference ``2 T D F`` products for each caption. Stored: as many
        numbers.
    Guarantee: empirical; about captions that the detector takes, and never about the weights.
    Differs: the paper speaks of deactivation while the authors' code multiplies by -8 or -6: both are here,
        and -6 is the default. Their ``τ`` is of nothing but the prompts that features were chosen from, the
        lists that are scored are among those retained, and it is ``None`` for nudity, which edits everything;
        a caption that ``τ`` comes from is detected by construction, so ``spared`` names those to be scored.
        The first token of every caption is left out, there that of the first one of a batch. ``W_d`` is
        normed after a step, there before. There is no auxiliary loss for features that never fire. 1,024
        features with 8 active, 64 strongest, 300 epochs and the rate of 1e-3 are choices of ours for small
        text encoders: theirs are 524,288, 64, 128 (256 for styles), 20 and 1e-4.
    References: Tian et al., Sparse Autoencoder as a Zero-Shot Classifier for Concept Erasing in Text-to-Image
        Diffusion Models, 2025, arXiv:2503.09446; margin 0.99, batches of 50 captions, epsilon 6.25e-10.
    """

    factor: float = -6.0
    features: int = 1024
    active: int = 8
    top: int = 64
    layer: int | None = None
    concept: str = ""
    held_out: float = 0.25
    spared: tuple[str, ...] = ()
    margin: float = 0.99
    epochs: int = 300
    batch_size: int = 50
    optim: Optim = AdamW(lr=1e-3, weight_decay=0.0, eps=6.25e-10, warmup=0.05)

    beside = Deactivating

    def __post_init__(self) -> None:
        for name in ("features", "active", "top", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if self.active > self.features:
            raise ConfigError(f"must be at most features={self.features}, got {self.active}.", "active")
        if self.factor >= 1:
            raise ConfigError(f"must be below 1, which changes nothing, got {self.factor}.", "factor")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"is a share between 0 and 1, got {self.held_out}.", "held_out")
        if self.margin < 0:
            raise ConfigError(f"must not be negative, got {self.margin}.", "margin")

    def learn(self, model: nn.Module, split: Split, task: Task, session: Session) -> dict[str, Tensor]:
        encoder = text_encoder_of(model, methods.name_of(self))
        prompts = self.prompts(split, session)
        tokenizer = cast(CaptionedImages, split.forget).tokenizer
        path, _ = layer_of(encoder, self.layer)
        erase, held, remain = (
            layer_states(model, path, tokenise(tokenizer, part), session) for part in prompts
        )
        autoencoder = fit_autoencoder(
            torch.cat([erase, remain])[:, 1:],
            self.features,
            self.active,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optim=self.optim,
            session=session.child("autoencoder"),
        ).cpu()
        chosen = own_features(autoencoder, erase, remain, self.top)
        if len(chosen) == 0:
            raise DataError(
                "no feature fires on the concept's captions alone. Give more features, or a higher top."
            )
        with torch.no_grad():
            told = torch.cat([erase, held])
            far = distances(deactivated(autoencoder, told, chosen, self.factor), told)
        weights = {name: value.detach() for name, value in autoencoder.named_parameters()}
        return {**weights, "chosen": chosen, "threshold": self.margin * far.min()}

    def prompts(self, split: Split, session: Session) -> Prompts:
        """The different captions of all columns of the data, but the spared ones.

        Raises:
            DataError: fewer than two of them name the concept.
        """
        forget, retain = cast(CaptionedImages, split.forget), cast(CaptionedImages, split.retain)
        ids = torch.cat(
            [data.column(f"{name}.input_ids" if name else "input_ids").cpu()
             for data in (forget, retain) for name in ("", *data.names)]
        ).unique(dim=0)  # fmt: skip
        if self.spared:
            spared = tokenise(forget.tokenizer, self.spared)
            ids = ids[~(ids[:, None] == spared[None]).all(2).any(1)]
        terms = concept_terms(split, self.concept)
        named = torch.stack([word_positions(forget.tokenizer, ids, term).any(1) for term in terms]).all(0)
        texts = [
            " ".join(text.split()) for text in forget.tokenizer.batch_decode(ids, skip_special_tokens=True)
        ]
        erase = [text for text, here in zip(texts, named.tolist(), strict=True) if here]
        if len(erase) < 2:
            raise DataError(
                f"{len(erase)} different caption names the concept '{' '.join(terms)}', and two are needed: "
                "one to learn from, one for the detector's threshold. Give other captions by with_captions."
            )
        order = torch.randperm(len(erase), generator=session.generator("held out")).tolist()
        count = min(len(erase) - 1, max(1, round(self.held_out * len(erase))))
        held = [erase[i] for i in sorted(order[:count])]
        remain = [text for text, here in zip(texts, named.tolist(), strict=True) if not here]
        return Prompts([erase[i] for i in sorted(order[count:])], held, remain)


def deactivated(autoencoder: SparseAutoencoder, states: Tensor, chosen: Tensor, factor: float) -> Tensor:
    """``x̂'`` of states ``(N, T, D)``; those of the first tokens stay."""
    found = autoencoder.features(states[:, 1:].float())
    scale = torch.ones(found.shape[-1], device=found.device)
    scale[chosen] = factor
    return torch.cat([states[:, :1], autoencoder.states(found * scale).to(states)], 1)


def distances(edited: Tensor, states: Tensor) -> Tensor:
    """``d`` of each caption, ``(N,)``, over all tokens but the first."""
    return (edited - states)[:, 1:].float().square().mean((1, 2))


@torch.no_grad()
def own_features(autoencoder: SparseAutoencoder, erase: Tensor, remain: Tensor, top: int) -> Tensor:
    """Those among the strongest of one of the captions ``erase`` and of none of ``remain``, sorted."""

    def strongest(states: Tensor) -> set[int]:
        peaks = autoencoder.features(states[:, 1:]).amax(1)
        best = peaks.topk(min(top, peaks.shape[1]), 1)
        return set(best.indices[best.values > 0].tolist())

    return torch.tensor(sorted(strongest(erase) - strongest(remain)), dtype=torch.long)


def layer_of(text_encoder: nn.Module, layer: int | None) -> tuple[str, nn.Module]:
    """Name and module of a block; by default the one at two thirds.

    Raises:
        Unsupported: there is no such block.
    """
    found = blocks(text_encoder)
    index = len(found) * 2 // 3 if layer is None else layer
    if not 0 <= index < len(found):
        raise Unsupported(
            f"the text encoder has {len(found)} layers, no layer {index}. Choose 0..{len(found) - 1}."
        )
    return found[index]


def layer_states(model: nn.Module, path: str, ids: Tensor, session: Session) -> Tensor:
    """The output of a block of the text encoder, ``(N, T, D)`` float32, on the CPU."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output).float().cpu())

    with session.engine.frozen(session.engine.copy(model)) as still:
        encoder: Any = still.text_encoder
        handle = encoder.get_submodule(path).register_forward_hook(keep)
        for part in ids.split(64):
            encoder(part.to(session.engine.torch_device))
        handle.remove()
    return torch.cat(kept)
