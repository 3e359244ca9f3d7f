"""Corrective unlearning: how much of the bad data must be known for each method to undo its effect?

A small convolutional network on the digits with 100 manipulated training images: a backdoor (a patch of 3 × 3
pixels, label 0), or interclass confusion (labels of the classes 3 and 5 exchanged). A fraction of them is
known and is the forget set; the others stay in the retain set. ``corrected`` is the accuracy by clean labels
where the fault acts: on test images with the patch, or of the two classes. ``clean`` is that on test images
where it does not: all of them as they are, or those of the other classes. ``none of it`` is a model trained
without any manipulated image: what a perfect correction gives.

Every method has four settings. One for each fault is chosen on two other draws, with other splits of the
digits into training and test images, other manipulated images and other originals: that of the highest mean
of ``corrected`` and ``clean``, with a quarter known in the one and all in the other. ``ssd, own settings``
is no part of this equal budget: of ten pairs of ``α`` and ``λ`` it takes for each model the one that its
owner would take, who sees no clean labels: that of the largest difference between the accuracies on
retained and on known images, by the labels that were trained on. The three pairs with ``λ = α / 10``, a
ratio of the authors' grid, were added when a scored draw had shown that ``λ = 1`` can change nothing where
the model is surer of the known images than of the others. The four settings of each method were narrowed
after first rounds, part of which used draws that are scored here, so no method's figures are those of a
blind choice. Writes JSON and draws it; ``--draw`` draws what was written.

    python bench/corrective.py [--seeds 0 1 2] [--draw] [--output docs/results/corrective.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from expunge import config
from expunge.data.arrays import Data
from expunge.data.builtin import Digits
from expunge.data.poison import AFFECTED, Backdoor, InterclassConfusion, Manipulation, Poisoned, unmanipulated
from expunge.data.split import Split
from expunge.errors import Diverged
from expunge.evaluation.evaluate import Candidate, evaluate
from expunge.evaluation.metric import Metric, metrics
from expunge.methods.base import Method, methods
from expunge.methods.edits.ssd import SSD
from expunge.methods.scopes.last_layers import LastLayers
from expunge.provenance import hardware, versions
from expunge.report.style import MARKERS, PALETTE, figure, style
from expunge.searches.manipulated import Manipulated
from expunge.tasks import Classification
from expunge.training.engine import Engine
from expunge.training.models import SmallCnn
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

KNOWN = (0.1, 0.25, 0.5, 0.75, 1.0)
FAULTS: dict[str, Manipulation] = {"backdoor": Backdoor(), "confusion": InterclassConfusion()}
RECIPE = Recipe(
    SmallCnn(in_channels=1, classes=10, width=8),
    Classification(10),
    Training(epochs=15, batch_size=128, optim=SGD(lr=0.1)),
)
TUNING = ((1000, 0.25), (1001, 1.0))
OWN = "ssd, own settings"
RATES = {
    "finetune": (0.03, 0.1, 0.3, 1.0),
    "scrub": (0.0005, 0.002, 0.005, 0.02),
    "bad_teacher": (1e-4, 1e-3, 3e-3, 1e-2),
    "amnesiac": (1e-4, 3e-4, 1e-3, 3e-3),
}
LAST = ("cf_k", "eu_k")
ALPHAS = (3.0, 10.0, 30.0, 100.0)
OWN_SETTINGS = (
    *((alpha, alpha / 10) for alpha in (0.01, 0.03, 0.1)),
    *((alpha, 1.0) for alpha in (1.0, 3.0, 10.0, 20.0, 30.0, 50.0, 100.0)),
)
MEASURES = ("corrected", "clean", "unknown", "fault")

Measures = dict[str, float | None]
Curves = dict[str, list[Measures | None]]


def variants(name: str) -> list[Method]:
    """The four settings of a method."""
    method: Any = methods.get(name)(**({"epochs": 15} if name == "eu_k" else {}))
    if name == "ssd":
        return [replace(method, alpha=alpha) for alpha in ALPHAS]
    if name in LAST:
        layers_and_rates = itertools.product((2, 3), (0.03, 0.3))
        return [
            replace(method, scope=LastLayers(count=count), optim=replace(method.optim, lr=rate))
            for count, rate in layers_and_rates
        ]
    return [replace(method, optim=replace(method.optim, lr=rate)) for rate in RATES[name]]


@dataclass(frozen=True)
class Draw:
    """One seed's data with one fault, and the two models that bound all methods."""

    fault: str
    train: Data
    test: Data
    session: Session
    original: nn.Module
    clean: nn.Module

    def split(self, known: float) -> Split:
        search = Manipulated(known=known, seed=self.session.seed)
        found = search.search(self.original, self.train, RECIPE.task, self.session)
        return Split.from_ids(self.train, found.ids, test=self.test)

    def measured(self, model: nn.Module, known: float) -> Measures:
        """The measures of a model; ``unknown`` is None where all is known."""
        found = scores(self.fault, model, self.split(known), self.session, known < 1)
        if self.fault == "confusion":
            found["clean"] = accuracy(model, self.test.subset(self.test.ids[self.test.column(AFFECTED) == 0]))
        return found


def scores(fault: str, model: nn.Module, split: Split, session: Session, unknown: bool) -> Measures:
    chosen: dict[str, Metric] = {"clean": metrics.get("accuracy")(part="test")}  # type: ignore[call-arg]
    if fault == "backdoor":
        chosen["corrected"] = metrics.get("triggered_accuracy")()
        chosen["fault"] = metrics.get("backdoor_success")()
    else:
        chosen["corrected"] = metrics.get("corrected_accuracy")(of="affected")  # type: ignore[call-arg]
        chosen["fault"] = metrics.get("interclass_confusion")(part="test")  # type: ignore[call-arg]
    if unknown:
        chosen["unknown"] = metrics.get("corrected_accuracy")(of="unknown")  # type: ignore[call-arg]
    (row,) = evaluate(
        [Candidate("it", "original", model)], split, RECIPE.task, session, list(chosen.values())
    )
    values = dict(zip(chosen, (score.value for score in row.scores.values()), strict=True))
    return {name: values.get(name) for name in MEASURES}


def accuracy(model: nn.Module, data: Data) -> float:
    with torch.no_grad():
        found = model(data.column("inputs")).argmax(1)
    return float((found == data.column("targets")).float().mean())


def drawn(fault: str, seed: int) -> Draw:
    source = Poisoned(source=Digits(seed=seed), manipulation=FAULTS[fault], seed=seed).load()
    session = Session(seed, Engine(device="cpu"), recipe=RECIPE)
    original = RECIPE.train(source.train, session.child("original"))
    clean = RECIPE.train(unmanipulated(source.train), session.child("clean"))
    return Draw(fault, source.train, source.test, session, original, clean)


def unlearned(draw: Draw, method: Method, known: float) -> Measures | None:
    """The measures of a method's result; None where it diverged."""
    session = draw.session.child(methods.name_of(method), known)
    try:
        model = method.unlearn(draw.original, draw.split(known), RECIPE.task, session)
    except Diverged:
        return None
    return draw.measured(model, known)


def with_own_settings(draw: Draw, known: float, scanned: list[dict[str, Any]]) -> Measures:
    """The measures of SSD as the model's owner would set it; all are put into ``scanned``."""
    tried, split = [], draw.split(known)
    for alpha, dampening in OWN_SETTINGS:
        method = SSD(alpha=alpha, dampening=dampening)
        model = method.unlearn(draw.original, split, RECIPE.task, draw.session.child("ssd", known))
        seen = accuracy(model, split.retain) - accuracy(model, split.forget)
        tried.append((seen, draw.measured(model, known)))
        row: dict[str, Any] = {"seed": draw.session.seed, "known": known}
        row |= {"alpha": alpha, "dampening": round(dampening, 4), "seen": round(seen, 4)}
        scanned.append({**row, **{name: value and round(value, 4) for name, value in tried[-1][1].items()}})
    return max(tried, key=lambda one: one[0])[1]


def tuned(draws: Sequence[Draw], name: str) -> tuple[Method, list[dict[str, Any]]]:
    """The setting with the highest mean of corrected and clean accuracy, and the points of all."""
    tried: list[tuple[float, Method]] = []
    for method in variants(name):
        found = [unlearned(draw, method, known) for draw, (_, known) in zip(draws, TUNING, strict=True)]
        points = mean(((row["corrected"] or 0) + (row["clean"] or 0)) / 2 if row else 0.0 for row in found)
        tried.append((round(points, 4), method))
    best = max(tried, key=lambda one: one[0])[1]
    return best, [{"settings": config.dump(method), "points": points} for points, method in tried]


def curves(draw: Draw, chosen: dict[str, Method], scanned: list[dict[str, Any]]) -> Curves:
    """For each line of the plot the measures at each known fraction."""
    lines: Curves = {
        "nothing": [draw.measured(draw.original, known) for known in KNOWN],
        "none of it": [draw.measured(draw.clean, known) for known in KNOWN],
    }
    for name, method in {"retrain": methods.get("retrain")(), **chosen}.items():
        lines[name] = [unlearned(draw, method, known) for known in KNOWN]
    lines[OWN] = [with_own_settings(draw, known, scanned) for known in KNOWN]
    return lines


def summary(rows: Sequence[Measures | None]) -> dict[str, Any]:
    """Means and standard deviations over the seeds of one line at one fraction; None if one diverged."""
    found: dict[str, Any] = {}
    for name in MEASURES:
        values = [row[name] if row else None for row in rows]
        there = [value for value in values if value is not None]
        whole = len(there) == len(values)
        found[name] = {
            "mean": round(mean(there), 4) if whole else None,
            "sd": round(stdev(there), 4) if whole and len(there) > 1 else None,
            "values": [None if value is None else round(value, 4) for value in values],
        }
    return found


def measure(fault: str, seeds: Sequence[int]) -> dict[str, Any]:
    others = [drawn(fault, seed) for seed, _ in TUNING]
    tuning = {name: tuned(others, name) for name in (*RATES, *LAST, "ssd")}
    chosen = {name: best for name, (best, _) in tuning.items()}
    found, scanned = [], list[dict[str, Any]]()
    for seed in seeds:
        found.append(curves(drawn(fault, seed), chosen, scanned))
        print(f"{fault}, seed {seed}", flush=True)
    lines = {
        name: [{"known": known, **summary([one[name][i] for one in found])} for i, known in enumerate(KNOWN)]
        for name in found[0]
    }
    return {
        "manipulation": config.dump(FAULTS[fault]),
        "settings": {name: config.dump(method) for name, method in chosen.items()},
        "tuning": {name: tried for name, (_, tried) in tuning.items()},
        "scan of ssd": scanned,
        "results": lines,
    }


def show(fault: str, found: dict[str, Any]) -> None:
    for name in ("corrected", "clean"):
        print(f"\n{fault}, {name} accuracy, %\n" + f"{'known':14s}" + "".join(f"{k:>14.0%}" for k in KNOWN))
        for line, rows in found["results"].items():
            cells = [row[name] for row in rows]
            texts = [
                f"{100 * c['mean']:.1f} ± {100 * (c['sd'] or 0):.1f}" if c["mean"] is not None else "–"
                for c in cells
            ]
            print(f"{line:14s}" + "".join(f"{text:>14s}" for text in texts))


TITLES = {
    ("backdoor", "corrected"): "Backdoor: accuracy on test images with the patch",
    ("backdoor", "clean"): "Backdoor: accuracy on test images as they are",
    ("confusion", "corrected"): "Confusion: accuracy on test images of classes 3 and 5",
    ("confusion", "clean"): "Confusion: accuracy on test images of other classes",
}


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Four panels, mean ± standard deviation over the seeds."""
    with style():
        chart = figure(9.5, 7.2)
        axes = chart.subplots(2, 2, sharex=True)
        for axis, ((fault, name), title) in zip(axes.flatten(), TITLES.items(), strict=True):
            lines = report["faults"][fault]["results"]
            plain = {"nothing": ("0.45", ":"), "none of it": ("0.1", "--"), "retrain": ("0.1", "-")}
            coloured = [line for line in lines if line not in plain]
            for i, (line, rows) in enumerate(lines.items()):
                there = [row for row in rows if row[name]["mean"] is not None]
                known = [100 * row["known"] + 0.35 * (i - 4.5) for row in there]
                values = [100 * row[name]["mean"] for row in there]
                spread = [100 * (row[name]["sd"] or 0) for row in there]
                k = coloured.index(line) if line in coloured else 0
                look = (
                    {"color": plain[line][0], "linestyle": plain[line][1]}
                    if line in plain
                    else {"color": PALETTE[k % 7], "marker": MARKERS[k % 7], "markersize": 4}
                )
                if line == OWN:
                    look = {**look, "color": PALETTE[k - 1], "linestyle": "--"}
                axis.errorbar(known, values, spread, label=line, linewidth=1.3, elinewidth=0.7, **look)
            axis.set_title(title)
            axis.set_ylabel("%")
            axis.set_ylim(max(-2, axis.get_ylim()[0]), 101)
        for axis in axes[1]:
            axis.set_xlabel("known share of the manipulated images, %")
        chart.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        chart.savefig(path, facecolor="white", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw the JSON again")
    parser.add_argument("--output", type=Path, default=Path("docs/results/corrective.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.draw:
        draw_chart(json.loads(options.output.read_text(encoding="utf-8")), options.output.with_suffix(".svg"))
        return
    load, began = os.getloadavg()[0], time.perf_counter()
    faults = {fault: measure(fault, options.seeds) for fault in FAULTS}
    for fault, found in faults.items():
        show(fault, found)
    report = {
        "data": "digits, 1438 training examples of which 100 are manipulated",
        "model": config.dump(RECIPE.model),
        "training": config.dump(RECIPE.training),
        "seeds": options.seeds,
        "tuning": {"seeds and known": TUNING, "settings of each method": 4},
        "device": hardware(torch.device("cpu")),
        "load average at the start": round(load, 2),
        "seconds in all": round(time.perf_counter() - began, 1),
        "versions": versions(),
        "faults": faults,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw_chart(report, options.output.with_suffix(".svg"))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
