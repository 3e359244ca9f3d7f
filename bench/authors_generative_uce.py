"""Comparisons with UCE's code, the latest of its authors and that of UnlearnCanvas."""

from __future__ import annotations

import ast
import contextlib
import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from authors_generative_setup import SESSION, Found, Row, pictures, row
from authors_generative_theirs import Script, borrowed
from torch import Tensor, nn

from expunge.data.captions import CaptionedImages
from expunge.methods.anchors import anchor_captions
from expunge.methods.edits.uce import UCE, Texts

EDITING = ("rohitgandikota/unified-concept-editing", "28c81ed")
CANVAS = ("OPTML-Group/UnlearnCanvas", "920cfd1")
SEMI = ("Con6924/SPM", "3dd762e")
KEPT_CAPTION = "a circle image in sketch style"
FACTORS = ("down", "up")


START = (
    "Theirs begins at a caption's last token, ours at the last of the concept's words; in the next row the "
    "concept is the caption's last two words."
)
BLOCK = (
    "Theirs takes away the component along all tokens of a caption as one vector, ours token by token; in "
    "the next row there is one token of each caption."
)


def rows(root: Path) -> list[Row]:
    """All of them; ``root`` holds the authors' checkouts by owner and name."""
    return [*_uce_canvas(root / CANVAS[0]), *_uce(root / EDITING[0])]


@dataclass(frozen=True, kw_only=True)
class OneToken(UCE):
    """UCE with one token of each caption: the first of those that it takes, or the last."""

    place: int = 0
    kept_too: bool = False

    def texts(self, model: nn.Module, split: Any, kept: list[str], session: Any) -> Texts:
        found, pairs = super().texts(model, split, kept, session), len(set(split.forget.captions))
        concept, anchor = (
            t.view(pairs, -1, t.shape[1])[:, self.place] for t in (found.concept, found.anchor)
        )
        rows = found.kept
        if self.kept_too:
            tokenizer = split.forget.tokenizer
            lengths = torch.tensor([len(tokenizer(text)["input_ids"]) for text in kept])
            rows = rows.view(len(kept), -1, rows.shape[1])[torch.arange(len(kept)), lengths - 2]
        return Texts(concept, anchor, rows)


def _edited(method: UCE) -> Found:
    """The norm of the change, and the edited weights; in float64."""
    stage = pictures()
    model = SESSION.engine.copy(stage.original).double()
    method.edit(model, method.scope.names(model), stage.split, stage.task, SESSION)
    return _weights(model)


def _weights(model: nn.Module) -> Found:
    before, now = dict(pictures().original.named_parameters()), dict(model.named_parameters())
    found = {n: p for n, p in now.items() if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    square = sum(float((p - before[n]).detach().double().square().sum()) for n, p in found.items())
    return math.sqrt(square), {n: p.detach().double().numpy() for n, p in found.items()}


def _prompts(method: UCE) -> tuple[list[str], list[str], list[str]]:
    """Captions of the concept, their anchors, and those that are preserved."""
    split = pictures().split
    forget, retain = cast(CaptionedImages, split.forget), cast(CaptionedImages, split.retain)
    others = anchor_captions(split, SESSION, method.anchor, concept=method.concept)
    pairs = sorted(set(zip(forget.captions, others, strict=True)))
    return [old for old, _ in pairs], [new for _, new in pairs], sorted({*retain.captions, ""})


def _uce_canvas(folder: Path) -> list[Row]:
    whole = UCE(concept="mosaic style", anchor="sketch style", preserve=0.1)
    common: dict[str, Any] = {
        "method": "uce",
        "source": CANVAS,
        "measure": "norm of the change; gradient: of the weights",
    }
    run, tensor = "edit_model, replace, in float64", replace(whole, technique="tensor")
    last = OneToken(concept="mosaic style", anchor="sketch style", preserve=0.1, technique="tensor", place=-1)
    return [
        row(
            "uce-start",
            _edited(replace(whole, concept="mosaic", anchor="sketch")),
            _canvas(folder, whole),
            run=run,
            explanation=START,
            intended=True,
            **common,
        ),
        row("uce", _edited(whole), _canvas(folder, whole), run=run, tolerance=1e-6, **common),
        row(
            "uce-float32",
            _edited(whole),
            _canvas(folder, whole, double=False),
            run="edit_model, replace, in float32",
            tolerance=1e-5,
            explanation="Rounding of float32; as released it is that of float16.",
            **common,
        ),
        row(
            "uce-tensor-block",
            _edited(tensor),
            _canvas(folder, tensor),
            run="edit_model, tensor, in float64",
            explanation=BLOCK,
            intended=True,
            **common,
        ),
        row(
            "uce-tensor",
            _edited(last),
            _canvas(folder, last, tokens=1),
            run="edit_model, tensor, in float64, last token alone",
            tolerance=1e-6,
            **common,
        ),
    ]


def _canvas(folder: Path, method: UCE, double: bool = True, tokens: int = 0) -> Found:
    """The edit of UnlearnCanvas; with ``tokens`` prompts end so many before the last token."""
    model: Any = SESSION.engine.copy(pictures().original)
    model = model.double() if double else model
    tokenizer = cast(Any, pictures().split.forget).tokenizer

    def tokenised(texts: list[str], **settings: Any) -> Any:
        found = tokenizer(texts, **settings)
        if tokens:
            found["attention_mask"] = torch.ones(len(texts), found["input_ids"].shape[1] + 2 - tokens)
            found["attention_mask"] = found["attention_mask"].int()
        return found

    tokenised.model_max_length = tokenizer.model_max_length  # type: ignore[attr-defined]
    kind = torch.float64 if double else torch.float32
    plain = Script(
        torch,
        autocast=lambda _: contextlib.nullcontext(),
        eye=lambda size, device: torch.eye(size, dtype=kind),
    )
    file = folder / "machine_unlearning/mu_unified_concept_editing_uce/train_erase.py"
    names = {"copy": copy, "ast": ast, "tqdm": lambda items: items, "print": lambda *_: None}
    found = borrowed(file, "edit_model", torch=plain, **names)
    given = SimpleNamespace(
        unet=model.unet, text_encoder=model.text_encoder, tokenizer=tokenised, device=torch.device("cpu")
    )
    scales = {"lamb": method.ridge, "erase_scale": method.erase, "preserve_scale": method.preserve}
    with torch.no_grad():
        found.edit_model(given, *_prompts(method), with_to_k=True, technique=method.technique, **scales)
    return _weights(model)


def _uce(folder: Path) -> list[Row]:
    """The latest script of the authors."""
    whole = UCE(concept="mosaic style", anchor="sketch style", preserve=0.1)
    own = OneToken(concept="mosaic style", anchor="sketch style", preserve=0.1, kept_too=True)
    stage, kept = pictures(), dict[str, Tensor]()
    pipe = cast(Any, stage.original).pipeline(cast(Any, stage.split.forget).tokenizer, stage.task)
    found = borrowed(
        folder / "trainscripts/uce_sd_erase.py",
        "UCE",
        torch=torch,
        copy=copy,
        device="cpu",
        torch_dtype=torch.float32,
        os=SimpleNamespace(path=SimpleNamespace(join=lambda *_: "")),
        time=SimpleNamespace(time=lambda: 0.0),
        print=lambda *_: None,
        save_file=lambda weights, _: kept.update(weights),
    )
    with torch.no_grad():
        found.UCE(pipe, *_prompts(whole), whole.erase, whole.preserve, whole.ridge, "", "")
    edited = SESSION.engine.copy(stage.original)
    edited.load_state_dict({f"unet.{name}": value for name, value in kept.items()}, strict=False)
    common: dict[str, Any] = {
        "method": "uce",
        "source": EDITING,
        "measure": "norm of the change; gradient: of the weights",
    }
    said = "Theirs is of each caption's last token alone, erased and preserved; in the next row ours too."
    return [
        row(
            "uce-script-tokens",
            _edited(whole),
            _weights(edited),
            run="UCE, in float32",
            explanation=said,
            intended=True,
            **common,
        ),
        row("uce-script", _edited(own), _weights(edited), run="the same; ours of these tokens", **common),
    ]
