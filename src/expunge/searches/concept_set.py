"""All examples of a concept: a style, an object, or an object in a style."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.arrays import Data
from expunge.data.captions import CaptionedImages
from expunge.errors import ConfigError, DataError, did_you_mean
from expunge.searches.base import Search, chosen, searches
from expunge.searches.result import SearchResult
from expunge.tasks.base import Task
from expunge.training.session import Session

PAIR = "pair"
"""The domain of one concept of each domain at once."""


@searches.register("concept_set")
@dataclass(frozen=True, kw_only=True)
class ConceptSet(Search):
    """Every training image of one concept.

    ``{kind: concept_set, domain: style, name: mosaic}``, or of one concept of each domain at once
    ``{kind: concept_set, domain: pair, name: mosaic star}``.

    Args:
        domain: of the concept: a column of the data, such as ``style`` or ``object``; or ``pair``.
        name: of the concept; of a pair both names, in the order of the domains.

    Cost: none.
    """

    domain: str
    name: str

    reads_model = False

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ConfigError("name the concept, for example 'mosaic'.", "name")

    def check(self, train: Data, task: Task) -> None:
        self._rows(train)

    def search(self, model: nn.Module, train: Data, task: Task, session: Session) -> SearchResult:
        what = "images of" if self.domain == PAIR else f"images of the {self.domain}"
        return chosen(train, self._rows(train), f"all {what} {self.name}")

    def _rows(self, train: Data) -> Tensor:
        concepts = train.concepts if isinstance(train, CaptionedImages) else {}
        if not concepts:
            raise DataError("the training data has no concepts. Use a source such as canvas, or class_set.")
        if self.domain == PAIR:
            wanted = dict(zip(concepts, self._split(len(concepts)), strict=True))
        elif self.domain in concepts:
            wanted = {self.domain: self.name}
        else:
            raise DataError(
                f"the training data has no domain '{self.domain}'. It has: {', '.join(concepts)}, {PAIR}."
            )
        there = torch.ones(len(train), dtype=torch.bool)
        for domain, name in wanted.items():
            if name not in concepts[domain]:
                hint = did_you_mean(name, concepts[domain])
                raise DataError(f"the training data has no {domain} '{name}'.{hint}")
            there &= train.column(domain) == concepts[domain].index(name)
        rows = there.nonzero()[:, 0]
        if len(rows) == 0:
            raise DataError(f"no training image shows {self.name}. Name a concept that is in the data.")
        if len(rows) == len(train):
            raise DataError(f"every training image shows {self.name}; nothing would be kept.")
        return rows

    def _split(self, domains: int) -> list[str]:
        names = self.name.split()
        if len(names) != domains:
            raise DataError(
                f"a pair names {domains} concepts with a space between them, got '{self.name}'. Write for "
                "example 'mosaic star'."
            )
        return names
