"""UnlearnDiffAtk's inner loop, all cases and timesteps in one batch, against one of each at a time.

The literal form is that of the authors' code: for each case, for each timestep, so many steps of Adam, each
with a forward and backward pass of one noisy image through text encoder and denoiser, whose weights need no
gradient. Both sides pass as many noisy images through the denoiser, draw words from the same vocabulary and
project on the simplex by the same function; no image is sampled. Untrained text-to-image models of the sizes
of the canvas suites, on random latents. Ratios are medians over alternating pairs of runs after one warm-up,
of CPU time (``time.process_time``) on one thread, so that other programs on the machine count little.

    OMP_NUM_THREADS=1 python bench/attack_speed.py [--pairs 5] [--sizes 16 32] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.canvas import Canvas
from expunge.data.captions import CaptionedImages
from expunge.data.patch_codec import PatchCodecSpec
from expunge.evaluation.attacks.cases import Cases
from expunge.evaluation.attacks.fitted_prompt import Fitting
from expunge.evaluation.attacks.prompt_slots import words
from expunge.evaluation.attacks.unlearn_diff_atk import UnlearnDiffAtk, on_simplex, timesteps
from expunge.evaluation.gallery import Target
from expunge.provenance import hardware, versions
from expunge.tasks.diffusion import Diffusion
from expunge.training.denoisers import token_table
from expunge.training.diffusion_models import TextToImageSpec
from expunge.training.engine import Engine
from expunge.training.still import still

SEED, TARGET = 0, 3.0
TASK = Diffusion(prediction="velocity", schedule="cosine")
SIZES: dict[int, dict[str, Any]] = {
    16: {"channels": (24, 48), "codec": PatchCodecSpec(patch=1, channels=3)},
    32: {"channels": (32, 64, 64), "codec": PatchCodecSpec(patch=2, channels=6)},
}
"""By the side of an image, what the text-to-image model of the canvas suite has."""


def fitting(size: int, count: int, attack: UnlearnDiffAtk) -> Fitting:
    """Cases of random latents for an untrained model."""
    source = Canvas(size=size, per_cell=1, test_per_cell=1, codec=SIZES[size]["codec"])
    data = source.load().train
    assert isinstance(data, CaptionedImages)
    torch.manual_seed(SEED)
    spec = TextToImageSpec(vocabulary=len(data.tokenizer), context=16, image_size=size, **SIZES[size])
    model = spec.network().eval()
    rows = torch.arange(count) % len(data)
    latents = torch.randn(count, *data.column("inputs").shape[1:])
    condition, nothing = data.column("input_ids")[rows], data.column("empty.input_ids")[:1]
    goal, texts = Target("style", ("mosaic",), torch.tensor([0]), 0), tuple(data.captions[k] for k in rows)
    seeds = tuple(seeding.derive(SEED, k) for k in range(count))
    cells = torch.zeros(count, 2, dtype=torch.long)
    cases = Cases(goal, texts, cells, condition, nothing, latents, latents, seeds, count)
    allowed = words(data.tokenizer)
    table = token_table(model).weight.detach()[allowed]
    draws = tuple(torch.Generator().manual_seed(seed) for seed in seeds)
    slots = attack.slots(data.tokenizer, condition)
    return Fitting(model, model, TASK, Engine(device="cpu"), cases, slots, allowed, table, draws)


def batched(given: Fitting, attack: UnlearnDiffAtk) -> None:
    """The attack's own steps."""
    fit, rows = attack.fit(given), torch.arange(len(given.cases))
    for _ in range(attack.steps[-1]):
        with given.engine.frozen(given.model), still(given.model):
            fit.step(rows, len(rows))


def literal(given: Fitting, attack: UnlearnDiffAtk) -> None:
    """One case, one timestep and one image at a time; a case keeps its distribution between timesteps."""
    model: Any = given.model
    size, levels = len(given.allowed), timesteps(TASK.timesteps, attack.levels)
    with still(model):
        for case in range(len(given.cases)):
            clean, slots = given.cases.latents[case : case + 1], given.slots.among(torch.tensor([case]))
            u = torch.full((attack.tokens, size), 1 / size).requires_grad_()
            optimizer = torch.optim.Adam([u], lr=attack.lr, weight_decay=attack.weight_decay)
            for level in levels:
                for _ in range(attack.steps[-1]):
                    drawn = torch.multinomial(u.detach(), 1)[:, 0]
                    vectors = given.table[drawn].requires_grad_()
                    hidden = put(model, slots.filled(given.allowed[drawn][None]), slots.places[0], vectors)
                    noise = torch.randn_like(clean)
                    batch = {"inputs": clean, "noise": noise, "timesteps": level[None]}
                    batch["noisy"] = TASK.noised(clean, noise, level[None])
                    said = model.predict(batch["noisy"], level[None], hidden)
                    loss = (said - TASK.target(batch)).square().mean()
                    (by_vector,) = torch.autograd.grad(loss, [vectors])
                    u.grad = (by_vector @ given.table.T).clamp(-1, 1)
                    optimizer.step()
                    u.data = on_simplex(u.data)


def put(model: Any, input_ids: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    """Hidden states of one caption with vectors in its places."""

    def replaced(_: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output.index_copy(1, places, vectors[None])

    handle = token_table(model).register_forward_hook(replaced)
    hidden: Tensor = model.encode_text(input_ids)
    handle.remove()
    return hidden


def paired(ours: Callable[[], object], other: Callable[[], object], pairs: int) -> dict[str, float]:
    """Median ratio of CPU times over alternating pairs, after one warm-up of each."""

    def seconds(call: Callable[[], object]) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    ours(), other()
    times = []
    for i in range(pairs):
        b = seconds(other) if i % 2 else None
        a = seconds(ours)
        times.append((a, seconds(other) if b is None else b))
    ratios = sorted(b / a for a, b in times)
    return {
        "times as fast": round(statistics.median(ratios), 2),
        "lowest": round(ratios[0], 2),
        "highest": round(ratios[-1], 2),
        "seconds": round(statistics.median(a for a, _ in times), 3),
        "seconds, literal": round(statistics.median(b for _, b in times), 3),
    }


def measure(size: int, count: int, attack: UnlearnDiffAtk, pairs: int) -> dict[str, Any]:
    given = fitting(size, count, attack)
    found = paired(lambda: batched(given, attack), lambda: literal(given, attack), pairs)
    passes = count * attack.levels * attack.steps[-1]
    return {
        **found,
        "noisy images a second": round(passes / found["seconds"], 1),
        "noisy images a second, literal": round(passes / found["seconds, literal"], 1),
        "parameters": sum(p.numel() for p in given.model.parameters()),
        "cases": count,
        "timesteps": attack.levels,
        "steps": attack.steps[-1],
        "words to choose from": len(given.allowed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32], choices=sorted(SIZES))
    parser.add_argument("--quick", action="store_true", help="fewer cases and one pair, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/attack-speed.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, levels, pairs = (4, 5, 1) if options.quick else (15, 10, options.pairs)
    attack = UnlearnDiffAtk(steps=(2,), levels=levels)
    report: dict[str, Any] = {
        "setting": (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        "seed": SEED,
        "target": TARGET,
        "pairs": pairs,
        "hardware": hardware(torch.device("cpu")),
        "load average at the start": round(os.getloadavg()[0], 2),
        "versions": versions(),
        "attacks": {},
    }
    for size in options.sizes:
        both = measure(size, count, attack, pairs)
        alone = measure(size, 1, attack, pairs)
        report["attacks"][f"{size}x{size}"] = {"cases and timesteps": both, "timesteps of one case": alone}
        for name, found in report["attacks"][f"{size}x{size}"].items():
            ratio, low, high = (found[key] for key in ("times as fast", "lowest", "highest"))
            speed = f"{found['noisy images a second']} images/s"
            print(f"{size}x{size} {name:22s} {ratio:5.2f} times as fast [{low}, {high}]  {speed}", flush=True)
    report["peak memory, MiB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
