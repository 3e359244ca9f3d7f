"""Training 16 small models as one stack against one after another.

The models of both sides are the same to rounding. Each ratio is the median over alternating pairs of
runs in one process. Runs on a GPU where there is one. Prints a table and writes JSON.

    python bench/ensembles.py [--pairs 3] [--models 16] [--quick] [--output docs/results/ensembles-cpu.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from expunge.data import ArrayData
from expunge.evaluation.shadows import ShadowPlan, halves
from expunge.provenance import hardware, versions
from expunge.tasks import Classification
from expunge.training.engine import Engine
from expunge.training.ensemble import Ensemble, How, stacking, train_many
from expunge.training.models import Mlp, ModelSpec, SmallCnn
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

MODELS: dict[str, tuple[ModelSpec, int, int]] = {
    "mlp 64-64-10, batch 32": (Mlp(inputs=64, outputs=10), 8, 32),
    "mlp 64-64-10, batch 128": (Mlp(inputs=64, outputs=10), 8, 128),
    "mlp 196-64-10, batch 64": (Mlp(inputs=196, outputs=10), 14, 64),
    "mlp 784-256-10, batch 128": (Mlp(inputs=784, outputs=10, hidden=(256,)), 28, 128),
    "small_cnn width 8, 8×8, batch 128": (SmallCnn(in_channels=1, classes=10, width=8), 8, 128),
    "small_cnn width 16, 8×8, batch 128": (SmallCnn(in_channels=1, classes=10, width=16), 8, 128),
}
"""Model, side of the picture, batch size."""


def measured(name: str, dtype: str, device: str, models: int, pairs: int, size: int) -> dict[str, object]:
    spec, side, batch = MODELS[name]
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(2 * size, 1, side, side, generator=draws)
    data = ArrayData({"inputs": x, "targets": torch.randint(10, (2 * size,), generator=draws)}).to(device)
    optim = SGD(lr=0.05, weight_decay=5e-4, schedule="cosine")
    recipe = Recipe(spec, Classification(10), Training(epochs=1, batch_size=batch, optim=optim))
    engine = Engine(device=device, dtype=dtype)  # type: ignore[arg-type]
    sessions = [Session(i, engine) for i in range(models)]
    parts = [data.subset(row.nonzero()[:, 0]) for row in halves(2 * size, ShadowPlan(count=models), draws)]

    def trained(how: How) -> Ensemble:
        found = train_many(recipe, parts, sessions, how, group=models)
        if device != "cpu":
            torch.cuda.synchronize()
        return found

    warm = replace(recipe, training=replace(recipe.training, epochs=1))
    for how in ("stacked", "sequential"):
        train_many(warm, parts[:2], sessions[:2], how)  # type: ignore[arg-type]
    times = []
    for pair in range(pairs):
        order: tuple[How, How] = ("stacked", "sequential") if pair % 2 else ("sequential", "stacked")
        times.append({how: trained(how) for how in order})
    ratios = [pair["stacked"].seconds / pair["sequential"].seconds for pair in times]
    speed = {
        how: round(statistics.median(pair[how].models_per_minute for pair in times), 1)
        for how in ("stacked", "sequential")
    }
    picked, reason = stacking(recipe, parts[0], sessions[0])
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "models per minute": speed,
        "auto picks": "stacked" if picked else "sequential",
        "because": reason,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--models", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="fewer examples, to see that it runs")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 128 if options.quick else 1024
    load = os.getloadavg()[0]
    results: dict[str, dict[str, object]] = {}
    for dtype in ("float32", "bfloat16"):
        for name in MODELS:
            found = measured(name, dtype, device, options.models, options.pairs, size)
            results[f"{name}, {dtype}"] = found
            print(f"{name + ', ' + dtype:46s} {found['ratio']:6.3f}   {found['models per minute']}"
                  f"   auto: {found['auto picks']}", flush=True)  # fmt: skip
    report = {
        "models": options.models,
        "pairs": options.pairs,
        "training": f"one epoch of {size} examples, SGD with momentum and weight decay",
        "device": hardware(torch.device(device)),
        "processors": os.cpu_count(),
        "load average at the start": round(load, 2),
        "versions": versions(),
        "results": results,
    }
    output = options.output or Path(f"docs/results/ensembles-{device}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {output}")


if __name__ == "__main__":
    main()
