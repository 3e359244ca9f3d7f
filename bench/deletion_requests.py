"""Twenty deletion requests, one after another: what is left of a model, what is still known, and the cost.

The digits as they are, turned by 90 degrees and inverted are 30 classes; every request asks for one class
with all its training images, 20 of them in an order drawn by the seed. A perceptron serves them by each
method on the result of the last request: ``gs_lora``, ``ssd``, and ``s3t`` as a deployment that trains a
shard again when no stage of it is left. The slices of ``s3t`` are dealt by id, so that every class is in
all of them; with ``by class`` a class is in one slice of each shard. After each request

    retained    test accuracy on the classes that nobody has asked to forget,
    forgotten   accuracy on all training images forgotten so far,
    confidence  mean |p_i − r_i| over these, p_i the probability of the true label, r_i a retrained model's,
    distance    mean total variation between the two models' distributions over the classes, over these,
    cost        CPU seconds of this request over those of one training on all data.

Two models are retrained at each request (``train_many``); differences are the mean over both, and
``retrained`` is one against the other. One retraining costs its share of the optimiser steps. ``gs_lora`` and
``ssd`` have four settings each, around the best of a first round; one is chosen on the first five requests of
another order, with another original: that with the smallest mean distance of ``retained`` and ``forgotten``
from retraining. The settings of ``s3t`` are not tuned. ``ssd, own α`` is no part of this equal
budget: for each request it takes, of seven ``α``, that with the largest difference between the accuracies on
retained and on forgotten training images, and pays for all seven. Writes JSON and draws it.

    python bench/deletion_requests.py [--seeds 0 1] [--draw] [--output docs/results/requests.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from expunge import config
from expunge.data.arrays import ArrayData, Data, batch_count
from expunge.data.builtin import Digits
from expunge.data.split import Split
from expunge.methods.base import Method
from expunge.methods.edits.ssd import SSD
from expunge.methods.exact.s3t import S3T
from expunge.methods.gradient.gs_lora import GSLoRA
from expunge.provenance import hardware, versions
from expunge.report.style import MARKERS, PALETTE, figure, style
from expunge.seeding import generator
from expunge.tasks import Classification
from expunge.training.engine import Engine
from expunge.training.ensemble import train_many
from expunge.training.models import Mlp
from expunge.training.optim import SGD, AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

Made = TypeVar("Made")
CLASSES, REQUESTS, RETRAINED = 30, 20, 2
RECIPE = Recipe(
    Mlp(inputs=64, outputs=CLASSES, hidden=(96, 96, 96)),
    Classification(CLASSES),
    Training(epochs=15, batch_size=128, optim=SGD(lr=0.1, weight_decay=5e-4, schedule="cosine")),
)
ADAPTED: dict[str, Any] = {
    "shards": 2,
    "slices": 3,
    "retrain": "auto",
    "epochs": 10,
    "batch_size": 64,
    "optim": AdamW(lr=1e-2, weight_decay=0.0, schedule="linear"),
}
DEPLOYED = {"s3t": S3T(budget=1, **ADAPTED), "s3t, by class": S3T(slice_by="slice", **ADAPTED)}
GRID: dict[str, list[Method]] = {
    "gs_lora": [
        GSLoRA(epochs=epochs, optim=AdamW(lr=lr, weight_decay=0.05, schedule="cosine"))
        for epochs, lr in itertools.product((10, 30), (0.003, 0.01))
    ],
    "ssd": [SSD(alpha=alpha) for alpha in (30.0, 45.0, 65.0, 100.0)],
}
OWN, OWN_ALPHAS = "ssd, own α", (1.0, 3.0, 10.0, 20.0, 30.0, 50.0, 100.0)
TUNING_SEED, TUNING_REQUESTS = 100, 5
MEASURES = ("retained", "forgotten", "confidence", "distance", "cost")


def thrice(data: Data) -> ArrayData:
    """The digits as they are, turned and inverted; ``slice`` is that of their class."""
    images, labels = data.column("inputs"), data.column("targets")
    targets = torch.cat([labels, labels + 10, labels + 20])
    inputs = torch.cat([images, torch.rot90(images, 1, (2, 3)), 1 - images])
    return ArrayData({"inputs": inputs, "targets": targets, "slice": targets % ADAPTED["slices"]})


@dataclass(frozen=True)
class Request:
    """One class to forget, with all that was forgotten before it."""

    label: int
    split: Split
    gone: Data
    tests: Data

    def measured(self, model: nn.Module, references: Sequence[nn.Module]) -> dict[str, float]:
        told, labels = probabilities(model, self.gone), self.gone.column("targets")
        differences = [(told - probabilities(other, self.gone)).abs() for other in references]
        true = torch.arange(len(labels)), labels
        return {
            "retained": accuracy(model, self.tests),
            "forgotten": accuracy(model, self.gone),
            "confidence": mean(float(found[true].mean()) for found in differences),
            "distance": mean(float(found.sum(1).mean()) / 2 for found in differences),
        }


def probabilities(model: nn.Module, data: Data) -> Tensor:
    with torch.no_grad():
        return model(data.column("inputs")).softmax(1)  # type: ignore[no-any-return]


def requests(train: Data, test: Data, seed: int, count: int) -> list[Request]:
    order = torch.randperm(CLASSES, generator=generator(seed, "requests"))[:count]
    targets, found, rest = train.column("targets"), [], train
    for k, label in enumerate(order.tolist()):
        split = Split.from_ids(rest, train.ids[targets == label], test=test)
        gone = train.subset(train.ids[torch.isin(targets, order[: k + 1])])
        tests = test.subset(test.ids[~torch.isin(test.column("targets"), order[: k + 1])])
        found.append(Request(label, split, gone, tests))
        rest = split.retain
    return found


@dataclass(frozen=True)
class Draw:
    """An order of requests, the original, the models retrained at each, and the unit of the cost."""

    requests: list[Request]
    train: Data
    session: Session
    original: nn.Module
    seconds: float
    retrained: list[tuple[nn.Module, ...]]

    def rows(self, models: Iterator[tuple[nn.Module, float]]) -> list[dict[str, float]]:
        """The measures after each request of models that come with their cost in seconds."""
        return [
            {**request.measured(model, others), "cost": seconds / self.seconds}
            for request, others, (model, seconds) in zip(self.requests, self.retrained, models, strict=True)
        ]

    def again(self) -> list[dict[str, float]]:
        """The retrained models, each against the other."""
        found, steps = [], batch_count(len(self.train), RECIPE.training.batch_size)
        for request, (first, second) in zip(self.requests, self.retrained, strict=True):
            pair = [request.measured(first, [second]), request.measured(second, [first])]
            cost = batch_count(len(request.split.retain), RECIPE.training.batch_size) / steps
            found.append({**{name: mean(one[name] for one in pair) for name in pair[0]}, "cost": cost})
        return found


def drawn(train: Data, test: Data, seed: int, count: int) -> Draw:
    session, asked = Session(seed, Engine(device="cpu"), recipe=RECIPE), requests(train, test, seed, count)
    original, seconds = timed(lambda: RECIPE.train(train, session.child("original")))
    pairs = [(request, k) for request in asked for k in range(RETRAINED)]
    sessions = [session.child("retrained", request.label, k) for request, k in pairs]
    found = train_many(RECIPE, [request.split.retain for request, _ in pairs], sessions).models
    retrained = [found[i : i + RETRAINED] for i in range(0, len(found), RETRAINED)]
    return Draw(asked, train, session, original, seconds, retrained)


def timed(work: Callable[[], Made]) -> tuple[Made, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def in_turn(method: Method, draw: Draw) -> Iterator[tuple[nn.Module, float]]:
    """The model after each request, each made of the last one."""
    model = draw.original
    for request in draw.requests:
        session = draw.session.child("unlearn", request.label)

        def unlearn(
            model: nn.Module = model, request: Request = request, session: Session = session
        ) -> nn.Module:
            return method.unlearn(model, request.split, RECIPE.task, session)

        model, seconds = timed(unlearn)
        yield model, seconds


def with_own_alpha(draw: Draw) -> Iterator[tuple[nn.Module, float]]:
    """As ``in_turn`` by SSD, each request with the ``α`` that keeps and forgets most; all are paid for."""
    model = draw.original
    for request in draw.requests:
        session = draw.session.child("unlearn", request.label)

        def unlearn(
            model: nn.Module = model, split: Split = request.split, session: Session = session
        ) -> nn.Module:
            tried = [SSD(alpha=alpha).unlearn(model, split, RECIPE.task, session) for alpha in OWN_ALPHAS]
            return max(tried, key=lambda one: accuracy(one, split.retain) - accuracy(one, split.forget))

        model, seconds = timed(unlearn)
        yield model, seconds


def accuracy(model: nn.Module, data: Data) -> float:
    return float((probabilities(model, data).argmax(1) == data.column("targets")).float().mean())


def served(method: S3T, draw: Draw, made: dict[str, float]) -> Iterator[tuple[nn.Module, float]]:
    """The deployment after each request; ``made`` gets what it took to train it and how it began."""
    deployment, seconds = timed(lambda: method.deploy(RECIPE, draw.train, draw.session.child("s3t")))
    tests = draw.requests[0].split.test
    assert tests is not None
    made |= {"cost": seconds / draw.seconds, "accuracy": accuracy(deployment.model, tests), "retrainings": 0}
    for request in draw.requests:
        report, seconds = timed(lambda ids=request.split.forget.ids: deployment.delete(ids))  # type: ignore[misc]
        made["retrainings"] += bool(report.steps)
        yield deployment.model, seconds


def tuned(draw: Draw, name: str) -> tuple[Method, list[dict[str, Any]]]:
    """The setting nearest to retraining in both accuracies, and how far all of them are."""
    goal, tried = draw.again(), []
    for method in GRID[name]:
        rows = draw.rows(in_turn(method, draw))
        gaps = [
            abs(row[m] - r[m]) for row, r in zip(rows, goal, strict=True) for m in ("retained", "forgotten")
        ]
        tried.append((round(mean(gaps), 4), method))
    best = min(tried, key=lambda one: one[0])[1]
    return best, [{"settings": config.dump(method), "gap": gap} for gap, method in tried]


def lines(draw: Draw, chosen: dict[str, Method]) -> tuple[dict[str, list[dict[str, float]]], dict[str, Any]]:
    """The rows of every line of the plot, and what is said of the deployments."""
    nothing = ((draw.original, 0.0) for _ in draw.requests)
    found = {"nothing": draw.rows(nothing), "retrained": draw.again()}
    made: dict[str, dict[str, float]] = {name: {} for name in DEPLOYED}
    found |= {name: draw.rows(in_turn(method, draw)) for name, method in chosen.items()}
    found[OWN] = draw.rows(with_own_alpha(draw))
    found |= {name: draw.rows(served(method, draw, made[name])) for name, method in DEPLOYED.items()}
    return found, {name: {k: round(v, 4) for k, v in said.items()} for name, said in made.items()}


def summary(found: list[dict[str, list[dict[str, float]]]]) -> dict[str, list[dict[str, Any]]]:
    """For each line and request the mean, least and largest value over the seeds."""
    result: dict[str, list[dict[str, Any]]] = {}
    for name in found[0]:
        result[name] = []
        for k in range(len(found[0][name])):
            values = {m: [round(one[name][k][m], 4) for one in found] for m in MEASURES}
            total = [round(sum(row["cost"] for row in one[name][: k + 1]), 4) for one in found]
            cells = {
                m: {"mean": round(mean(v), 4), "values": v}
                for m, v in {**values, "cost so far": total}.items()
            }
            result[name].append({"requests": k + 1, **cells})
    return result


def show(results: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in results.items():
        print(name)
        for row in (rows[k - 1] for k in (1, 5, 10, 20) if k <= len(rows)):
            cells = "  ".join(f"{m} {row[m]['mean']:.3f}" for m in (*MEASURES[:-1], "cost so far"))
            print(f"  after {row['requests']:2d}: {cells}")


PANELS = {
    "retained": ("Test accuracy on retained classes, %", 100),
    "forgotten": ("Accuracy on all that was forgotten, %", 100),
    "distance": ("Distance from retrained on it (total variation)", 1),
    "cost so far": ("Cost so far, in retrainings on all data", 1),
}


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Four panels over the number of requests: the mean of the seeds, and all of them as a band."""
    plain: dict[str, dict[str, Any]] = {
        "nothing": {"color": "0.5", "linestyle": ":"},
        "retrained": {"color": "0.1", "linestyle": "--"},
    }
    with style():
        chart = figure(9.5, 6.6)
        axes = chart.subplots(2, 2, sharex=True).flatten()
        for axis, (name, (title, factor)) in zip(axes, PANELS.items(), strict=True):
            for i, (line, rows) in enumerate(report["results"].items()):
                k = i - len(plain)
                look = plain.get(line) or {"color": PALETTE[k], "marker": MARKERS[k], "markersize": 3.5}
                x = [row["requests"] for row in rows]
                axis.plot(x, [factor * row[name]["mean"] for row in rows], label=line, linewidth=1.3, **look)
                ends = [[factor * end(row[name]["values"]) for row in rows] for end in (min, max)]
                axis.fill_between(x, *ends, color=look["color"], alpha=0.12, linewidth=0)
            axis.set_title(title)
        for axis in axes[2:]:
            axis.set_xlabel("requests")
            axis.set_xticks(range(0, len(x) + 1, 5))
        chart.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
        chart.savefig(path, facecolor="white", metadata={"Date": None})


def measure(seeds: Sequence[int], count: int) -> dict[str, Any]:
    sourced = Digits().load()
    train, test = thrice(sourced.train), thrice(sourced.test)
    other = drawn(train, test, TUNING_SEED, min(count, TUNING_REQUESTS))
    tuning = {name: tuned(other, name) for name in GRID}
    chosen = {name: best for name, (best, _) in tuning.items()}
    print({name: tried for name, (_, tried) in tuning.items()}, flush=True)
    found, deployed = [], []
    for seed in seeds:
        draw = drawn(train, test, seed, count)
        rows, made = lines(draw, chosen)
        found.append(rows)
        deployed.append({"seed": seed, "seconds of one retraining": round(draw.seconds, 3), **made})
        print(deployed[-1], flush=True)
    return {
        "data": f"digits as they are, turned and inverted: {len(train)} training images, {CLASSES} classes",
        "settings": {name: config.dump(method) for name, method in {**chosen, **DEPLOYED}.items()},
        "tuning": {"seed": TUNING_SEED, **{name: tried for name, (_, tried) in tuning.items()}},
        "deployments": deployed,
        "results": summary(found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw the JSON again")
    parser.add_argument("--output", type=Path, default=Path("docs/results/requests.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.draw:
        draw_chart(json.loads(options.output.read_text(encoding="utf-8")), options.output.with_suffix(".svg"))
        return
    load, began = os.getloadavg()[0], time.perf_counter()
    found = measure(options.seeds, options.requests)
    report = {
        "seeds": options.seeds,
        "model": config.dump(RECIPE.model),
        "training": config.dump(RECIPE.training),
        "retrained models at each request": RETRAINED,
        "device": hardware(torch.device("cpu")),
        "load average at the start": round(load, 2),
        "seconds in all": round(time.perf_counter() - began, 1),
        "versions": versions(),
        **found,
    }
    show(report["results"])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw_chart(report, options.output.with_suffix(".svg"))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
