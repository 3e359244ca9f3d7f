"""Where each method stands between doing nothing and retraining, and on which forget sets it breaks.

One study is one file of ``bench/studies``: data, model, recipe and the methods with their epochs. For each
method one number (a learning rate, or what the method has in its place) is chosen among as many values as
for every other, by the mean average gap on draws that are never scored: once on random sets, once on sets
of a group (a class, or a band of the target). The settings of the random sets serve the random, worst,
easiest and adversarial ones. Then every method runs on three draws of each kind of set. Everything is kept
in ``--runs`` piece by piece: started again, the study goes on where it stopped.

    python bench/study.py digits --runs runs/digits --output docs/results/study-digits.json

``--again`` runs single sets of a study that is published once more, from nothing but with the settings that
were chosen then, and says what differs:

    python bench/study.py cifar10 --runs runs/again --again "random 1"
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge import config, experiment, runner
from expunge.data.download import local_folder
from expunge.data.source import Sourced
from expunge.evaluation import ranking
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.report import Report
from expunge.evaluation.table import Row, Table
from expunge.experiment import Experiment
from expunge.methods.base import Method, methods
from expunge.training.session import Event

KINDS = ("random", "group", "worst", "easiest", "adversarial")
GRIDS: dict[str, tuple[float, float]] = {
    "sgd": (1e-4, 1e-1),
    "adamw": (1e-5, 1e-2),
    "forget_vector": (0.02, 2.0),
    "ssd": (1.0, 100.0),
    "lfssd": (1.0, 100.0),
    "fisher": (1e-9, 1e-6),
    "influence": (0.03, 3.0),
    "iau": (1e-5, 1e-2),
}
"""Smallest and largest value, by the optimiser whose learning rate it is or by the method."""

KNOBS = {"ssd": "alpha", "lfssd": "alpha", "fisher": "alpha", "influence": "scale", "iau": "lr"}
"""What is tuned where there is no optimiser."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a file of ``bench/studies`` says.

    Args:
        experiment: data, model, task, recipe, engine, methods and retrained models; no forget sets.
        groups: what the group sets are: labels, or numbers of bands of a tenth of the targets; the last one
            is for tuning.
        size: of all other sets.
        values: numbers tried for each method.
        tuning: random draws that they are tried on.
        exposed: methods that ``adversarial`` is to expose.
        models: reference models of ``adversarial``.
    """

    experiment: dict[str, Any]
    groups: tuple[int, ...]
    size: float = 0.1
    values: int = 7
    tuning: int = 3
    exposed: tuple[str, ...] = ("finetune", "grad_diff", "salun")
    models: int = 40
    draws: int = field(default=3)

    def sets(self, kind: str, sourced: Sourced) -> dict[str, Any]:
        """The forget sets of one kind to be scored, by name."""
        every = {
            "random": {"kind": "random_set", "size": self.size},
            "worst": {"kind": "bilevel", "size": self.size, "mode": "worst"},
            "easiest": {"kind": "bilevel", "size": self.size, "mode": "easiest"},
        }
        if kind == "group":
            return {f"group {i + 1}": group(g, sourced) for i, g in enumerate(self.groups[:-1])}
        return {f"{kind} {i + 1}": every[kind] for i in range(self.draws)}


def group(number: int, sourced: Sourced) -> dict[str, Any]:
    """All of one class, or the examples in one tenth of the sorted targets."""
    if sourced.classes is not None:
        return {"kind": "class_set", "classes": [number]}
    targets = sourced.train.column("targets").flatten()
    rows = targets.argsort(stable=True).tensor_split(10)[number]
    return {"kind": "given", "ids": sorted(sourced.train.ids[rows].tolist())}


def located(value: dict[str, Any], runs: Path) -> dict[str, Any]:
    """The experiment with the path of its table filled in."""
    data = value["data"]
    if isinstance(data, str) or data["kind"] != "npz":
        return value
    folder, name = local_folder("tabular"), data["path"]
    if folder is None or not (folder / name).is_file():
        raise SystemExit(f"$EXPUNGE_DATA has no tabular/{name}.")
    path = abalone(folder / name, runs) if name == "abalone.csv" else folder / name
    return {**value, "data": {**data, "path": str(path)}}


def abalone(path: Path, runs: Path) -> Path:
    """An archive: sex as three columns, measures and rings standardised, a fifth of the rows for testing."""
    lines = [line.split(",") for line in path.read_text(encoding="utf-8").split()]
    sex = np.array([[line[0] == letter for letter in "MFI"] for line in lines], dtype=np.float32)
    numbers = np.array([line[1:] for line in lines], dtype=np.float64)
    order = np.random.default_rng(0).permutation(len(numbers))
    test = order[: len(order) // 5]
    train = order[len(order) // 5 :]
    numbers = (numbers - numbers[train].mean(0)) / numbers[train].std(0)
    x = np.hstack([sex, numbers[:, :-1].astype(np.float32)])
    y = numbers[:, -1:].astype(np.float32)
    runs.mkdir(parents=True, exist_ok=True)
    made = runs / "abalone.npz"
    np.savez(made, x=x[train], y=y[train], x_test=x[test], y_test=y[test])
    return made


def grid(method: Method, name: str, count: int) -> dict[str, Method]:
    """The same method with every value of its number; exact methods have nothing to choose."""
    optim = getattr(method, "optim", None)
    if method.guarantee == "exact" or (optim is None and name not in KNOBS):
        return {"as it is": method}
    low, high = GRIDS[name if name in GRIDS else config.dump(optim)["kind"]]
    values = [float(f"{v:.3g}") for v in np.geomspace(low, high, count)]
    if optim is not None:
        return {f"{v:g}": replace(method, optim=replace(optim, lr=v)) for v in values}  # type: ignore[type-var]
    return {f"{v:g}": replace(method, **{KNOBS[name]: v}) for v in values}  # type: ignore[type-var]


def measures(setup: Experiment) -> tuple[Metric, ...]:
    """What the scored sets are measured by."""
    parts = ("forget", "retain", "test")
    if setup.sourced.classes is None:
        wanted = [{"kind": "mae", "part": part} for part in parts]
        wanted += [{"kind": "loss", "part": part} for part in parts]
        wanted += ["loss_svc", {"kind": "jensen_shannon"}, {"kind": "loss_threshold"}]
    else:
        wanted = [{"kind": "accuracy", "part": part} for part in parts]
        wanted += ["svc", {"kind": "jensen_shannon"}, {"kind": "loss", "part": "test"}, gap(setup)]
    wanted += [{"kind": "cost", "measure_of": what} for what in ("seconds", "ratio")]
    return tuple(config.build(metrics, {"kind": m} if isinstance(m, str) else m) for m in wanted)


def gap(setup: Experiment) -> dict[str, Any]:
    return {"kind": "average_gap", "membership": {"kind": "svc"}}


def told(event: Event) -> None:
    """One line for each piece that was computed."""
    for name, seconds in (event.values or {}).items():
        if event.kind == "step" and event.what == "run" and seconds > 0:
            print(
                f"{time.strftime('%H:%M:%S')} {event.index}/{event.total} {name} {seconds:.1f} s", flush=True
            )


def ran(setup: Experiment, directory: Path) -> Report:
    directory.mkdir(parents=True, exist_ok=True)
    return runner.execute(setup, directory, (told,))


def gaps(table: Table, regression: bool) -> dict[str, float | None]:
    """Of every row with scores, the distance from retraining that settings are chosen by."""
    found: dict[str, float | None] = {}
    for row in table.rows:
        if row.error is not None:
            found[row.name] = None
        elif regression:
            ids = [f"absolute error.{part}.mean" for part in ("forget", "retain", "test")]
            found[row.name] = statistics.mean(
                abs(row.scores[i].value - table.anchors[i].retrained) for i in ids
            )
        else:
            found[row.name] = row.scores["average gap.svc"].value
    return found


def tuned(
    setup: Experiment, forget: Mapping[str, Any], directory: Path, values: int
) -> tuple[dict[str, Method], dict[str, Any]]:
    """The methods with the value of the smallest mean gap over the forget sets, and the table of all."""
    classes = all(search["kind"] == "class_set" for search in forget.values())
    candidates = {}
    for name, method in setup.methods.items():
        if method.forgets == "classes" and not classes:
            continue
        variants = grid(method, name, values)
        if len(variants) > 1:
            candidates |= {f"{name} {value}": variant for value, variant in variants.items()}
    report = ran(written(setup, forget, candidates), directory)
    regression = setup.sourced.classes is None
    found: dict[str, dict[str, float]] = {}
    for key in candidates:
        name, value = key.rsplit(" ", 1)
        each = [gaps(table, regression).get(key) for table in report.tables]
        if None not in each:
            found.setdefault(name, {})[value] = statistics.mean(each)  # type: ignore[type-var]
    chosen = {}
    for name, method in setup.methods.items():
        if found.get(name):
            best = min(found[name], key=lambda value: found[name][value])
            chosen[name] = grid(method, name, values)[best]
        elif classes or method.forgets != "classes":
            chosen[name] = method
    return chosen, found


def written(setup: Experiment, forget: Mapping[str, Any], methods: Mapping[str, Method]) -> Experiment:
    """The experiment with these forget sets and methods."""
    value = {**config.dump(setup), "forget": dict(forget)}
    value["methods"] = {name: config.dump(method) for name, method in methods.items()}
    return experiment.parse(value)


def summary(report: Report, regression: bool) -> dict[str, Any]:
    """Of every set and row what the page draws, without what is per example."""
    sets = {}
    for table in report.tables:
        ranked = ranking.utility(table)
        sets[table.name] = {
            "description": table.description,
            "size": table.size,
            "utility": ranked,
            "floors": table.floors,
            "overlap": table.overlap,
            "anchors": {
                key: {k: round(getattr(a, k), 6) for k in ("retrained", "noise", "original", "headroom")}
                for key, a in table.anchors.items()
            },
            "gap": {name: plain(value) for name, value in gaps(table, regression).items()},
            "rows": {row.name: outline(row, table) for row in table.rows},
        }
    return sets


def outline(row: Row, table: Table) -> dict[str, Any]:
    if row.error is not None:
        return {"role": row.role, "error": row.error}
    values = {key: plain(score.value) for key, score in row.scores.items()}
    found: dict[str, Any] = {"role": row.role, "scores": values}
    if row.role == "unlearned":
        verdicts = table.verdicts(row)
        found["verdicts"] = {key: verdict.kind for key, verdict in verdicts.items()}
    return found


def plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6)


def again(
    study: Study, setup: Experiment, names: Sequence[str], known: Mapping[str, Any], runs: Path
) -> None:
    """Runs sets with the settings that were published, and says of every row what differs from them."""
    for name in names:
        kind = name.rsplit(" ", 1)[0]
        sets = study.sets(kind, setup.sourced) if kind in KINDS[:-1] else {}
        if name not in sets:
            raise SystemExit(f"'{name}' is not a set to repeat; there are e.g. 'random 1' and 'group 2'.")
        chosen = known["settings"]["groups" if kind == "group" else "examples"]
        built = {method: config.build(methods, value) for method, value in chosen.items()}
        report = ran(written(setup, {name: sets[name]}, built), runs)
        found = summary(report, setup.sourced.classes is None)[name]["rows"]
        for row, before in known["sets"][name]["rows"].items():
            print(f"{name} {row}: {changes(found[row], before)}", flush=True)


def changes(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """What is different between a row's scores, costs aside, in a line."""
    if "error" in now or "error" in before:
        return "the same error" if now.get("error") == before.get("error") else f"{before} before, {now} now"
    pairs = {
        key: (now["scores"].get(key), value)
        for key, value in before["scores"].items()
        if not key.startswith("cost")
    }
    other = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    if not other:
        return f"all {len(pairs)} scores equal"
    listed = ", ".join(f"{key} {value} ({then} before)" for key, (value, then) in other.items())
    return f"{len(pairs) - len(other)} of {len(pairs)} scores equal; {listed}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", help="a file of bench/studies, without .yaml")
    parser.add_argument("--runs", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--output", type=Path, help="the JSON file to write when all is done")
    parser.add_argument("--again", nargs="+", metavar="SET", help="run only these published sets once more")
    published = Path("docs/results")
    parser.add_argument("--published", type=Path, default=published, help="where the studies' results are")
    options = parser.parse_args(arguments)
    path = Path(__file__).parent / "studies" / f"{options.study}.yaml"
    study = config.parse(Study, config.read_yaml(path))
    base = located(dict(study.experiment), options.runs)
    setup = experiment.parse({**base, "forget": {"random": {"kind": "random_set", "size": study.size}}})
    setup = replace(setup, metrics=measures(setup))
    if options.again:
        known = json.loads((options.published / f"study-{options.study}.json").read_text(encoding="utf-8"))
        again(study, setup, options.again, known, options.runs)
        return
    sourced = setup.sourced
    few = replace(setup, retrained=2)
    trials = {f"tuning {i + 1}": {"kind": "random_set", "size": study.size} for i in range(study.tuning)}
    settings, first = tuned(few, trials, options.runs / "tune-random", study.values)
    last = {"tuning": group(study.groups[-1], sourced)}
    for_groups, second = tuned(few, last, options.runs / "tune-group", study.values)
    reports = [ran(written(setup, study.sets("group", sourced), for_groups), options.runs / "group")]
    sets = {
        name: s for kind in ("random", "worst", "easiest") for name, s in study.sets(kind, sourced).items()
    }
    exposing = {
        "kind": "adversarial",
        "size": study.size,
        "methods": [config.dump(settings[name]) for name in study.exposed],
        "models": study.models,
    }
    sets |= {f"adversarial {i + 1}": exposing for i in range(study.draws)}
    reports.append(ran(written(setup, sets, settings), options.runs / "examples"))
    if options.output is None:
        return
    regression = sourced.classes is None
    found = {
        "study": options.study,
        "tuning": {"values": study.values, "random": first, "group": second, "draws": study.tuning},
        "settings": {
            name: {key: config.dump(method) for key, method in chosen.items()}
            for name, chosen in (("examples", settings), ("groups", for_groups))
        },
        "sets": {key: value for report in reports for key, value in summary(report, regression).items()},
        "provenance": {**reports[1].provenance, "config": study.experiment},
        "threads": torch.get_num_threads(),
    }
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
