"""What every method costs, against a bare PyTorch loop of its own arithmetic in the same process.

The bare side is in bare_loops.py, bare_phases.py and bare_edits.py: for each method the forwards, backwards
and steps that its ``Cost`` names, on as many batches of the same sizes, written out. Ratios are medians over
alternating pairs of runs after one warm-up, of CPU time (``time.process_time``) on one thread, so that other
programs on the machine count little. With ``--searches``: the searches ``bilevel`` and ``adversarial`` on the
handwritten digits, in CPU time of one training of the suite ``digits``. Prints a table and writes JSON.

    OMP_NUM_THREADS=1 python bench/method_speed.py [--pairs 9] [--only NAME …] [--searches] [--quick]
"""

from __future__ import annotations

import argparse
import copy
import json
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
from expunge.searches.base import Search, searches
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
    Case("bad_teacher", bare_loops.bad_teacher, {"epochs": 3}),
    Case("ugradsl", bare_loops.ugradsl, {"epochs": 5, **LOW}),
    Case("ugradsl_plus", bare_loops.ugradsl_plus, {"epochs": 1, **LOW}),
    Case("boundary_shrink", bare_loops.boundary_shrink, {"epochs": 8}),
    Case("boundary_expand", bare_loops.boundary_expand, {"epochs": 8}),
    Case("cf_k", bare_loops.cf_k, {"epochs": 4, **LOW}),
    Case("eu_k", bare_loops.eu_k, {"epochs": 4, **LOW}),
    Case("laf", bare_phases.laf, {"epochs": 4, "fit_epochs": 2}),
    Case("concept_poison", bare_phases.concept_poison, {"epochs": 10, **LOW}, whole_class=True),
    Case("gs_lora", bare_phases.gs_lora, {"epochs": 6}, whole_class=True),
    Case("gs_lora_plus", bare_phases.gs_lora_plus, {"epochs": 6}, whole_class=True),
    Case("unsir", bare_phases.unsir, {"noise_steps": 10}, whole_class=True),
    Case("datamodel_match", bare_loops.datamodel_match, {"epochs": 2, "models": MODELS}),
    Case("oracle_match", bare_loops.oracle_match, {"epochs": 2, "oracles": 2}),
    Case("blindspot", bare_phases.blindspot, regression=True),
    Case("gaussian_amnesiac", bare_phases.gaussian_amnesiac, {"epochs": 2}, regression=True),
    Case("forget_vector", bare_loops.forget_vector, {"epochs": 2}),
    Case("retrain", bare_loops.retrain),
    Case("ssd", bare_edits.ssd, kind="edit"),
    Case("lfssd", bare_edits.lfssd, kind="edit"),
    Case("iau", bare_edits.iau, kind="edit"),
    Case("fisher", bare_edits.fisher, kind="edit", share=0.25),
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
    session = Session(SEED, Engine(device="cpu"), recipe=recipe if recipe_needed(method) else None)
    bare = case.bare
    if case.name == "datamodel_match":
        members, outputs = torch.rand(MODELS, count) < 0.5, torch.randn(MODELS, count, 10)
        prepared = {"ids": torch.arange(count), "members": members, "outputs": outputs}
        session, bare = replace(session, prepared=prepared), partial(bare, prepared=prepared)
    if case.name in ("oracle_match", "retrain"):
        bare = partial(bare, training=TRAINING)
    given = Given(copy.deepcopy(model), x, y, forget, retain, method)
    return paired(lambda: method.unlearn(model, split, task, session), lambda: bare(given), pairs)


def recipe_needed(method: Any) -> bool:
    return bool(method.needs_recipe)


def in_retrainings(overrides: list[str], names: tuple[str, ...], sizes: dict[str, Any]) -> dict[str, Any]:
    """CPU time of the searches on the digits, in that of one training by the recipe of the suite."""
    setup = experiment.read("digits", overrides)
    train, task, session = setup.sourced.train, setup.task, setup.session()

    def spent(call: Callable[[], Any]) -> tuple[Any, float]:
        start = time.process_time()
        return call(), time.process_time() - start

    setup.recipe.train(train, session.child("warm-up"))
    original, one = spent(lambda: setup.recipe.train(train, session.child("original")))
    one = statistics.median(
        [one, *(spent(lambda k=k: setup.recipe.train(train, session.child(k)))[1] for k in range(2))]  # type: ignore[misc]
    )

    def search(found: Search, session: Session) -> float:
        return round(spent(lambda: found.search(original, train, task, session))[1] / one, 3)

    result: dict[str, Any] = {"epochs": setup.recipe.training.epochs, "seconds of a training": round(one, 2)}
    result["bilevel"] = search(searches.get("bilevel")(size=0.1), session)
    first = searches.get("adversarial")(size=0.1, **sizes)
    known, cost = spent(lambda: first.prepare(train, task, session))
    result["adversarial, reference models, once"] = {
        "models": first.models,  # type: ignore[attr-defined]
        "retrainings": round(cost / one, 2),
    }
    result["adversarial"] = {}
    for name in names:
        each = replace(first, methods=(setup.methods[name],))  # type: ignore[call-arg]
        split = Split.from_ids(train, train.ids[: len(train) // 10])
        run = spent(lambda split=split, name=name: setup.methods[name].unlearn(original, split, task, session))[1]  # type: ignore[misc]
        result["adversarial"][name] = {
            "a run of the method": round(run / one, 3),
            "a set": search(each, replace(session, prepared=known)),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--only", nargs="+", help="measure methods whose name begins so; keep the others")
    parser.add_argument("--searches", action="store_true", help="measure the searches, and no method")
    parser.add_argument("--quick", action="store_true", help="fewer images, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results/method-speed.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = 192 if options.quick else 768
    known = json.loads(options.output.read_text()) if options.output.exists() else {}
    results: dict[str, Any] = known.get("methods", {})
    for case in CASES:
        if options.searches or (options.only and not case.name.startswith(tuple(options.only))):
            continue
        found = measure(case, count, 1 if options.quick else options.pairs)
        target = TARGETS[case.kind]
        results[case.name] = {**found, "target": target, "settings": str(case.fields), "pairs": options.pairs}
        print(
            f"{case.name:30s} {found['ratio']:6.3f}  [{found['lowest']:.3f}, {found['highest']:.3f}]  "
            f"{found['seconds']} s / {found['seconds_bare']} s{'  ABOVE' if found['ratio'] > target else ''}",
            flush=True,
        )
    report = {
        "setting": (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        "model": f"ResNet-9 of width {WIDTH}, stride 2, float32",
        "data": f"{count} random images 3 x 32 x 32; a sixth or class 3 forgotten",
        "seed": SEED,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "methods": {case.name: results[case.name] for case in CASES if case.name in results},
        "searches": known.get("searches", {}),
    }
    if options.searches:
        report["searches"] = found = all_searches(options.quick)
        print(json.dumps(found, indent=1))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {options.output}")


def all_searches(quick: bool) -> dict[str, Any]:
    if quick:
        return {"quick": in_retrainings(["train.epochs=2"], ("ssd",), {"models": 20, "rounds": 1})}
    return {"small_cnn": in_retrainings([], ("ssd", "scrub", "grad_diff", "finetune"), {})}


if __name__ == "__main__":
    main()
