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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from authors_language_cases import Case, Name, cases
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data import ArrayData
from expunge.data.arrays import Batch, fixed_order
from expunge.data.split import Split
from expunge.data.text import IGNORED
from expunge.methods.base import GradientMethod
from expunge.methods.edits.task_vector import TaskVector
from expunge.methods.gradient.rmu import RMU
from expunge.methods.gradient.whp import WHP
from expunge.provenance import hardware, versions
from expunge.tasks import CausalLM
from expunge.training.engine import Engine
from expunge.training.language_models import Llama
from expunge.training.session import Session
from expunge.training.step import Original, Part, Step, View

SEED = 0
VOCABULARY = 128
TASK = CausalLM(VOCABULARY)
TOLERANCE = 1e-5
"""What the issue allows; of the value where it is above 1."""

PARTS: tuple[Part, ...] = ("forget", "retain")
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

ABOUT = (
    "The losses of others' code and ours of the same micro Llama and tokens, on a CPU. theirs, ours: the "
    "values at a model moved away from the original; difference: between them; relative: over theirs; "
    "gradient: the norm of the difference of the gradients over the norm of theirs. A row that is not "
    "rounding names an intended difference, and the row after it has that difference switched off."
)


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
    """Our value and its gradients, by parameter; of an edit, of the loss of what it makes of the original."""
    original, changed = models()
    found, session = tokens(case.batch, case.first_label), _session()
    split = _split(found)
    model = case.ours.unlearn(original, split, TASK, session) if _edits(case.ours) else changed
    known = Original(original, TASK, session.engine, dict(found))
    views: dict[Part, View] = {
        part: View(part, _batch(found[part]), model, known, TASK, session.engine, None) for part in PARTS
    }
    terms = case.ours.objective(Step("forget", views, model, 0, 0, 1, _state(case.ours, split)))
    value = case.scale * torch.stack(list(terms.values())).sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    return float(value.detach()), {
        n: g.numpy() for n, g in zip(names, gradients, strict=True) if g is not None
    }


def _session() -> Session:
    return Session(seed=SEED, engine=Engine(device="cpu"))


def _split(found: dict[str, ArrayData]) -> Split:
    return Split(forget=found["forget"], retain=found["retain"])


def _edits(method: GradientMethod) -> bool:
    return isinstance(method, TaskVector)


def _state(method: GradientMethod, split: Split) -> Any:
    """What a method prepares; the model that knows too much is the changed one (Who's Harry Potter)."""
    original, changed = models()
    if isinstance(method, WHP):
        return method.generic(original, changed, split.forget, TASK, _session())
    return method.setup(original, split, TASK, _session())


def export(folder: Path) -> None:
    """Models as ``save_pretrained`` writes them, batches as arrays, and what ours draws and trains.

    ``direction.npy`` is the unit vector that RMU steers towards, ``tuned`` the fine-tuned model whose change
    the task vector is.
    """
    for name, model in zip(("original", "changed"), models(), strict=True):
        _save(model, folder / name)
    for name in LENGTHS:
        found = {part: _batch(data) for part, data in tokens(name).items()}
        arrays = {f"{part}/{key}": value.numpy() for part in found for key, value in found[part].items()}
        np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    steering = _state(RMU(layer=1, relative=False, coefficient=1.0), _split(tokens("even")))
    np.save(folder / "direction.npy", steering.target.numpy())
    edit = next(case for case in cases() if _edits(case.ours))
    tuned = GradientMethod.unlearn(edit.ours, models()[0], _split(tokens(edit.batch)), TASK, _session())
    _save(tuned, folder / "tuned")


def _save(model: nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)  # type: ignore[operator]


def compare(case: Case, theirs: float, gradients: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
    """One row; ``gradient`` is the norm of the difference of the gradients over the norm of theirs."""
    ours, own = measure(case)
    names = own.keys() | gradients.keys()
    apart = sum(float(np.square(own.get(n, 0) - gradients.get(n, 0)).sum()) for n in names) ** 0.5
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
