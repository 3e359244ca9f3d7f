"""A made-up report with everything in it that a real one may hold."""

from __future__ import annotations

import base64
import io
import math
import random
from dataclasses import replace

from PIL import Image

from expunge.evaluation.report import Report
from expunge.evaluation.score import Score, Target, Unit
from expunge.evaluation.table import Role, Row, Table

BINS = [round(0.25 * i, 2) for i in range(41)]
NO_ORIGINAL_COST = "this model's cost was not measured: it was not made here."
NO_MEMORY = "memory cannot be measured on this system."
ERROR = "Unsupported: SSD needs <named> layers, but the model has none."

# forget, retain, test accuracy, membership, steps to relearn, seconds
METHODS = {
    "salun": (0.868, 0.991, 0.905, 0.58, 21, 31.0),
    "npo": (0.845, 0.953, 0.862, 0.53, 34, 24.0),
    "grad_ascent": (0.31, 0.71, 0.655, 0.22, 3, 6.0),
    "finetune": (0.962, 0.997, 0.917, 0.83, 5, 44.0),
    "random_labels": (0.79, 0.962, 0.871, 0.41, 26, 29.0),
    "l1_sparse": (0.906, 0.979, 0.894, 0.71, 14, 52.0),
    "<b>evil</b> & co": (0.873, 0.972, 0.9, 0.62, 19, 61.0),
}
ORIGINAL = (0.996, 0.998, 0.921, 0.93, 0, math.nan)
RETRAINED = (0.862, 0.998, 0.918, 0.56, 24, 420.0)


def rate(rng: random.Random, name: str, part: str, p: float, n: int, variant: str = "") -> Score:
    value = min(1.0, max(0.0, round(rng.gauss(p, 0.004) * n) / n))
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.002) / n)
    bounds = (max(0.0, value - half), min(1.0, value + half))
    return Score(
        name=name,
        part=part,
        variant=variant,
        value=value,
        interval=bounds,
        n=n,
        target="retrained",
        unit="fraction",
    )


def plain(
    name: str,
    value: float,
    unit: Unit,
    target: Target,
    part: str = "",
    variant: str = "",
    spread: float = 0.0,
) -> Score:
    bounds = (max(0.0, value - spread), value + spread) if spread else None
    return Score(
        name=name, part=part, variant=variant, value=value, interval=bounds, n=500, target=target, unit=unit
    )


def missing(name: str, reason: str, unit: Unit, target: Target, part: str = "", variant: str = "") -> Score:
    return Score(
        name=name, part=part, variant=variant, value=math.nan, n=0, target=target, unit=unit, reason=reason
    )


def scores(
    rng: random.Random, role: Role, truth: tuple[float, ...], only_one: bool, size: int = 500
) -> dict[str, Score]:
    forget, retain, test, member, steps, seconds = truth
    loss = -math.log(max(0.02, forget)) * 3 + 0.02
    found = [
        rate(rng, "accuracy", "forget", forget, size),
        rate(rng, "accuracy", "retain", retain, 5000),
        rate(rng, "accuracy", "test", test, 2000),
        rate(rng, "membership", "forget", member, size, "svc-confidence"),
        rate(rng, "membership", "forget", member - 0.04, size, "threshold-confidence"),
        plain(
            "divergence",
            abs(forget - 0.86) * 0.4 + 0.02,
            "nats",
            "retrained",
            "forget",
            "jensen-shannon",
            0.004,
        ),
    ]
    if role == "retrained" and only_one:
        found.append(
            missing("average gap", "there is no other retrained model.", "fraction", "low", variant="svc")
        )
    else:
        gap = sum(abs(a - b) for a, b in zip(truth[:4], RETRAINED[:4], strict=True)) / 4
        found.append(plain("average gap", gap + 0.006, "fraction", "low", variant="svc", spread=0.0045))
    found += [
        plain(
            "relearn time", steps + rng.randint(0, 2) * (role == "retrained"), "steps", "retrained", "forget"
        ),
        plain("loss", loss + rng.gauss(0, 0.01), "nats", "retrained", "forget", spread=0.03),
        plain("loss", 0.02 + 2 * (1 - retain), "nats", "retrained", "retain", spread=0.004),
        plain("loss", 0.1 + 3 * (1 - test) + rng.gauss(0, 0.01), "nats", "retrained", "test", spread=0.02),
    ]
    if role == "original":
        found.append(missing("cost", NO_ORIGINAL_COST, "seconds", "low", variant="seconds"))
        found.append(missing("cost", NO_ORIGINAL_COST, "ratio", "low", variant="ratio"))
    else:
        found.append(plain("cost", seconds, "seconds", "low", variant="seconds"))
        found.append(plain("cost", seconds / RETRAINED[5], "ratio", "low", variant="ratio"))
    found.append(missing("cost", NO_MEMORY, "MiB", "low", variant="memory"))
    return {score.id: score for score in found}


def histogram(rng: random.Random, accuracy: float, n: int) -> list[int]:
    counts = [0] * (len(BINS) - 1)
    for _ in range(n):
        loss = rng.expovariate(6) if rng.random() < accuracy else rng.gammavariate(3, 1.0)
        counts[min(int(loss / 0.25), len(counts) - 1)] += 1
    return counts


def row(rng: random.Random, name: str, role: Role, truth: tuple[float, ...], only_one: bool = False) -> Row:
    histograms = {"forget": histogram(rng, truth[0], 500), "test": histogram(rng, truth[2], 2000)}
    method = {"kind": name, "optim": {"lr": 0.01}} if role == "unlearned" else None
    return Row(name, role, scores(rng, role, truth, only_one), method, None, histograms)


def picture(rng: random.Random, index: int) -> dict[str, str]:
    image = Image.new("RGB", (32, 32))
    a, b = [tuple(rng.randrange(40, 230) for _ in range(3)) for _ in range(2)]
    image.putdata(
        [
            a if (x - 16) ** 2 + (y - 16) ** 2 < rng.randrange(60, 140) else b
            for x in range(32)
            for y in range(32)
        ]
    )
    stream = io.BytesIO()
    image.save(stream, "PNG")
    png = base64.b64encode(stream.getvalue()).decode()
    return {"id": str(rng.randrange(50_000)), "label": ["cat", "dog", "<ship>"][index % 3], "png": png}


def table(
    name: str = "random",
    seed: int = 0,
    *,
    retrained: int = 3,
    methods: dict[str, tuple[float, ...]] | None = None,
    original: tuple[float, ...] = ORIGINAL,
    pictures: int = 0,
) -> Table:
    rng = random.Random(seed)
    rows = [row(rng, "original", "original", original)]
    rows += [row(rng, f"retrained {i + 1}", "retrained", RETRAINED, retrained == 1) for i in range(retrained)]
    rows += [
        row(rng, key, "unlearned", truth) for key, truth in (METHODS if methods is None else methods).items()
    ]
    rows.append(Row("ssd", "unlearned", error=ERROR, method={"kind": "ssd"}))
    return Table(
        name=name,
        description="Examples drawn at random from the <training> set.",
        size=500,
        train_size=5000,
        rows=tuple(rows),
        fingerprint="9f2c" * 8,
        overlap={"loss ranking": 0.31, "random": 0.1},
        bins=BINS,
        pictures=[picture(rng, i) for i in range(pictures)],
    )


def without_headroom(name: str = "easiest", seed: int = 5) -> Table:
    """Doing nothing looks like one more retrained model."""
    return table(name, seed, original=(*RETRAINED[:5], math.nan), pictures=8)


def changed(source: Table, model: str, **scores: Score) -> Table:
    """The same table with some scores of one model replaced."""
    rows = [
        replace(r, scores={**r.scores, **{s.id: s for s in scores.values()}}) if r.name == model else r
        for r in source.rows
    ]
    return replace(source, rows=tuple(rows))


def report(seed: int = 0) -> Report:
    hard = {name: (min(1.0, v[0] + 0.05), *v[1:]) for name, v in METHODS.items()}
    tables = (
        table("random", seed, pictures=6),
        table("hardest", seed + 1, methods=hard, pictures=24),
        without_headroom(seed=seed + 2),
    )
    provenance = {
        "configuration": {"name": "demo", "seed": 3, "methods": {"salun": {"lr": 0.013, "steps": 200}}},
        "versions": {"expunge": "0.1.0", "torch": "2.13.0", "python": "3.11"},
        "seed": 3,
        "hardware": "2 cores, 16 GiB <memory>",
        "fingerprints": {"train": "ab" * 16, "test": "cd" * 16},
        "seconds": 4321.5,
    }
    return Report("CIFAR-10 <demo> & friends", tables, provenance)
