"""The gradient of each example's loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from expunge.data.arrays import Batch, Data, fixed_order
from expunge.errors import Unsupported
from expunge.tasks.base import Task
from expunge.training.scope import Scope
from expunge.training.session import Event, Session


def example_gradients(
    model: nn.Module, data: Data, task: Task, session: Session, scope: Scope, batch_size: int
) -> Iterator[Tensor]:
    """``∇ℓ_i`` with respect to the parameters of a scope, ``(B, P)`` float32 on the device, batch by batch.

    In evaluation mode, without augmentation and in the order of ``data.ids``. The model is not changed.

    Raises:
        Unsupported: the scope names no parameter, or ``torch.vmap`` cannot run the model or its loss.

    Cost: a forward and backward pass over the data; memory for the gradients of one batch.
    """
    engine = session.engine
    loss = _Loss(engine.copy(model).eval().requires_grad_(False), task, session)
    names = {f"model.{name}" for name in scope.names(model)}
    state = {**dict(loss.named_parameters()), **dict(loss.named_buffers())}
    chosen = {name: value for name, value in state.items() if name in names}
    fixed = {name: value for name, value in state.items() if name not in names}

    def one(parameters: dict[str, Tensor], example: Batch) -> Tensor:
        found = functional_call(loss, {**parameters, **fixed}, (example,))
        assert isinstance(found, Tensor)
        return found

    each = vmap(grad(one), in_dims=(None, 0))
    order = fixed_order(len(data), batch_size)
    for index, batch in enumerate(data.batches(order, device=engine.torch_device)):
        try:
            found = each(chosen, task.prepare(batch, None))
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:120]
            raise Unsupported(
                f"torch.vmap refuses the model or its loss ({said}), so its examples' gradients cannot be "
                "had at once. Use another search: loss_ranking, bilevel."
            ) from None
        yield torch.cat([gradient.flatten(1).float() for gradient in found.values()], 1)
        session.emit(Event("step", "example gradients", index + 1, len(order)))


class _Loss(nn.Module):
    """One example's loss, as a module whose state can be swapped."""

    def __init__(self, model: nn.Module, task: Task, session: Session) -> None:
        super().__init__()
        self.model, self.task, self.engine = model, task, session.engine

    def forward(self, example: Batch) -> Tensor:
        batch = {name: value.unsqueeze(0) for name, value in example.items()}
        with self.engine.autocast():
            outputs = self.task.outputs(self.model, batch)
        return self.task.loss(outputs, batch).sum()
