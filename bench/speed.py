"""Speed, as ratios against a bare PyTorch loop in the same process.

Each ratio is the median over alternating pairs of runs, so that a machine that becomes slower in
between slows both sides. Prints a table and writes JSON.

    python bench/speed.py [--pairs 9] [--output docs/results/speed-cpu.json] [--quick]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from expunge.data import ArrayData, Split
from expunge.evaluation.evaluate import Candidate, Evaluation, evaluate
from expunge.evaluation.metric import metrics
from expunge.methods.base import methods
from expunge.provenance import hardware, versions
from expunge.searches.base import searches
from expunge.tasks import Classification
from expunge.training.engine import Engine
from expunge.training.models import ResNet20
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

BATCH = 256

OUTPUTS = (
    "threshold", "entropy_logistic", "cross_validated", "population", "loss_threshold", "forensic",
    "average_gap", "tow", "jensen_shannon", "kl", "activation_distance", "completeness", "signed_gap", "cost",
)  # fmt: skip


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images (N, 3, 32, 32) and labels (N,): speed does not depend on their content."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 32, 32, generator=generator), torch.randint(10, (count,), generator=generator)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def paired(ours: Callable[[], object], bare: Callable[[], object], pairs: int) -> dict[str, object]:
    """Median ratio of alternating pairs, after one warm-up of each."""
    ours(), bare()
    times = [(seconds(ours), seconds(bare)) if i % 2 else tuple(reversed((seconds(bare), seconds(ours))))
             for i in range(pairs)]  # fmt: skip
    ratios = [a / b for a, b in times]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
        "seconds": round(statistics.median(a for a, _ in times), 3),
        "seconds_bare": round(statistics.median(b for _, b in times), 3),
    }


def bare_epoch(model: nn.Module, x: torch.Tensor, y: torch.Tensor, engine: Engine) -> None:
    """One epoch as anybody would write it: same tensors, model, dtype, batch size and optimiser."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for rows in torch.randperm(len(x)).split(BATCH):
        inputs, targets = x[rows], y[rows]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=engine.dtype == "bfloat16"):
            outputs = model(inputs)
        F.cross_entropy(outputs.float(), targets).backward()
        optimizer.step()


def finetune(engine: Engine, count: int, pairs: int) -> dict[str, object]:
    x, y = images(count + 8, 0)
    split = Split.from_ids(ArrayData({"inputs": x, "targets": y}), range(8))
    model, task, session = ResNet20(classes=10).build(), Classification(10), Session(0, engine)
    method = methods.get("finetune")(epochs=1, batch_size=BATCH, optim=SGD(lr=0.01, weight_decay=5e-4))
    # Both sides start from the same weights each time: how fast a step is depends on what was learned.
    fresh = iter([engine.copy(model) for _ in range(pairs + 1)])
    return paired(
        lambda: method.unlearn(model, split, task, session),
        lambda: bare_epoch(next(fresh), x[8:], y[8:], engine),
        pairs,
    )


def bare_forward(models: Sequence[nn.Module], parts: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for model in models:
            model.eval()
            for x in parts:
                for inputs in x.split(512):
                    model(inputs)


def outputs_only(count: int, pairs: int) -> dict[str, object]:
    """Every metric that reads the outputs of one model and the retrained ones, but the quadratic SVC."""
    x, y = images(2 * count, 1)
    train = ArrayData({"inputs": x[:count], "targets": y[:count]})
    test = ArrayData({"inputs": x[count:], "targets": y[count:]})
    split = Split.from_ids(train, range(count // 8), test=test)
    models = [ResNet20(classes=10).build() for _ in range(4)]
    roles = ("original", "retrained", "retrained", "unlearned")
    candidates = [
        Candidate(f"{role} {i}", role, model)
        for i, (role, model) in enumerate(zip(roles, models, strict=True))
    ]
    chosen = [
        *(metrics.get(name)(part=part) for name in ("accuracy", "loss") for part in split.parts()),
        *(metrics.get(name)() for name in OUTPUTS),
    ]
    parts = [x[: count // 8], x[count // 8 : count], x[count:]]
    task, session = Classification(10), Session(0, Engine())
    return paired(
        lambda: evaluate(candidates, split, task, session, chosen),
        lambda: bare_forward(models, parts),
        pairs,
    )


def bare_relearn(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    """Steps of 64 examples on a copy, the loss of 256 after each: what the attack has to compute."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for rows in torch.randperm(len(x)).split(64)[:steps]:
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            F.cross_entropy(model(x[:256]), y[:256])


def relearn(pairs: int) -> dict[str, object]:
    """Relearning on 512 examples with a goal out of reach, so that every step of the budget is taken."""
    steps = 8
    x, y = images(520, 4)
    split = Split.from_ids(ArrayData({"inputs": x, "targets": y}), range(512))
    model, task, session = ResNet20(classes=10).build(), Classification(10), Session(0, Engine())
    metric = metrics.get("relearn_time")(budget=steps, repeats=1, tolerance=-100.0)
    candidates = [Candidate("original", "original", model)]
    evaluation = Evaluation(candidates, split, task, session)
    evaluation.original.read("forget")
    return paired(
        lambda: metric.measure(evaluation.evidence(candidates[0])),
        lambda: bare_relearn(model, x[:512], y[:512], steps),
        pairs,
    )


def search(count: int, pairs: int) -> dict[str, object]:
    """The default bi-level search against one training by the default recipe."""
    x, y = images(count, 2)
    data, task = ArrayData({"inputs": x, "targets": y}), Classification(10)
    session = Session(0, Engine(dtype="bfloat16", channels_last=True))
    recipe = Recipe(ResNet20(classes=10), task, Training(batch_size=BATCH))
    model = ResNet20(classes=10).build()
    found = paired(
        lambda: searches.get("bilevel")().search(model, data, task, session),
        lambda: recipe.train(data, session),
        pairs,
    )
    return {**found, "epochs of the retraining": recipe.training.epochs}


def precision(count: int, pairs: int) -> dict[str, object]:
    """A bare epoch in bfloat16 with channels-last against one in float32."""
    x, y = images(count, 3)
    fast, slow = Engine(dtype="bfloat16", channels_last=True), Engine()
    base = ResNet20(classes=10).build()
    a, b = fast.copy(base), slow.copy(base)
    return paired(lambda: bare_epoch(a, x, y, fast), lambda: bare_epoch(b, x, y, slow), pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="fewer images, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/speed-cpu.json"))
    parser.add_argument("--only", help="measure the ratios whose name has this in it; keep the others")
    options = parser.parse_args()
    count = 512 if options.quick else 2048
    pairs = options.pairs
    measured: dict[str, Callable[[], dict[str, object]]] = {
        "finetune / bare epoch, float32": lambda: finetune(Engine(), count, pairs),
        "finetune / bare epoch, bfloat16": lambda: finetune(Engine(dtype="bfloat16"), count, pairs),
        "evaluate / bare forward passes": lambda: outputs_only(count // 2, min(pairs, 5)),
        "relearn_time / bare relearning": lambda: relearn(min(pairs, 5)),
        "bilevel / retraining": lambda: search(count // 4, min(pairs, 3)),
        "bfloat16 channels-last / float32": lambda: precision(count, min(pairs, 5)),
    }
    results: dict[str, object] = {}
    if options.only and options.output.exists():
        results = json.loads(options.output.read_text())["results"]
    for name, measure in measured.items():
        if options.only and options.only not in name:
            continue
        results[name] = result = measure()
        print(f"{name:36s} {result['ratio']:7.3f}   ({result['seconds']} s / {result['seconds_bare']} s)")  # type: ignore[index]
    report = {
        "model": "ResNet-20, 3 x 32 x 32, batch 256",
        "pairs": pairs,
        "images": count,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "results": results,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
