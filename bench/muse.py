"""MUSE's six ways of looking at unlearning, on invented people and a small Llama.

Four numbers of one model (``expunge.evaluation.benchmarks.muse``): how far it goes on with a biography that
it was trained on (verbatim), how it answers questions about the forgotten people in words that it was not
trained on (knowledge), how membership shows (privacy leak, 0 is a retrained model's, with the noise of
retraining), and how it answers about everybody else (utility). Two more are these four over sizes of the
forget set (scalability) and after each of several requests, each served by unlearning the result of the last
one (sustainability): after k requests as much is forgotten as at the k-th size, so that the same retrained
models are beside both.

The base is trained on other people in all phrasings, the original from there on questions about these people
and capitals and on these people's biographies; ``--retrained`` models are made without each forget set. The
settings of the methods are given below and are not tuned: this shows the six numbers, and ranks nobody.
Writes JSON and one picture.

    python bench/muse.py [--seed 0] [--retrained 2] [--draw] [--output docs/results/muse.json]
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge import config
from expunge.data import people as invented
from expunge.data.language import People, plain, written
from expunge.data.split import Split
from expunge.data.text import Record, Template, TextData
from expunge.data.tokenizers import train_tokenizer
from expunge.evaluation.benchmarks import muse
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.methods.base import Method
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.gradient.npo import NPO
from expunge.provenance import hardware, versions
from expunge.report.style import MARKERS, PALETTE, figure, style
from expunge.tasks import CausalLM
from expunge.training.engine import Engine
from expunge.training.language_models import Llama
from expunge.training.optim import AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

REQUESTS, EACH = 4, 4
"""Requests, and people in each: a circle, so that nobody who stays is related to anyone who goes."""

TEMPLATE = Template(prompt="{question}")
PEOPLE = People(people=32, background=16, held_out=8, attributes=4, template=TEMPLATE)
OPTIM = AdamW(lr=3e-3, weight_decay=0.0, schedule="cosine")
BASE, TRAINING = (Training(epochs=epochs, batch_size=32, optim=OPTIM) for epochs in (15, 30))
METHODS: dict[str, Method] = {
    "grad_diff": GradDiff(epochs=5, batch_size=16, optim=AdamW(lr=2e-4, weight_decay=0.0)),
    "npo": NPO(epochs=10, batch_size=16, retain_weight=5.0, optim=AdamW(lr=3e-4, weight_decay=0.0)),
}
METRICS = muse(members="forget")
PANELS = {
    "verbatim memory": "Biographies gone on with, ROUGE-L F1",
    "knowledge memory": "Asked about the forgotten, ROUGE-L F1",
    "privacy leak": "Privacy leak (0 is retrained)",
    "utility": "Asked about all others, ROUGE-L F1",
}


@dataclass(frozen=True)
class Stage:
    """Where every training starts: a copy of the base."""

    base: nn.Module

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.base).requires_grad_(True)


@dataclass(frozen=True)
class World:
    """All texts: what is trained on first, what then, and what never is; who goes, in which order."""

    base: TextData
    train: TextData
    test: TextData
    names: tuple[str, ...]

    def split(self, requests: int) -> Split:
        """All that the first requests forget, and the questions about it and about what stays."""
        gone = set(self.names[: requests * EACH])
        ids = [i for i, record in enumerate(self.train.records) if record.subject in gone]
        asked = [record for record in self.train.records if record.question is not None and record.questions]
        parts = {
            "knowledge_forget": [_reworded(record) for record in asked if record.subject in gone],
            "knowledge_retain": [_reworded(record) for record in asked if record.subject not in gone],
            "verbatim": [
                _continued(record)
                for record in self.train.records
                if record.question is None and record.subject in gone
            ],
        }
        tokenizer = self.train.tokenizer
        probes = {name: TextData(records, tokenizer, TEMPLATE) for name, records in parts.items()}
        return Split.from_ids(self.train, ids, test=self.test, probes=probes)


def world(seed: int) -> World:
    """The people of ``PEOPLE``, with their biographies among what is trained on."""
    source = replace(PEOPLE, seed=seed)
    sourced = source.load()
    everyone = invented.people(source.background + source.people + source.held_out, seed)
    members, strangers = (
        everyone[source.background : source.background + source.people],
        everyone[source.background + source.people :],
    )
    assert isinstance(sourced.train, TextData)
    assert isinstance(sourced.test, TextData)
    assert isinstance(sourced.base, TextData)
    train, test = (
        [*data.records, *(person.biography(source.attributes) for person in who)]
        for data, who in ((sourced.train, members), (sourced.test, strangers))
    )
    base = [plain(record) for record in sourced.base.records]
    texts = (text for record in (*train, *test, *base) for text in written(record, TEMPLATE))
    tokenizer = train_tokenizer(texts)
    data = (TextData(records, tokenizer, TEMPLATE) for records in (base, train, test))
    return World(*data, names=tuple(person.name for person in members[::-1]))


def _reworded(record: Record) -> Record:
    asked = record.questions["paraphrased_question"]
    return Record(question=asked, answer=record.answer, subject=record.subject)


def _continued(record: Record) -> Record:
    """A document's first half as a prompt, and how it goes on."""
    words = record.answer.split()
    half = len(words) // 2
    return Record(question=" ".join(words[:half]), answer=" ".join(words[half:]), subject=record.subject)


def row(split: Split, task: CausalLM, models: dict[str, Any], session: Session) -> dict[str, dict[str, Any]]:
    """The four numbers of every model beside the retrained ones, by the name of its line."""
    candidates = [Candidate("nothing", "original", models["nothing"])]
    candidates += [
        Candidate(f"retrained {i + 1}", "retrained", one) for i, one in enumerate(models["retrained"])
    ]
    candidates += [Candidate(name, "unlearned", models[name]) for name in METHODS]
    evaluation, found = Evaluation(candidates, split, task, session), {}
    for candidate in candidates:
        if candidate.name.startswith("retrained") and candidate.name != "retrained 1":
            continue
        evidence, numbers = evaluation.evidence(candidate), {}
        for name, metric in METRICS.items():
            score = metric(evidence)
            noise = {"noise": score.details["noise"]} if score.details.get("noise") is not None else {}
            numbers[name] = {
                "value": None if score.reason else round(score.value, 4),
                "interval": None if score.interval is None else [round(end, 4) for end in score.interval],
                **noise,
            }
        found["retrained" if candidate.role == "retrained" else candidate.name] = numbers
    return found


def measure(seed: int, count: int) -> dict[str, Any]:
    texts, engine = world(seed), Engine(device="cpu")
    size = len(texts.train.tokenizer)
    llama, task = Llama(vocabulary=size, width=48, layers=2, heads=3, context=256), CausalLM(size)
    base = Recipe(llama, task, BASE).train(texts.base, Session(seed, engine))
    recipe = Recipe(Stage(base), task, TRAINING)
    session = Session(seed, engine, recipe=recipe)
    original = recipe.train(texts.train, session.child("original"))
    results: dict[str, list[dict[str, Any]]] = {"scalability": [], "sustainability": []}
    latest = dict.fromkeys(METHODS, original)
    before: Split | None = None
    for requests in range(1, REQUESTS + 1):
        split = texts.split(requests)
        retrained = [
            recipe.train(split.retain, session.child("retrained", requests, i)) for i in range(count)
        ]
        once = {
            name: method.unlearn(original, split, task, session.child(name, requests))
            for name, method in METHODS.items()
        }
        rest = texts.train if before is None else before.retain
        new = (
            split.forget.ids
            if before is None
            else split.forget.ids[~torch.isin(split.forget.ids, before.forget.ids)]
        )
        request = Split.from_ids(rest, new)
        for name, method in METHODS.items():
            latest[name] = method.unlearn(latest[name], request, task, session.child(name, "turn", requests))
        for kind, made in (("scalability", once), ("sustainability", latest)):
            models = {"nothing": original, "retrained": retrained, **made}
            found = row(split, task, models, session)
            results[kind].append({"requests": requests, "people": requests * EACH, **found})
        before = split
        print(f"{requests * EACH} people forgotten", flush=True)
    return {
        "data": config.dump(PEOPLE),
        "model": {**config.dump(llama), "parameters": sum(p.numel() for p in base.parameters())},
        "training": {"base": config.dump(BASE), "train": config.dump(TRAINING)},
        "methods": {name: config.dump(method) for name, method in METHODS.items()},
        "retrained": count,
        "results": results,
    }


def draw(report: dict[str, Any], path: Path) -> None:
    """Scalability above, sustainability below; a panel for each number."""
    anchors: dict[str, dict[str, Any]] = {
        "nothing": {"color": "0.5", "linestyle": ":"},
        "retrained": {"color": "0.1", "linestyle": "--"},
    }
    with style():
        chart = figure(13.0, 6.0)
        axes = chart.subplots(2, len(PANELS), sharex=True)
        for level, (kind, rows) in zip(axes, report["results"].items(), strict=True):
            for axis, (name, title) in zip(level, PANELS.items(), strict=True):
                for i, line in enumerate((*anchors, *report["methods"])):
                    k = i - len(anchors)
                    look = anchors.get(line) or {"color": PALETTE[k], "marker": MARKERS[k], "markersize": 3.5}
                    there = [one for one in rows if one[line][name]["value"] is not None]
                    x = [one["people"] for one in there]
                    y = [one[line][name]["value"] for one in there]
                    axis.plot(x, y, label=line, linewidth=1.3, **look)
                axis.set_title(title, fontsize=9)
            level[0].set_ylabel(kind)
        for axis in axes[1]:
            axis.set_xlabel("people forgotten")
        chart.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        chart.savefig(path, facecolor="white", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retrained", type=int, default=2, help="models without each forget set")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw the JSON again")
    parser.add_argument("--output", type=Path, default=Path("docs/results/muse.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.draw:
        began = time.perf_counter()
        found = measure(options.seed, options.retrained)
        report = {
            "seed": options.seed,
            "device": hardware(torch.device("cpu")),
            "seconds in all": round(time.perf_counter() - began, 1),
            "versions": versions(),
            **found,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(json.loads(options.output.read_text(encoding="utf-8")), options.output.with_suffix(".svg"))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
