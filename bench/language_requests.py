"""Ten deletion requests to a language model, one after another: what is left of it, and what is still known.

The data are ``people``: a small Llama is trained on other people in all phrasings (the base), and from there
on questions about 40 people and 40 countries. Every request asks for all that is known about one person,
drawn by the seed. Three methods serve them: ``npo`` on the result of the last request, ``o3``, which leaves
the weights and adds an adapter and a router for each request, and ``s3t`` as a deployment whose slices hold
whole people and which trains its shard again when no stage of it is left. After each request, with
``p = exp(mean log p_t)`` the length-normalised probability of the true answer,

    retained    mean p over the people that nobody has asked to forget,
    world       mean p over the countries,
    forgotten   mean p over all that was forgotten so far,
    reworded    the same after another question for the same fact, on which only the base was trained,
    distance    mean |p_i − r_i| over all that was forgotten, r_i of a retrained model,
    cost        CPU seconds of this request over those of one training on all data.

One model is retrained at each request, from the base; ``distance`` is against this one and is not measured
of itself. ``npo`` and ``o3`` have four settings each; one is chosen on the first two requests of another
order, with another original: that with the smallest mean distance of ``retained``, ``forgotten`` and
``reworded`` from retraining. The settings of ``s3t`` are not tuned. One order of requests and one original
are drawn: there are no intervals. Writes JSON and draws it.

    python bench/language_requests.py [--seed 0] [--draw] [--output docs/results/language-requests.json]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from expunge import config
from expunge.data.arrays import Data, fixed_order
from expunge.data.language import People
from expunge.data.split import Split
from expunge.data.text import Template, TextData
from expunge.methods.base import Method
from expunge.methods.exact.s3t import S3T
from expunge.methods.gradient.npo import NPO
from expunge.methods.guards.o3 import O3
from expunge.provenance import hardware, versions
from expunge.report.style import MARKERS, PALETTE, figure, style
from expunge.seeding import generator
from expunge.tasks import CausalLM
from expunge.training.engine import Engine
from expunge.training.language_models import Llama
from expunge.training.optim import AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

Made = TypeVar("Made")
REQUESTS, TUNING_SEED, TUNING_REQUESTS = 10, 100, 2
PEOPLE = People(people=40, background=16, held_out=4, attributes=4, template=Template(prompt="{question}"))
OPTIM = AdamW(lr=3e-3, weight_decay=0.0, schedule="cosine")
BASE, TRAINING = (Training(epochs=epochs, batch_size=32, optim=OPTIM) for epochs in (15, 30))
STAGES = S3T(
    shards=1,
    slices=3,
    slice_by="slice",
    retrain="auto",
    rank=8,
    epochs=20,
    batch_size=32,
    optim=AdamW(lr=3e-3, weight_decay=0.0, schedule="linear"),
)
ROUTERS: tuple[Literal["one_class", "logistic"], ...] = ("one_class", "logistic")
GRID: dict[str, list[Method]] = {
    "npo": [
        NPO(epochs=10, batch_size=16, retain_weight=weight, optim=AdamW(lr=lr, weight_decay=0.0))
        for weight, lr in itertools.product((1.0, 5.0), (1e-4, 3e-4))
    ],
    "o3": [
        O3(epochs=20, answers=answers, router=router, optim=AdamW(lr=3e-3, weight_decay=0.0))
        for answers, router in itertools.product(("idk", "alternate"), ROUTERS)
    ],
}
MEASURES = ("retained", "world", "forgotten", "reworded", "distance", "cost")


class Sliced(TextData):
    """Records whose column ``slice`` puts all about one subject into one slice."""

    def column(self, name: str) -> Tensor:
        return super().column("subjects") % STAGES.slices if name == "slice" else super().column(name)


@dataclass(frozen=True)
class Stage:
    """Where every training starts: a copy of the base."""

    base: nn.Module

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.base).requires_grad_(True)


def probabilities(model: nn.Module, data: Data, task: CausalLM, question: str = "") -> Tensor:
    """``p`` of the true answer to each question, or to its other form, ``(N,)``."""
    found = []
    for batch in data.batches(fixed_order(len(data), 128), device="cpu"):
        rows = task.instead(batch, question) if question else batch
        with torch.no_grad():
            found.append(-task.loss(task.said(model, rows), rows))
    return torch.cat(found).exp()


@dataclass(frozen=True)
class Request:
    """One person to forget, with all that was forgotten before and all that stays."""

    person: int
    split: Split
    gone: Data
    kept: Data
    world: Data

    def measured(self, model: nn.Module, task: CausalLM, retrained: nn.Module | None) -> dict[str, float]:
        told = probabilities(model, self.gone, task)
        found = {
            "retained": float(probabilities(model, self.kept, task).mean()),
            "world": float(probabilities(model, self.world, task).mean()),
            "forgotten": float(told.mean()),
            "reworded": float(probabilities(model, self.gone, task, "paraphrased_question").mean()),
        }
        if retrained is not None:
            found["distance"] = float((told - probabilities(retrained, self.gone, task)).abs().mean())
        return found


def requests(train: Data, countries: Tensor, seed: int, count: int) -> list[Request]:
    subjects, found, rest = train.column("subjects"), [], train
    people = subjects[~torch.isin(train.ids, countries)].unique()
    order = people[torch.randperm(len(people), generator=generator(seed, "requests"))[:count]]
    for k, person in enumerate(order.tolist()):
        split = Split.from_ids(rest, train.ids[subjects == person])
        gone = train.subset(train.ids[torch.isin(subjects, order[: k + 1])])
        kept = split.retain.subset(split.retain.ids[~torch.isin(split.retain.ids, countries)])
        found.append(Request(person, split, gone, kept, train.subset(countries)))
        rest = split.retain
    return found


@dataclass(frozen=True)
class Draw:
    """An order of requests, the original, the models retrained at some, and the unit of the cost."""

    recipe: Recipe
    task: CausalLM
    requests: list[Request]
    train: Data
    session: Session
    original: nn.Module
    seconds: float
    retrained: dict[int, tuple[nn.Module, float]]

    def rows(self, models: Iterator[tuple[nn.Module, float]]) -> list[dict[str, float]]:
        """The measures after each request of models that come with their cost in seconds."""
        found = []
        for k, (request, (model, seconds)) in enumerate(zip(self.requests, models, strict=True)):
            other = self.retrained[k][0] if k in self.retrained else None
            other = None if other is model else other
            found.append({**request.measured(model, self.task, other), "cost": seconds / self.seconds})
        return found


def drawn(recipe: Recipe, train: Data, countries: Tensor, seed: int, count: int, at: Sequence[int]) -> Draw:
    session = Session(seed, Engine(device="cpu"), recipe=recipe)
    asked = requests(train, countries, seed, count)
    original, seconds = timed(lambda: recipe.train(train, session.child("original")))
    retrained = {
        k: timed(lambda k=k: recipe.train(asked[k].split.retain, session.child("retrained", k)))  # type: ignore[misc]
        for k in at
    }
    task = recipe.task
    assert isinstance(task, CausalLM)
    return Draw(recipe, task, asked, train, session, original, seconds, retrained)


def timed(work: Callable[[], Made]) -> tuple[Made, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def in_turn(method: Method, draw: Draw) -> Iterator[tuple[nn.Module, float]]:
    """The model after each request, each made of the last one."""
    model = draw.original
    for request in draw.requests:
        session = draw.session.child("unlearn", request.person)

        def unlearn(
            model: nn.Module = model, request: Request = request, session: Session = session
        ) -> nn.Module:
            return method.unlearn(model, request.split, draw.task, session)

        model, seconds = timed(unlearn)
        yield model, seconds


def served(draw: Draw, made: dict[str, float]) -> Iterator[tuple[nn.Module, float]]:
    """The deployment after each request; ``made`` gets what it took to train it and how it began."""
    session = draw.session.child("s3t")
    deployment, seconds = timed(lambda: STAGES.deploy(draw.recipe, draw.train, session))
    known = float(probabilities(deployment.model, draw.train, draw.task).mean())
    made |= {"cost": seconds / draw.seconds, "probability": known, "retrainings": 0}
    for request in draw.requests:
        report, seconds = timed(lambda ids=request.split.forget.ids: deployment.delete(ids))  # type: ignore[misc]
        made["retrainings"] += bool(report.steps)
        yield deployment.model, seconds


def tuned(draw: Draw, name: str) -> tuple[Method, list[dict[str, Any]]]:
    """The setting nearest to retraining after the last request, and how far all of them are."""
    last = len(draw.requests) - 1
    goal, tried = draw.requests[last].measured(draw.retrained[last][0], draw.task, None), []
    for method in GRID[name]:
        row = draw.rows(in_turn(method, draw))[last]
        gap = mean(abs(row[m] - goal[m]) for m in ("retained", "forgotten", "reworded"))
        tried.append((round(gap, 4), method))
    best = min(tried, key=lambda one: one[0])[1]
    return best, [{"settings": config.dump(method), "gap": gap} for gap, method in tried]


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, list[dict[str, Any]]]:
    """For each line and request the measures, and the cost up to there."""
    return {
        name: [
            {
                "requests": k + 1,
                **{m: round(row[m], 4) for m in MEASURES if m in row},
                "cost so far": round(sum(one["cost"] for one in rows[: k + 1]), 4),
            }
            for k, row in enumerate(rows)
        ]
        for name, rows in found.items()
    }


def show(results: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in results.items():
        print(name)
        for row in (rows[k - 1] for k in (1, 3, 5, 10) if k <= len(rows)):
            cells = "  ".join(f"{m} {row[m]:.3f}" for m in (*MEASURES[:-1], "cost so far") if m in row)
            print(f"  after {row['requests']:2d}: {cells}")


PANELS = {
    "retained": "Answers about retained people, probability",
    "world": "Answers about countries, probability",
    "forgotten": "All that was forgotten, probability",
    "reworded": "The same asked in other words, probability",
    "distance": "Distance from retrained on it",
    "cost so far": "Cost so far, in trainings on all data",
}


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Six panels over the number of requests."""
    plain: dict[str, dict[str, Any]] = {
        "nothing": {"color": "0.5", "linestyle": ":"},
        "retrained": {"color": "0.1", "linestyle": "--"},
    }
    with style():
        chart = figure(11.5, 6.4)
        axes = chart.subplots(2, 3, sharex=True).flatten()
        for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
            for i, (line, rows) in enumerate(report["results"].items()):
                k = i - len(plain)
                look = plain.get(line) or {"color": PALETTE[k], "marker": MARKERS[k], "markersize": 3.5}
                there = [row for row in rows if name in row]
                x, y = ([row[key] for row in there] for key in ("requests", name))
                axis.plot(x, y, label=line, linewidth=1.3, **look)
            axis.set_title(title)
            axis.set_ylim(bottom=0)
        for axis in axes[3:]:
            axis.set_xlabel("requests")
        chart.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        chart.savefig(path, facecolor="white", metadata={"Date": None})


def measure(seed: int, count: int) -> dict[str, Any]:
    sourced = PEOPLE.load()
    assert isinstance(sourced.train, TextData)
    assert sourced.base is not None
    train = Sliced(sourced.train.records, sourced.train.tokenizer, PEOPLE.template)
    known = {record.subject for record in sourced.probes["world"].records}  # type: ignore[attr-defined]
    countries = torch.tensor([i for i, record in enumerate(train.records) if record.subject in known])
    tokens = len(train.tokenizer)
    llama, task = Llama(vocabulary=tokens, width=48, layers=3, heads=3, context=160), CausalLM(tokens)
    base = Recipe(llama, task, BASE).train(sourced.base, Session(0, Engine(device="cpu")))
    recipe = Recipe(Stage(base), task, TRAINING)
    tries = min(count, TUNING_REQUESTS)
    other = drawn(recipe, train, countries, TUNING_SEED, tries, [tries - 1])
    tuning = {name: tuned(other, name) for name in GRID}
    print({name: tried for name, (_, tried) in tuning.items()}, flush=True)
    chosen = {name: best for name, (best, _) in tuning.items()}
    draw = drawn(recipe, train, countries, seed, count, range(count))
    made: dict[str, float] = {}
    found = {
        "nothing": draw.rows((draw.original, 0.0) for _ in draw.requests),
        "retrained": draw.rows(draw.retrained[k] for k in range(count)),
        **{name: draw.rows(in_turn(best, draw)) for name, best in chosen.items()},
        "s3t": draw.rows(served(draw, made)),
    }
    return {
        "data": config.dump(PEOPLE),
        "records": {"train": len(train), "base": len(sourced.base)},
        "model": {**config.dump(llama), "parameters": sum(p.numel() for p in base.parameters())},
        "training": {"base": config.dump(BASE), "train": config.dump(TRAINING)},
        "settings": {name: config.dump(method) for name, method in {**chosen, "s3t": STAGES}.items()},
        "tuning": {"seed": TUNING_SEED, **{name: tried for name, (_, tried) in tuning.items()}},
        "seconds of one training": round(draw.seconds, 2),
        "deployment of s3t": {name: round(value, 4) for name, value in made.items()},
        "results": summary(found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw the JSON again")
    parser.add_argument("--output", type=Path, default=Path("docs/results/language-requests.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.draw:
        draw_chart(json.loads(options.output.read_text(encoding="utf-8")), options.output.with_suffix(".svg"))
        return
    load, began = os.getloadavg()[0], time.perf_counter()
    found = measure(options.seed, options.requests)
    report = {
        "seed": options.seed,
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
