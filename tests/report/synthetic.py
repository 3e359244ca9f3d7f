"""A made-up report with everything in it that a real one may hold."""

from __future__ import annotations

import base64
import io
import math
import random
from dataclasses import replace
from typing import Any

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
CONTROLS = {
    "collapsed": (0.1, 0.1, 0.1, 0.02, 180, math.nan),
    "constant": (0.09, 0.1, 0.1, 0.0, 210, math.nan),
    "never_trained": (0.11, 0.1, 0.1, 0.03, 170, math.nan),
}
NAMES = ["cat", "dog", "<ship>", "lorry"]
NOTE = "The head forgets what the <features> keep."
ORIGINAL = (0.996, 0.998, 0.921, 0.93, 0, math.nan)
RETRAINED = (0.862, 0.998, 0.918, 0.56, 24, 420.0)


def rate(rng: random.Random, name: str, part: str, p: float, n: int, variant: str = "") -> Score:
    value = min(1.0, max(0.0, round(rng.gauss(p, 0.004) * n) / n))
    error = math.sqrt(max(value * (1 - value), 0.002) / n)
    half = 1.96 * error
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
        error=error / 2,
        df=n - 1.0,
        metric=name if name == "accuracy" else "",
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
        name=name,
        part=part,
        variant=variant,
        value=value,
        interval=bounds,
        n=500,
        target=target,
        unit=unit,
        error=spread / 3 if spread else None,
        df=499.0 if spread else None,
    )


def roc(auc: float) -> list[list[float]]:
    """A curve with the given area under it: ``tpr = fpr^(1/auc − 1)``."""
    rates = [0.0, *(10 ** (-4 + i / 8) for i in range(33))]
    return [[x, x ** (1 / auc - 1)] for x in rates]


def detailed(rng: random.Random, truth: tuple[float, ...]) -> list[Score]:
    """Scores that hold a chart, a perfect unlearner's value or a note."""
    member, steps = 0.45 + truth[3] / 2.2, max(1.0, truth[4])
    curve = [[x, 0.9 * (1 - math.exp(-(x + 1) / steps)) + 0.1] for x in range(0, 60, 4)]
    layers = {f"block{i}": 1 - abs(truth[0] - 0.862) * i / 3 for i in range(1, 5)}
    attack = rate(rng, "membership", "forget", member, 1000, "lira-auc")
    depth = plain("cka", min(layers.values()), "fraction", "retrained", "forget", spread=0.01)
    curved = plain("relearning", steps / 60, "fraction", "retrained", "forget", spread=0.02)
    labels = {"curve": curve, "x_label": "steps", "y_label": "forget accuracy"}
    biased = plain("klom", 0.3 + abs(truth[0] - 0.862), "nats", "retrained", "forget", spread=0.02)
    return [
        replace(attack, details={"roc": roc(member)}),
        replace(depth, details={"layers": layers} | ({"note": NOTE} if truth[0] < 0.8 else {})),
        replace(curved, details=labels),
        replace(biased, perfect=0.31),
    ]


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
    found += detailed(rng, truth)
    if role in ("original", "control"):
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


def classes(rng: random.Random, truth: tuple[float, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for part, accuracy in (("forget", truth[0]), ("retain", truth[1]), ("test", truth[2])):
        for label in range(len(NAMES)):
            value = min(1.0, max(0.0, accuracy + rng.gauss(0, 0.02)))
            bounds = {"low": max(0.0, value - 0.05), "high": min(1.0, value + 0.05)}
            found.append({"part": part, "class": label, "value": value, "n": 125, **bounds})
    return found


def worst(rng: random.Random, ids: list[int]) -> list[dict[str, Any]]:
    z = sorted((rng.gauss(0, 3) for _ in ids), key=abs, reverse=True)
    return [
        {"id": i, "z": value, "confidence": rng.random(), "retrained": rng.random()}
        for i, value in zip(ids, z, strict=True)
    ]


def row(
    rng: random.Random,
    name: str,
    role: Role,
    truth: tuple[float, ...],
    only_one: bool = False,
    ids: tuple[int, ...] = (),
) -> Row:
    histograms = {"forget": histogram(rng, truth[0], 500), "test": histogram(rng, truth[2], 2000)}
    method = {"kind": name, "optim": {"lr": 0.01}} if role == "unlearned" else None
    found = scores(rng, role, truth, only_one)
    listed = worst(rng, [*ids[:4], *range(60_000, 60_026)]) if role != "retrained" else []
    return Row(name, role, found, method, None, histograms, classes(rng, truth), listed)


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
    dice = random.Random(seed + 100)
    drawn = [picture(dice, i) for i in range(pictures)]
    rows = [row(rng, "original", "original", original)]
    rows += [row(rng, f"retrained {i + 1}", "retrained", RETRAINED, retrained == 1) for i in range(retrained)]
    ids = tuple(int(item["id"]) for item in drawn)
    rows += [
        row(rng, key, "unlearned", truth, ids=ids)
        for key, truth in (METHODS if methods is None else methods).items()
    ]
    rows += [row(rng, key, "control", truth) for key, truth in CONTROLS.items()]
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
        pictures=drawn,
        floors={"accuracy": 0.1},
        names=NAMES,
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


def scores_of(source: Table, model: str) -> dict[str, Score]:
    return next(row.scores for row in source.rows if row.name == model)


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
