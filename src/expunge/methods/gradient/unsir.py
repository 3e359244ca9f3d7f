"""UNSIR: impair with noise that maximises the loss of a class, then repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.arrays import ArrayData, Data
from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.methods.classes import forgotten_classes
from expunge.tasks.base import Task
from expunge.tasks.classification import Classification
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import AdamW, Optim
from expunge.training.session import Session
from expunge.training.step import Step


class Noise(nn.Module):
    """A frozen model asked about inputs ``(M, …)`` that are its only trained parameter, by row number."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.inputs = nn.Parameter(inputs)

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.model(self.inputs[rows])
        return outputs


@methods.register("unsir")
@dataclass(frozen=True, kw_only=True)
class Unsir(GradientMethod):
    """Trains the forgotten classes' labels onto noise that the model likes least for them, then repairs.

    For each forgotten class ``k`` a batch of noise ``x ~ N(0, 1)`` is optimised,
    ``min_x mean [ −ℓ(f_{θ_o}(x), k) + λ ‖x‖² ]``. Impair: one epoch of ``min_θ mean ℓ_i(θ)`` on a sample of
    the retain set and copies of the noise with labels ``k``, mixed. Repair: one epoch on the sample alone.
    No forget example is used, only which classes they belong to.

    Args:
        epochs: epochs of impairing, and as many of repairing.
        batch_size: examples in a step of repairing.
        impair_batch_size: examples in a step of impairing.
        per_class: retain examples drawn from each class, once; all of a class with fewer.
        noise_size: different noise inputs for each class.
        noise_copies: how often each of them occurs in the impair epoch.
        noise_steps: steps of Adam on the noise.
        noise_rate: their learning rate.
        penalty: ``λ``.

    Shapes: classification of real-valued inputs ``(N, …)``; whole classes only.
    Cost: ``noise_steps`` forward and backward passes over the noise, one epoch over the noise copies and the
        sample, one over the sample; two copies of the model while the noise is made.
    Guarantee: empirical.
    Differs: three slips of the authors' code are not repeated. Both loaders of the noise take as many inputs
        as an image has channels, 3 of the 32 (or 256), in 80 (20) copies; here all 32 take part in 8 copies,
        so that noise has about their share of the epoch. In the SSD code the gradients that the
        weights gather while the noise is made are never cleared: they enter the first impair step
        and then, as Adam's second moments, shrink the following ones. The notebook labels the noise of
        every class 0; here it has its own class. Ours besides: the noise is made in evaluation mode
        (theirs in whichever the model is in); the sample is drawn at random (theirs is the first of
        each class) and not augmented while impairing. Each phase has a new optimiser, as theirs.
    References: Tarun et al., Fast Yet Effective Machine Unlearning, TNNLS 2023, arXiv:2111.08947; defaults
        of the code of Foster et al., SSD, AAAI 2024 (the authors' notebook: rates 0.02 and 0.01).
    """

    epochs: int = 1
    optim: Optim = AdamW(lr=1e-4, weight_decay=0.0)
    impair_batch_size: int = 32
    per_class: int = 500
    noise_size: int = 32
    noise_copies: int = 8
    noise_steps: int = 25
    noise_rate: float = 0.1
    penalty: float = 0.1

    forgets = "classes"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("impair_batch_size", "per_class", "noise_size", "noise_copies", "noise_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if not self.noise_rate > 0:
            raise ConfigError(f"must be above 0, got {self.noise_rate}.", "noise_rate")
        if self.penalty < 0:
            raise ConfigError(f"must not be negative, got {self.penalty}.", "penalty")

    def check(self, split: Split, task: Task) -> None:
        if not isinstance(task, Classification):
            raise Unsupported(
                f"unsir forgets classes of a classifier, and the task is '{type(task).__name__}'. "
                "Use amnesiac or bad_teacher."
            )
        super().check(split, task)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("retain"),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        loss, noise = step.retain.loss, step.retain.batch["ids"] < step.state
        terms = {"retain": (loss * ~noise).mean()}
        return {"forget": (loss * noise).mean(), **terms} if step.state else terms

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        sample = self.sample(split.retain, task, session)
        noise, labels = self.noise(model, split, task, session)
        (plain,) = sample.batches([torch.arange(len(sample))], device="cpu")
        copies = [noise.to(plain["inputs"])] * self.noise_copies
        mixed = ArrayData(
            {
                "inputs": torch.cat([*copies, plain["inputs"]]),
                "targets": torch.cat([*[labels] * self.noise_copies, plain["targets"]]),
            }
        )
        phases = (
            (mixed, self.impair_batch_size, len(noise) * self.noise_copies, "impair"),
            (sample, self.batch_size, 0, "repair"),
        )
        for data, batch_size, count, name in phases:
            plan = Plan(
                what=f"unsir ({name})",
                objective=self.objective,
                parts={"forget": split.forget, "retain": data},
                passes=self.passes,
                epochs=self.epochs,
                batch_size=batch_size,
                optim=self.optim,
                scope=self.scope,
                modifiers=self.modifiers,
                mode=self.mode,
                state=count,
            )
            model = optimise(model, plan, task, session.child(name))
        return model

    def sample(self, retain: Data, task: Task, session: Session) -> Data:
        """At most ``per_class`` examples of each class of the retain set."""
        order = torch.randperm(len(retain), generator=session.generator("unsir"))
        classes = task.groups(retain)[order]
        rows = [order[classes == label][: self.per_class] for label in torch.unique(classes)]
        return retain.subset(retain.ids[torch.cat(rows).sort().values])

    def noise(self, model: nn.Module, split: Split, task: Task, session: Session) -> tuple[Tensor, Tensor]:
        """Inputs that the model likes least for each forgotten class, ``(K · noise_size, …)``, and labels."""
        classes = forgotten_classes(split, task)
        (first,) = split.forget.batches([torch.tensor([0])], device="cpu")
        if not first["inputs"].is_floating_point():
            raise Unsupported(
                f"unsir optimises inputs, and these are {first['inputs'].dtype}. Use amnesiac or bad_teacher."
            )
        labels = classes.repeat_interleave(self.noise_size)
        shape = (len(labels), *first["inputs"].shape[1:])
        start = torch.randn(shape, generator=session.generator("noise")).to(first["inputs"].dtype)

        def objective(step: Step) -> dict[str, Tensor]:
            inputs = step.model.get_parameter("inputs")[step.retain.batch["inputs"]]
            size = inputs.square().flatten(1).sum(1)
            value = (self.penalty * size - step.retain.loss).mean()
            return {
                "noise": value * len(classes)
            }  # each class has a mean, so that none depends on the others

        plan = Plan(
            what="unsir (noise)",
            objective=objective,
            parts={"retain": ArrayData({"inputs": torch.arange(len(labels)), "targets": labels})},
            passes=self.passes,
            epochs=self.noise_steps,
            batch_size=len(labels),
            optim=AdamW(lr=self.noise_rate, weight_decay=0.0),
            mode="eval",
        )
        asked = Noise(session.engine.copy(model), start)
        found = optimise(asked, plan, task, session.child("noise"))
        return found.get_parameter("inputs").detach().cpu(), labels
