"""What unlearning a language model costs: time and memory, side by side, in one run.

1. ``npo`` and ``dpo`` against ``grad_diff``: a step after the first epoch (the original's log-likelihoods are
   kept by then), and a step of ten epochs with the first one counted. ``dpo`` reads a third sequence, the
   preferred answer; it is also set against the same three losses without an original (``three losses``).
2. ``npo`` against a plain loop (plain_language.py): what a Hugging Face Trainer does for this loss. Batches
   are padded to their longest example, or (``plain, padded``) every example to the model's context of 256, as
   the data code that was released with TOFU, and copied for NPO and others, pads to a length of 500.
3. The loss at the labels alone against full logits, forward and backward from the same hidden states:
   ``batch`` has prompts and padding as in 1 and 2, ``document`` a label at every position.
4. Answers written and scored by batches against one by one, for two sizes of model.

Times are CPU times (``time.process_time``) on one thread, so that other programs on the machine count
little: medians over alternating pairs after a warm-up. Memory is the highest resident memory of a child
process above that before the model (3: before the loss) was made, one child for each number.

    OMP_NUM_THREADS=1 python bench/language.py [--pairs 5] [--only methods …] [--quick]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import plain_language as plain
import torch
from language_data import texts
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.data.text import TextData
from expunge.evaluation.generation import Decoding
from expunge.evaluation.subject import Subject
from expunge.methods.base import GradientMethod
from expunge.methods.base import methods as registry
from expunge.methods.gradient.dpo import DPO
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.gradient.npo import NPO
from expunge.provenance import hardware, versions
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.token_states import TokenStates
from expunge.training.engine import Engine
from expunge.training.language_models import Llama
from expunge.training.optim import AdamW
from expunge.training.session import Event, Session
from expunge.training.step import Step

SEED, BATCH, EPOCHS = 0, 4, 10
SESSION = Session(SEED, Engine(device="cpu"))
TRAINER = AdamW(lr=1e-5, weight_decay=0.01, clip=1.0)
SMALL = Llama(vocabulary=532, width=192, layers=4, heads=6, mlp=512, context=256)
PLAIN = {"plain": (False, 0), "plain, with labels": (True, 0), "plain, padded": (False, 256)}
"""Of each plain loop whether the model is handed labels, and the length of every example."""
OTHERS = ("paraphrased", *(f"perturbed_{i}" for i in range(1, 6)))


@dataclass(frozen=True)
class Size:
    """What is measured with: the model, steps of an epoch, questions asked by batches and one by one."""

    model: Llama
    steps: int = 3
    asked: int = 16
    alone: int = 2


FULL = Size(Llama(vocabulary=32_000, width=256, layers=12, heads=4, mlp=1024, context=256))
QUICK = Size(Llama(vocabulary=2_000, width=32, layers=2, heads=4, context=256), 1, 4, 1)


@registry.register("three_losses")
@dataclass(frozen=True, kw_only=True)
class ThreeLosses(GradientMethod):
    """The sequences that DPO reads, without an original: its arithmetic and nothing else."""

    epochs: int = 2
    optim: AdamW = TRAINER
    mode: Any = "eval"
    passes = NPO.passes
    retain_weight: float = 1.0

    def objective(self, step: Step) -> dict[str, Tensor]:
        forget = step.forget.instead("idk").loss.mean() - step.forget.loss.mean()
        return {"forget": forget, "retain": step.retain.loss.mean()}


def method(name: str, epochs: int = 2) -> GradientMethod:
    kinds = {"npo": NPO, "dpo": DPO, "grad_diff": GradDiff, "three losses": ThreeLosses}
    built: GradientMethod = kinds[name](epochs=epochs, batch_size=BATCH, optim=TRAINER)
    return built


def split(size: Size, names: Sequence[str]) -> Split:
    count = BATCH * size.steps
    return Split.from_ids(texts(2 * count, size.model.vocabulary, names, SEED), list(range(count)))


def built(spec: Llama) -> nn.Module:
    torch.manual_seed(SEED)
    return spec.build().eval()


def step_times(name: str, model: nn.Module, data: Split, size: Size) -> list[float]:
    """CPU seconds of each step of two epochs; the first one starts when the loop has been set up."""
    marks: list[float] = []

    def mark(event: Event) -> None:
        if event.kind in ("started", "step"):
            marks.append(time.process_time())

    session = Session(SEED, SESSION.engine, (mark,))
    method(name).unlearn(model, data, CausalLM(size.model.vocabulary), session)
    return [after - before for before, after in pairwise(marks)]


def rounds(sides: dict[str, Callable[[], dict[str, float]]], pairs: int) -> list[dict[str, float]]:
    """What every side says of its time, round by round; every second round in reverse order."""
    next(iter(sides.values()))()  # warm-up
    found = []
    for i in range(pairs):
        order = list(sides) if i % 2 else list(sides)[::-1]
        times: dict[str, float] = {}
        for side in order:
            times |= sides[side]()
        found.append(times)
    return found


def ratio(times: list[dict[str, float]], ours: str, other: str) -> dict[str, Any]:
    values = sorted(row[ours] / row[other] for row in times)
    return {
        "ratio": round(statistics.median(values), 3),
        "lowest": round(values[0], 3),
        "highest": round(values[-1], 3),
        "seconds": round(statistics.median(row[ours] for row in times), 4),
        "seconds of the other": round(statistics.median(row[other] for row in times), 4),
    }


def memory(what: str, quick: bool) -> float:
    """MiB, from a child process."""
    command = [sys.executable, __file__, "--memory", what, *["--quick"] * quick]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def judged(found: dict[str, Any], key: str, target: float, low: bool = True) -> dict[str, Any]:
    value = found[key]
    return {**found, "target": target, "met": bool(value <= target if low else value >= target)}


def methods(size: Size, pairs: int, quick: bool) -> dict[str, Any]:
    data, model = split(size, ["idk"]), built(size.model)

    def side(name: str) -> Callable[[], dict[str, float]]:
        def call() -> dict[str, float]:
            times = step_times(name, model, data, size)
            first, later = statistics.mean(times[: size.steps]), statistics.mean(times[size.steps :])
            return {name: later, f"{name}, first": (first + (EPOCHS - 1) * later) / EPOCHS}

        return call

    names = ("grad_diff", "npo", "dpo", "three losses")
    times = rounds({name: side(name) for name in names}, pairs)
    peaks = {name: memory(f"methods {name}", quick) for name in names}
    found: dict[str, Any] = {"MiB": peaks}
    for ours, other in (("npo", "grad_diff"), ("dpo", "grad_diff"), ("dpo", "three losses")):
        found[f"{ours} / {other}"] = {
            "step after the first epoch": judged(ratio(times, ours, other), "ratio", 1.05),
            f"step of {EPOCHS} epochs": judged(
                ratio(times, f"{ours}, first", f"{other}, first"), "ratio", 1.05
            ),
            "memory": judged({"ratio": round(peaks[ours] / peaks[other], 3)}, "ratio", 1.05),
        }
    return found


def trainer(size: Size, pairs: int, quick: bool) -> dict[str, Any]:
    data, model = split(size, []), built(size.model)
    sides: dict[str, Callable[[], dict[str, float]]] = {}

    def ours() -> dict[str, float]:
        times = step_times("npo", model, data, size)
        later = statistics.mean(times[size.steps :])
        return {"npo": later, "npo, first": (statistics.mean(times[: size.steps]) + 9 * later) / EPOCHS}

    for name, (labels, length) in PLAIN.items():
        loop = plain.Loop(copy.deepcopy(model), BATCH, TRAINER.lr, TRAINER.weight_decay, loss_of_model=labels)
        batches = plain.batches(data, BATCH, SEED, length)

        def other(name: str = name, loop: plain.Loop = loop, batches: Any = batches) -> dict[str, float]:
            start = time.process_time()
            for forget, retain in batches:
                loop.step(forget, retain)
            return {name: (time.process_time() - start) / len(batches)}

        sides[name] = other
    times = rounds({"npo": ours, **sides}, pairs)
    peaks = {name: memory(f"trainer {name}", quick) for name in ("npo", *sides)}
    found: dict[str, Any] = {"MiB": peaks}
    for name in sides:
        found[name] = {
            "steps per second": judged(ratio(times, name, "npo"), "ratio", 3.0, low=False),
            f"steps per second of {EPOCHS} epochs": judged(
                ratio(times, name, "npo, first"), "ratio", 3.0, low=False
            ),
            "memory": judged({"ratio": round(peaks["npo"] / peaks[name], 3)}, "ratio", 0.6),
        }
    return found


def loss_case(name: str, size: Size) -> tuple[TokenStates, Tensor, Tensor, list[Tensor]]:
    """Our hidden states, all hidden states ``(N, T, D)``, labels ``(N, T)`` and what is differentiated."""
    spec = size.model
    torch.manual_seed(SEED)
    head = nn.Linear(spec.width, spec.vocabulary, bias=False)
    data = texts(2 * BATCH, spec.vocabulary, [], SEED)
    (batch,) = data.batches([torch.arange(2 * BATCH)], device="cpu")
    labels = batch["labels"]
    if name == "document":
        labels = torch.where(labels < 0, 7, labels)
    hidden = torch.randn(*labels.shape, spec.width, requires_grad=True)
    where = (labels[:, 1:] >= 0).nonzero(as_tuple=True)
    shape = (labels.shape[0], labels.shape[1] - 1)
    found = (hidden[:, :-1][where], head, labels[:, 1:][where], (where[0], where[1]), shape)
    return TokenStates(*found, spec.vocabulary), hidden, labels, [hidden, head.weight]


def loss_call(name: str, side: str, size: Size) -> Callable[[], object]:
    """One loss forward and backward, of the mean log-likelihood of an example."""
    states, hidden, labels, inputs = loss_case(name, size)

    def ours() -> object:
        values = states.summed(states.log_probs())
        return torch.autograd.grad(values.mean(), inputs, retain_graph=True)

    def full() -> object:
        logits = states.head(hidden)
        return torch.autograd.grad(plain.log_likelihood(logits, labels).mean(), inputs)

    return ours if side == "labels" else full


def loss(size: Size, pairs: int, quick: bool) -> dict[str, Any]:
    found = {}
    for name in ("batch", "document"):
        calls = {side: loss_call(name, side, size) for side in ("labels", "full")}
        sides = {side: partial(timed, side, call) for side, call in calls.items()}
        times = rounds(sides, pairs)
        peaks = {side: memory(f"loss {name} {side}", quick) for side in calls}
        found[name] = {
            "MiB": peaks,
            "time": judged(ratio(times, "labels", "full"), "ratio", 1.1),
            "memory": judged({"ratio": round(peaks["labels"] / peaks["full"], 3)}, "ratio", 0.25),
        }
    return found


def timed(side: str, call: Callable[[], object]) -> dict[str, float]:
    return {side: spent(call)}


def spent(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def asking(size: Size, pairs: int, quick: bool) -> dict[str, Any]:
    found, decoding = {}, Decoding(max_tokens=8 if quick else 64)
    for spec, asked in ((size.model, size.asked),) if quick else ((SMALL, 64), (size.model, size.asked)):
        data, model = texts(asked, spec.vocabulary, OTHERS, SEED), built(spec)
        few = data.subset(list(range(size.alone)))
        sides = {"batched": partial(batched, model, data, spec), "alone": partial(alone, model, few)}
        times = rounds({side: partial(call, decoding) for side, call in sides.items()}, pairs)
        parts = {
            part: ratio(times, f"alone, {part}", f"batched, {part}") for part in ("write", "score", "both")
        }
        parameters = sum(p.numel() for p in model.parameters())
        found[f"{parameters / 1e6:.1f} million parameters, vocabulary {spec.vocabulary}"] = {
            part: judged(value, "ratio", 5.0, low=False) for part, value in parts.items()
        }
    return found


def batched(model: nn.Module, data: TextData, spec: Llama, decoding: Decoding) -> dict[str, float]:
    subject = Subject("m", model, {"asked": data}, CausalLM(spec.vocabulary), SESSION)
    write = spent(lambda: subject.answers("asked", decoding))
    score = spent(lambda: [subject.read("asked", name).loss for name in ("", *OTHERS)])
    return shares(write, score, len(data), "batched")


def alone(model: nn.Module, data: TextData, decoding: Decoding) -> dict[str, float]:
    write = spent(lambda: plain.write(model, data, decoding.max_tokens))
    score = spent(lambda: plain.score(model, data, ("", *OTHERS)))
    return shares(write, score, len(data), "alone")


def shares(write: float, score: float, count: int, side: str) -> dict[str, float]:
    """Seconds for each question."""
    return {
        f"{side}, both": (write + score) / count,
        f"{side}, write": write / count,
        f"{side}, score": score / count,
    }


def measure_memory(what: str, size: Size) -> float:
    """The highest resident memory of one thing, MiB above what there was before; in this process."""
    part, _, name = what.partition(" ")
    if part == "loss":
        case, side = name.split(" ")
        call = loss_call(case, side, size)
        return plain.peak(call)

    def work(size: Size, data: Split) -> None:
        model = built(size.model)
        if name.startswith("plain"):
            labels, length = PLAIN[name]
            loop = plain.Loop(model, BATCH, TRAINER.lr, TRAINER.weight_decay, loss_of_model=labels)
            for forget, retain in plain.batches(data, BATCH, SEED, length):
                loop.step(forget, retain)
        else:
            step_times(name, model, data, size)

    names = ["idk"] if part == "methods" else []
    work(QUICK, split(QUICK, names))  # what is imported on the way counts for neither side
    data = split(size, names)
    return plain.peak(lambda: work(size, data))


PARTS: dict[str, Callable[[Size, int, bool], dict[str, Any]]] = {
    "methods": methods,
    "trainer": trainer,
    "loss": loss,
    "asking": asking,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), help="measure these; keep the others")
    parser.add_argument("--quick", action="store_true", help="a small model, to see that it runs")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("docs/results/language-speed.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if options.quick else FULL
    if options.memory:
        print(measure_memory(options.memory, size))
        return
    known = json.loads(options.output.read_text()) if options.output.exists() else {}
    parameters = sum(p.numel() for p in built(size.model).parameters())
    report = {
        "setting": " ".join((__doc__ or "").split("\n    OMP")[0].split()),
        "model": f"Llama, {parameters} parameters, {size.model}, float32",
        "batch": f"{BATCH} + {BATCH} examples of prompts of 20 to 40 tokens and answers of 20 to 80",
        "examples": f"{BATCH * size.steps} to forget, as many to retain; refusals of 5 to 12 tokens",
        "asked": f"{size.asked} questions by batches (64 of the small model), {size.alone} one by one",
        "scored": "seven answers to each question",
        "optimiser": str(TRAINER),
        "seed": SEED,
        "pairs": 1 if options.quick else options.pairs,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "parts": known.get("parts", {}),
    }
    for name in options.only or PARTS:
        load = round(os.getloadavg()[0], 2)
        found = PARTS[name](size, report["pairs"], options.quick)
        report["parts"][name] = {"load average at the start": load, **found}
        print(name, json.dumps(found, indent=1), flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
