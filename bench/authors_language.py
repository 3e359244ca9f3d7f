"""Objectives for language models beside the code of their authors and of open-unlearning, to rounding.

Everybody's loss is taken of the same two micro Llamas (the original, and one moved away from it) and of
the same tokens, which all come from one seed. None of the others' code is here: ``--export`` writes models
and batches, others' values and gradients of them are measured elsewhere, and ``--theirs`` puts ours beside
them. Where a difference is intended, a row names it, and another row shows that nothing else differs.

    python bench/authors_language.py --export DIR
    python bench/authors_language.py --theirs DIR [--output docs/results/authors-language.json]

``DIR/theirs.json`` maps the ``key`` of a case to a value, ``DIR/<key>.npz`` holds the gradient of each
parameter by name.

Batches: ``ragged`` has prompts and answers of many lengths, ``even`` has answers of one length and no
padding, ``text`` is one document, labelled from its first token on, with another in its place.
"""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data import ArrayData
from expunge.data.arrays import Batch, fixed_order
from expunge.data.text import IGNORED
from expunge.methods.base import GradientMethod
from expunge.methods.gradient.dpo import DPO
from expunge.methods.gradient.flat import FLAT
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.gradient.idk import Idk
from expunge.methods.gradient.kl_min import KLMin
from expunge.methods.gradient.npo import NPO
from expunge.methods.gradient.simnpo import SimNPO
from expunge.provenance import hardware, versions
from expunge.tasks import CausalLM
from expunge.training.engine import Engine
from expunge.training.language_models import Llama
from expunge.training.step import Original, Part, Step, View

SEED = 0
VOCABULARY = 37
TASK = CausalLM(VOCABULARY)
TOLERANCE = 1e-5
"""What the issue allows; of the value where it is above 1."""

PARTS: tuple[Part, ...] = ("forget", "retain")
Name = Literal["ragged", "even", "text"]
LENGTHS: dict[Name, dict[str, list[tuple[int, int]]]] = {
    "ragged": {
        "forget": [(3, 2), (5, 7), (4, 4), (2, 1)],
        "idk": [(3, 4), (5, 1), (4, 3), (2, 2)],
        "retain": [(6, 3), (2, 9), (3, 5), (4, 1)],
    },
    "even": {"forget": [(3, 4)] * 4, "idk": [(3, 4)] * 4, "retain": [(3, 4)] * 4},
    "text": {"forget": [(0, 9)], "idk": [(0, 9)], "retain": [(0, 9)]},
}
"""Tokens of prompt and answer of each example."""

PEER = ("locuslab/open-unlearning", "d3d7cf9")
ZHANG = ("licong-lin/negative-preference-optimization", "1207bbe")
FAN = ("OPTML-Group/Unlearn-Simple", "f1a355d")
WANG = ("UCSC-REAL/FLAT", "bf2ef07")

TOKENS = (
    "Theirs weighs answers in a mean loss by their tokens, ours each answer alike; the next row has answers "
    "of one length."
)
PLACES = (
    "Theirs takes the divergence at every position, prompt, padding and the last token included, and weighs "
    "answers by their tokens; in the next row the same function is given the logits before labels alone, of "
    "answers of one length."
)
ROUNDING = "Rounding."


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    Args:
        key: of the others' value.
        run: what of theirs was run.
        ours: the method with the fields that theirs has.
        scale: what ours is multiplied with, where theirs is a multiple of it.
        intended: whether the values are meant to differ.
        first_label: whether the first token keeps its label.
    """

    key: str
    source: tuple[str, str]
    run: str
    ours: GradientMethod
    batch: Name
    explanation: str = ROUNDING
    scale: float = 1.0
    intended: bool = False
    first_label: bool = True


ABOUT = (
    "The losses of others' code and ours of the same micro Llama and tokens, on a CPU. theirs, ours: the "
    "values at a model moved away from the original; difference: between them; relative: over theirs; "
    "gradient: the norm of the difference of the gradients over the norm of theirs. A row that is not "
    "rounding names an intended difference, and the row after it has that difference switched off."
)


def cases() -> list[Case]:
    return [*_ascent(), *_preferences(PEER), *_preferences(ZHANG), *_simnpo(), *_flat()]


def _pair(key: str, run: str, why: str, off: str = "", then: str = ROUNDING, **fields: Any) -> list[Case]:
    """A comparison with its intended difference, and the same with the difference switched off."""
    ragged = Case(key=f"{key}-ragged", run=run, batch="ragged", explanation=why, intended=True, **fields)
    return [ragged, Case(key=f"{key}-even", run=f"{run}{off}", batch="even", explanation=then, **fields)]


LABELS_ALONE = ", logits before labels alone"


def _ascent() -> list[Case]:
    half, found = GradDiff(retain_weight=0.5), []
    twice = "Theirs has weights of 1 and 1, ours of ½ and ½: ours is doubled."
    for source, name in ((PEER, "GradDiff"), (ZHANG, "grad_diff")):
        key, why = f"{source[0].split('/')[0]}-grad_diff", f"{twice} {TOKENS}"
        found += _pair(key, name, why, then=f"{ROUNDING} {twice}", ours=half, source=source, scale=2.0)
    for source, name in ((PEER, "GradDiff, retain_loss_type KL"), (ZHANG, "KL")):
        key = f"{source[0].split('/')[0]}-kl_min"
        found += _pair(key, name, PLACES, LABELS_ALONE, ours=KLMin(), source=source)
    once = "Theirs is one mean over both parts, ours the sum of a mean of each: ours is halved."
    why, then = f"{once} {TOKENS}", f"{ROUNDING} {once}"
    return [*found, *_pair("licong-lin-idk", "idk", why, then=then, ours=Idk(), source=ZHANG, scale=0.5)]


def _preferences(source: tuple[str, str]) -> list[Case]:
    peer = source is PEER
    owner = source[0].split("/")[0]
    found: list[Case] = []
    for cls in (NPO, DPO):
        name = cls.__name__
        runs = {
            "loss": name if peer else f"{name.lower()}_grad_diff",
            "divergence": f"{name}, retain_loss_type KL" if peer else f"{name.lower()}_KL",
        }
        key = f"{owner}-{name.lower()}"
        alone = cls(retain_weight=0.0)
        run = f"{name}, alpha 0" if peer else name.lower()
        found.append(Case(key=f"{key}-alone", source=source, run=run, ours=alone, batch="ragged"))
        found += _pair(f"{key}-loss", runs["loss"], TOKENS, ours=cls(), source=source)
        divergence = cls(retain="divergence")
        found += _pair(f"{key}-kl", runs["divergence"], PLACES, LABELS_ALONE, ours=divergence, source=source)
    return found


def _simnpo() -> list[Case]:
    alone = SimNPO(retain_weight=0.0, forget_weight=1.0)
    margin = replace(alone, margin=0.3)
    inside = "Theirs takes the margin off before the multiplication by β, the paper and ours after."
    labels = "Theirs divides by the labels, the first one included, which nothing predicts; 9 for 8 here."
    fields: dict[str, Any] = {"source": FAN, "batch": "ragged"}
    return [
        Case(key="OPTML-Group-simnpo-alone", run="simnpo, β 2.5", ours=alone, **fields),
        *_pair("OPTML-Group-simnpo", "simnpo_grad_diff, β 2.5", TOKENS, ours=SimNPO(), source=FAN),
        Case(
            key="OPTML-Group-simnpo-margin",
            run="simnpo, γ 0.3",
            ours=margin,
            explanation=inside,
            intended=True,
            **fields,
        ),
        Case(
            key="OPTML-Group-simnpo-margin-by-beta",
            run="the same, ours with margin 0.75 = 2.5 · 0.3",
            ours=replace(alone, margin=0.75),
            **fields,
        ),
        Case(
            key="OPTML-Group-simnpo-text",
            source=FAN,
            run="simnpo, a document",
            ours=alone,
            batch="text",
            explanation=labels,
            intended=True,
        ),
        Case(
            key="OPTML-Group-simnpo-unlabelled",
            source=FAN,
            run="the same without the first label",
            ours=alone,
            batch="text",
            first_label=False,
        ),
        *_pair(
            "locuslab-simnpo",
            "SimNPO, beta 4.5, gamma 0.125",
            TOKENS,
            ours=SimNPO(beta=4.5, forget_weight=0.125),
            source=PEER,
        ),
    ]


def _flat() -> list[Case]:
    dilution = (
        "Theirs takes the mean probability over all positions, 0 for prompt and padding, and over the batch "
        "before g; the next row has one document without a prompt."
    )
    sign = (
        "Their g falls with the probability P of a refusal, ours rises. In the next row the same function is "
        "given −P for P"
    )
    found = [_divergence("total_variation", "ragged", "cl", explanation=dilution, intended=True)]
    for name in ("total_variation", "kl", "jeffrey", "pearson", "jensen_shannon"):
        found.append(_divergence(name, "text", "cl, one document"))
    for name in ("reverse_kl", "squared_hellinger", "neyman"):
        more = ", and its f* the value of g." if name == "neyman" else "."
        found += [
            _divergence(name, "text", "cl, one document", explanation=sign + more, intended=True),
            replace(
                _divergence(name, "text", "get_contrastive_loss of −P"), key=f"UCSC-REAL-flat-{name}-turned"
            ),
        ]
    return found


def _divergence(name: str, batch: Name, run: str, **fields: Any) -> Case:
    method = FLAT(divergence=name)  # type: ignore[arg-type]
    key, said = f"UCSC-REAL-flat-{name}-{batch}", f"{run}, {name.replace('_', ' ')}"
    return Case(key=key, source=WANG, run=said, ours=method, batch=batch, **fields)


@functools.cache
def models() -> tuple[nn.Module, nn.Module]:
    """The original, and one moved away from it; weights from one seed, whatever torch's version draws."""
    draws = np.random.default_rng(SEED)
    spec = Llama(vocabulary=VOCABULARY, width=16, layers=2, heads=2, context=32)
    found = [spec.build().eval(), spec.build().eval()]
    with torch.no_grad():
        for one, other in zip(*(model.parameters() for model in found), strict=True):
            if one.ndim > 1:
                one.copy_(torch.from_numpy(draws.normal(0, 0.4, one.shape)))
            other.copy_(one + torch.from_numpy(draws.normal(0, 0.03, one.shape)))
    return found[0], found[1]


@functools.cache
def tokens(name: Name, first_label: bool = True) -> dict[str, ArrayData]:
    """What to forget, with ``idk`` answers to the same prompts, and what to retain."""
    draws = np.random.default_rng([SEED, *name.encode()])
    columns: dict[str, dict[str, Tensor]] = {}
    for part, lengths in LENGTHS[name].items():
        longest = max(prompt + answer for prompt, answer in lengths)
        ids = torch.from_numpy(draws.integers(1, VOCABULARY, (len(lengths), longest)))
        places = torch.arange(longest)
        prompts, answers = (torch.tensor(column)[:, None] for column in zip(*lengths, strict=True))
        _answer(ids, prompts, rank=int(part == "idk"))
        padding = places >= prompts + answers
        unlabelled = places < prompts.clamp(min=0 if first_label else 1)
        if part == "idk":
            shared = columns["forget"]["input_ids"][:, : int(prompts.max())]
            ids[:, : shared.shape[1]] = torch.where(
                places[: shared.shape[1]] < prompts, shared, ids[:, : shared.shape[1]]
            )
        columns[part] = {
            "input_ids": ids.masked_fill(padding, 0),
            "labels": ids.masked_fill(padding | unlabelled, IGNORED),
            "attention_mask": (~padding).long(),
        }
    forget = columns["forget"] | {f"idk.{key}": value for key, value in columns["idk"].items()}
    return {"forget": ArrayData(forget), "retain": ArrayData(columns["retain"])}


@torch.no_grad()
def _answer(ids: Tensor, prompts: Tensor, rank: int) -> None:
    """Every token after a prompt becomes the original's likeliest (rank 0) or next likeliest (1), in place.

    So the losses are those of answers that were learnt, of which forgetting has something to take away.
    """
    for place in range(1, ids.shape[1]):
        logits = models()[0](ids).logits[:, place - 1]
        said = logits.argsort(descending=True)[:, rank]
        ids[:, place] = torch.where(place >= prompts[:, 0], said, ids[:, place])


def _batch(data: ArrayData) -> Batch:
    (batch,) = data.batches(fixed_order(len(data), len(data)), device="cpu")
    return batch


def measure(case: Case) -> tuple[float, dict[str, NDArray[np.float32]]]:
    """Our value and its gradients, by parameter."""
    original, changed = models()
    found, engine = tokens(case.batch, case.first_label), Engine(device="cpu")
    known = Original(original, TASK, engine, dict(found))
    views: dict[Part, View] = {
        part: View(part, _batch(found[part]), changed, known, TASK, engine, None) for part in PARTS
    }
    terms = case.ours.objective(Step("forget", views, changed, 0, 0, 1, TASK))
    value = case.scale * torch.stack(list(terms.values())).sum()
    names, parameters = zip(*changed.named_parameters(), strict=True)
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    return float(value.detach()), {
        n: g.numpy() for n, g in zip(names, gradients, strict=True) if g is not None
    }


def export(folder: Path) -> None:
    """Models as ``save_pretrained`` writes them, and batches as arrays."""
    for name, model in zip(("original", "changed"), models(), strict=True):
        model.save_pretrained(folder / name)  # type: ignore[operator]
    for name in LENGTHS:
        found = {part: _batch(data) for part, data in tokens(name).items()}
        arrays = {f"{part}/{key}": value.numpy() for part in found for key, value in found[part].items()}
        np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]


def compare(case: Case, theirs: float, gradients: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
    """One row; ``gradient`` is the norm of the difference of the gradients over the norm of theirs."""
    ours, own = measure(case)
    apart = sum(float(np.square(own.get(name, 0) - g).sum()) for name, g in gradients.items()) ** 0.5
    size = sum(float(np.square(g).sum()) for g in gradients.values()) ** 0.5
    difference = abs(ours - theirs)
    if not case.intended and max(difference / max(1.0, abs(theirs)), apart / size) > TOLERANCE:
        raise SystemExit(f"{case.key}: ours {ours}, theirs {theirs}, gradients {apart / size:.1e} apart.")
    repository, commit = case.source
    return {
        "key": case.key,
        "method": type(case.ours).__module__.rpartition(".")[2],
        "repository": repository,
        "commit": commit,
        "run": f"{case.run}; {case.batch} batch",
        "measure": "difference of the loss",
        "theirs": theirs,
        "ours": ours,
        "difference": difference,
        "relative": difference / abs(theirs),
        "gradient": apart / size,
        "explanation": case.explanation,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--export", type=Path)
    parser.add_argument("--theirs", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/results/authors-language.json"))
    arguments = parser.parse_args()
    if arguments.export:
        export(arguments.export)
    if arguments.theirs:
        values = json.loads((arguments.theirs / "theirs.json").read_text(encoding="utf-8"))
        rows = [
            compare(case, values[case.key], dict(np.load(arguments.theirs / f"{case.key}.npz")))
            for case in cases()
        ]
        found = {
            "about": ABOUT,
            "versions": versions(),
            "hardware": hardware(torch.device("cpu")),
            "rows": rows,
        }
        arguments.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
