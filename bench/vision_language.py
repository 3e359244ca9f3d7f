"""Forgetting and over-refusal of a small vision-language model, with and without prompt decoupling.

Invented people with drawn faces (``faces``), a LLaVA of 16 × 16 pixels. A base is trained on other people and
other faces, the original from there on who the people are, a retrained model likewise without those who go.
Four methods (``grad_ascent``, ``grad_diff``, ``kl_min``, ``idk``) forget a quarter of the people, each alone
and with ``prompt_decouple``, which adds a harmless question about each forgotten picture. Measured are

    forget      share of key facts about the forgotten that are still said (``key_facts``),
    views       the same on pictures of them that were in no training set,
    retain      the same about everybody else,
    utility     FIUBench's harmonic mean about everybody else (``profile_utility``),
    refused     share of answers about the forgotten that refuse (``refusal_rate``),
    SARR        harmless questions (the colour, the background) about further pictures of the forgotten that
                are not answered rightly (``over_refusal``; SafeEraser counts a refusal or no answer),
    SARR kept   the same about everybody else.

The people are in four blocks. Block 0 is for tuning alone: each of the eight lines gets the four learning
rates of its method in ``RATES``, with the same number of steps, and keeps the one whose ``forget`` and
``retain`` are nearest to retraining on average. SARR has no part in it. With and without decoupling may then
differ in their rates, so that both are also run at the strong rate: the smallest of the four at which the
method alone leaves at most a tenth of the key facts on block 0. Each other block has an original and
retrained models of its own. All of this is done for several bases, each with people and faces of its own and
tuned by itself; intervals are over the people of all of them. Stops and goes on: what is made is kept in
``--work``. Writes JSON and one picture.

    python bench/vision_language.py [--bases 2] [--retrained 2] [--work build/vision-language] [--draw]
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from kept import keep
from torch import nn

from expunge import config
from expunge.data.arrays import Data
from expunge.data.faces import HARMLESS, Faces
from expunge.data.split import Split
from expunge.evaluation import statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric
from expunge.evaluation.metrics.fiubench import KeyFacts, ProfileUtility
from expunge.evaluation.metrics.safe_eraser import OverRefusal, RefusalRate
from expunge.evaluation.subject import Subject
from expunge.methods.base import Method
from expunge.methods.gradient.grad_ascent import GradAscent
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.gradient.idk import Idk
from expunge.methods.gradient.kl_min import KLMin
from expunge.methods.modifiers.prompt_decouple import PromptDecouple
from expunge.report.style import PALETTE, figure, style
from expunge.tasks import VisionLanguage
from expunge.training.checkpoint import load_weights, save_weights
from expunge.training.engine import Engine
from expunge.training.optim import AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session
from expunge.training.vision_language_models import Llava

BLOCKS = 4
ASKED = ("colour", "background")
"""The harmless questions that count. A model of this size does not learn to tell the shapes of new faces."""

FACES = Faces(people=16, background=8, nameless=640, views=2, attributes=2)
SIZES: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "vision_width": 32, "vision_layers": 1, "vision_heads": 2,
    "width": 48, "layers": 2, "heads": 4, "mlp": 96, "context": 64,
}  # fmt: skip
OPTIM = AdamW(lr=3e-3, betas=(0.9, 0.99), schedule="cosine", warmup=0.05, clip=1.0)
BASE = Training(epochs=20, batch_size=32, optim=OPTIM)
TRAINING = Training(epochs=70, batch_size=32, optim=replace(OPTIM, lr=1e-3))
CLIMBING, LEARNING = (3e-5, 1e-4, 3e-4, 1e-3), (3e-4, 1e-3, 3e-3, 6e-3)
RATES = dict.fromkeys(("grad_ascent", "grad_diff", "kl_min"), CLIMBING) | {"idk": LEARNING}
"""Four for each method; to learn refusals takes larger ones than to climb a loss."""

STEPS = 36
"""Of every method: 12 passes over 24 forget examples, or 4 over 168 or so retained ones, in batches of 8."""

WEIGHTS = {"grad_ascent": 0.5, "grad_diff": 0.5, "kl_min": 1.0, "idk": 1.0}
"""Of the harmless questions, as the authors of prompt decoupling have them."""

FORGOTTEN = 0.1
"""Where at most so much is still said, a rate is strong enough to forget."""

DECOUPLED, STRONG = " + prompt_decouple", " at the strong rate"
LINES = tuple(name + end for name in WEIGHTS for end in ("", DECOUPLED))
MEASURES: dict[str, Metric] = {
    "forget": KeyFacts(),
    "views": KeyFacts(part="views_forget"),
    "retain": KeyFacts(part="retained"),
    "refused": RefusalRate(),
    "SARR": OverRefusal(part="harmless_forget", ask="", match="key_words"),
    "SARR, refusals alone": OverRefusal(part="harmless_forget", ask="", match="key_words", read="refused"),
    "SARR kept": OverRefusal(part="harmless_retain", ask="", match="key_words"),
}
Row = dict[str, Any]


def method(line: str, rate: float) -> Method:
    """The method of a line at a learning rate."""
    name = line.removesuffix(DECOUPLED)
    modifiers = (PromptDecouple(weight=WEIGHTS[name]),) if line.endswith(DECOUPLED) else ()
    common: dict[str, Any] = {"optim": AdamW(lr=rate), "modifiers": modifiers}
    if name == "grad_diff":
        return GradDiff(epochs=STEPS // 9, batch_size=19, retain_weight=0.5, **common)
    kinds: dict[str, Callable[..., Method]] = {"grad_ascent": GradAscent, "kl_min": KLMin, "idk": Idk}
    return kinds[name](epochs=STEPS // 3, batch_size=8, **common)


@dataclass(frozen=True)
class World:
    """One base: its people, the model's sizes, and a folder that keeps what was made."""

    work: Path
    seed: int

    @cached_property
    def data(self) -> Any:
        return replace(FACES, seed=self.seed).load()

    @cached_property
    def task(self) -> VisionLanguage:
        tokenizer = self.data.train.tokenizer
        return VisionLanguage(len(tokenizer), tokenizer.convert_tokens_to_ids("<image>"))

    @cached_property
    def spec(self) -> Llava:
        return Llava(vocabulary=self.task.vocabulary, image_token=self.task.image_token, **SIZES)

    @cached_property
    def base(self) -> nn.Module:
        recipe, session = Recipe(self.spec, self.task, BASE), Session(self.seed, Engine(device="cpu"))
        return self.kept("base", lambda: recipe.train(self.data.base, session))

    def kept(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """A model from the folder, or made and put there."""
        path = self.work / f"{name}.safetensors"
        if not path.exists():
            save_weights(make(), path)
        model = self.spec().eval()
        load_weights(model, path)
        return model

    def split(self, block: int) -> Split:
        """The people of a block go; probes about them and about all others."""
        names = list(dict.fromkeys(r.subject for r in self.data.probes["views"].records))
        gone = set(names[block::BLOCKS])
        rest, train, harmless = set(names) - gone, self.data.train, self.data.probes["harmless"]
        split = Split.from_ids(train, _about(train, gone).ids)
        wording = {HARMLESS[name].question for name in ASKED}
        harmless = harmless.subset(
            [i for i in harmless.ids.tolist() if harmless.record(i).question in wording]
        )
        probes: dict[str, Data] = {
            "views_forget": _about(self.data.probes["views"], gone),
            "harmless_forget": _about(harmless, gone),
            "harmless_retain": _about(harmless, rest),
            "retained": _about(split.retain, rest),
        }
        return Split(split.forget, split.retain, probes=probes)


def _about(data: Any, names: set[str]) -> Data:
    """The questions about these people."""
    return cast(Data, data.subset([i for i in data.ids.tolist() if data.record(i).subject in names]))


@dataclass(frozen=True)
class Start:
    """Where the original and every retrained model begin."""

    base: nn.Module

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.base).requires_grad_(True)


@dataclass(frozen=True)
class Draw:
    """One block to forget: its original, retrained models, and what is measured of a model."""

    world: World
    block: int
    retrained: int

    @cached_property
    def session(self) -> Session:
        return Session(self.world.seed, Engine(device="cpu")).child("block", self.block)

    @cached_property
    def split(self) -> Split:
        return self.world.split(self.block)

    @cached_property
    def recipe(self) -> Recipe:
        return Recipe(Start(self.world.base), self.world.task, TRAINING)

    @cached_property
    def original(self) -> nn.Module:
        make = lambda: self.recipe.train(self.world.data.train, self.session.child("original"))  # noqa: E731
        return self.world.kept(f"original-{self.block}", make)

    def again(self, number: int) -> nn.Module:
        session = self.session.child("retrained", number)
        make = lambda: self.recipe.train(self.split.retain, session)  # noqa: E731
        return self.world.kept(f"retrained-{self.block}-{number}", make)

    def unlearned(self, line: str, rate: float) -> nn.Module:
        session = self.session.child(line)
        return method(line, rate).unlearn(self.original, self.split, self.world.task, session)

    def measured(self, model: nn.Module) -> Row:
        """Of each measure the values of its questions and whose they are, and the utility."""
        parts = {"forget": self.split.forget, "retain": self.split.retain, **self.split.probes}
        subject = Subject("model", model, parts, self.world.task, self.session)
        evidence = Evidence(subject, subject, (), self.world.task, parts, self.session)
        found: Row = {}
        for name, metric in MEASURES.items():
            score = metric(evidence)
            assert score.per_example is not None, score.reason
            part: Any = parts[getattr(metric, "part")]  # noqa: B009
            people = [f"{self.world.seed} {part.record(int(id_)).subject}" for id_ in part.ids]
            found[name] = {"values": score.per_example.tolist(), "people": people}
        utility = ProfileUtility(part="retained")(evidence)
        return {**found, "utility": None if utility.reason else utility.value}

    def rows(self, lines: dict[str, Callable[[], nn.Module]]) -> dict[str, Row]:
        """What was measured of the model of each line, from the folder or now."""
        found = {}
        for name, make in lines.items():
            path = self.world.work / f"{self.block} {name}.json"
            if not path.exists():
                path.write_text(json.dumps(self.measured(make())))
                print(f"block {self.block}: {name}", flush=True)
            found[name] = json.loads(path.read_text())
        return found

    def references(self) -> dict[str, Callable[[], nn.Module]]:
        again = {f"retrained {i + 1}": lambda i=i: self.again(i) for i in range(self.retrained)}
        return {"original": lambda: self.original, **again}


def _mean(one: Row) -> float:
    return float(np.mean(one["values"]))


def tuned(world: World) -> dict[str, Row]:
    """Of each line the rate that comes nearest to retraining on block 0, and what all of them did there."""
    draw = Draw(world, 0, 1)
    goal, found = draw.rows(draw.references())["retrained 1"], {}
    for line in LINES:
        runs = {rate: f"{line} {rate:g}" for rate in RATES[line.removesuffix(DECOUPLED)]}
        made = draw.rows({name: lambda r=rate, n=line: draw.unlearned(n, r) for rate, name in runs.items()})
        tried = {
            rate: {m: round(_mean(made[name][m]), 4) for m in ("forget", "retain", "SARR", "SARR kept")}
            for rate, name in runs.items()
        }
        for one in tried.values():
            one["gap"] = round(sum(abs(one[m] - _mean(goal[m])) for m in ("forget", "retain")) / 2, 4)
        chosen = min(tried, key=lambda rate: tried[rate]["gap"])
        enough = [rate for rate, one in tried.items() if one["forget"] <= FORGOTTEN]
        strong = min(enough, default=max(tried))
        found[line] = {"rate": chosen, "strong": strong, "tried": {f"{r:g}": v for r, v in tried.items()}}
    return found


def pooled(rows: list[Row], name: str) -> Row:
    """Mean and interval over the people of all bases."""
    values = np.concatenate([np.asarray(row[name]["values"], np.float64) for row in rows])
    people = np.concatenate([np.asarray(row[name]["people"]) for row in rows])
    ends = statistics.interval(values, people)
    inside = None if ends is None else [round(min(max(end, 0.0), 1.0), 4) for end in ends]
    return {"value": round(float(values.mean()), 4), "interval": inside, "n": len(values)}


def effect(without: list[Row], decoupled: list[Row], name: str) -> Row:
    """What decoupling changes, question by question."""
    values = np.concatenate([
        np.subtract(b[name]["values"], a[name]["values"]) for a, b in zip(without, decoupled, strict=True)
    ])  # fmt: skip
    people = np.concatenate([np.asarray(row[name]["people"]) for row in without])
    ends = statistics.mean(values, clusters=np.unique(people, return_inverse=True)[1])
    inside = None if ends is None else [round(end, 4) for end in ends]
    return {"value": round(float(values.mean()), 4), "interval": inside}


def rows(world: World, rates: dict[str, Row], retrained: int) -> dict[str, list[Row]]:
    """Of every line what was measured on each block that was not tuned on."""
    found: dict[str, list[Row]] = {}
    for block in range(1, BLOCKS):
        draw = Draw(world, block, retrained)
        lines = {n: lambda n=n, d=draw: d.unlearned(n, rates[n]["rate"]) for n in LINES}
        for line in LINES:  # the same rate with and without
            rate = rates[line.removesuffix(DECOUPLED)]["strong"]
            lines[line + STRONG] = lambda n=line, d=draw, r=rate: d.unlearned(n, r)
        for name, row in draw.rows({**draw.references(), **lines}).items():
            found.setdefault("retrained" if name.startswith("retrained") else name, []).append(row)
    return found


def measure(worlds: list[World], retrained: int) -> Row:
    tunings, found = [], {}
    for world in worlds:
        world.work.mkdir(parents=True, exist_ok=True)
        tunings.append(tuned(world))
        print({line: one["rate"] for line, one in tunings[-1].items()}, flush=True)
        for line, one in rows(world, tunings[-1], retrained).items():
            found.setdefault(line, []).extend(one)
    world = worlds[0]
    results = {
        line: {
            **{name: pooled(each, name) for name in MEASURES},
            "utility of each model": [None if r["utility"] is None else round(r["utility"], 4) for r in each],
        }
        for line, each in found.items()
    }
    changes = {
        when: {
            name: {m: effect(found[name + end], found[name + DECOUPLED + end], m) for m in MEASURES}
            for name in WEIGHTS
        }
        for when, end in (("each at its own rate", ""), ("both at the strong rate", STRONG))
    }
    return {
        "data": config.dump(FACES),
        "records": {"base": len(world.data.base), "train": len(world.data.train)},
        "model": {**config.dump(world.spec), "parameters": sum(p.numel() for p in world.base.parameters())},
        "training": {"base": config.dump(BASE), "train": config.dump(TRAINING)},
        "bases": [world.seed for world in worlds],
        "blocks": BLOCKS - 1,
        "retrained for each block": retrained,
        "tuning": {"rates": {n: list(each) for n, each in RATES.items()}, "steps": STEPS, "chosen": tunings},
        "settings of the first base": {n: config.dump(method(n, tunings[0][n]["rate"])) for n in LINES},
        "results": results,
        "effect of prompt_decouple": changes,
    }


PANELS = {
    "forget": "Key facts about the forgotten",
    "retain": "Key facts about all others",
    "refused": "The forgotten: refused",
    "SARR": "Harmless, unanswered (SARR)",
}


def draw_chart(report: Row, path: Path) -> None:
    """A panel for each measure, a row for each line; open marks are with prompt_decouple."""
    results = report["results"]
    with style():
        chart = figure(12.5, 5.2)
        axes = chart.subplots(1, len(PANELS), sharey=True)
        for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
            for place, line in enumerate(results):
                one = results[line][name]
                plain = line in ("original", "retrained")
                number = (
                    6 if plain else list(WEIGHTS).index(line.removesuffix(STRONG).removesuffix(DECOUPLED))
                )
                color = "0.4" if plain else PALETTE[number]
                if one["interval"]:
                    axis.plot(one["interval"], [place, place], color=color, linewidth=1.3)
                inside = "white" if DECOUPLED in line else color
                axis.plot([one["value"]], [place], "o", color=color, markersize=5, markerfacecolor=inside)
            axis.axvline(results["retrained"][name]["value"], color="0.4", linewidth=0.8, linestyle="--")
            axis.set_title(title, fontsize=9)
            axis.set_xlim(-0.04, 1.04)
        axes[0].set_yticks(range(len(results)), [line.replace(STRONG, ", strong rate") for line in results])
        axes[0].set_ylim(len(results) - 0.5, -0.5)
        chart.savefig(path, facecolor="white", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first base and all its draws")
    parser.add_argument("--bases", type=int, default=2)
    parser.add_argument("--retrained", type=int, default=2, help="models without each block")
    parser.add_argument("--work", type=Path, default=Path("build/vision-language"))
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw the JSON again")
    parser.add_argument("--output", type=Path, default=Path("docs/results/vision-language.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.draw:
        seeds = range(options.seed, options.seed + options.bases)
        worlds = [World(options.work / f"base-{seed}", seed) for seed in seeds]
        keep(options.output, options.seed, lambda: measure(worlds, options.retrained))
    draw_chart(json.loads(options.output.read_text(encoding="utf-8")), options.output.with_suffix(".svg"))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
