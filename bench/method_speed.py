"""What every method costs, against a bare PyTorch loop of its own arithmetic in the same process.

The bare side is in bare_loops.py, bare_phases.py and bare_edits.py: for each method the forwards, backwards
and steps that its ``Cost`` names, on as many batches of the same sizes, written out. Ratios are medians over
alternating pairs of runs after one warm-up, of CPU time (``time.process_time``) on one thread, so that other
programs on the machine count little. With ``--searches``: the searches ``bilevel`` and ``adversarial`` on the
handwritten digits, in CPU time of one training of the suite ``digits``. Prints a table and writes JSON.

    OMP_NUM_THREADS=1 python bench/method_speed.py [--pairs 7] [--only NAME …] [--searches] [--quick]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import bare_edits
import bare_loops
import bare_phases
import torch
from bare_loops import Given

from expunge import experiment
from expunge.data import ArrayData, Split
from expunge.methods.base import methods
from expunge.provenance import hardware, versions
from expunge.searches.base import searches
from expunge.tasks import Classification, Regression
from expunge.training.engine import Engine
from expunge.training.models import ResNet9
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

SEED, WIDTH, MODELS = 0, 8, 20
TRAINING = Training(epochs=1, batch_size=128, optim=SGD(lr=1e-3))
TARGETS = {"gradient": 1.10, "edit": 1.15}


@dataclass(frozen=True)
class Case:
    """A method, the other side, and what is forgotten: a sixth of the examples, or class 3."""

    name: str
    bare: Callable[..., object]
    fields: dict[str, Any] = field(default_factory=dict)
    kind: str = "gradient"
    whole_class: bool = False
    regression: bool = False
    method: str = ""
    share: float = 1.0
    """Of the images that the other methods are given."""

    def build(self) -> Any:
        return methods.get(self.method or self.name)(**self.fields)


LOW = {"optim": SGD(lr=1e-3, weight_decay=5e-4)}
CASES = (
    Case("finetune", bare_loops.finetune, {"epochs": 2, **LOW}),
    Case("grad_ascent", bare_loops.grad_ascent, {"epochs": 8}),
    Case("grad_diff", bare_loops.grad_diff, {"epochs": 1, **LOW}),
    Case("random_labels", bare_loops.random_labels, {"epochs": 2, **LOW}),
    Case("salun", bare_loops.salun, {"epochs": 2, **LOW}),
    Case("scrub", bare_loops.scrub, {"epochs": 2, "max_epochs": 1}),
    Case("npo", bare_loops.npo, {"epochs": 5, **LOW}),
    Case("l1_sparse", bare_loops.l1_sparse, {"epochs": 2, **LOW}),
    Case("amnesiac", bare_loops.amnesiac, {"epochs": 2}),
    Case("bad_teacher", bare_loops.bad_teacher, {"epochs": 2}),
    Case("ugradsl", bare_loops.ugradsl, {"epochs": 5, **LOW}),
    Case("ugradsl_plus", bare_loops.ugradsl_plus, {"epochs": 1, **LOW}),
    Case("boundary_shrink", bare_loops.boundary_shrink, {"epochs": 8}),
    Case("boundary_expand", bare_loops.boundary_expand, {"epochs": 8}),
    Case("cf_k", bare_loops.cf_k, {"epochs": 4, **LOW}),
    Case("eu_k", bare_loops.eu_k, {"epochs": 4, **LOW}),
    Case("laf", bare_phases.laf, {"epochs": 2, "fit_epochs": 1}),
    Case("concept_poison", bare_phases.concept_poison, {"epochs": 6, **LOW}, whole_class=True),
    Case("gs_lora", bare_phases.gs_lora, {"epochs": 12}, whole_class=True),
    Case("gs_lora_plus", bare_phases.gs_lora_plus, {"epochs": 12}, whole_class=True),
    Case("unsir", bare_phases.unsir, {"noise_steps": 5}, whole_class=True),
    Case("datamodel_match", bare_loops.datamodel_match, {"epochs": 2, "models": MODELS}),
    Case("oracle_match", bare_loops.oracle_match, {"epochs": 1, "oracles": 2}),
    Case("blindspot", bare_phases.blindspot, {"proxy_epochs": 1}, regression=True),
    Case("gaussian_amnesiac", bare_phases.gaussian_amnesiac, {"epochs": 2}, regression=True),
    Case("forget_vector", bare_loops.forget_vector, {"epochs": 2}),
    Case("retrain", bare_loops.retrain),
    Case("ssd", bare_edits.ssd, kind="edit"),
    Case("lfssd", bare_edits.lfssd, kind="edit"),
    Case("iau", bare_edits.iau, kind="edit"),
    Case("fisher", bare_edits.fisher, kind="edit", share=0.1),
    Case(
        "influence, cg, gauss_newton",
        bare_edits.influence,
        {"samples": 256, "iterations": 2, "batch_size": 64},
        "edit",
        method="influence",
    ),
    Case(
        "influence, cg, hessian",
        bare_edits.influence,
        {"samples": 256, "iterations": 2, "curvature": "hessian", "damping": 100.0, "batch_size": 64},
        "edit",
        method="influence",
    ),
    Case(
        "influence, woodfisher",
        bare_edits.influence,
        {"solver": "woodfisher", "samples": 100},
        "edit",
        method="influence",
    ),
)


def paired(ours: Callable[[], object], bare: Callable[[], object], pairs: int) -> dict[str, Any]:
    """Median ratio of CPU times over alternating pairs, after one warm-up of each."""

    def seconds(call: Callable[[], object]) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    ours(), bare()
    times = []
    for i in range(pairs):
        a = seconds(ours) if i % 2 else None
        b = seconds(bare)
        times.append((seconds(ours) if a is None else a, b))
    ratios = sorted(a / b for a, b in times)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(ratios[0], 3),
        "highest": round(ratios[-1], 3),
        "seconds": round(statistics.median(a for a, _ in times), 3),
        "seconds_bare": round(statistics.median(b for _, b in times), 3),
    }


def measure(case: Case, count: int, pairs: int) -> dict[str, Any]:
    count, draws = round(case.share * count), torch.Generator().manual_seed(SEED)
    x, labels = torch.rand(count, 3, 32, 32, generator=draws), torch.arange(count) % 10
    y = torch.randn(count, generator=draws) if case.regression else labels
    gone = labels == 3 if case.whole_class else torch.arange(count) % 6 == 0
    forget, retain = gone.nonzero()[:, 0], (~gone).nonzero()[:, 0]
    split = Split.from_ids(ArrayData({"inputs": x, "targets": y}), forget)
    torch.manual_seed(SEED)
    spec = ResNet9(classes=1 if case.regression else 10, width=WIDTH, stride=2)
    task = Regression() if case.regression else Classification(10)
    model, method = spec.build(), case.build()
    recipe = Recipe(spec, task, TRAINING)
    session = Session(SEED, Engine(device="cpu"), recipe=recipe if method.needs_recipe else None)
    bare = case.bare
    if case.name == "datamodel_match":
        members, outputs = torch.rand(MODELS, count) < 0.5, torch.randn(MODELS, count, 10)
        prepared = {"ids": torch.arange(count), "members": members, "outputs": outputs}
        session, bare = replace(session, prepared=prepared), partial(bare, prepared=prepared)
    if case.name in ("oracle_match", "retrain"):
        bare = partial(bare, training=TRAINING)
    given = Given(copy.deepcopy(model), x, y, forget, retain, method)
    return paired(lambda: method.unlearn(model, split, task, session), lambda: bare(given), pairs)


def in_retrainings(overrides: list[str], names: tuple[str, ...], models: int, size: float) -> dict[str, Any]:
    """CPU time of the searches on the digits, in that of one training by the recipe of the suite.

    A set of ``adversarial`` is two retrainings without the set, and runs of the method; the first part grows
    with the epochs of the recipe and the second does not, so that what a set costs under the published 182
    epochs is computed from what was measured.
    """
    setup = experiment.read("digits", overrides)
    train, task, session = setup.sourced.train, setup.task, setup.session()
    split = Split.from_ids(train, train.ids[: round(size * len(train))])

    def spent(call: Callable[[], Any]) -> tuple[Any, float]:
        start = time.process_time()
        return call(), time.process_time() - start

    original, _ = spent(lambda: setup.recipe.train(train, session.child("original")))
    one = statistics.median(spent(lambda: setup.recipe.train(train, session))[1] for _ in range(3))

    def cost(call: Callable[[], Any]) -> float:
        return spent(call)[1] / one

    found: dict[str, Any] = {name: searches.get(name) for name in ("bilevel", "adversarial")}
    bilevel, adversarial = found["bilevel"](size=size), found["adversarial"](size=size, models=models)
    known, seconds = spent(lambda: adversarial.prepare(train, task, session))
    result: dict[str, Any] = {
        "epochs": setup.recipe.training.epochs,
        "size": size,
        "seconds of a training": round(one, 2),
        "bilevel": round(cost(lambda: bilevel.search(original, train, task, session)), 3),
        "reference models": {"models": models, "retrainings, once": round(seconds / one, 2)},
        "adversarial": {},
    }
    for name in names:
        method, asked = setup.methods[name], replace(session, prepared=known)
        search = replace(adversarial, methods=(method,))
        run = cost(partial(method.unlearn, original, split, task, session))
        whole = cost(partial(search.search, original, train, task, asked))
        judges = 2 * (1 - size)
        result["adversarial"][name] = {
            "a run of the method": round(run, 3),
            "a set": round(whole, 2),
            "a set, by 182 epochs, computed": round(
                judges + (whole - judges) * setup.recipe.training.epochs / 182, 2
            ),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", nargs="+", help="measure methods whose name begins so; keep the others")
    parser.add_argument("--searches", action="store_true", help="measure the searches, and no method")
    parser.add_argument("--quick", action="store_true", help="fewer images, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/method-speed.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, pairs = (192, 1) if options.quick else (600, options.pairs)
    known = json.loads(options.output.read_text()) if options.output.exists() else {}
    report = {
        "setting": (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        "model": f"ResNet-9 of width {WIDTH}, stride 2, float32",
        "data": f"{count} random images 3 x 32 x 32; a sixth or class 3 forgotten",
        "seed": SEED,
        "hardware": hardware(torch.device("cpu")),
        "load average at the start": round(os.getloadavg()[0], 2),
        "versions": versions(),
        "not measured here": sorted(set(methods.names()) - {case.method or case.name for case in CASES}),
        "methods": known.get("methods", {}),
        "searches": known.get("searches", {}),
    }
    if options.searches:
        report["searches"] = all_searches(options.quick)
        print(json.dumps(report["searches"], indent=1))
    for case in () if options.searches else CASES:
        if options.only and not case.name.startswith(tuple(options.only)):
            continue
        found, target = measure(case, count, pairs), TARGETS[case.kind]
        settings = {name: str(value) for name, value in case.fields.items()}
        report["methods"][case.name] = {**found, "target": target, "pairs": pairs, "settings": settings}
        print(
            f"{case.name:30s} {found['ratio']:6.3f}  [{found['lowest']:.3f}, {found['highest']:.3f}]  "
            f"{found['seconds']} s / {found['seconds_bare']} s{'  ABOVE' if found['ratio'] > target else ''}",
            flush=True,
        )
        write(report, options.output)
    write(report, options.output)
    print(f"written to {options.output}")


def write(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def all_searches(quick: bool) -> dict[str, Any]:
    """The perceptron and recipe of exposure.py, and the suite's own network."""
    perceptron = ["model={kind: mlp, inputs: 64, outputs: 10, hidden: [64]}", "train.optim.lr=0.1"]
    names = ("ssd", "scrub", "grad_diff", "finetune")
    if quick:
        return {"perceptron": in_retrainings([*perceptron, "train.epochs=2"], names[:1], 20, 0.1)}
    found = {"perceptron": in_retrainings(perceptron, names, 40, 0.1)}
    return {**found, "small_cnn": in_retrainings([], names[:2], 20, 0.1)}


if __name__ == "__main__":
    main()
