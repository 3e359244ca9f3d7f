"""Learning rates of a suite of erased concepts, chosen on concepts that no report scores.

Every gradient method of the suite runs with the same number of learning rates, its own times each of
``FACTORS``, on concepts other than the suite's. Chosen is the one with the smallest mean absolute distance
from retraining over unlearning, in-domain and cross-domain accuracy. A rate at which the method diverges is
out. The suite's file is not changed; everything is kept in ``--runs``, and the same command goes on where it
stopped.

    python bench/tune_pictures.py canvas-mini --concepts style:sketch object:square --runs runs/tuning \
        --output docs/results/tuning-canvas-mini.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tune_language import FACTORS, anchors, chosen, told, variants

from expunge import config, experiment, runner
from expunge.evaluation.metric import metrics
from expunge.experiment import Experiment
from expunge.provenance import hardware, versions

MEASURES = ("unlearning_accuracy", "in_domain_accuracy", "cross_domain_accuracy")


def tuning(suite: Experiment, concepts: list[str], retrained: int) -> Experiment:
    """The experiment that the choice is made by."""
    forget = {}
    for concept in concepts:
        domain, name = concept.split(":")
        forget[name] = {"kind": "concept_set", "domain": domain, "name": name}
    tried = {key: m for name, method in suite.methods.items() for key, m in variants(name, method).items()}
    value = {**config.dump(suite), "forget": forget, "retrained": retrained, "repeats": 1}
    value |= {"controls": [], "margins": {}}
    value["methods"] = {name: config.dump(method) for name, method in tried.items()}
    value["metrics"] = [config.dump(config.build(metrics, {"kind": kind})) for kind in MEASURES]
    return experiment.parse(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("suite")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--concepts", nargs="+", required=True, help="DOMAIN:NAME of each concept")
    parser.add_argument("--retrained", type=int, default=1)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    suite = experiment.read(options.suite, options.overrides)
    options.runs.mkdir(parents=True, exist_ok=True)
    setup = tuning(suite, options.concepts, options.retrained)
    report = runner.execute(setup, options.runs, (told,))
    distances, best = chosen(report.tables)
    for name, rates in distances.items():
        line = "  ".join(f"{rate} {values}" for rate, values in rates.items())
        print(f"{name:16s} {best[name]:8s} {line}")
    result = {
        "suite": options.suite,
        "concepts": options.concepts,
        "retrained": options.retrained,
        "measure": f"mean absolute distance from retraining: {', '.join(MEASURES)}",
        "factors": FACTORS,
        "anchors": {table.name: anchors(table) for table in report.tables},
        "distances": distances,
        "chosen": best,
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
