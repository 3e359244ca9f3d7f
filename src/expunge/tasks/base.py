"""What a model is for. The only place that looks inside a batch.

A task turns a model and a batch into per-example numbers; methods, metrics and searches are written
against those numbers alone, and so run unchanged on classifiers, regressors, language models and
denoisers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data
from expunge.errors import Unsupported
from expunge.registry import Registry

BATCH_SIZE = 512
"""Examples in a forward pass of an evaluation, where they are small."""


class Task(ABC):
    """One kind of model. Subclasses are frozen dataclasses.

    Every per-example quantity has shape ``(N,)``; means are taken by whoever needs one.
    """

    random_outputs: ClassVar[bool] = False
    """Whether ``prepare`` draws noise, so that one example has many outputs."""

    relabel_changes_inputs: ClassVar[bool] = False
    """Whether a relabelled batch needs a forward pass of its own."""

    relabel_asks_otherwise: ClassVar[bool] = False
    """Whether a relabelled batch is another question in place of another answer: what the model itself says
    to it is then the answer that carries no information."""

    score_name: ClassVar[str] = "score"
    """What ``score`` is called in tables: ``accuracy``, ``token accuracy``, …"""

    def check(self, data: Data, part: str) -> None:
        """Refuses data that does not fit the task, before anything is trained.

        Raises:
            DataError: for example labels outside the classes.
        """

    def prepare(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Draws all the randomness of an example (noise, timesteps, masks); called once per batch.

        With ``generator=None`` the draw is a fixed function of the example's id.
        """
        return batch

    def unlearning(self) -> Task:
        """The task as unlearning methods see it: without what ``prepare`` does to help training alone."""
        return self

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model says: logits, predictions, predicted noise. Shape ``(N, …)``."""

    def said(self, model: nn.Module, batch: Batch) -> Any:
        """What loss, log-likelihood and score are computed from: the outputs, or less than them.

        A language model's logits need not exist all at once for its loss.
        """
        return self.outputs(model, batch)

    def spelled_out(self, said: Any, batch: Batch) -> Tensor:
        """The outputs, from what was said."""
        return said  # type: ignore[no-any-return]

    def instead(self, batch: Batch, name: str) -> Batch:
        """The batch with another answer, or to another question, that the data brings by this name.

        Raises:
            Unsupported: where the task or the data has none.
        """
        raise Unsupported(
            f"task '{type(self).__name__}' has no other answers. Use a method without them: grad_diff, npo."
        )

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The training loss of each example, in nats where it is a likelihood. Shape ``(N,)``."""

    def batch_size(self, data: Data) -> int:
        """Examples in a forward pass of an evaluation."""
        return BATCH_SIZE

    def output_count(self, said: Any) -> int:
        """How many numbers the outputs are, spelled out."""
        return said.numel()  # type: ignore[no-any-return]

    def tokens(self, said: Any, batch: Batch) -> dict[str, Tensor]:
        """What there is to say of each label of a sequence, by name, ``(N, T)``; nothing by default."""
        return {}

    @abstractmethod
    def divergence(
        self, reference: Tensor, outputs: Tensor, batch: Batch, temperature: float = 1.0
    ) -> Tensor:
        """``KL(p_reference^(1/T) ‖ p_outputs^(1/T))`` of each example, in nats; 0 iff equal. ``(N,)``.

        ``p^(1/T)`` is normalised again: a softmax of ``logits / T``, a Gaussian of ``T`` times the
        variance.
        """

    def jensen_shannon(self, first: Tensor, second: Tensor, batch: Batch) -> Tensor:
        """``JS(p, q) = ½ KL(p ‖ m) + ½ KL(q ‖ m)``, ``m = (p + q) / 2``, in nats, ≤ ln 2. ``(N,)``.

        Raises:
            Unsupported: where the outputs are no finite distribution.
        """
        raise Unsupported(f"task '{type(self).__name__}' has no Jensen-Shannon divergence in closed form.")

    def log_likelihood(self, outputs: Tensor, batch: Batch) -> Tensor:
        """``log p(y | x)`` of each example, up to a constant. Shape ``(N,)``."""
        return -self.loss(outputs, batch)

    def margin(self, outputs: Tensor, batch: Batch) -> Tensor:
        """``log p − log(1 − p)`` with ``p = exp(−loss)``, the logit-scaled confidence. Shape ``(N,)``.

        Nearly normal over models trained on the same data, which the likelihood-ratio attacks need.
        """
        return -torch.log(torch.expm1(self.loss(outputs, batch).double().clamp(min=1e-12))).float()

    def relabel(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """The batch with targets that carry no information: a random label, refusal or condition.

        Raises:
            Unsupported: where the task has no targets to replace.
        """
        raise Unsupported(
            f"task '{type(self).__name__}' has no targets to replace. "
            "Use a method that does not relabel: grad_ascent, grad_diff, npo."
        )

    def sample(self, outputs: Tensor, batch: Batch, generator: torch.Generator | None) -> Batch:
        """The batch with targets drawn from the model's own distribution ``p(y | x)``, given its outputs.

        The gradients of the loss at such targets have mean zero and the Gauss-Newton matrix (the true
        Fisher information) as their covariance.

        Raises:
            Unsupported: where the outputs are no distribution of targets.
        """
        raise Unsupported(
            f"task '{type(self).__name__}' has no targets that its model could draw. "
            "Use the empirical squared gradients instead (hessian=squared for Sophia)."
        )

    def label_counts(self, batch: Batch) -> Tensor:
        """How many labels of each example ``sample`` draws, the loss being their mean. Shape ``(N,)``."""
        return torch.ones(len(batch["ids"]), device=batch["ids"].device)

    @abstractmethod
    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Utility of each example in [0, 1], higher is better. Shape ``(N,)``."""

    def groups(self, data: Data) -> Tensor:
        """The class of each example, for class-wise forgetting. Shape ``(N,)``, integer.

        Raises:
            Unsupported: where examples belong to no class.
        """
        raise Unsupported(
            f"task '{type(self).__name__}' has no classes to forget. Use a method for single examples."
        )


tasks: Registry[Task] = Registry("task", Task, ("expunge.tasks",))  # type: ignore[type-abstract]


def model_output(value: object) -> Tensor:
    """The tensor in a model's answer: itself, or ``.logits`` of a Hugging Face output."""
    if isinstance(value, Tensor):
        return value
    logits = getattr(value, "logits", None)
    if logits is None:
        logits = getattr(value, "sample", None)
    if not isinstance(logits, Tensor):
        raise Unsupported(
            f"the model returned {type(value).__name__}; expected a tensor or an output with .logits."
        )
    return logits
