"""A full memory: one line that says which settings take less, from Python and on the command line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import expunge
from expunge.cli.main import main
from expunge.errors import OutOfMemory, memory_error

CUDA = (
    "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 79.1 GiB\nof which "
    "1.2 GiB is free."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
SETTINGS = (
    "batch_size",
    "engine.accumulate",
    "engine.activation_checkpointing=true",
    "engine.dtype=bfloat16",
    "scope=lora",
)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (torch.OutOfMemoryError(CUDA), "20.50 GiB"),
        (RuntimeError(CPU), "4000000000000 bytes"),
        (MemoryError(), None),
    ],
)
def test_one_line_names_what_takes_less(error, asked) -> None:
    said = str(memory_error(error))
    assert all(setting in said for setting in SETTINGS)
    assert "\n" not in said
    assert ("it asked for" in said) == (asked is not None)
    assert asked is None or f"(it asked for {asked} more)" in said


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_are_left_as_they_are(error) -> None:
    assert memory_error(error) is None


class Hungry(nn.Linear):
    """A model for which there is never enough memory, or that has a bug."""

    def __init__(self, said: str) -> None:
        super().__init__(2, 2)
        self.said = said

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(self.said)


def unlearn(said: str) -> None:
    data = torch.eye(2).repeat(4, 1), torch.tensor([0, 1]).repeat(4)
    split = expunge.Split.from_ids(data, [0, 1])
    task = {"kind": "classification", "classes": 2}
    expunge.unlearn(Hungry(said), split, "finetune", task=task)


def test_the_verbs_say_it_and_let_bugs_through() -> None:
    with pytest.raises(OutOfMemory, match=r"the memory is full \(it asked for 20.50 GiB more\)"):
        unlearn(CUDA)
    with pytest.raises(RuntimeError, match="shapes differ"):
        unlearn("shapes differ")


def test_the_real_error_of_this_machines_allocator_is_one_of_them() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory_error(caught.value) is not None


def test_the_command_line_prints_one_line_and_keeps_the_tracebacks_of_bugs(monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise RuntimeError(CPU)

    monkeypatch.setattr("expunge.experiment.read", full)
    assert main(["validate", "digits"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: the memory is full (it asked for 4000000000000 bytes more). Lower batch_size;"
    )
    assert len(error.strip().splitlines()) == 1

    def bug(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("expunge.experiment.read", bug)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["validate", "digits"])


def test_what_an_unlearned_model_said_is_not_kept_beyond_its_row() -> None:
    from tests.evaluation.micro import made

    from expunge.evaluation.evaluate import Candidate, Evaluation
    from expunge.evaluation.metrics.distance import JensenShannon
    from expunge.evaluation.metrics.utility import Accuracy
    from expunge.training.session import Session

    base, seen = made("classification").evaluation, list[str]()
    original, honest = base.original.model, base.retrained[0].model
    candidates = [
        Candidate("original", "original", original),
        Candidate("retrained 1", "retrained", honest),
        Candidate("method", "unlearned", original, siblings=(honest,)),
    ]
    session = Session(0, callbacks=(lambda event: seen.append(event.what),))
    split = expunge.Split(forget=base.parts["forget"], retain=base.parts["retain"])
    evaluation = Evaluation(candidates, split, base.task, session)
    metrics = (Accuracy(part="forget"), JensenShannon(part="forget"))
    first, _, unlearned = evaluation.rows(metrics)
    assert seen.count("method: forget") == 1
    assert unlearned.scores["accuracy.forget"].value == first.scores["accuracy.forget"].value
    for name, passes in (("method", 2), ("original", 1), ("retrained 1", 1)):
        evaluation.subjects[name].read("forget")
        assert seen.count(f"{name}: forget") == passes
