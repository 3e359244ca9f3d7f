"""What an evaluation or a whole experiment found, ready to be printed, saved or drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.errors import RunError
from expunge.evaluation.table import Table

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """The tables of one experiment and where they come from.

    Args:
        name: the experiment's name.
        tables: one for each forget set.
        provenance: configuration, versions, seed, hardware, fingerprints, wall-clock seconds.
    """

    name: str
    tables: tuple[Table, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "name": self.name,
            "provenance": self.provenance,
            "tables": [table.to_json() for table in self.tables],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Report:
        return cls(value["name"], tuple(Table.from_json(t) for t in value["tables"]), value["provenance"])

    @classmethod
    def read(cls, path: Path) -> Report:
        """A report from a ``result.json``.

        Raises:
            RunError: no such file, or not the result of a run.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(f"cannot read '{path}': {error.strerror}. Has the run finished?") from None
        except ValueError:
            raise RunError(f"'{path}' is not valid JSON. Run the experiment again to rewrite it.") from None
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise RunError(f"'{path}' is not the result of a run of this version of expunge.")
        try:
            return cls.from_json(value)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"'{path}' is damaged: {type(error).__name__} {error}.") from None

    def __str__(self) -> str:
        from expunge.report import tables

        return tables.to_text(self)

    def to_html(self, path: str | Path) -> Path:
        """Writes one self-contained HTML file and returns its path."""
        from expunge.report import html

        return html.write(self, Path(path))

    def to_csv(self, path: str | Path) -> Path:
        """Writes one line for each forget set, model and metric and returns the path."""
        from expunge.report import tables

        return tables.write_csv(self, Path(path))

    def to_markdown(self) -> str:
        """The model card: what was forgotten, verdicts, attacks tried, limits, how to reproduce."""
        from expunge.report import card

        return card.to_markdown(self)

    def to_card(self, path: str | Path) -> Path:
        """Writes the model card as Markdown and returns its path."""
        from expunge.report import card

        return card.write(self, Path(path))
