"""What training, drawing and judging of a text-to-image model cost, against bare loops that do the same.

The model of the suite ``canvas-mini``, untrained, as speed does not depend on what it draws.

    training     steps of the recipe against a loop of forward, backward, clipping, AdamW and moving average;
                 the same in bfloat16
    drawing      guided DDIM in batches against the same loop in plain PyTorch, and against one at a time
    judging      the five metrics of one model, which share images and verdicts, against each by itself
    uce          seconds, and the largest difference from the least-squares problem solved in float64

Ratios are medians over alternating pairs after one warm-up, of CPU time (``time.process_time``) on one
thread, so that other programs on the machine count little. Prints a table and writes JSON.

    OMP_NUM_THREADS=1 python bench/picture_speed.py [--pairs 5] [--quick]
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from kept import keep
from method_speed import paired
from torch import Tensor, nn

from expunge import experiment
from expunge.data.captions import CaptionedImages
from expunge.data.split import Split
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric
from expunge.evaluation.subject import Subject
from expunge.methods.edits.uce import UCE
from expunge.tasks.diffusion import Diffusion
from expunge.tasks.noise_schedules import trailing
from expunge.training.cross_attention import cross_attention
from expunge.training.diffusion_models import TextToImage
from expunge.training.engine import Engine
from expunge.training.recipe import Recipe
from expunge.training.sampling import sample
from expunge.training.session import Session

SEED, BATCH, STEPS, GUIDANCE = 0, 16, 10, 2.5


@dataclass(frozen=True, eq=False)
class Bench:
    """The suite's parts at the size that is measured.

    Args:
        steps: training steps of a run.
        images: drawn in a run.
        pairs: of runs.
    """

    steps: int
    images: int
    pairs: int

    @cached_property
    def suite(self) -> experiment.Experiment:
        return experiment.read("canvas-mini")

    @cached_property
    def data(self) -> CaptionedImages:
        train = self.suite.sourced.train
        rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(SEED))
        return cast(CaptionedImages, train.subset(train.ids[rows[: self.steps * BATCH]]))

    @cached_property
    def task(self) -> Diffusion:
        return cast(Diffusion, self.suite.task)

    @cached_property
    def recipe(self) -> Recipe:
        found = self.suite.recipe
        return replace(found, training=replace(found.training, epochs=1, batch_size=BATCH))

    def model(self) -> TextToImage:
        return cast(TextToImage, self.recipe.initial(Session(SEED)).eval())

    def train(self, dtype: str = "float32") -> nn.Module:
        engine = Engine(device="cpu", dtype=cast(Any, dtype))
        return self.recipe.train(self.data, Session(SEED, engine=engine))

    def bare_training(self) -> nn.Module:
        """The same batches, noise, captions and arithmetic, without anything around them."""
        model, optim = self.model(), self.recipe.training.optim
        trained = list(model.unet.parameters())
        average = [p.detach().clone() for p in model.parameters()]
        for p in model.text_encoder.parameters():
            p.requires_grad_(False)
        adam = torch.optim.AdamW(trained, optim.lr, (0.9, 0.99), weight_decay=0.0, fused=True)
        generator = torch.Generator().manual_seed(SEED)
        columns = {name: self.data.column(name) for name in ("inputs", "input_ids")}
        for rows in torch.randperm(len(self.data), generator=generator).split(BATCH):
            clean, ids = (columns[name][rows] for name in ("inputs", "input_ids"))
            noise = torch.randn(clean.shape, generator=generator)
            times = torch.randint(self.task.timesteps, (len(rows),), generator=generator)
            noisy = self.task.noised(clean, noise, times)
            said = model.predict(noisy, times, model.encode_text(ids))
            wanted = self.task.target({"inputs": clean, "noise": noise, "timesteps": times, "noisy": noisy})
            loss = (said - wanted).square().mean()
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            adam.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list(model.parameters()), 0.005)
        return model

    @cached_property
    def asked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Captions, the empty one, and the noise to start from."""
        rows = torch.arange(self.images) % len(self.data)
        start = torch.randn(self.images, *self.drawer.latent_shape)
        return self.data.column("input_ids")[rows], self.data.column("empty.input_ids")[:1], start

    @cached_property
    def drawer(self) -> TextToImage:
        return self.model()

    def draw(self, batch_size: int = 64) -> Tensor:
        ids, empty, start = self.asked
        known: dict[str, Any] = {"steps": STEPS, "guidance": GUIDANCE, "batch_size": batch_size}
        return sample(self.drawer, self.task, ids, empty=empty, start=start, **known)

    @torch.no_grad()
    def bare_drawing(self) -> Tensor:
        """Guided DDIM from a velocity, a batch at a time."""
        ids, empty, start = self.asked
        model, levels, found = self.drawer, trailing(self.task.timesteps, STEPS), []
        alphas = self.task.signal_left
        for part, x in zip(ids.split(64), start.split(64), strict=True):
            hidden = torch.cat([model.encode_text(empty).expand(len(part), -1, -1), model.encode_text(part)])
            for level, lower in zip(levels, [*levels[1:], -1], strict=True):
                times = torch.full((2 * len(part),), level)
                nothing, said = model.predict(x.repeat(2, 1, 1, 1), times, hidden).chunk(2)
                v, at = nothing + GUIDANCE * (said - nothing), alphas[level]
                to = alphas[lower] if lower >= 0 else torch.ones(())
                clean, noise = at.sqrt() * x - (1 - at).sqrt() * v, at.sqrt() * v + (1 - at).sqrt() * x
                x = to.sqrt() * clean + (1 - to).sqrt() * noise
            found.append(x)
        return torch.cat(found)

    def evidence(self) -> Evidence:
        """Of a model of which nothing was drawn yet."""
        setup = self.suite
        ids = setup.forget["sketch"].search(self.drawer, setup.sourced.train, setup.task, Session(SEED)).ids
        split = Split.from_ids(setup.sourced.train, ids, test=setup.sourced.test)
        parts = {"forget": split.forget, "retain": split.retain, "test": setup.sourced.test}
        subject = Subject("model", self.drawer, parts, setup.task, Session(SEED))
        return Evidence(subject, subject, (), setup.task, parts, Session(SEED), keep=self.kept)

    @cached_property
    def judges(self) -> dict[str, Any]:
        return {}

    def kept(self, name: str, depends: Any, compute: Callable[[], Any]) -> Any:
        """Judges are trained once, before anything is timed."""
        if name not in self.judges:
            self.judges[name] = compute()[1]
        return self.judges[name]

    @cached_property
    def measures(self) -> list[Metric]:
        return [m for m in self.suite.metrics if type(m).__name__ != "Cost"]

    def together(self) -> None:
        found = self.evidence()
        assert all(metric(found).reason is None for metric in self.measures)

    def apart(self) -> None:
        assert all(metric(self.evidence()).reason is None for metric in self.measures)

    def closed_form(self) -> dict[str, float]:
        """Seconds of UCE, and its difference from the least squares problem row by row."""
        setup, model, method = self.suite, self.drawer, UCE()
        search = setup.forget["sketch"]
        ids = search.search(model, setup.sourced.train, setup.task, Session(SEED)).ids
        split = Split.from_ids(setup.sourced.train, ids)
        start = time.process_time()
        edited = method.unlearn(model, split, setup.task, Session(SEED))
        taken = time.process_time() - start
        data = cast(CaptionedImages, split.retain)
        said = method.texts(model, split, sorted({*data.captions, ""}), Session(SEED))
        preserve = max(0.1, 1 / len({*data.captions, ""}))
        worst = 0.0
        for (_, old), (_, new) in zip(cross_attention(model), cross_attention(edited), strict=True):
            for end in ("to_k", "to_v"):
                weight = getattr(old, end).weight.detach().double()
                parts = ((method.erase, said.concept, method.values(weight, said)),
                         (preserve, said.kept, said.kept @ weight.T),
                         (method.ridge, torch.eye(weight.shape[1]).double(), weight.T))  # fmt: skip
                rows = torch.cat([share**0.5 * x for share, x, _ in parts])
                wanted = torch.cat([share**0.5 * y for share, _, y in parts])
                best = torch.linalg.lstsq(rows, wanted).solution.T
                worst = max(worst, float((getattr(new, end).weight.detach().double() - best).abs().max()))
        return {"seconds": round(taken, 3), "largest difference": worst}

    def measured(self) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def told(name: str, ours: Callable[[], object], other: Callable[[], object], **rates: float) -> None:
            one: dict[str, Any] = paired(ours, other, self.pairs)
            for rate, count in rates.items():
                one[f"{rate} a second"] = round(count / one["seconds"], 2)
                one[f"{rate} a second, bare"] = round(count / one["seconds_bare"], 2)
            one["peak memory of the process so far, MiB"] = round(
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            )
            found[name] = one
            print(f"{name:34s} {one['ratio']:6.3f} [{one['lowest']}, {one['highest']}]", flush=True)

        difference = float((self.draw() - self.bare_drawing()).abs().max())
        assert difference < 1e-3, f"not the same arithmetic: {difference}"
        told("training / bare loop", self.train, self.bare_training, steps=self.steps)
        told("bfloat16 / float32", lambda: self.train("bfloat16"), self.train, steps=self.steps)
        told("drawing / bare loop", self.draw, self.bare_drawing, images=self.images)
        told("drawing / one by one", self.draw, lambda: self.draw(1), images=self.images)
        self.together()
        told("five metrics / each by itself", self.together, self.apart)
        return {"comparisons": found, "uce": self.closed_form()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few steps and one pair, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/picture-speed.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(2, 4, 1) if options.quick else Bench(40, 64, options.pairs)

    def measure() -> Mapping[str, Any]:
        return {
            "setting": (__doc__ or "").split("\n\n")[1].replace("\n", " "),
            "parameters": sum(p.numel() for p in bench.drawer.parameters()),
            "pairs": bench.pairs,
            "load average at the start": round(os.getloadavg()[0], 2),
            **bench.measured(),
        }

    keep(options.output, SEED, lambda: dict(measure()))


if __name__ == "__main__":
    main()
