"""Concepts erased from a text-to-image model one after another: what is gone, what comes back, what is left.

Data, network, training, methods and the gallery are those of an experiment. Its concepts of one domain are
asked for in an order drawn by the seed, each on the result of the last request. After each request, of the
images that the model draws for all prompts, in UnlearnCanvas's terms,

    forgotten     share of the images of all concepts erased so far that do not show them (UA),
    last          the same of the last request alone,
    earlier       the same of the requests before it: below 1 where they come back,
    in_domain     share right of the concepts of the domain that nobody has asked to erase (IRA),
    cross_domain  of the images of these, share right in the other domain (CRA),
    conditioned   of the images of erased concepts, share right in the other domain,
    cost          CPU seconds of this request over those of one training on all data.

With ``--references every`` one model is retrained without the concepts of each prefix, with ``last`` without
all of them. Intervals are Clopper–Pearson over images. One order of requests and one original are drawn, and
settings are those of the experiment: nothing is tuned here. A method that cannot go on says why, and its line
ends there. Stops and goes on: what is made is kept in ``--work``. Writes JSON and draws it.

    python bench/erasing_requests.py [canvas-mini] [key=value …] [--domain style] [--requests 2]
        [--methods uce esd] [--references every] [--seed 0] [--work build/erasing] [--draw]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from kept import keep
from torch import nn

from expunge import config, experiment
from expunge.data.captions import CaptionedImages
from expunge.data.split import Split
from expunge.errors import ConfigError, Diverged, Unsupported
from expunge.evaluation import picture_judges, statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.gallery import Gallery, Pictures, Target
from expunge.evaluation.metrics.unlearn_canvas import (
    ConditionedAccuracy,
    CrossDomainAccuracy,
    InDomainAccuracy,
    Pictured,
    UnlearningAccuracy,
)
from expunge.evaluation.picture_judges import Judge
from expunge.evaluation.subject import Subject
from expunge.experiment import Experiment
from expunge.methods.base import Method
from expunge.report.style import MARKERS, PALETTE, figure, style
from expunge.seeding import generator
from expunge.store import Store, keeper, key_of
from expunge.training.session import Session

COUNTED: dict[str, Pictured] = {
    "forgotten": UnlearningAccuracy(),
    "in_domain": InDomainAccuracy(),
    "cross_domain": CrossDomainAccuracy(),
    "conditioned": ConditionedAccuracy(),
}
PANELS = {
    "forgotten": "Erased so far and not drawn",
    "earlier": "Earlier requests, still not drawn",
    "in_domain": "Other concepts of the domain, right",
    "cross_domain": "Their other domain, right",
    "conditioned": "Erased ones, other domain, right",
    "cost so far": "Cost so far, in trainings on all data",
}
NOTHING, RETRAINED = "nothing", "retrained"
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Request:
    """One concept to erase, with all that was erased before.

    Attributes:
        name: of the concept.
        split: its images among those that are left, and the rest.
        gone: numbers of all concepts erased so far, this one the last.
    """

    name: str
    split: Split
    gone: tuple[int, ...]


def requests(data: CaptionedImages, domain: str, seed: int, count: int | None = None) -> list[Request]:
    """The concepts of a domain in an order drawn by the seed; one stays at least.

    Raises:
        ConfigError: no such domain, or more requests than can be made of it.
    """
    if domain not in data.concepts:
        raise ConfigError(f"there is no '{domain}'; there are {', '.join(data.concepts)}.", "domain")
    names = data.concepts[domain]
    most = len(names) - 1
    wanted = most if count is None else count
    if not 1 <= wanted <= most:
        raise ConfigError(f"must be 1..{most} of {len(names)} concepts, got {wanted}.", "requests")
    order = torch.randperm(len(names), generator=generator(seed, "requests"))[:wanted].tolist()
    found: list[Request] = []
    rest: Any = data
    for k, number in enumerate(order):
        split = Split.from_ids(rest, rest.ids[rest.column(domain) == number])
        found.append(Request(names[number], split, tuple(order[: k + 1])))
        rest = split.retain
    return found


def measured(
    drawn: Pictures, right: torch.Tensor, domain: str, gone: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Each measure with its interval over images.

    Args:
        right: whether an image shows what it was asked to show, by domain, ``(N, D)``.
        gone: numbers of the erased concepts, the last one last.
    """
    domains = drawn.prompts.domains

    def goal(numbers: Sequence[int]) -> Target:
        names = tuple(domains[domain][number] for number in numbers)
        return Target(domain, names, torch.tensor(numbers), list(domains).index(domain))

    wanted = {name: (metric, goal(gone)) for name, metric in COUNTED.items()}
    wanted["last"] = (COUNTED["forgotten"], goal(gone[-1:]))
    if len(gone) > 1:
        wanted["earlier"] = (COUNTED["forgotten"], goal(gone[:-1]))
    found = {}
    for name, (metric, target) in wanted.items():
        _, values = metric.values(drawn, right, target)
        low, high = statistics.interval(values.numpy()) or (None, None)
        found[name] = {"value": float(values.mean()), "interval": [low, high], "n": len(values)}
    return found


@dataclass(frozen=True, eq=False)
class Erasing:
    """An experiment whose concepts of one domain are erased one after another."""

    setup: Experiment
    domain: str
    count: int | None
    work: Path

    @cached_property
    def data(self) -> CaptionedImages:
        data = self.setup.sourced.train
        if not isinstance(data, CaptionedImages):
            raise ConfigError("concepts are erased one after another from models of captions.", "data")
        return data

    @cached_property
    def requests(self) -> list[Request]:
        return requests(self.data, self.domain, self.setup.seed, self.count)

    @cached_property
    def session(self) -> Session:
        return self.setup.session()

    @cached_property
    def store(self) -> Store:
        return Store(self.work)

    @cached_property
    def base(self) -> str:
        setup = self.setup
        kinds = [config.dump(one) for one in (setup.model, setup.task, setup.train, setup.engine)]
        return key_of(*kinds, self.data.fingerprint(), setup.seed)

    @cached_property
    def drawing(self) -> tuple[Gallery, Judge]:
        """Gallery and judge of the experiment's first metric that has them."""
        for metric in self.setup.metrics:
            if isinstance(metric, Pictured):
                return metric.gallery, metric.judge
        return Gallery(), Judge()

    @cached_property
    def parts(self) -> dict[str, Any]:
        """Only for prompts and judges, which are of all training images whatever is erased."""
        return {**self.requests[0].split.parts(), "test": self.setup.sourced.test}

    @cached_property
    def reference(self) -> Subject:
        return Subject("original", self.trained("original", self.data)[1], self.parts, self.setup.task,
                       self.session)  # fmt: skip

    def trained(self, name: str, data: Any) -> tuple[float, nn.Module, str]:
        """CPU seconds, model and key of a training on these images."""
        key = key_of(self.base, name, data.fingerprint())
        session = self.session.child(name)
        return self._made(name, key, lambda: self.setup.recipe.train(data, session, name), self.blank)

    def blank(self) -> nn.Module:
        return self.setup.recipe.initial(self.session)

    def _made(
        self, name: str, key: str, make: Callable[[], nn.Module], blank: Callable[[], nn.Module]
    ) -> tuple[float, nn.Module, str]:
        def compute() -> tuple[dict[str, Any], nn.Module]:
            blank()  # loading libraries is no cost of the first training
            began = time.process_time()
            model = make()
            return {"seconds": time.process_time() - began}, model

        value, model = self.store.model(name, key, blank, compute)
        assert model is not None
        return float(value["seconds"]), model, key

    def row(self, model: nn.Module, key: str, request: Request, seconds: float) -> Row:
        gallery, judge = self.drawing

        def compute() -> dict[str, Any]:
            drawn, right = self.judged(model)
            return measured(drawn, right, self.domain, request.gone)

        kinds = [config.dump(gallery), config.dump(judge), self.domain, list(request.gone)]
        found = self.store.value(f"row {request.name}", key_of(key, *kinds), compute)
        return {"concept": request.name, **found, "cost": seconds / self.unit}

    def judged(self, model: nn.Module) -> tuple[Pictures, torch.Tensor]:
        """What a model draws for all prompts, and in which domains each image is right."""
        task, session = self.setup.task, self.session
        subject = Subject("model", model, self.parts, task, session)
        keeps = keeper(self.work, session)
        evidence = Evidence(subject, self.reference, (), task, self.parts, session, keep=keeps)
        drawn, said, _ = picture_judges.seen(evidence, *self.drawing)
        return drawn, said.cells == drawn.cells

    @cached_property
    def unit(self) -> float:
        """CPU seconds of one training on all data."""
        return max(self.trained("original", self.data)[0], 1e-9)

    def nothing(self) -> list[Row]:
        _, model, key = self.trained("original", self.data)
        return [self.row(model, key, request, 0.0) for request in self.requests]

    def retrained(self, places: Sequence[int]) -> list[Row]:
        found = []
        for k in places:
            seconds, model, key = self.trained("retrained", self.requests[k].split.retain)
            found.append({"requests": k + 1, **self.row(model, key, self.requests[k], seconds)})
        return found

    def in_turn(self, name: str) -> list[Row]:
        """The rows of a method, each request on the result of the last one."""
        _, model, key = self.trained("original", self.data)
        found: list[Row] = []
        for request in self.requests:
            method = asked(self.setup.methods[name], request)
            session = self.session.child("unlearn", name, request.name)
            split, before = request.split, model
            try:
                seconds, model, key = self._made(
                    f"{name} {len(found) + 1}",
                    key_of(key, config.dump(method), request.name),
                    lambda m=method, s=split, b=before, c=session: m.unlearn(b, s, self.setup.task, c),  # type: ignore[misc]
                    lambda m=method, s=split: m.blank(self.blank(), s),  # type: ignore[misc]
                )
            except (Diverged, Unsupported) as error:
                return [*found, {"concept": request.name, "error": str(error)}]
            found.append(self.row(model, key, request, seconds))
            print(f"{name}: {request.name} {cells(found[-1])}", flush=True)
        return found


def asked(method: Method, request: Request) -> Method:
    """The method with this request's concept where it names one."""
    if getattr(method, "concept", ""):
        changed: Method = dataclasses.replace(method, concept=request.name)  # type: ignore[type-var, call-arg]
        return changed
    return method


def summary(lines: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Rounded, with the number of requests and the cost up to there."""
    found: dict[str, list[Row]] = {}
    for name, rows in lines.items():
        total, found[name] = 0.0, []
        for k, row in enumerate(rows):
            if "error" in row:
                found[name].append({"requests": k + 1, **row})
                continue
            total += row["cost"]
            rounded = {
                key: {**value, "value": round(value["value"], 4)} if isinstance(value, dict) else value
                for key, value in row.items()
            }
            costs = {"cost": round(row["cost"], 4), "cost so far": round(total, 4)}
            found[name].append({"requests": k + 1, **rounded, **costs})
    return found


def cells(row: Row) -> str:
    return "  ".join(f"{name} {row[name]['value']:.2f}" for name in (*COUNTED, "earlier") if name in row)


def measure(work: Erasing, methods: Sequence[str], references: str) -> dict[str, Any]:
    count = len(work.requests)
    places = {"every": range(count), "last": range(count - 1, count), "none": range(0)}[references]
    lines = {NOTHING: work.nothing()}
    if places:
        lines[RETRAINED] = work.retrained(places)
    lines |= {name: work.in_turn(name) for name in methods}
    gallery, judge = work.drawing
    who = picture_judges.judges(
        Evidence(work.reference, work.reference, (), work.setup.task, work.parts, work.session,
                 keep=keeper(work.work, work.session)), judge
    )  # fmt: skip
    return {
        "experiment": work.setup.name,
        "data": config.dump(work.setup.data),
        "domain": work.domain,
        "order": [request.name for request in work.requests],
        "gallery": config.dump(gallery),
        "judges": {name: round(value, 4) for name, value in who.accuracy.items()},
        "methods": {name: config.dump(work.setup.methods[name]) for name in methods},
        "training": {"CPU seconds": round(work.unit, 1)},
        "results": summary(lines),
    }


def value_of(row: Row, name: str) -> float:
    found = row[name]
    return float(found["value"] if isinstance(found, dict) else found)


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Six panels over the number of requests."""
    plain: dict[str, dict[str, Any]] = {
        NOTHING: {"color": "0.5", "linestyle": ":"},
        RETRAINED: {"color": "0.1", "linestyle": "--"},
    }
    with style():
        chart = figure(11.5, 6.4)
        axes = chart.subplots(2, 3, sharex=True).flatten()
        others = [name for name in report["results"] if name not in plain]
        for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
            for line, rows in report["results"].items():
                k = others.index(line) if line in others else 0
                look = plain.get(line) or {
                    "color": PALETTE[k % len(PALETTE)],
                    "marker": MARKERS[k % len(MARKERS)],
                    "markersize": 3.5,
                }
                there = [row for row in rows if name in row]
                x, y = [row["requests"] for row in there], [value_of(row, name) for row in there]
                axis.plot(x, y, label=line, linewidth=1.3, **look)
            axis.set_title(title)
            axis.set_ylim(0, None if name == "cost so far" else 1.02)
        for axis in axes[3:]:
            axis.set_xlabel("requests")
        chart.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
        chart.savefig(path, facecolor="white", metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("experiment", nargs="?", default="canvas-mini")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--domain", default="style")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--methods", nargs="+", help="of the experiment; by default all")
    parser.add_argument("--references", choices=("every", "last", "none"), default="every")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--work", type=Path, default=Path("build/erasing"))
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw the JSON again")
    parser.add_argument("--output", type=Path, default=Path("docs/results/erasing-requests.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not options.draw:
        setup = experiment.read(options.experiment, options.overrides)
        if options.seed is not None:
            setup = dataclasses.replace(setup, seed=options.seed)
        chosen = options.methods or list(setup.methods)
        if absent := [name for name in chosen if name not in setup.methods]:
            raise SystemExit(f"'{setup.name}' has no method '{absent[0]}', only {', '.join(setup.methods)}.")
        work = Erasing(setup, options.domain, options.requests, options.work)
        keep(options.output, setup.seed, lambda: measure(work, chosen, options.references))
    report = json.loads(options.output.read_text(encoding="utf-8"))
    for name, rows in report["results"].items():
        for row in rows:
            print(f"{name:14} {row['requests']} {row['concept']:12} {row.get('error') or cells(row)}")
    draw_chart(report, options.output.with_suffix(".svg"))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
