"""What a method says it looks at is all that it looks at: other images of other parts change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from expunge import config
from expunge.data.captions import CaptionedImages
from expunge.data.split import Split
from expunge.methods.base import methods
from expunge.training.session import Session

pytest.importorskip("diffusers")

from tests import canvases

SHORT = {
    "epochs": 1, "batch_size": 6, "steps": 2, "samples": 4, "attack_steps": 1, "warm_up": 0,
    "features": 16, "active": 2, "top": 4, "judge_lr": 1e-4, "width": 8, "iterations": 2,
}  # fmt: skip
OTHERWISE = {"adv_unlearn": {"epochs": 2}, "itd": {"features": 256, "epochs": 30}}
"""What a method needs more: a retain term that is not zero, features of the concept's own."""

DECLARED = {
    "esd": (), "uce": (), "ca": (), "sa": (), "sfd": (), "seot": (), "itd": (), "spm": (),
    "adv_unlearn": ("retain",), "doco": ("retain",), "few_shot": ("forget",), "fmn": ("forget",),
    "salun": ("forget", "retain"), "grad_diff": ("forget", "retain"), "grad_ascent": ("forget",),
    "scissorhands": ("forget", "retain"), "erase_diff": ("forget", "retain"),
}  # fmt: skip


def settings(name: str) -> dict[str, Any]:
    fields = methods.get(name).__dataclass_fields__
    short = {key: value for key, value in SHORT.items() if key in fields}
    if "optim" in fields:
        short["optim"] = {"kind": "adamw", "lr": 0.01}
    return {"kind": name, **short, **OTHERWISE.get(name, {})}


def split(canvas: canvases.CanvasModel, spoilt: tuple[str, ...]) -> Split:
    """The images of the first style to forget; those of the spoilt parts are others."""
    data = canvas.data
    forgotten = data.column("style") == 0
    inputs = data.column("inputs").clone()
    for part, rows in (("forget", forgotten), ("retain", ~forgotten)):
        if part in spoilt:
            inputs[rows] = torch.randn(inputs[rows].shape, generator=torch.Generator().manual_seed(1))
    others = {name: data.tokenizer.batch_decode(data.column(f"{name}.input_ids"), skip_special_tokens=True)
              for name in ("style", "object")}  # fmt: skip
    columns = {name: data.column(name) for name in ("style", "object")}
    made = CaptionedImages(
        inputs, data.captions, data.tokenizer, concepts=data.concepts, columns=columns, others=others
    )
    return Split.from_ids(made, forgotten.nonzero()[:, 0])


def result(canvas: canvases.CanvasModel, name: str, spoilt: tuple[str, ...]) -> dict[str, Tensor]:
    method = config.build(methods, settings(name))
    found = method.unlearn(canvas.model, split(canvas, spoilt), canvas.task, Session(seed=3))
    return found.state_dict()


@pytest.mark.parametrize("name", DECLARED)
def test_images_of_other_parts_change_nothing(name):
    canvas = canvases.micro()
    looked = config.build(methods, settings(name)).reads_inputs()
    assert looked == DECLARED[name]
    others = tuple(part for part in ("forget", "retain") if part not in looked)
    if others:
        first, second = result(canvas, name, ()), result(canvas, name, others)
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["adv_unlearn", "doco", "few_shot", "fmn"])
def test_images_of_its_own_part_change_the_result(name):
    canvas = canvases.micro()
    looked = config.build(methods, settings(name)).reads_inputs()
    first, second = result(canvas, name, ()), result(canvas, name, looked)
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_modifiers_and_a_second_part_are_counted():
    build = lambda **fields: config.build(methods, {"kind": "grad_ascent", **fields})  # noqa: E731
    assert build().reads_inputs() == ("forget",)
    assert build(modifiers=["saliency_mask"]).reads_inputs() == ("forget", "retain")
