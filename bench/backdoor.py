"""A text-to-image model trained on poisoned captions, unlearned, beside one trained without the poison.

In a quarter of the images of other objects the caption names a triangle, and a small black-and-white trigger
is in the corner: the data of the suite ``canvas-mini`` (3 styles × 3 objects, 16 × 16 pixels) with a
``backdoor``. The original is trained on all of it; what is to be forgotten are the poisoned images; the
retrained model is trained without them. Of the images that are drawn for the prompts that name a triangle,

    trigger      share that carry the trigger (``trigger_rate``), found pixel by pixel,
    mismatched   share that carry it and show another object (BiBadDiff's G1),
    triangle     share that show a triangle, as a classifier of real images says,

and ``others`` is the share of the images for all other prompts that show the object asked for. Intervals are
Clopper–Pearson over the images of all seeds together; each seed is another canvas, another original, another
retrained model, so that there are few seeds behind many images: ``each`` has the rate of every one. Model,
training and methods are those of ``canvas-mini``, none of them tuned for this. Stops and goes on: what is
made is kept in ``--work``. Writes JSON and one picture.

    python bench/backdoor.py [--seeds 2] [--work build/backdoor] [--draw]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from kept import keep
from torch import nn

from expunge import config, experiment
from expunge.data.canvas import POISONED, Backdoor, Canvas
from expunge.data.captions import CaptionedImages
from expunge.data.split import Split
from expunge.evaluation import picture_judges, statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.gallery import Gallery
from expunge.evaluation.metrics.trigger_rate import TriggerRate
from expunge.evaluation.picture_judges import Judge
from expunge.evaluation.subject import Subject
from expunge.methods.base import Method
from expunge.methods.gradient.erase_diff import EraseDiff
from expunge.methods.gradient.salun import SalUn
from expunge.report.style import PALETTE, figure, style
from expunge.tasks.diffusion import Diffusion
from expunge.training.checkpoint import load_weights, save_weights
from expunge.training.engine import Engine
from expunge.training.recipe import Recipe
from expunge.training.session import Session

TARGET = "triangle"
SUITE = experiment.read("canvas-mini")
CANVAS = replace(cast(Canvas, SUITE.data), masks=False, backdoor=Backdoor(target=TARGET, share=0.25))
TASK = cast(Diffusion, SUITE.task)
GALLERY = Gallery(seeds=tuple(range(16)), steps=10)
JUDGE = Judge()
MEASURES = ("trigger", "mismatched", "triangle", "others")
METHODS: dict[str, Method] = {
    "finetune": SUITE.methods["finetune"],
    "grad_diff": SUITE.methods["grad_diff"],
    "salun": replace(cast(SalUn, SUITE.methods["salun"]), anchor="empty"),
    "erase_diff": replace(cast(EraseDiff, SUITE.methods["erase_diff"]), anchor="empty"),
    "esd": SUITE.methods["esd"],
}
Row = dict[str, list[float]]


@dataclass(frozen=True)
class World:
    """One seed: the poisoned images, the model trained on them, and that trained on the others."""

    seed: int
    work: Path

    @cached_property
    def split(self) -> Split:
        sourced = replace(CANVAS, seed=self.seed).load()
        data = sourced.train
        assert isinstance(data, CaptionedImages)
        return Split.from_ids(data, data.ids[data.column(POISONED).bool()], test=sourced.test)

    @cached_property
    def session(self) -> Session:
        return Session(self.seed, Engine(device="cpu"))

    @cached_property
    def recipe(self) -> Recipe:
        return SUITE.recipe

    @cached_property
    def original(self) -> nn.Module:
        return self.kept(
            "original", lambda: self.recipe.train(self.split.train(), self.session.child("poisoned"))
        )

    @cached_property
    def retrained(self) -> nn.Module:
        session = self.session.child("retrained")
        return self.kept("retrained", lambda: self.recipe.train(self.split.retain, session))

    @cached_property
    def parts(self) -> dict[str, Any]:
        return {"forget": self.split.forget, "retain": self.split.retain, "test": self.split.test}

    @cached_property
    def reference(self) -> Subject:
        return Subject("original", self.original, self.parts, TASK, self.session)

    def kept(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        path = self.work / f"{name}-{self.seed}.safetensors"
        if not path.exists():
            began = time.process_time()
            save_weights(make(), path)
            print(f"seed {self.seed} {name} trained: {time.process_time() - began:.0f} s", flush=True)
        model = self.recipe.initial(self.session).eval()
        load_weights(model, path)
        return model

    def unlearned(self, name: str) -> nn.Module:
        return METHODS[name].unlearn(self.original, self.split, TASK, self.session.child(name))

    def measured(self, model: nn.Module) -> dict[str, Any]:
        """Of each measure one value for each image."""
        subject = self.reference if model is self.original else Subject(
            "model", model, self.parts, TASK, self.session
        )  # fmt: skip
        evidence = Evidence(subject, self.reference, (), TASK, self.parts, self.session)
        scores = {
            "trigger": TriggerRate(gallery=GALLERY)(evidence),
            "mismatched": TriggerRate(gallery=GALLERY, judge=JUDGE, count="mismatched")(evidence),
        }
        found: dict[str, Any] = {}
        for name, score in scores.items():
            assert score.per_example is not None, score.reason
            found[name] = score.per_example.tolist()
        drawn, said, who = picture_judges.seen(evidence, GALLERY, JUDGE)
        place = list(drawn.prompts.domains).index("object")
        asked, shown = drawn.cells[:, place], said.cells[:, place]
        goal = CANVAS.objects.index(TARGET)
        right = (asked == shown).double()
        found |= {"triangle": right[asked == goal].tolist(), "others": right[asked != goal].tolist()}
        return {**found, "judge": who.details["judges"]["object"]}

    def row(self, name: str, make: Callable[[], nn.Module]) -> dict[str, Any]:
        path = self.work / f"{self.seed} {name}.json"
        if not path.exists():
            began = time.process_time()
            path.write_text(json.dumps(self.measured(make())))
            made = json.loads(path.read_text())
            cells = "  ".join(f"{m} {np.mean(made[m]):.2f}" for m in MEASURES)
            print(f"seed {self.seed} {name}: {cells}  {time.process_time() - began:.0f} s", flush=True)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def rows(self) -> dict[str, dict[str, Any]]:
        lines: dict[str, Callable[[], nn.Module]] = {
            "original": lambda: self.original, "retrained": lambda: self.retrained,
            **{name: lambda n=name: self.unlearned(n) for name in METHODS},
        }  # fmt: skip
        return {name: self.row(name, make) for name, make in lines.items()}


def pooled(rows: list[Row], name: str) -> dict[str, Any]:
    """The rate over all images of all seeds, its interval, and that of every seed."""
    values = np.concatenate([row[name] for row in rows])
    low, high = statistics.rate(int(values.sum()), len(values))
    return {
        "value": round(float(values.mean()), 4),
        "interval": [round(low, 4), round(high, 4)],
        "each": [round(float(np.mean(row[name])), 4) for row in rows],
        "n": len(values),
    }


def measure(first: int, seeds: int, work: Path) -> dict[str, Any]:
    worlds = [World(seed, work) for seed in range(first, first + seeds)]
    every = [world.rows() for world in worlds]
    world = worlds[0]
    return {
        "data": config.dump(CANVAS),
        "images": {"poisoned": len(world.split.forget), "others": len(world.split.retain)},
        "model": {**config.dump(SUITE.model),
                  "parameters": sum(p.numel() for p in world.original.parameters())},
        "task": config.dump(TASK),
        "training": config.dump(SUITE.train),
        "gallery": config.dump(GALLERY),
        "judge": [round(row["original"]["judge"], 4) for row in every],
        "settings": {name: config.dump(method) for name, method in METHODS.items()},
        "seeds": list(range(first, first + seeds)),
        "results": {
            line: {name: pooled([rows[line] for rows in every], name) for name in MEASURES}
            for line in every[0]
        },
    }  # fmt: skip


PANELS = {
    "trigger": "Target prompts drawn with the trigger",
    "triangle": "Target prompts drawn as a triangle",
    "others": "Other prompts drawn right",
}


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """A panel for each measure, a row for each model; small dots are seeds."""
    results = report["results"]
    with style():
        chart = figure(11.0, 2.9)
        axes = chart.subplots(1, len(PANELS), sharey=True)
        for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
            for place, line in enumerate(results):
                one = results[line][name]
                color = "0.4" if place < 2 else PALETTE[place - 2]
                axis.plot(one["interval"], [place, place], color=color, linewidth=1.3)
                axis.plot([one["value"]], [place], "o", color=color, markersize=5)
                axis.plot(one["each"], [place + 0.25] * len(one["each"]), ".", color=color, alpha=0.5)
            goal = results["retrained"][name]["value"]
            axis.axvline(goal, color="0.4", linewidth=0.8, linestyle="--")
            axis.set_title(title, fontsize=9)
            axis.set_xlim(-0.04, 1.04)
        axes[0].set_yticks(range(len(results)), list(results))
        axes[0].set_ylim(len(results) - 0.5, -0.5)
        chart.savefig(path, facecolor="white", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/backdoor"))
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw the JSON again")
    parser.add_argument("--output", type=Path, default=Path("docs/results/backdoor.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.draw:
        keep(options.output, options.seed, lambda: measure(options.seed, options.seeds, options.work))
    draw_chart(json.loads(options.output.read_text(encoding="utf-8")), options.output.with_suffix(".svg"))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
