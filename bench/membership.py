"""Per-example membership attacks on a model that overfits, and on one that never saw the forget set.

Fashion-MNIST halved to 14 × 14 pixels; a perceptron trained for long on 2,000 examples without
augmentation; 32 shadow models on random halves of those and 2,000 others. Members are 1,000 training
examples (the forget set), non-members the 2,000 others. The settings were chosen on the seeds 100 to
103; those reported are others. Prints a table and writes JSON.

    EXPUNGE_DATA=… python bench/membership.py [--seeds 0 1 2] [--output docs/results/membership.json]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from expunge.data import ArrayData, Split
from expunge.data.source import sources
from expunge.evaluation import statistics
from expunge.evaluation.attacks.lira import LiRA
from expunge.evaluation.attacks.rmia import RMIA
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.shadows import ShadowPlan, train_shadows
from expunge.provenance import hardware, versions
from expunge.tasks import Classification
from expunge.training.engine import Engine
from expunge.training.models import Mlp
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

SIZE, FORGET, SHADOWS, FPR = 2000, 1000, 32, 0.01
RECIPE = Recipe(
    Mlp(inputs=196, outputs=10, hidden=(64,)),
    Classification(10),
    Training(epochs=60, batch_size=64, optim=SGD(lr=0.1, schedule="cosine")),
)
ATTACKS = (
    LiRA(),
    LiRA(mode="offline"),
    LiRA(variance="per_example"),
    RMIA(references=4),
    RMIA(mode="online", references=4),
    RMIA(),
)
Found = dict[str, object]


def pictures(seed: int) -> tuple[ArrayData, ArrayData]:
    """``SIZE`` random training pictures, and as many others."""
    published = sources.get("fashion_mnist")().load().train
    rows = torch.randperm(len(published), generator=torch.Generator().manual_seed(seed))[: 2 * SIZE]
    chosen = published.subset(rows)
    x, y = F.avg_pool2d(chosen.column("inputs").float() / 255, 2), chosen.column("targets")
    first, second = ({"inputs": x[part], "targets": y[part]} for part in (slice(SIZE), slice(SIZE, None)))
    return ArrayData(first), ArrayData(second)


def attacked(evidence: Evidence) -> dict[str, Found]:
    """AUC and TPR, each with its interval, of the loss threshold and of every attack."""
    losses = [(-evidence.subject.read(part).loss).double().numpy() for part in ("forget", "test")]
    auc, tpr = statistics.auc(*losses), statistics.tpr_at(*losses, FPR)
    found: dict[str, Found] = {
        "loss": {"auc": auc[0], "auc interval": auc[1], "tpr": tpr[0], "tpr interval": tpr[1]}
    }
    for attack in ATTACKS:
        first, second = attack(evidence), replace(attack, read="tpr", fpr=FPR)(evidence)
        for score in (first, second):
            if score.reason:
                raise SystemExit(f"{score.id}: {score.reason}")
        found[attack.named()] = {
            "auc": first.value,
            "auc interval": first.interval,
            "tpr": second.value,
            "tpr interval": second.interval,
        }
    return found


def shown(original: dict[str, Found], retrained: dict[str, Found]) -> dict[str, bool | float]:
    """The claims, each true or not, for one seed."""

    def interval(found: dict[str, Found], attack: str, what: str) -> tuple[float, float]:
        return found[attack][f"{what} interval"]  # type: ignore[return-value]

    def excess(attack: str) -> float:
        return float(original[attack]["auc"]) - 0.5  # type: ignore[arg-type]

    def chance(attack: str) -> bool:
        pairs = (interval(retrained, attack, "auc"), 0.5), (interval(retrained, attack, "tpr"), FPR)
        return all(low <= value <= high for (low, high), value in pairs)

    return {
        "LiRA's TPR is above the loss threshold's, intervals disjoint": interval(original, "lira", "tpr")[0]
        > interval(original, "loss", "tpr")[1],
        "RMIA with 4 models: share of LiRA's AUC excess": round(excess("rmia-4") / excess("lira"), 3),
        "RMIA with 4 models: at least 0.9 of it": excess("rmia-4") >= 0.9 * excess("lira"),
        "retrained: LiRA at chance": chance("lira"),
        "retrained: RMIA with 4 models at chance": chance("rmia-4"),
    }


def run(seed: int) -> dict[str, object]:
    start = time.perf_counter()
    train, test = pictures(seed)
    split = Split.from_ids(train, torch.arange(FORGET), test=test)
    session = Session(seed, Engine(device="cpu"))
    shadows = train_shadows(RECIPE, train, test, ShadowPlan(count=SHADOWS), session.child("shadows"))
    candidates = [
        Candidate("original", "original", RECIPE.train(train, session.child("original"))),
        Candidate("retrained", "retrained", RECIPE.train(split.retain, session.child("retrained"))),
    ]
    evaluation = Evaluation(candidates, split, RECIPE.task, session, shadows.on(split.parts()))
    original, retrained = (attacked(evaluation.evidence(candidate)) for candidate in candidates)
    accuracy = {part: float(evaluation.original.read(part).score.mean()) for part in ("forget", "test")}
    assert shadows.ensemble is not None
    return {
        "seed": seed,
        "accuracy of the original": accuracy,
        "original": original,
        "retrained": retrained,
        "shown": shown(original, retrained),
        "shadow training": shadows.ensemble.how,
        "models per minute": round(shadows.ensemble.models_per_minute, 1),
        "minutes": round((time.perf_counter() - start) / 60, 2),
    }


def table(result: dict[str, object]) -> None:
    print(f"seed {result['seed']}: accuracy {result['accuracy of the original']}, {result['minutes']} min")
    for name in ("original", "retrained"):
        for attack, found in result[name].items():  # type: ignore[attr-defined]
            (a, b), (c, d) = found["auc interval"], found["tpr interval"]
            print(f"  {name:9s} {attack:16s} AUC {found['auc']:.3f} [{a:.3f}, {b:.3f}]"
                  f"   TPR at {FPR:.0%} FPR {found['tpr']:.3f} [{c:.3f}, {d:.3f}]")  # fmt: skip
    for claim, value in result["shown"].items():  # type: ignore[attr-defined]
        print(f"  {claim}: {value}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("docs/results/membership.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for seed in options.seeds:
        results.append(run(seed))
        table(results[-1])
    report = {
        "setting": (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        "training": "60 epochs, batch 64, SGD lr 0.1 momentum 0.9, cosine; perceptron 196-64-10",
        "members, non-members, shadow models, false positive rate": [FORGET, SIZE, SHADOWS, FPR],
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "minutes": round(sum(float(r["minutes"]) for r in results), 2),  # type: ignore[arg-type]
        "seeds": results,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
