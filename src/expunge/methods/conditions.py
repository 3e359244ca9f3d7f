"""What a denoiser is told, captions or classes, and the images that a model draws when it is told so."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data
from expunge.data.captions import EMPTY
from expunge.data.replaced import Replaced
from expunge.data.split import Split
from expunge.errors import DataError, Unsupported
from expunge.tasks.base import Task
from expunge.tasks.diffusion import Diffusion
from expunge.training.sampling import sample
from expunge.training.session import Event, Session


def conditional(split: Split, task: Task, what: str) -> Diffusion:
    """The task, if it is denoising under captions or classes.

    Raises:
        Unsupported: it is not; it says what ``what``, the name of a method, needs.
    """
    if not isinstance(task, Diffusion):
        raise Unsupported(
            f"{what} works on what a denoiser is told, and task '{type(task).__name__}' is no denoiser's. "
            "Use a method for every task: grad_diff, npo."
        )
    try:
        split.forget.column("input_ids")
    except DataError:
        if task.conditions is None:
            raise Unsupported(
                f"{what} needs a denoiser of captions or classes, and this one is told nothing. "
                "Use grad_ascent, grad_diff or npo."
            ) from None
    return task


def condition_of(batch: Batch) -> Tensor:
    """Captions' tokens ``(N, T)``, or classes ``(N,)``."""
    return batch["input_ids"] if "input_ids" in batch else batch["targets"]


def nothing_for(task: Diffusion, batch: Batch) -> Tensor:
    """The condition that says nothing, of one example: the empty prompt's tokens ``(1, T)``, or ``(1,)``."""
    return condition_of(task.instead(batch, EMPTY))[:1]


def imagined(
    model: nn.Module,
    data: Data,
    task: Diffusion,
    session: Session,
    *,
    under: str = "",
    steps: int = 20,
    guidance: float = 2.5,
) -> Data:
    """The same examples, but with inputs that the model draws for their conditions.

    Args:
        model: is left as it was.
        under: the name of the other captions or classes to draw them for, such as ``anchor``.
        steps, guidance: of ``sample``.

    Cost: ``2 · steps`` forward passes over the data, ``steps`` with ``guidance=1``.
    """
    engine = session.engine
    placed, draws = engine.placed(model), session.generator("imagined", under)
    order = data.fixed_order(task.batch_size(data))
    found = []
    for index, batch in enumerate(data.batches(order, device=engine.torch_device)):
        told = task.instead(batch, under) if under else batch
        start = torch.randn(batch["inputs"].shape, generator=draws)
        latents = sample(
            placed,
            task,
            condition_of(told),
            empty=nothing_for(task, batch),
            steps=steps,
            guidance=guidance,
            start=start,
            engine=engine,
        )
        found.append(latents.float().cpu())
        session.emit(Event("step", "images", index + 1, len(order)))
    return Replaced(data, data.ids, {"inputs": torch.cat(found)})
