"""Below the averages: the score by class, the examples furthest from retraining, answers and pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from expunge.evaluation.table import Role, Row, Table
from expunge.report import layout, wording

CLASSES, EXAMPLES = 20, 12
"""At most so many classes and examples are listed; those furthest from retraining."""

LETTERS = 600
"""At most so many of a question or an answer are shown."""


@dataclass(frozen=True)
class Value:
    """One model's score on one class; ``worst`` where it is among its tenth furthest from retraining."""

    text: str
    difference: str
    worst: bool = False


@dataclass(frozen=True)
class ClassLine:
    name: str
    n: int
    retrained: str
    values: tuple[Value | None, ...]


@dataclass(frozen=True)
class ClassTable:
    """One part's score by class; ``hidden`` classes are nearer to retraining than those listed."""

    part: str
    names: tuple[str, ...]
    lines: tuple[ClassLine, ...]
    hidden: int


@dataclass(frozen=True)
class Example:
    id: int
    z: str
    confidence: str
    retrained: str
    picture: str = ""
    label: str = ""


@dataclass(frozen=True)
class ExampleList:
    name: str
    examples: tuple[Example, ...]
    hidden: int


@dataclass(frozen=True)
class Answer:
    """What one model wrote; empty where it wrote nothing."""

    name: str
    role: Role
    text: str


@dataclass(frozen=True)
class Question:
    """A forget question, its true answer, and what the models write."""

    text: str
    truth: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Drawn:
    """One model's images in base64, one for each column; empty where it drew none."""

    name: str
    role: Role
    images: tuple[str, ...]


@dataclass(frozen=True)
class Drawings:
    """What the models draw from the same noise: a line for each, a column for each prompt and seed."""

    title: str
    columns: tuple[tuple[str, int], ...]
    lines: tuple[Drawn, ...]


def classes(table: Table) -> list[ClassTable]:
    """A table for the forget and the test examples, where the models have a score by class."""
    return [found for part in ("forget", "test") if (found := _classes(table, part)) is not None]


def _classes(table: Table, part: str) -> ClassTable | None:
    rows = [row for row in layout.rows(table) if row.role in ("original", "unlearned")]
    rows = [row for row in rows if _by_class(row, part)]
    means, counts = _retrained(table, part)
    labels = [label for label in counts if label in means]
    if not rows or not labels:
        return None
    gaps = {row.name: _gaps(row, part, means) for row in rows}
    worst = {name: _worst(found) for name, found in gaps.items()}
    largest = {label: max(abs(found.get(label, 0.0)) for found in gaps.values()) for label in labels}
    listed = sorted(sorted(labels, key=lambda label: -largest[label])[:CLASSES])
    lines = []
    for label in listed:
        values = tuple(_value(row, part, label, gaps[row.name], worst[row.name]) for row in rows)
        mean = wording.number(means[label], "fraction", 1)
        lines.append(ClassLine(_name(table, label), counts[label], mean, values))
    return ClassTable(part, tuple(row.name for row in rows), tuple(lines), len(labels) - len(listed))


def _by_class(row: Row, part: str) -> dict[int, float]:
    return {item["class"]: item["value"] for item in row.classes if item["part"] == part}


def _retrained(table: Table, part: str) -> tuple[dict[int, float], dict[int, int]]:
    """The mean of the retrained models by class, and the number of examples."""
    values: dict[int, list[float]] = {}
    counts: dict[int, int] = {}
    for row in table.by_role("retrained"):
        for item in row.classes:
            if item["part"] == part:
                values.setdefault(item["class"], []).append(item["value"])
                counts[item["class"]] = item["n"]
    return {label: sum(found) / len(found) for label, found in values.items()}, counts


def _gaps(row: Row, part: str, means: dict[int, float]) -> dict[int, float]:
    return {label: value - means[label] for label, value in _by_class(row, part).items() if label in means}


def _worst(gaps: dict[int, float]) -> set[int]:
    """The tenth of the classes, at least one, that are furthest from retraining."""
    order = sorted(gaps, key=lambda label: -abs(gaps[label]))
    return {label for label in order[: max(1, len(order) // 10)] if gaps[label]}


def _value(row: Row, part: str, label: int, gaps: dict[int, float], worst: set[int]) -> Value | None:
    if label not in gaps:
        return None
    text = wording.number(_by_class(row, part)[label], "fraction", 1)
    return Value(text, wording.number(gaps[label], "fraction", 1, sign=True), label in worst)


def _name(table: Table, label: int) -> str:
    return table.names[label] if 0 <= label < len(table.names) else f"class {label}"


def examples(table: Table) -> list[ExampleList]:
    """For the original and each method the forget examples that it treats least like retrained models."""
    pictures = {picture["id"]: picture for picture in table.pictures}
    rows = [row for row in layout.rows(table) if row.role in ("original", "unlearned") and row.worst]
    return [
        ExampleList(row.name, _examples(row, pictures), max(0, len(row.worst) - EXAMPLES)) for row in rows
    ]


def answers(table: Table) -> list[Question]:
    """Some forget questions as the original, the first retrained and each unlearned model answer them."""
    found: dict[int, Question] = {}
    for row in _compared(table):
        for item in row.answers:
            asked = found.get(item["id"]) or Question(_cut(item["question"]), _cut(item["truth"]), ())
            answer = Answer(row.name, row.role, _cut(item["written"]))
            found[item["id"]] = replace(asked, answers=(*asked.answers, answer))
    return list(found.values())


def drawings(table: Table) -> list[Drawings]:
    """What the same models draw: prompts of what is to be forgotten, then others."""
    found = []
    for forgotten, title in ((True, "what is to be forgotten"), (False, "what is to stay")):
        drawn = {
            row.name: {(one["prompt"], one["seed"]): one["png"] for one in row.gallery
                       if one["forgotten"] == forgotten}
            for row in _compared(table)
        }  # fmt: skip
        columns = tuple(dict.fromkeys(key for images in drawn.values() for key in images))
        lines = tuple(
            Drawn(row.name, row.role, tuple(drawn[row.name].get(key, "") for key in columns))
            for row in _compared(table)
            if drawn[row.name]
        )
        if columns:
            found.append(Drawings(title, columns, lines))
    return found


def _compared(table: Table) -> list[Row]:
    """The original, the first retrained and each unlearned model."""
    retrained = table.by_role("retrained")[:1]
    return [*table.by_role("original"), *retrained, *table.by_role("unlearned")]


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[:LETTERS].rstrip()} …"


def _examples(row: Row, pictures: dict[str, dict[str, str]]) -> tuple[Example, ...]:
    return tuple(
        Example(
            id=item["id"],
            z=wording.number(item["z"], "σ", 1, sign=True),
            confidence=wording.number(item["confidence"], "fraction", 1),
            retrained=wording.number(item["retrained"], "fraction", 1),
            picture=pictures.get(str(item["id"]), {}).get("png", ""),
            label=pictures.get(str(item["id"]), {}).get("label", ""),
        )
        for item in row.worst[:EXAMPLES]
    )
