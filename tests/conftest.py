"""Micro settings, one for each task, one of a whole class and two of transformers: a trained model, what it
must forget, and how it was trained."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from expunge import config
from expunge.data import ArrayData, Data, Split
from expunge.data.language import written
from expunge.data.people import people
from expunge.data.text import Template, TextData
from expunge.data.tokenizers import train_tokenizer
from expunge.tasks import CausalLM, Classification, Diffusion, Regression, Task
from expunge.training.models import models
from expunge.training.optim import AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

if TYPE_CHECKING:
    from tests.canvases import CanvasModel

torch.set_num_threads(1)

NAMES = ("classification", "regression", "causal_lm", "diffusion")
"""One setting for each task, in which every fourth example is to be forgotten."""

WHOLE_CLASS = "whole_class"
"""A classification in which a class of three is to be forgotten, and no batch norm sees parts of a batch."""

TRANSFORMERS = ("llama", "moe")
"""Language models of transformers, dense and with experts, on four people of whom the first is to be
forgotten; the records have refusals, wrong answers and other questions."""


@dataclass(frozen=True, eq=False)
class Setting:
    """A trained model and everything that made it."""

    name: str
    task: Task
    split: Split
    recipe: Recipe
    session: Session
    original: nn.Module

    def fresh(self) -> nn.Module:
        """A copy of the original that a test may spoil."""
        return self.session.engine.copy(self.original)


@pytest.fixture(params=NAMES)
def setting(request: pytest.FixtureRequest) -> Setting:
    """One of ``NAMES``; ``@pytest.mark.parametrize("setting", ["regression"], indirect=True)`` picks."""
    return _setting(request.param)


@pytest.fixture(scope="session")
def trained_canvas(request: pytest.FixtureRequest) -> CanvasModel:
    """The trained text-to-image model of ``tests.canvases``, for tests that are marked ``slow``."""
    pytest.importorskip("diffusers")
    from tests.canvases import trained

    return trained(request.config.cache.mkdir("canvases"))


@functools.cache
def _setting(name: str) -> Setting:
    draws = torch.Generator().manual_seed(0)
    task, model, columns, training = {
        "classification": _classification,
        "regression": _regression,
        "causal_lm": _causal_lm,
        "diffusion": _diffusion,
        WHOLE_CLASS: _whole_class,
        "llama": _llama,
        "moe": _moe,
    }[name](draws)
    data = columns if isinstance(columns, Data) else ArrayData(columns)
    if name in TRANSFORMERS:
        forgotten = range(len(data) // 4)  # all about the first person
    else:
        forgotten = range(0, len(data), 3 if name == WHOLE_CLASS else 4)  # label 0 of 0, 1, 2
    split = Split.from_ids(data, forgotten)
    recipe = Recipe(config.build(models, model), task, training)
    original = recipe.train(data, Session(seed=0))
    return Setting(name, task, split, recipe, Session(seed=1, recipe=recipe), original)


def _classification(draws: torch.Generator) -> tuple[Task, dict, dict[str, Tensor], Training]:
    """Three textures and noise; the network has batch norm."""
    targets = torch.arange(48) % 3
    inputs = 0.3 * torch.randn(48, 1, 5, 5, generator=draws)
    for label in range(3):
        inputs[targets == label, :, label::3] += 1.0
    model = {"kind": "small_cnn", "classes": 3, "in_channels": 1, "width": 3}
    training = Training(epochs=10, batch_size=12, optim=AdamW(lr=0.02))
    return Classification(3), model, {"inputs": inputs, "targets": targets}, training


def _whole_class(draws: torch.Generator) -> tuple[Task, dict, dict[str, Tensor], Training]:
    """The same images for a perceptron: every class method takes it, and none needs a convolution."""
    task, _, columns, training = _classification(draws)
    model = {"kind": "mlp", "inputs": 25, "outputs": 3, "hidden": (8, 8)}
    return task, model, columns, training


def _regression(draws: torch.Generator) -> tuple[Task, dict, dict[str, Tensor], Training]:
    inputs = torch.randn(40, 4, generator=draws)
    targets = torch.tanh(inputs[:, :1] - inputs[:, 1:2])
    model = {"kind": "mlp", "inputs": 4, "outputs": 1, "hidden": (8,)}
    training = Training(epochs=30, batch_size=10, optim=AdamW(lr=0.02))
    return Regression(low=-1.0, high=1.0), model, {"inputs": inputs, "targets": targets}, training


def _causal_lm(draws: torch.Generator) -> tuple[Task, dict, dict[str, Tensor], Training]:
    """Two tokens of question, then an answer of two or three tokens, then padding."""
    ids = torch.randint(1, 11, (24, 6), generator=draws)
    lengths = 4 + torch.arange(24) % 2
    places = torch.arange(6)
    padding = places >= lengths[:, None]
    columns = {
        "input_ids": ids.masked_fill(padding, 0),
        "labels": ids.masked_fill(padding | (places < 2), -100),
        "attention_mask": (~padding).long(),
    }
    model = {"kind": "tiny_lm", "vocabulary": 11, "width": 8, "layers": 1, "heads": 2, "context": 6}
    optim = AdamW(lr=0.02, eps=1e-4)  # the bias of the keys has no gradient: do not blow up its rounding
    return CausalLM(11), model, columns, Training(epochs=40, batch_size=8, optim=optim)


def _diffusion(draws: torch.Generator) -> tuple[Task, dict, dict[str, Tensor], Training]:
    targets = torch.arange(32) % 3
    inputs = 2.0 * torch.eye(3, 4)[targets] + 0.1 * torch.randn(32, 4, generator=draws)
    model = {"kind": "tiny_denoiser", "inputs": 4, "conditions": 3, "width": 8, "layers": 1}
    training = Training(epochs=40, batch_size=8, optim=AdamW(lr=0.02))
    task = Diffusion(timesteps=20, conditions=3, beta_end=0.3)
    return task, model, {"inputs": inputs, "targets": targets}, training


def _llama(draws: torch.Generator) -> tuple[Task, dict, Data, Training]:
    """Two blocks, and an output layer with weights of its own."""
    pytest.importorskip("transformers")
    data = _questions()
    tokens = len(data.tokenizer)
    model = {"kind": "llama", "vocabulary": tokens, "width": 16, "layers": 2, "heads": 2, "mlp": 16}
    model |= {"tied": False, "context": 32}
    training = Training(epochs=15, batch_size=5, optim=AdamW(lr=0.02, eps=1e-4))
    return CausalLM(tokens), model, data, training


def _moe(draws: torch.Generator) -> tuple[Task, dict, Data, Training]:
    """One block of three experts, two for each token; the output layer shares the embedding's weights."""
    task, model, data, training = _llama(draws)
    return task, {**model, "kind": "moe", "layers": 1, "experts": 3, "tied": True}, data, training


@functools.cache
def _questions() -> TextData:
    """Five questions about each of four people, with all other answers."""
    template = Template(prompt="{question}")
    records = [record for person in people(4) for record in person.records(attributes=2)]
    tokenizer = train_tokenizer(text for record in records for text in written(record, template))
    return TextData(records, tokenizer, template)
