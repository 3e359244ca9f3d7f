"""What deletions cost with SISA and S3T, against retraining, over the number of requests.

A perceptron on the digits. ``in turn``: requests of one example each, one after another; the share is the
optimiser steps so far over those of retraining one model at every request. ``at once``: one request of many
examples; the share is its steps over those of one retraining. A step has the same batch size everywhere.
Prints tables and writes JSON.

    python bench/deletion.py [--requests 20] [--draws 1] [--quick] [--output docs/results/deletion.json]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from expunge import config
from expunge.data.arrays import Data, batch_count
from expunge.data.builtin import Digits
from expunge.methods.exact.s3t import S3T
from expunge.methods.exact.sharded import Deletion, Deployment, ShardedMethod
from expunge.methods.exact.sisa import SISA
from expunge.provenance import hardware, versions
from expunge.seeding import generator
from expunge.tasks import Classification
from expunge.training.engine import Engine
from expunge.training.models import Mlp
from expunge.training.optim import SGD, AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

BATCH = 32
TRAINING = Training(epochs=30, batch_size=BATCH, optim=SGD(lr=0.05, weight_decay=5e-4, schedule="cosine"))
RECIPE = Recipe(Mlp(inputs=64, outputs=10, hidden=(64, 64, 64)), Classification(10), TRAINING)
ADAPTED: dict[str, Any] = {
    "epochs": 20,
    "batch_size": BATCH,
    "optim": AdamW(lr=1e-2, weight_decay=0.0, schedule="linear"),
}
METHODS: dict[str, ShardedMethod] = {
    "sisa, 5 shards × 1 slice": SISA(shards=5, slices=1),
    "sisa, 5 shards × 5 slices": SISA(shards=5, slices=5),
    "s3t, 5 shards × 3 slices, 1 order": S3T(shards=5, slices=3, budget=1, retrain="auto", **ADAPTED),
    "s3t, 5 shards × 3 slices, 3 orders": S3T(shards=5, slices=3, retrain="auto", **ADAPTED),
}
AT_ONCE = (1, 4, 16, 64)


def accuracy(model: torch.nn.Module, data: Data) -> float:
    with torch.no_grad():
        found = model(data.column("inputs")).argmax(1)
    return round(float((found == data.column("targets")).float().mean()), 4)


def timed(deployment: Deployment, ids: torch.Tensor) -> tuple[Deletion, float]:
    start = time.perf_counter()
    report = deployment.delete(ids)
    return report, time.perf_counter() - start


def retraining(recipe: Recipe, train: Data, test: Data, session: Session) -> dict[str, float]:
    """One model on the same data: its steps, seconds and accuracy."""
    start = time.perf_counter()
    model = recipe.train(train, session.child("retrain"))
    seconds = round(time.perf_counter() - start, 2)
    steps = recipe.training.epochs * batch_count(len(train), recipe.training.batch_size)
    return {"steps": steps, "seconds": seconds, "accuracy": accuracy(model, test)}


def in_turn(
    start: Callable[[], Deployment], test: Data, requests: int, draws: int, plain: int
) -> list[dict[str, float]]:
    """Means over the draws of what the requests so far have cost and of the accuracy after each."""
    rows: list[list[dict[str, float]]] = [[] for _ in range(requests)]
    for draw in range(draws):
        deployment, steps, seconds = start(), 0, 0.0
        ids = deployment.data.ids
        order = ids[torch.randperm(len(ids), generator=generator(draw, "requests"))[:requests]]
        for k, one in enumerate(order.split(1)):
            report, took = timed(deployment, one)
            steps, seconds = steps + report.steps, seconds + took
            found = {"steps": steps, "seconds": seconds, "share": steps / ((k + 1) * plain)}
            rows[k].append(
                {**found, "retrained": bool(report.steps), "accuracy": accuracy(deployment.model, test)}
            )
    return [{"requests": k + 1, **means(found)} for k, found in enumerate(rows)]


def at_once(start: Callable[[], Deployment], draws: int, plain: int) -> list[dict[str, float]]:
    """Means over the draws of the cost of one request of many examples."""
    found = []
    for size in AT_ONCE:
        rows = []
        for draw in range(draws):
            deployment = start()
            ids = deployment.data.ids
            chosen = ids[torch.randperm(len(ids), generator=generator(draw, "at once"))[:size]]
            report, took = timed(deployment, chosen)
            rows.append(
                {
                    "steps": report.steps,
                    "seconds": took,
                    "share": report.steps / plain,
                    "share_of_all": report.share,
                }
            )
        found.append({"examples": size, **means(rows)})
    return found


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in rows[0]}


def measured(
    method: ShardedMethod, recipe: Recipe, train: Data, test: Data, options: argparse.Namespace, plain: int
) -> dict[str, object]:
    session = Session(0, Engine(device="cpu"), recipe=recipe)
    began = time.perf_counter()
    session = replace(session, prepared=method.prepare(train, recipe.task, session))
    seconds = time.perf_counter() - began

    def start() -> Deployment:
        return method.deploy(recipe, train, session)

    assert session.prepared is not None
    size = sum(v.numel() * v.element_size() for name, v in session.prepared.items() if "/" in name)
    return {
        "settings": config.dump(method),
        "prepare": {"seconds": round(seconds, 2), "megabytes": round(size / 1e6, 2)},
        "accuracy": accuracy(start().model, test),
        "in turn": in_turn(start, test, options.requests, options.draws, plain),
        "at once": at_once(start, options.draws, plain),
    }


def show(name: str, found: dict[str, object], requests: int) -> None:
    rows: list[dict[str, float]] = found["in turn"]  # type: ignore[assignment]
    picked = [rows[k - 1] for k in (1, 2, 5, 10, 20, 50, 100) if k <= requests]
    shares = "  ".join(f"{row['requests']:.0f}: {row['share']:.3f}" for row in picked)
    many: list[dict[str, float]] = found["at once"]  # type: ignore[assignment]
    once = "  ".join(f"{row['examples']:.0f}: {row['share']:.2f}" for row in many)
    print(f"{name}\n  trained in {found['prepare']}, accuracy {found['accuracy']} → {rows[-1]['accuracy']}")
    print(f"  share of retraining, in turn   {shares}\n  share of retraining, at once   {once}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few epochs, one draw: to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/deletion.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe, chosen = RECIPE, METHODS
    if options.quick:
        recipe = replace(RECIPE, training=replace(TRAINING, epochs=3))
        chosen = {n: replace(m, epochs=1) for n, m in METHODS.items()}  # type: ignore[type-var]
        options.draws, options.requests = 1, min(options.requests, 10)
    sourced, load, began = Digits().load(), os.getloadavg()[0], time.perf_counter()
    retrained = retraining(recipe, sourced.train, sourced.test, Session(0, Engine(device="cpu")))
    print(f"retraining one model: {retrained}", flush=True)
    results = {}
    for name, method in chosen.items():
        results[name] = measured(
            method, recipe, sourced.train, sourced.test, options, int(retrained["steps"])
        )
        show(name, results[name], options.requests)
    report = {
        "data": f"digits, {len(sourced.train)} training examples",
        "model": "perceptron 64-64-64-64-10",
        "training": config.dump(recipe.training),
        "draws": options.draws,
        "device": hardware(torch.device("cpu")),
        "load average at the start": round(load, 2),
        "seconds in all": round(time.perf_counter() - began, 1),
        "versions": versions(),
        "retraining": retrained,
        "results": results,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
