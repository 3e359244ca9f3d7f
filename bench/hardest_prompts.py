"""Which prompt is hardest to erase: bi-level search against brute force over every single prompt.

The text-to-image model of the suite ``canvas-mini`` (3 styles × 3 objects, 16 × 16 pixels). The unit to
forget is a prompt (all images that share a caption), a style or an object. As in the worst-case sets of Fan
et al., a unit is hard where its loss stays low after it was unlearned. Brute force unlearns each unit alone
by the same short run of ESD and measures

    left     ``−ℓ_u(θ_u)``, the loss on the unit's training images after it alone was unlearned,
    change   ``ℓ_u(θ_o) − ℓ_u(θ_u)``: the same relative to doing nothing,

each over eight draws of noise and timestep for an image, which are other ones than the searches see. Against
these orders of all units, by Spearman's rank correlation, stand ``loss_ranking`` (the original's loss alone)
and ``bilevel`` for one unit (``size=1``), ordered by weight and, where weights are equal, by mean loss over
the rounds: with the published lower level (training with weights ``1 − w``), with this ESD on the heaviest
unit, and with it on shares of all units. ``repeat`` is brute force with other draws of the method, over
prompts alone: no search can be expected to agree better. Each seed is another canvas and another original.
Retraining without each of the 15 units was not affordable: hardness here is not a distance from retraining.
The settings are not tuned. Stops and goes on: what is made is kept in ``--work``.

    python bench/hardest_prompts.py [--seeds 3] [--work build/hardest-prompts] [--draw]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from kept import keep
from torch import nn

from expunge import config, experiment
from expunge.data.canvas import Canvas
from expunge.data.captions import CaptionedImages
from expunge.data.split import Split
from expunge.evaluation import statistics
from expunge.methods.base import Method
from expunge.methods.gradient.esd import ESD
from expunge.methods.optimisers.sign_sgd import SignSGD
from expunge.methods.scopes.denoiser import Denoiser
from expunge.report.style import PALETTE, figure, style
from expunge.searches.base import losses
from expunge.searches.bilevel import Bilevel
from expunge.searches.units import Units
from expunge.seeding import generator
from expunge.tasks.diffusion import Diffusion
from expunge.training.checkpoint import load_weights, save_weights
from expunge.training.engine import Engine
from expunge.training.optim import AdamW
from expunge.training.session import Session

Kind = Literal["prompt", "style", "object"]
Lower = Literal["heaviest", "shares"]
KINDS: tuple[Kind, ...] = ("prompt", "style", "object")
SUITE = experiment.read("canvas-mini")
CANVAS, TASK = cast(Canvas, SUITE.data), cast(Diffusion, SUITE.task)
DRAWS = 8
"""Draws of noise and timestep of an image that brute force measures the loss over."""

ROUNDS, STEP = 3, 0.05
"""Of the search. With smaller steps than the default no weight falls to 0, so that all units are ordered."""


STEPS, BATCH = 12, 16


def short(examples: int) -> Method:
    """ESD of about twelve steps, whatever the number of examples to forget."""
    epochs = max(1, round(STEPS / -(-examples // BATCH)))
    scope, optim = Denoiser(part="all"), AdamW(lr=5e-4)
    return ESD(epochs=epochs, batch_size=BATCH, steps=4, optim=optim, scope=scope)


@dataclass(frozen=True)
class World:
    """One seed: the images, the original, and how a method unlearns some of them."""

    seed: int
    work: Path

    @cached_property
    def data(self) -> CaptionedImages:
        found = replace(CANVAS, seed=self.seed).load().train
        assert isinstance(found, CaptionedImages)
        return found

    @cached_property
    def session(self) -> Session:
        return Session(self.seed, Engine(device="cpu"))

    @cached_property
    def original(self) -> nn.Module:
        recipe, path = SUITE.recipe, self.work / f"original-{self.seed}.safetensors"
        if not path.exists():
            save_weights(recipe.train(self.data, self.session), path)
        model = recipe.initial(self.session).eval()
        load_weights(model, path)
        return model

    def units(self, kind: Kind) -> Units:
        return Units.read(self.data, TASK, kind)

    def names(self, kind: Kind) -> list[str]:
        numbers = self.units(kind).names.tolist()
        every = sorted(set(self.data.captions)) if kind == "prompt" else self.data.concepts[kind]
        return [every[number] for number in numbers]

    def unlearned(self, rows: torch.Tensor, session: Session) -> nn.Module:
        split = Split.from_ids(self.data, self.data.ids[rows])
        return short(len(split.forget)).unlearn(self.original, split, TASK, session)

    @torch.no_grad()
    def loss(self, model: nn.Module, rows: torch.Tensor) -> list[float]:
        """``ℓ_i`` of these images, the mean over ``DRAWS``."""
        task, part = TASK.unlearning(), self.data.subset(self.data.ids[rows])
        draws, found = generator(self.seed, "brute force"), torch.zeros(len(rows), dtype=torch.float64)
        model.eval()
        for _ in range(DRAWS):
            order = part.fixed_order(128)
            parts = []
            for batch in part.batches(order, device="cpu"):
                noisy = task.prepare(batch, draws)
                parts.append(task.loss(task.outputs(model, noisy), noisy).double())
            found += torch.cat(parts) / DRAWS
        return found.tolist()

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """A result from the folder, or made and put there."""
        path = self.work / f"{self.seed} {name}.json"
        if not path.exists():
            began = time.process_time()
            path.write_text(json.dumps(made := make()))
            print(f"seed {self.seed} {name}: {time.process_time() - began:.1f} s {_shown(made)}", flush=True)
        return json.loads(path.read_text())

    def brute(self, kind: Kind, run: int = 0) -> list[float]:
        """The loss of each unit after it alone was unlearned."""
        units = self.units(kind)

        def one(unit: int) -> float:
            rows = units.rows(torch.tensor([unit]))
            session = self.session.child("brute force", kind, unit, run)
            return float(np.mean(self.loss(self.unlearned(rows, session), rows)))

        return [self.kept(f"{kind} esd {unit} {run}", lambda u=unit: one(u)) for unit in range(len(units))]

    def before(self, kind: Kind) -> list[float]:
        """The loss of each unit under the original, as brute force measures it."""
        units = self.units(kind)
        each = [units.rows(torch.tensor([unit])) for unit in range(len(units))]
        make = lambda: [float(np.mean(self.loss(self.original, rows))) for rows in each]  # noqa: E731
        found: list[float] = self.kept(f"{kind} before", make)
        return found

    def searched(self, kind: Kind, variant: str) -> dict[str, Any]:
        """What ``bilevel`` says of the units."""
        common: dict[str, Any] = {"size": 1, "unit": kind, "upper": ROUNDS, "step": STEP}
        name, _, lower = variant.partition(", ")
        if name == "published":
            search = Bilevel(**common, batch_size=32, optim=SignSGD(lr=1e-4))
        else:
            method = short(len(self.data) // len(self.units(kind)))
            search = Bilevel(**common, method=method, lower_set=cast(Lower, lower))
        session = self.session.child("search", kind, variant)
        found: dict[str, Any] = self.kept(
            f"{kind} bilevel {variant}",
            lambda: dict(search.search(self.original, self.data, TASK, session).details),
        )
        return found

    def ranked_losses(self, kind: Kind) -> list[float]:
        """The losses that ``loss_ranking`` goes by: one draw for each image, as the searches see them."""
        units = self.units(kind)

        def make() -> list[float]:
            found: list[float] = units.mean(losses(self.original, self.data, TASK, self.session)).tolist()
            return found

        found: list[float] = self.kept(f"{kind} loss_ranking", make)
        return found


VARIANTS = ("published", "esd, heaviest", "esd, shares")


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ""


def hardness(found: Mapping[str, Any]) -> list[float]:
    """One number for each unit in the order of a search: by weight, and of equal weights by low loss."""
    keys = list(zip(np.round(found["weights"], 9), [-loss for loss in found["losses"]], strict=True))
    order = sorted(range(len(keys)), key=lambda unit: keys[unit])
    ranks = [0.0] * len(keys)
    for place, unit in enumerate(order):
        ranks[unit] = float(place)
    return ranks


def spearman(a: list[float], b: list[float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def compared(world: World, kind: Kind) -> dict[str, Any]:
    """Of every search, the rank correlation with brute force, and the place of its hardest unit there."""
    before = np.array(world.before(kind))
    orders = {"loss_ranking": [-loss for loss in world.ranked_losses(kind)]}
    searched = {variant: world.searched(kind, variant) for variant in VARIANTS}
    orders |= {f"bilevel, {variant}": hardness(found) for variant, found in searched.items()}
    after = np.array(world.brute(kind))
    again = np.array(world.brute(kind, 1)) if kind == "prompt" else None
    rows: dict[str, Any] = {}
    for truth, values in (("left", -after), ("change", before - after)):
        lines = dict(orders)
        if again is not None:
            lines["repeat"] = (-again if truth == "left" else before - again).tolist()
        rows[truth] = {
            line: {
                "rho": round(spearman(order, values.tolist()), 4),
                "place": 1 + int((values > values[int(np.argmax(order))]).sum()),
            }
            for line, order in lines.items()
        }
    return {
        "units": world.names(kind),
        "loss before": [round(v, 5) for v in before.tolist()],
        "loss after": [round(v, 5) for v in after.tolist()],
        "weights": {variant: [round(w, 5) for w in found["weights"]] for variant, found in searched.items()},
        "agreement": rows,
    }


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and interval over seeds of every rank correlation; how often the hardest unit was found."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        for truth, lines in seeds[0][kind]["agreement"].items():
            for line in lines:
                cells = [seed[kind]["agreement"][truth][line] for seed in seeds]
                rho = np.array([cell["rho"] for cell in cells])
                ends = statistics.mean(rho, clusters=np.arange(len(rho))) if len(rho) > 1 else None
                found.setdefault(kind, {}).setdefault(truth, {})[line] = {
                    "rho": round(float(rho.mean()), 4),
                    "interval": None if ends is None else [round(min(max(e, -1.0), 1.0), 4) for e in ends],
                    "each": [round(float(r), 4) for r in rho],
                    "places": [cell["place"] for cell in cells],
                }
    return found


def measure(seeds: int, first: int, work: Path) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    for seed in range(first, first + seeds):
        world = World(seed, work)
        results.append({str(kind): compared(world, kind) for kind in KINDS})
        print(f"seed {seed} done", flush=True)
    model = World(first, work).original
    return {
        "suite": {key: config.dump(SUITE)[key] for key in ("name", "data", "model", "task", "train")},
        "model": {"parameters": sum(p.numel() for p in model.parameters())},
        "brute force": config.dump(short(CANVAS.per_cell)),
        "search": {"size": 1, "upper": ROUNDS, "step": STEP},
        "summary": summary(results),
        "seeds": results,
    }  # fmt: skip


PANELS = {"left": "Loss left after unlearning", "change": "Change of the loss by unlearning"}


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Rank correlation of every search with brute force, in each panel another truth; a mark for a seed."""
    found = report["summary"]
    with style():
        chart = figure(10.0, 3.2)
        axes = chart.subplots(1, len(PANELS), sharey=True)
        for axis, (truth, title) in zip(axes, PANELS.items(), strict=True):
            lines = list(found["prompt"][truth])
            for k, kind in enumerate(KINDS):
                for place, line in enumerate(one for one in lines if one in found[kind][truth]):
                    cell, y = found[kind][truth][line], place + 0.22 * (k - 1)
                    axis.plot(cell["each"], [y] * len(cell["each"]), ".", color=PALETTE[k], alpha=0.45)
                    axis.plot([cell["rho"]], [y], "|", color=PALETTE[k], markersize=11, label=kind)
            axis.axvline(0, color="0.4", linewidth=0.8, linestyle="--")
            axis.set_title(title, fontsize=9)
            axis.set_xlim(-1.05, 1.05)
            axis.set_xlabel("rank correlation with brute force")
        axes[0].set_yticks(range(len(lines)), lines)
        axes[0].set_ylim(len(lines) - 0.5, -0.5)
        handles, names = axes[0].get_legend_handles_labels()
        first = [names.index(kind) for kind in KINDS]
        chart.legend([handles[i] for i in first], KINDS, loc="outside lower center", ncols=3)
        chart.savefig(path, facecolor="white", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/hardest-prompts"))
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw the JSON again")
    parser.add_argument("--output", type=Path, default=Path("docs/results/hardest-prompts.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.draw:
        options.work.mkdir(parents=True, exist_ok=True)
        keep(options.output, options.seed, lambda: measure(options.seeds, options.seed, options.work))
    draw_chart(json.loads(options.output.read_text(encoding="utf-8")), options.output.with_suffix(".svg"))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
