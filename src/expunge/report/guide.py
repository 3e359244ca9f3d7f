"""What the metrics mean, from their own docstrings.

A metric's docstring is: the idea in one sentence, the equation and what belongs to it, then the
sections ``Ideal:``, ``Cost:``, ``Differs:``, ``References:`` and ``Args:``. A section that is missing is
left out.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from expunge.evaluation.metric import metrics
from expunge.evaluation.report import Report
from expunge.evaluation.score import Score

SECTIONS = ("Ideal", "Cost", "Differs", "References")
"""The sections that are shown, in this order."""

_SECTION = re.compile(r"^(Ideal|Cost|Differs|References|Args|Shapes|Guarantee|Raises|Returns):\s*(.*)$")
_CODE = re.compile(r"``(.+?)``")


@dataclass(frozen=True)
class Entry:
    """One metric explained; texts are paragraphs with code between double backquotes.

    Args:
        name: what it is registered as.
        idea: the first paragraph of the docstring, one sentence.
        body: the paragraphs after it, with the equation.
        sections: ``Ideal``, ``Cost`` and so on, where the docstring has them.
        headings: the columns of the report that it fills.
    """

    name: str
    idea: str
    body: tuple[str, ...] = ()
    sections: dict[str, str] = field(default_factory=dict)
    headings: tuple[str, ...] = ()


def parse(name: str, docstring: str, headings: tuple[str, ...] = ()) -> Entry:
    """A docstring taken apart; an indented line under a section belongs to it."""
    plain: list[str] = []
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in inspect.cleandoc(docstring).splitlines():
        match = _SECTION.match(line)
        if match:
            current = sections.setdefault(match[1], [])
            current.append(match[2])
        elif current is not None and (line.startswith(" ") or not line):
            current.append(line.strip())
        else:
            current = None
            plain.append(line)
    paragraphs = [_joined(part) for part in re.split(r"\n\s*\n", "\n".join(plain)) if part.strip()]
    shown = {key: _joined("\n".join(sections[key])) for key in SECTIONS if key in sections}
    return Entry(name, paragraphs[0] if paragraphs else "", tuple(paragraphs[1:]), shown, headings)


def _joined(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def entry(name: str, headings: tuple[str, ...] = ()) -> Entry:
    """The explanation of a registered metric.

    Raises:
        ConfigError: there is no such metric.
    """
    return parse(name, metrics.get(name).__doc__ or "", headings)


def entries(report: Report, headings: dict[str, str]) -> list[Entry]:
    """The metrics that a report holds, in its order, with what its columns are called."""
    found: dict[str, list[str]] = {}
    for table in report.tables:
        for id_, score in table.columns().items():
            name = registered(score)
            if name:
                known = found.setdefault(name, [])
                if headings.get(id_) and headings[id_] not in known:
                    known.append(headings[id_])
    return [entry(name, tuple(titles)) for name, titles in found.items()]


def registered(score: Score) -> str | None:
    """The metric that a score is of; results of before did not say, so its name and variant are tried."""
    known = set(metrics.names())
    variant = score.variant.replace("-", "_")
    tried = (score.metric, score.name.replace(" ", "_"), variant, variant.split("_")[0])
    return next((name for name in tried if name in known), None)


def is_attack(score: Score) -> bool:
    """Whether it was found by somebody who tries to get the forgotten examples back."""
    name = registered(score)
    return name is not None and metrics.get(name).__module__.startswith("expunge.evaluation.attacks")


def to_markdown() -> str:
    """All registered metrics explained, as a page in Markdown."""
    return "\n".join(line for name in metrics.names() for line in _markdown(entry(name))).strip() + "\n"


def _markdown(item: Entry) -> Iterator[str]:
    yield f"## {item.name}\n"
    yield f"{markdown(item.idea)}\n"
    for paragraph in item.body:
        yield f"{markdown(paragraph)}\n"
    for key, text in item.sections.items():
        yield f"- **{key}**: {markdown(text)}"
    yield ""


def markdown(text: str) -> str:
    """The double backquotes of docstrings as those of Markdown."""
    return _CODE.sub(r"`\1`", text)


def pieces(text: str) -> list[tuple[bool, str]]:
    """A text as (is it code?, piece) pairs, for a page to mark up."""
    return [(bool(i % 2), part) for i, part in enumerate(_CODE.split(text)) if part]
