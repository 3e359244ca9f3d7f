"""The published SVC attack against its binned variant: time and value, on 10,000 + 10,000 points.

The confidences are drawn from four distributions and, with ``--fashion``, are those of a small network on
Fashion-MNIST (read from EXPUNGE_DATA or downloaded once): overfitted, stopped early, and each with the
entropies. One thread. Prints a table and writes JSON.

    python bench/svc_speed.py [--fashion] [--seeds 3] [--output docs/results/svc-speed.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.evaluation.attacks import signals
from expunge.evaluation.attacks.membership import SVC
from expunge.provenance import hardware, versions

POINTS, FORGET = 10_000, 5_000
SPEED, POINTS_APART = 20.0, 0.5
Parts = tuple[Tensor, Tensor, Tensor]


def drawn(kind: str, seed: int) -> Parts:
    """Confidences of retain, test and forget examples, as float32 networks give them."""
    draws = np.random.default_rng(seed)

    def answers(right: float, centre: float, spread: float, size: int) -> np.ndarray:
        """A mixture on the logit scale: right answers around ``centre``, wrong ones around −3."""
        wrong = draws.random(size) > right
        return np.where(wrong, draws.normal(-3, 2, size), draws.normal(centre, spread, size))

    members, others = {
        "overfitted": ((1.0, 7, 2), (0.9, 5, 3)),
        "saturated": ((1.0, 18, 3), (0.93, 14, 5)),
        "well generalised": ((0.95, 3, 2), (0.94, 2.8, 2.1)),
        "no difference": ((0.9, 3, 2), (0.9, 3, 2)),
    }[kind]
    logits = (
        answers(*members, POINTS),
        answers(*others, POINTS),
        np.append(answers(*members, FORGET // 2), answers(*others, FORGET - FORGET // 2)),
    )
    return tuple(torch.from_numpy(x).float().sigmoid().double() for x in logits)  # type: ignore[return-value]


def trained(epochs: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and labels of a network on 10,000 images: of them, of test images, and of a mixed set."""
    from expunge.data.source import sources

    sourced = sources.get("fashion_mnist")().load()
    order = torch.randperm(len(sourced.train), generator=torch.Generator().manual_seed(seed))
    (train,) = sourced.train.batches([order[: POINTS + FORGET]], device="cpu")
    (test,) = sourced.test.batches([torch.arange(len(sourced.test))], device="cpu")
    x, y = train["inputs"].flatten(1).float(), train["targets"]
    known = torch.cat([torch.arange(POINTS), torch.arange(POINTS, POINTS + FORGET // 2)])
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in known[torch.randperm(len(known))].split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        inputs = [x[:POINTS], test["inputs"].flatten(1).float(), x[POINTS:]]
        return [model(part) for part in inputs], [y[:POINTS], test["targets"], y[POINTS:]]


def cases(seeds: int, fashion: bool) -> Iterator[tuple[str, int, Parts]]:
    for kind in ("overfitted", "saturated", "well generalised", "no difference"):
        for seed in range(seeds):
            yield f"drawn, {kind}", seed, drawn(kind, seed)
    for name, epochs in (("overfitted", 40), ("stopped early", 2)) if fashion else ():
        for seed in range(seeds):
            logits, targets = trained(epochs, seed)
            found = [signals.confidence(*pair) for pair in zip(logits, targets, strict=True)]
            yield f"Fashion-MNIST, {name}, confidence", seed, tuple(found)  # type: ignore[misc]
            found = [signals.entropy(part) for part in logits]
            yield f"Fashion-MNIST, {name}, entropy", seed, tuple(found)  # type: ignore[misc]
            found = [signals.modified_entropy(*pair) for pair in zip(logits, targets, strict=True)]
            yield f"Fashion-MNIST, {name}, modified entropy", seed, tuple(found)  # type: ignore[misc]


def compared(parts: Parts, repeats: int = 3) -> dict[str, Any]:
    """Fit and prediction of both: the exact one once, the binned one as the median of a few."""
    retain, test, forget = parts

    def timed(metric: SVC) -> tuple[float, float]:
        start = time.perf_counter()
        called = metric.members(retain, test, POINTS, forget)
        return time.perf_counter() - start, 100 * (1 - float(called.double().mean()))

    timed(SVC(solver="binned"))  # warm-up: imports
    fast = [timed(SVC(solver="binned")) for _ in range(repeats)]
    exact = timed(SVC())
    seconds = float(np.median([took for took, _ in fast]))
    return {
        "exact_percent": round(exact[1], 3),
        "binned_percent": round(fast[0][1], 3),
        "points_apart": round(fast[0][1] - exact[1], 3),
        "exact_seconds": round(exact[0], 3),
        "binned_seconds": round(seconds, 4),
        "speed": round(exact[0] / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fashion", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, seed, parts in cases(arguments.seeds, arguments.fashion):
        rows.append({"case": name, "seed": seed, **compared(parts)})
        print(*(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    held = [abs(row["points_apart"]) <= POINTS_APART and row["speed"] >= SPEED for row in rows]
    found = {
        "what": f"{POINTS} + {POINTS} points, {FORGET} judged; seconds of fit and prediction",
        "asked": {"points_apart": POINTS_APART, "speed": SPEED},
        "held": f"{sum(held)} of {len(held)}",
        "largest_points_apart": max(abs(row["points_apart"]) for row in rows),
        "least_speed": min(row["speed"] for row in rows),
        "cases": rows,
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }
    print({key: found[key] for key in ("held", "largest_points_apart", "least_speed")})
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
