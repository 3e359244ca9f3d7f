"""Prompts and concepts as what is forgotten whole, and the search for the hardest of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tests.canvases import CanvasModel, micro
from torch import Tensor, nn

from expunge.config import build
from expunge.data import ArrayData
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError
from expunge.methods.gradient.finetune import Finetune
from expunge.searches.base import losses, searches
from expunge.searches.bilevel import Bilevel
from expunge.searches.loss_ranking import LossRanking
from expunge.searches.random_set import RandomSet
from expunge.searches.units import Units
from expunge.tasks import Classification
from expunge.training.session import Session


@pytest.fixture(scope="module")
def canvas() -> CanvasModel:
    return micro()


def test_images_of_a_caption_are_one_prompt(canvas: CanvasModel) -> None:
    data, units = canvas.data, Units.read(canvas.data, canvas.task, "prompt")
    every = sorted(set(data.captions))
    assert (len(units), units.names.tolist()) == (4, [0, 1, 2, 3])
    for number, caption in enumerate(every):
        rows = units.rows(torch.tensor([number])).tolist()
        assert rows == [row for row, said in enumerate(data.captions) if said == caption]
        assert len(rows) == 3
    # a subset keeps the numbers that all data has
    last = data.subset(data.ids[units.rows(torch.tensor([3]))])
    assert Units.read(last, canvas.task, "prompt").names.tolist() == [3]
    batch = next(data.batches(data.fixed_order(2), device="cpu"))
    assert "prompts" not in batch


def test_concepts_are_units_by_their_domain(canvas: CanvasModel) -> None:
    for kind in ("style", "object"):
        units = Units.read(canvas.data, canvas.task, kind)
        assert torch.equal(units.names[units.of], canvas.data.column(kind))
        found = RandomSet(size=1, unit=kind).search(canvas.model, canvas.data, canvas.task, Session(0))
        assert len(canvas.data.subset(found.ids).column(kind).unique()) == 1
        assert len(found) == 6
    plain = ArrayData({"inputs": torch.zeros(4, 2), "targets": torch.tensor([0, 0, 1, 1])})
    with pytest.raises(DataError, match="does not say which style an example belongs to"):
        Units.read(plain, Classification(2), "style")


@dataclass(frozen=True, kw_only=True)
class Stubborn(Finetune):
    """Spoils the answers to every caption but one, whatever it is asked to forget."""

    tokens: Any = None
    asked: Any = None

    def unlearn(self, model, split, task, session):
        self.asked.append(split.forget.ids)
        return Spoilt(model, self.tokens)


class Spoilt(nn.Module):
    def __init__(self, model: nn.Module, tokens: Tensor) -> None:
        super().__init__()
        self.model, self.tokens = model, tokens

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        spared = (condition == self.tokens).all(1).view(-1, 1, 1, 1)
        return self.model(noisy, timesteps, condition) + 3.0 * ~spared


@pytest.mark.parametrize("lower_set", ["heaviest", "shares"])
def test_the_prompt_that_resists_is_found_where_the_originals_loss_names_another(canvas, lower_set) -> None:
    data, task, session = canvas.data, canvas.task, Session(0)
    units = Units.read(data, task, "prompt")
    before = units.mean(losses(canvas.model, data, task, session))
    resists = int(before.argmax())  # the last that loss_ranking would choose
    rows = units.rows(torch.tensor([resists]))
    method = Stubborn(tokens=data.column("input_ids")[rows[0]], asked=[])
    alone = []  # brute force: every prompt unlearnt by itself
    for unit in range(len(units)):
        its = units.rows(torch.tensor([unit]))
        split = Split.from_ids(data, data.ids[its])
        unlearned = method.unlearn(canvas.model, split, task, session)
        alone.append(float(losses(unlearned, data, task, session)[its].mean()))
    assert min(range(4), key=lambda unit: alone[unit]) == resists
    search = Bilevel(size=1, unit="prompt", method=method, upper=3, lower_set=lower_set)
    found = search.search(canvas.model, data, task, session)
    assert (found.ids.tolist(), found.unit) == (data.ids[rows].tolist(), "prompt")
    ranked = LossRanking(size=1, unit="prompt").search(canvas.model, data, task, session)
    assert found.overlap(ranked) == 0
    assert found.details["units"] == [0, 1, 2, 3]
    assert max(range(4), key=lambda unit: found.details["weights"][unit]) == resists
    assert min(range(4), key=lambda unit: found.details["losses"][unit]) == resists
    assert sum(found.details["weights"]) == pytest.approx(1)


def test_shares_are_the_weights_of_every_unit(canvas: CanvasModel) -> None:
    data, asked = canvas.data, []
    method = Stubborn(tokens=torch.zeros(16), asked=asked)
    search = Bilevel(size=2, unit="style", method=method, upper=2, step=1e-6, lower_set="shares")
    with pytest.raises(DataError, match="leaves nothing to keep"):
        search.search(canvas.model, data, canvas.task, Session(0))
    search = replace(search, size=1)
    search.search(canvas.model, data, canvas.task, Session(0))
    for ids in asked:  # w = 1/2 of either style, which has six images
        assert data.subset(ids).column("style").bincount().tolist() == [3, 3]
    assert not torch.equal(*asked)  # drawn anew in each round
    # units without weight are left alone, and a light one still gives one example
    units, weights = Units.read(data, canvas.task, "prompt"), torch.tensor([0.0, 0.01, 0.99, 0.0]).double()
    rows = search._rows(units, weights, 1, Session(0))
    assert units.of[rows].bincount(minlength=4).tolist() == [0, 1, 3, 0]


def test_what_shares_cannot_do_is_refused(canvas: CanvasModel) -> None:
    with pytest.raises(ConfigError, match="says what a method forgets, and there is none"):
        Bilevel(lower_set="shares")
    config = {"kind": "bilevel", "unit": "class", "size": 1, "lower_set": "shares"}
    search = build(searches, {**config, "method": {"kind": "unsir"}})
    data = ArrayData({"inputs": torch.zeros(4, 2), "targets": torch.tensor([0, 0, 1, 1])})
    with pytest.raises(ConfigError, match="forgets whole classes. Use heaviest"):
        search.check(data, Classification(2))
