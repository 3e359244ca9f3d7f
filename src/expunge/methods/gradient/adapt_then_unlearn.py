"""Adapt-then-unlearn: for generators of adversarial networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from expunge.data.arrays import ArrayData
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.tasks.gan import GAN
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import AdamW, Optim
from expunge.training.parameters import importance
from expunge.training.session import Session
from expunge.training.step import Step

Weights = dict[str, Tensor]
CHUNK = 256
"""Images that are drawn, or compared, at once."""


@dataclass(frozen=True)
class Memory:
    """The Fisher information of the generator's weights, and where they were."""

    fisher: Weights
    start: Weights

    def penalty(self, model: nn.Module) -> Tensor:
        """``Σ_j F_j (θ_j − θ_o,j)²``."""
        now = own_weights(model, self.fisher)
        parts = [(self.fisher[name] * (now[name] - self.start[name]).square()).sum() for name in now]
        return torch.stack(parts).sum()


def weights_of(model: nn.Module) -> Weights:
    """A copy of the generator's trainable weights."""
    named = model.named_parameters()
    return {n: p.detach().clone() for n, p in named if n.startswith("generator.") and p.requires_grad}


def own_weights(model: nn.Module, known: Weights) -> Weights:
    """Those of the known weights that are trained.

    Raises:
        Unsupported: there are none.
    """
    now = {name: p for name, p in model.named_parameters() if name in known and p.requires_grad}
    if not now:
        raise Unsupported(
            "adapt_then_unlearn compares the generator's weights, and the scope trains none of them. Set "
            "scope to everything, or to modules of the generator."
        )
    return dict(now)


def apart(model: nn.Module, adapted: Sequence[Weights]) -> Tensor:
    """``d``: the mean, over the adapted models and the tensors that are trained, of ``MSE(θ, θ_k)``."""
    now = own_weights(model, adapted[0])
    each = [(now[name] - weights[name]).square().mean() for weights in adapted for name in now]
    return torch.stack(each).mean()


def nearest(images: Tensor, split: Split) -> Tensor:
    """Whether the example nearest to each image is one to forget, ``(N,)``."""
    parts = [part.column("inputs").float().flatten(1) for part in (split.forget, split.retain)]
    forget, retain = (
        torch.cat([torch.cdist(rows, part).min(1).values for rows in images.flatten(1).split(CHUNK)])
        for part in parts
    )
    return forget < retain


def _adversarial(task: Task) -> GAN:
    if not isinstance(task, GAN):
        raise Unsupported(
            f"adapt_then_unlearn trains a generator against a discriminator, and task "
            f"'{type(task).__name__}' has none. Use a method for every task: grad_diff, npo."
        )
    return task


@methods.register("adapt_then_unlearn")
@dataclass(frozen=True, kw_only=True)
class AdaptThenUnlearn(GradientMethod):
    """Learns where the weights go for images with a feature, and then trains on others, away from there.

    The generator draws ``samples`` images, and feedback says which of them show what is to be forgotten (the
    negatives). With ``L`` the adversarial loss and ``θ`` the weights of the generator::

        adapt:    θ_k = argmin L(negatives) + λ/2 Σ_j F_j (θ_j − θ_o,j)²     from the original, K times
        unlearn:  min L(positives) + w R(d)    with d = mean_k mean_tensors MSE(θ, θ_k)
        R(d) = γ / d (inverse),   −γ d (negative),   exp(−γ d) (exponential)

    ``F_j = mean_z (∂ log D(G(z)) / ∂θ_j)²`` over ``fisher_samples`` images, one by one; ``log D`` is the
    log-probability of being real. No training data is used but as ``nearest`` says.

    Args:
        feedback: ``nearest``: an image is negative where the example nearest to it, in pixels, is one to
            forget; or a function of images ``(N, …)`` that says so of each, ``(N,)`` booleans or
            probabilities. A function cannot be written to a configuration file.
        samples: images that are drawn for feedback.
        models: ``K``, adaptations, each with draws of its own.
        adapt_epochs: passes over the negatives in each of them.
        strength: ``λ``.
        fisher_samples: images for ``F``.
        form: ``R``.
        gamma: ``γ``, to be set beside ``d``: of a network of a thousand weights ``d`` was 1e-3, and the
            published 10 with ``inverse`` outweighed the images to keep, where 1e-3 did not.
        weight: ``w``; ``null`` for 100 with ``exponential`` and 1 with the others, as published.

    Shapes: models of a generator and a discriminator under task ``gan``. Unsupported for others.
    Cost: ``samples`` drawn images, ``fisher_samples`` forward and backward passes one by one, then ``models``
        times ``adapt_epochs`` passes over the negatives and ``epochs`` over the positives. ``models + 2``
        copies of the generator besides the model.
    Guarantee: empirical.
    Differs: ``d`` is the mean over the adapted models, whatever their number. The authors' code writes
        ``value / 2 * n`` for that of ``n``, which multiplies: there the term grows with the square of their
        number. Adapted weights stay in memory; there they are read from files in every step. ``F`` and the
        distance take every weight of the generator, the code's ``F`` those of convolutions. The adversarial
        loss is that of the task, without StyleGAN2's penalties of gradients and of path lengths. ``λ`` 5e8
        there belongs to the gradients of StyleGAN2, which are far smaller; 100 here, the momentum of Adam and
        the numbers of samples and epochs are choices of ours.
    References: Tiwary et al., Adapt then Unlearn: Exploring Parameter Space Semantics for Unlearning in
        Generative Adversarial Networks, 2023, arXiv:2309.14054; learning rate 0.002, batches of 16, ``K`` 5,
        ``γ`` 10 with the inverse form and 32 images for ``F`` as in its code.
    """

    epochs: int = 20
    batch_size: int = 16
    optim: Optim = AdamW(lr=0.002, weight_decay=0.0, betas=(0.0, 0.99))
    feedback: str | Callable[[Any], Any] = "nearest"
    samples: int = 1000
    models: int = 5
    adapt_epochs: int = 20
    strength: float = 100.0
    fisher_samples: int = 32
    form: Literal["inverse", "negative", "exponential"] = "inverse"
    gamma: float = 10.0
    weight: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("samples", "models", "adapt_epochs", "fisher_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if not self.gamma > 0:
            raise ConfigError(f"must be above 0, got {self.gamma}.", "gamma")
        if self.strength < 0:
            raise ConfigError(f"must not be negative, got {self.strength}.", "strength")
        if isinstance(self.feedback, str) and self.feedback != "nearest":
            raise ConfigError(f"is 'nearest' or a function of images, got '{self.feedback}'.", "feedback")

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        _adversarial(task)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("retain"),)

    def unlearn(self, model: nn.Module, split: Split, task: Task, session: Session) -> nn.Module:
        self.check(split, task)
        if not isinstance(getattr(model, "generator", None), nn.Module):
            raise Unsupported("the model has no generator. Give a Gan(generator, discriminator, latent).")
        labelled = self.labelled(model, split, task, session)
        return optimise(model, self.plan(model, labelled, task, session), task, session)

    def labelled(self, model: nn.Module, split: Split, task: Task, session: Session) -> Split:
        """Images that the generator draws: the negatives to forget, the positives to retain.

        Raises:
            DataError: feedback that is not one answer for each image, or that is the same for all.
        """
        draws, found = session.generator("samples"), []
        placed = session.engine.placed(model)
        with session.engine.frozen(placed):
            for start in range(0, self.samples, CHUNK):
                rows = min(CHUNK, self.samples - start)
                latents = torch.randn(rows, _adversarial(task).latent, generator=draws)
                images = placed.get_submodule("generator")(latents.to(session.engine.torch_device))
                found.append(images.float().cpu())
        images = torch.cat(found)
        said = self.feedback(images) if callable(self.feedback) else nearest(images, split)
        negative = torch.as_tensor(said).cpu()
        if negative.shape != (len(images),):
            raise DataError(f"feedback gave {tuple(negative.shape)} for {len(images)} images. Give (N,).")
        ids = (negative.float() > 0.5).nonzero()[:, 0]
        if not 0 < len(ids) < len(images):
            raise DataError(
                f"feedback found {len(ids)} of {len(images)} drawn images negative; some must be, and some "
                "not. Draw more samples, or look at the feedback."
            )
        return Split.from_ids(ArrayData({"inputs": images}), ids)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> list[Weights]:
        """The generator's weights in each of the adapted models."""
        placed = session.engine.placed(model)
        memory = Memory(self._fisher(placed, split, task, session), weights_of(placed))

        def objective(step: Step) -> dict[str, Tensor]:
            near = self.strength / 2 * memory.penalty(step.model)
            return {"forget": step.forget.loss.mean() + near}

        plan = Plan(
            what=f"{methods.name_of(self)}: adapt",
            objective=objective,
            parts={"forget": split.forget, "retain": split.retain},
            passes=lambda epoch: (Pass("forget"),),
            epochs=self.adapt_epochs,
            batch_size=self.batch_size,
            optim=self.optim,
            scope=self.scope,
            mode=self.mode,
        )
        runs = [session.child("adapt", index) for index in range(self.models)]
        return [weights_of(optimise(model, plan, task, run)) for run in runs]

    def _fisher(self, model: nn.Module, split: Split, task: Task, session: Session) -> Weights:
        images = split.forget.joined(split.retain)
        return importance(
            model,
            images.subset(images.ids[: self.fisher_samples]),
            task,
            session,
            names=list(weights_of(model)),
            batch_size=1,
            measure=lambda outputs, batch: softplus(-outputs[:, 2]),
        )

    def objective(self, step: Step) -> dict[str, Tensor]:
        return {"retain": step.retain.loss.mean(), "repel": self.repulsion(step.model, step.state)}

    def repulsion(self, model: nn.Module, adapted: Sequence[Weights]) -> Tensor:
        """``w R(d)``, a scalar.

        Raises:
            Unsupported: none of the generator's weights is trained under its own name.
        """
        d = apart(model, adapted)
        if self.form == "exponential":
            return (100.0 if self.weight is None else self.weight) * torch.exp(-self.gamma * d)
        weight = 1.0 if self.weight is None else self.weight
        return weight * (self.gamma / d if self.form == "inverse" else -self.gamma * d)
