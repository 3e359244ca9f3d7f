"""Which search finds the forget sets that expose unlearning methods, judged by true retraining.

For every seed and search a forget set of a tenth of the digits is chosen; ``adversarial`` chooses one for
each method. Every set is judged by K models retrained without it, which no search saw, and by a new run of
the method. With p_i the confidence in example i, r_i and s_i² its mean and variance over those models,

    D² = mean [(p_i(unlearned) - r_i)² - s_i²/K],    H² = mean [(p_i(original) - r_i)² - s_i²/K],

    exposure = D / max(H, H of random sets),

so exposures compare sets at equal headroom: that of doing nothing is at most 1. D and H are also given in
units of the noise, the square root of mean s_i². The settings of ``adversarial`` were chosen on the seeds
100, 101 and 0 to 12; those reported are others. Prints a table and writes JSON.

    python bench/exposure.py [--seeds 20 21 22] [--output docs/results/exposure.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge import config, experiment
from expunge.data.split import Split
from expunge.errors import ExpungeError
from expunge.provenance import hardware, versions
from expunge.searches.base import Search, reading, searches
from expunge.training.ensemble import train_many
from expunge.training.session import Session

RETRAINED = 5
METHODS = ("finetune", "grad_diff", "random_labels", "salun", "scrub", "ssd")
SUITE = [
    "model={kind: mlp, inputs: 64, outputs: 10, hidden: [64]}",
    "train={epochs: 30, batch_size: 64, optim: {lr: 0.1}}",
]
RIVALS: dict[str, dict[str, Any]] = {
    **{f"random {number}": {"kind": "random_set"} for number in (1, 2, 3)},
    **{
        f"{kind}, {mode}": {"kind": kind, "mode": mode}
        for kind in (
            "loss_ranking",
            "bilevel",
            "moderate",
            "el2n",
            "grand",
            "memorisation",
            "entanglement",
            "greedy",
        )
        for mode in ("worst", "easiest")
    },
}


def confidences(
    models: list[nn.Module], split: Split, setup: experiment.Experiment, session: Session
) -> Tensor:
    """``(models, m)``."""
    return torch.stack(
        [reading(model, split.forget, setup.task, session).confidence for model in models]
    ).double()


def judged(
    original: nn.Module, ids: Tensor, names: tuple[str, ...], setup: experiment.Experiment, session: Session
) -> dict[str, Any]:
    """Headroom, noise and each method's distance on one set."""
    split = Split.from_ids(setup.sourced.train, ids)
    sessions = [session.child("retrained", k) for k in range(RETRAINED)]
    retrained = train_many(setup.recipe, [split.retain] * RETRAINED, sessions).models
    known = confidences(list(retrained), split, setup, session)
    mean, variance = known.mean(0), known.var(0)

    def distance(model: nn.Module) -> float:
        squares = (confidences([model], split, setup, session)[0] - mean).square() - variance / RETRAINED
        return float(squares.mean().clamp_min(0).sqrt())

    found: dict[str, Any] = {"noise": float(variance.mean().sqrt()), "headroom": distance(original)}
    found["distance"] = {}
    for name in names:
        try:
            model = setup.methods[name].unlearn(original, split, setup.task, session.child("judge", name))
        except ExpungeError as error:
            found["distance"][name] = str(error)
            continue
        found["distance"][name] = distance(model)
    return found


def chosen(
    search: Search, original: nn.Module, setup: experiment.Experiment, session: Session
) -> tuple[Tensor, float]:
    """The ids that a search finds, and its seconds without what is prepared once."""
    train, task = setup.sourced.train, setup.task
    if search.prepared_by:
        session = replace(session, prepared=prepared(search, setup, session))
    start = time.perf_counter()
    found = search.search(original, train, task, session)
    return found.ids, time.perf_counter() - start


_PREPARED: dict[str, Mapping[str, Tensor]] = {}


def prepared(search: Search, setup: experiment.Experiment, session: Session) -> Mapping[str, Tensor]:
    key = f"{setup.seed} {searches.name_of(search)} {[getattr(search, name) for name in search.prepared_by]}"
    if key not in _PREPARED:
        shared = setup.session().child("prepare", key)
        _PREPARED[key] = search.prepare(setup.sourced.train, setup.task, shared)
    return _PREPARED[key]


def one_seed(seed: int, size: float, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Every search's set, judged."""
    setup = experiment.read("digits", [*SUITE, f"seed={seed}"])
    session = setup.session()
    start = time.perf_counter()
    original = setup.recipe.train(setup.sourced.train, session.child("original"))
    retraining = time.perf_counter() - start
    rows: dict[str, Any] = {}
    for name, spec in RIVALS.items():
        search = config.build(searches, {**spec, "size": size})
        ids, seconds = chosen(search, original, setup, session.child("search", name))
        rows[name] = {
            **judged(original, ids, METHODS, setup, session.child(name)),
            "cost": seconds / retraining,
        }
    adversarial: dict[str, Any] = {"noise": {}, "headroom": {}, "distance": {}, "cost": {}}
    for method in METHODS:
        spec = {
            "kind": "adversarial",
            "size": size,
            "methods": [config.dump(setup.methods[method])],
            **fields,
        }
        search = config.build(searches, spec)
        ids, seconds = chosen(search, original, setup, session.child("search", "adversarial", method))
        found = judged(original, ids, (method,), setup, session.child("adversarial", method))
        adversarial["distance"] |= found["distance"]
        adversarial["cost"][method] = seconds / retraining
        for key in ("noise", "headroom"):
            adversarial[key][method] = found[key]
    rows["adversarial"] = adversarial
    return rows


def exposures(rows: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of each search and method, of one seed."""
    floor = statistics.mean(row["headroom"] for name, row in rows.items() if name.startswith("random"))
    found: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        found[name] = {}
        for method, distance in row["distance"].items():
            headroom = row["headroom"][method] if isinstance(row["headroom"], dict) else row["headroom"]
            value = distance / max(headroom, floor) if isinstance(distance, float) else float("nan")
            found[name][method] = round(value, 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22])
    parser.add_argument("--size", type=float, default=0.1)
    parser.add_argument("--fields", default="{}", help="further fields of adversarial, as JSON")
    parser.add_argument("--output", type=Path, default=Path("docs/results/exposure.json"))
    options = parser.parse_args()
    seeds = {}
    for seed in options.seeds:
        rows = one_seed(seed, options.size, json.loads(options.fields))
        seeds[str(seed)] = {"sets": rows, "exposure": exposures(rows)}
    names = list(next(iter(seeds.values()))["exposure"])
    table = {
        name: {
            method: round(float(np.nanmean([seed["exposure"][name][method] for seed in seeds.values()])), 3)
            for method in METHODS
        }
        for name in names
    }
    print(f"{'exposure, mean of seeds':26s}" + "".join(f"{method:>15s}" for method in METHODS))
    for name, row in table.items():
        print(f"{name:26s}" + "".join(f"{value:15.3f}" for value in row.values()))
    wins = sum(
        seed["exposure"]["adversarial"][method]
        > max(row[method] for name, row in seed["exposure"].items() if name != "adversarial")
        for seed in seeds.values()
        for method in METHODS
    )
    print(f"adversarial exposes most in {wins} of {len(seeds) * len(METHODS)} cases")
    report = {
        "setting": (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        "model": SUITE,
        "size": options.size,
        "retrained": RETRAINED,
        "adversarial": json.loads(options.fields),
        "mean exposure": table,
        "adversarial exposes most": [wins, len(seeds) * len(METHODS)],
        "seeds": seeds,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
