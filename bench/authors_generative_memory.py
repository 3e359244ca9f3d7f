"""Comparisons with the code of EraseDiff (as UnlearnCanvas has it) and of selective amnesia."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from authors_generative_retain import SALUN, Clock, fixed, latent_losses, runner
from authors_generative_setup import (
    COUNT,
    FORGOTTEN,
    SESSION,
    Found,
    Row,
    classes,
    measured,
    pictures,
    row,
    trained,
)
from authors_generative_theirs import (
    Compvis,
    Optimiser,
    Script,
    borrowed,
    gradients,
    repeated,
    stopped,
)
from torch import Tensor, nn

from expunge.data.captions import tokenise
from expunge.methods.gradient.erase_diff import EraseDiff
from expunge.methods.gradient.sa import SA, Memory
from expunge.training.parameters import importance

CANVAS = ("OPTML-Group/UnlearnCanvas", "920cfd1")
AMNESIA = ("clear-nus/selective-amnesia", "b736571")


def rows(root: Path) -> list[Row]:
    """All of them; ``root`` holds the authors' checkouts by owner and name."""
    return [*_erase_diff(root), *_amnesia(root / AMNESIA[0] / "ddpm"), *_fisher(root / AMNESIA[0] / "ddpm")]


class Meter:
    """An average of what it was given."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def update(self, value: Tensor) -> None:
        self.values.append(value.detach())

    @property
    def avg(self) -> Tensor:
        return torch.stack(self.values).mean()


class Zero(Meter):
    """It is 0 whatever it was given."""

    @property
    def avg(self) -> Tensor:
        return torch.zeros(())


class Batches:
    """A loader of batches: each ``iter`` begins with the first, or with the one whose turn it is."""

    def __init__(self, batches: list[Any], goes_on: bool) -> None:
        self.batches, self.goes_on, self.asked = batches, goes_on, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        for place in range(len(self.batches)):
            at = self.asked + place if self.goes_on else place
            yield self.batches[at % len(self.batches)]

    def turn(self, *_: Any) -> None:
        """A step was taken: the next batch's turn."""
        self.asked += 1


def _erase_diff(root: Path) -> list[Row]:
    common: dict[str, Any] = {"method": "erase_diff", "source": CANVAS}
    run = "style_removal, full, alpha 0.1, K 1"
    value = (
        "Theirs takes the value that the inner passes reached from the loss, a number without a gradient: "
    )
    value += "the values differ, the gradients do not. In the next row that number is 0."
    first = "Theirs asks a new iterator of a loader that does not shuffle for each batch, so that every step "
    first += "is of the first: this is the second step. In the next row the loader goes on."
    whole, halves = _ours(slice(None)), _ours(slice(2, None))
    return [
        row(
            "erase_diff-inner",
            whole,
            _removal(root, Meter),
            run=run,
            explanation=value,
            intended=True,
            **common,
        ),
        row("erase_diff", whole, _removal(root, Zero), run=f"{run}, without the inner value", **common),
        row(
            "erase_diff-first",
            halves,
            _removal(root, Zero, 2),
            run=f"{run}, second batch of two, without the inner value",
            explanation=first,
            intended=True,
            **common,
        ),
        row(
            "erase_diff-second",
            halves,
            _removal(root, Zero, 2, goes_on=True),
            run=f"{run}, the same, with a loader that goes on",
            **common,
        ),
    ]


def _removal(root: Path, meter: Any, count: int = 1, goes_on: bool = False) -> Found:
    """Theirs at the last of ``count`` batches after the inner passes, none of which takes a step."""
    stage, size = pictures(), COUNT // count
    last = [COUNT - size, COUNT]
    retained = (stage.noise["retain"][slice(*last)], stage.timesteps["retain"][slice(*last)])
    model = Compvis(stage, stage.changed, latent_losses(root / SALUN[0]), 0.0, retained)
    data = stage.split.forget, stage.split.retain
    loaders = [
        Batches(
            [(d.column("inputs")[i : i + size], d.captions[i : i + size]) for i in range(0, COUNT, size)],
            goes_on,
        )  # type: ignore[attr-defined]
        for d in data
    ]

    def turn(parameters: list[nn.Parameter]) -> None:
        for loader in loaders:
            loader.turn()

    draws = Script(
        torch,
        randint=repeated(stage.timesteps["forget"][slice(*last)]),
        randn_like=repeated(stage.noise["forget"][slice(*last)]),
        optim=SimpleNamespace(Adam=lambda p, **_: Optimiser(p, then=[turn] * (2 * count - 1))),
    )
    file = root / CANVAS[0] / "machine_unlearning/mu_erase_diff_ediff/train-erase.py"
    found = borrowed(
        file,
        "style_removal",
        torch=draws,
        tqdm=Clock,
        AverageMeter=meter,
        gc=SimpleNamespace(collect=lambda: None),
        get_param=lambda _: None,
        set_param=lambda net, _: net,
        print=lambda *_: None,
        setup_model=lambda *_: model,
        setup_forget_style_data=lambda *_: loaders,
    )
    local = stopped(found.style_removal, "", "", "", "", "", 1, "full", device="cpu")
    return float(local.total_loss.detach()), gradients(stage.changed)


def _ours(rows: slice) -> Found:
    """Ours of these examples; the anchors are the retained captions, as theirs are."""
    stage = pictures()
    ids = tokenise(stage.split.forget.tokenizer, stage.split.retain.captions)  # type: ignore[attr-defined]
    batches = {"forget": {**stage.batch("forget"), "anchor.input_ids": ids}, "retain": stage.batch("retain")}
    batches = {part: {name: value[rows] for name, value in batch.items()} for part, batch in batches.items()}
    method = EraseDiff(variant="reference", forget_weight=0.1)
    return measured(method.objective(stage.step(**batches)), trained(stage.changed))


def _information(model: nn.Module) -> dict[str, Tensor]:
    draws = np.random.default_rng(3)
    return {n: torch.from_numpy(draws.uniform(0, 1, p.shape)).float() for n, p in trained(model).items()}


def _amnesia(folder: Path) -> list[Row]:
    """The second step, to which the first moves from the original to the changed model."""
    stage = classes()
    net, fisher = SESSION.engine.copy(stage.original), _information(stage.original)
    surrogate = torch.from_numpy(np.random.default_rng(4).uniform(-1, 1, (COUNT, 3, 8, 8))).float()
    steps, retain = stage.timesteps["retain"], stage.split.retain

    def move(parameters: list[nn.Parameter]) -> None:
        net.load_state_dict(stage.changed.state_dict())

    owner, names, state = runner(folder, stage, False, net=net, n_iters=2)
    names["get_optimizer"] = lambda _, parameters: Optimiser(parameters, then=[move])
    draws = Script(
        torch,
        load=lambda *_, **__: [state],
        rand=repeated((surrogate + 1) / 2),
        randint=repeated(steps[: COUNT // 2 + 1]),
        randn_like=repeated(stage.noise["retain"], stage.noise["forget"]),
    )
    found = borrowed(
        folder / "runners/diffusion.py",
        "train_forget",
        torch=draws,
        all_but_one_class_path_dataset=lambda *_: [(retain.column("inputs"), retain.column("targets"))],
        open=lambda *_: contextlib.nullcontext(),
        pickle=SimpleNamespace(load=lambda _: {f"module.net.{name}": f for name, f in fisher.items()}),
        **names,
    )
    local = stopped(found.train_forget, owner)
    theirs = float(local.loss.detach()), gradients(net)
    batch = {**stage.batch("forget"), "inputs": surrogate}
    forget = {
        **batch,
        "timesteps": steps,
        "noisy": stage.task.noised(surrogate, stage.noise["forget"], steps),
    }
    assert (forget["targets"] == FORGOTTEN).all()
    start = {name: p.detach() for name, p in trained(stage.original).items()}
    terms = SA(strength=10.0).objective(stage.step(Memory(fisher, start), forget=forget))
    ours = measured(terms, trained(stage.changed))
    return [
        row(
            "sa",
            ours,
            theirs,
            method="sa",
            source=AMNESIA,
            run="train_forget, second step, gamma 1, lmbda 10",
        )
    ]


def _fisher(folder: Path) -> list[Row]:
    """The sum of the information of all weights; ``gradient`` compares that of each."""
    common: dict[str, Any] = {"method": "sa", "source": AMNESIA, "measure": "sum of the Fisher information"}
    said = (
        "Theirs adds up the gradients of all timesteps of an image, of every chunk, before it squares them; "
    )
    said += "ours is the mean of the squares at these timesteps. The next row has one timestep."
    run = "save_fim, cond_drop_prob 0"
    return [
        row(
            "sa-fisher-20",
            _mean_of_squares(range(20)),
            _theirs_fisher(folder, 20),
            run=f"{run}, 20 timesteps",
            explanation=said,
            intended=True,
            **common,
        ),
        row(
            "sa-fisher",
            _mean_of_squares(range(1)),
            _theirs_fisher(folder, 1),
            run=f"{run}, 1 timestep",
            **common,
        ),
    ]


def _mean_of_squares(steps: range) -> Found:
    stage = classes()
    names, total = list(trained(stage.changed)), dict[str, Any]()
    for step in steps:
        found = importance(
            stage.changed,
            stage.split.retain,
            fixed(stage, "retain", torch.full((COUNT,), step)),
            SESSION,
            names=names,
            batch_size=1,
            measure=lambda outputs, batch: outputs.shape[1] * stage.task.loss(outputs, batch),
        )
        for name, value in found.items():
            total[name] = total.get(name, 0.0) + value.detach().numpy() / len(steps)
    return float(sum(value.sum() for value in total.values())), total


def _theirs_fisher(folder: Path, steps: int) -> Found:
    stage, kept = classes(), dict[str, Tensor]()
    owner, names, state = runner(folder, stage, False, n_chunks=steps)
    owner.num_timesteps, retain = steps, stage.split.retain
    images = [(retain.column("inputs")[i : i + 1], retain.column("targets")[i : i + 1]) for i in range(COUNT)]
    noise = [stage.noise["retain"][i : i + 1] for i in range(COUNT) for _ in range(steps)]
    loader = Batches(images, goes_on=False)
    loader.dataset = images  # type: ignore[attr-defined]
    draws = Script(
        torch,
        load=lambda *_, **__: [state],
        cuda=SimpleNamespace(device_count=lambda: 1),
        randn_like=repeated(*noise),
    )
    found = borrowed(
        folder / "runners/diffusion.py",
        "save_fim",
        torch=draws,
        tqdm=SimpleNamespace(tqdm=lambda items, **_: items),
        ImageFolder=lambda *_, **__: None,
        DataLoader=lambda *_, **__: loader,
        transforms=SimpleNamespace(ToTensor=lambda: None),
        open=lambda *_: contextlib.nullcontext(),
        pickle=SimpleNamespace(dump=lambda found, _: kept.update(found)),
        **names,
    )
    found.save_fim(owner)
    gradients(stage.changed)
    theirs = {name.removeprefix("module.net."): value.numpy() for name, value in kept.items()}
    return float(sum(value.sum() for value in theirs.values())), theirs
