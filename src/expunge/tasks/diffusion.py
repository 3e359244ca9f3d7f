"""Denoising diffusion: predict the noise that was added, or what it was added to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data
from expunge.data.captions import EMPTY
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.tasks.base import BATCH_SIZE, Task, model_output, tasks
from expunge.tasks.noise_schedules import NoiseSchedule, signal_left

Prediction = Literal["noise", "velocity", "sample"]

ELEMENTS = 2**20
"""Numbers in the inputs of a forward pass of an evaluation."""

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "noise", "v_prediction": "velocity", "sample": "sample"}
_SCHEDULES: dict[str, NoiseSchedule] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}


@tasks.register("diffusion")
@dataclass(frozen=True)
class Diffusion(Task):
    """A denoising diffusion model (Ho et al., 2020), unconditional, of classes or of captions.

    ``x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε``, ``ℓ = mean (f_θ(x_t, t, c) − y)²`` over the elements of one
    example, with ``y`` the ``prediction``: ``noise`` ``ε``; ``velocity`` ``√ᾱ_t ε − √(1 − ᾱ_t) x_0``
    (Salimans and Ho, 2022); ``sample`` ``x_0``.

    Batches hold ``inputs`` ``(N, …)``. The model is called with ``(x_t, t, c)``; ``c`` are ``input_ids``
    ``(N, T)`` where the batch has them, else ``targets`` ``(N,)`` where ``conditions`` is set, else None.
    ``<name>.input_ids`` and ``<name>.targets`` are other conditions of the same examples, for ``instead``;
    ``empty`` is the empty caption, and of classes the index ``conditions``.

    Args:
        timesteps: length of the noise schedule.
        conditions: number of classes; ``None`` for captions, and for an unconditional model.
        beta_start, beta_end: the ends of a linear schedule of variances.
        schedule: see ``noise_schedules``.
        dropout: in training, by name of another condition the probability that it takes the place of an
            example's own: ``{"empty": 0.1}`` is classifier-free dropout. Unlearning runs without.
        antithetic: draw the timesteps of a batch as pairs ``t``, ``T − 1 − t``, for less variance.
    """

    timesteps: int = 1000
    conditions: int | None = None
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction: Prediction = "noise"
    schedule: NoiseSchedule = "linear"
    dropout: Mapping[str, float] = field(default_factory=dict)
    antithetic: bool = False

    random_outputs: ClassVar[bool] = True
    relabel_changes_inputs: ClassVar[bool] = True
    relabel_asks_otherwise: ClassVar[bool] = True
    score_name: ClassVar[str] = "exp(−loss)"

    def __post_init__(self) -> None:
        if self.timesteps < 1:
            raise ConfigError(f"timesteps must be at least 1, got {self.timesteps}.", "timesteps")
        if self.conditions is not None and self.conditions < 1:
            raise ConfigError(f"conditions must be at least 1, got {self.conditions}.", "conditions")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError("needs 0 < beta_start <= beta_end < 1.", "beta_start")
        for name, known in (("prediction", get_args(Prediction)), ("schedule", get_args(NoiseSchedule))):
            if getattr(self, name) not in known:
                raise ConfigError(f"must be one of {', '.join(known)}, got '{getattr(self, name)}'.", name)
        shares = list(self.dropout.values())
        if any(share < 0 for share in shares) or sum(shares) > 1:
            raise ConfigError(f"needs probabilities that add up to at most 1, got {shares}.", "dropout")

    @classmethod
    def from_scheduler(cls, scheduler: Any, **fields: Any) -> Self:
        """The task that a scheduler of diffusers belongs to: its noise schedule and prediction.

        Args:
            fields: the task's others, such as ``dropout``.

        Raises:
            Unsupported: a schedule or prediction that this task does not have, such as flow matching.
        """
        config, name = scheduler.config, type(scheduler).__name__
        prediction = _PREDICTIONS.get(config.get("prediction_type", "epsilon"))
        schedule = _SCHEDULES.get(config.get("beta_schedule", ""))
        known = getattr(scheduler, "alphas_cumprod", None)
        if prediction is None or schedule is None or known is None:
            raise Unsupported(
                f"{name} has beta_schedule={config.get('beta_schedule')} and "
                f"prediction_type={config.get('prediction_type')}. Use a scheduler with linear, "
                "scaled_linear or squaredcos_cap_v2 and epsilon, v_prediction or sample."
            )
        ends = {} if schedule == "cosine" else {end: config[end] for end in ("beta_start", "beta_end")}
        task = cls(config["num_train_timesteps"], prediction=prediction, schedule=schedule, **ends, **fields)
        if not torch.allclose(task.signal_left, known.float().cpu(), rtol=1e-3, atol=1e-6):
            raise Unsupported(
                f"{name} changes its betas (trained_betas or rescale_betas_zero_snr). Use one without."
            )
        return task

    @property
    def signal_left(self) -> Tensor:
        """``ᾱ``, ``(timesteps,)``."""
        return signal_left(self.schedule, self.timesteps, self.beta_start, self.beta_end)

    def unlearning(self) -> Diffusion:
        """Without dropout: a method that asks for a condition gets that one."""
        return replace(self, dropout={}) if self.dropout else self

    def check(self, data: Data, part: str) -> None:
        captions = _has(data, "input_ids")
        if self.conditions is not None and not captions:
            self._check_classes(data, part)
        for name in self.dropout:
            key = f"{name}.input_ids" if captions else f"{name}.targets"
            of_classes = self.conditions is not None and not captions
            if not (_has(data, key) or (of_classes and name == EMPTY)):
                raise DataError(
                    f"{part} has no column '{key}', which dropout draws. Add it, or take '{name}' out of "
                    "the task's dropout."
                )

    def batch_size(self, data: Data) -> int:
        """As many examples as have at most 2²⁰ numbers together."""
        return max(1, min(BATCH_SIZE, ELEMENTS // data.column("inputs")[0].numel()))

    def prepare(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        x = batch["inputs"]
        if generator is None:  # evaluation: each id always gets the same noise and timestep
            draws = [_draw(x.shape[1:], self.timesteps, torch.Generator().manual_seed(int(i) + 1))
                     for i in batch["ids"].tolist()]  # fmt: skip
            noise = torch.stack([n for n, _ in draws]).to(x)
            steps = torch.stack([t for _, t in draws]).to(x.device)
        else:
            noise = torch.randn(x.shape, generator=generator).to(x)
            steps = self._timesteps(len(x), generator).to(x.device)
            batch = self._dropped(batch, generator)
        return {**batch, "noisy": self.noised(x, noise, steps), "noise": noise, "timesteps": steps}

    def noised(self, inputs: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``√ᾱ_t x_0 + √(1 − ᾱ_t) ε`` with one timestep for each example."""
        signal, spread = self.levels(timesteps, inputs)
        return signal * inputs + spread * noise

    def levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """``√ᾱ_t`` and ``√(1 − ᾱ_t)`` of each example, ``(N, 1, …)``, to be multiplied with ``like``.

        A negative timestep is a finished example: 1 and 0.
        """
        kept = self.signal_left.to(timesteps.device)[timesteps.clamp(min=0)]
        kept = torch.where(timesteps < 0, torch.ones_like(kept), kept).view(-1, *[1] * (like.ndim - 1))
        return kept.sqrt().to(like), (1 - kept).sqrt().to(like)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        key = self._key(batch)
        condition = None if key is None else batch[key]
        predicted = model_output(model(batch["noisy"], batch["timesteps"], condition))
        return predicted.flatten(1)

    def target(self, batch: Batch) -> Tensor:
        """What is to be predicted, in the shape of ``noisy``."""
        if self.prediction == "noise":
            return batch["noise"]
        if self.prediction == "sample":
            return batch["inputs"]
        signal, spread = self.levels(batch["timesteps"], batch["noisy"])
        return signal * batch["noise"] - spread * batch["inputs"]

    def original_clean(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The ``x_0`` that outputs, flat or not, say of ``noisy``; in its shape."""
        found, noisy = outputs.view_as(batch["noisy"]), batch["noisy"]
        signal, spread = self.levels(batch["timesteps"], noisy)
        if self.prediction == "sample":
            return found
        if self.prediction == "velocity":
            return signal * noisy - spread * found
        return (noisy - spread * found) / signal

    def noise_of(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The noise ``ε`` that outputs, flat or not, say is in ``noisy``; in its shape."""
        found, noisy = outputs.view_as(batch["noisy"]), batch["noisy"]
        signal, spread = self.levels(batch["timesteps"], noisy)
        if self.prediction == "noise":
            return found
        if self.prediction == "velocity":
            return signal * found + spread * noisy
        return (noisy - signal * found) / spread

    def instead(self, batch: Batch, name: str) -> Batch:
        """The same noisy examples under another caption or class that the data brings, or ``empty``."""
        key = self._key(batch)
        if key is None:
            return super().instead(batch, name)
        if f"{name}.{key}" in batch:
            return {**batch, key: batch[f"{name}.{key}"]}
        have = [column.removesuffix(f".{key}") for column in sorted(batch) if column.endswith(f".{key}")]
        if key == "input_ids":
            raise Unsupported(
                f"the data has no '{name}' captions; it has: {', '.join(have) or 'none'}. Give them by "
                f"with_captions('{name}', …), or choose a method that needs none."
            )
        if name == EMPTY:
            return {**batch, key: torch.full_like(batch[key], self.conditions or 0)}
        raise Unsupported(
            f"the data has no other answers. Use a method without '{name}' (there is: "
            f"{', '.join([EMPTY, *have])}), or give a column '{name}.targets' of classes."
        )

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs.float() - self.target(batch).flatten(1)).square().mean(-1)

    def divergence(
        self, reference: Tensor, outputs: Tensor, batch: Batch, temperature: float = 1.0
    ) -> Tensor:
        """``mean (a − b)² / T``: the task's squared error between two predictions."""
        return (reference.float() - outputs.float()).square().mean(-1) / temperature

    def relabel(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Another condition for the same noisy example: of classes one drawn uniformly from all of them, of
        captions the empty one."""
        key = self._key(batch)
        if key is None:
            raise Unsupported(
                "an unconditional Diffusion model has no condition to replace. Use a method that does "
                "not relabel: grad_ascent, grad_diff, npo."
            )
        if key == "input_ids":
            return self.instead(batch, EMPTY)
        drawn = torch.randint(self.conditions or 1, batch[key].shape, generator=generator)
        return {**batch, key: drawn.to(batch[key])}

    def sample(self, outputs: Tensor, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Predictions drawn from Gaussians around the outputs, with the variance ``D / 2`` of the loss.

        ``ℓ = ‖f − y‖² / D`` is the negative log-likelihood of that Gaussian, up to a constant. ``noisy`` is
        as before; its noise and its ``x_0`` are those that the drawn prediction says.
        """
        noise = torch.randn(outputs.shape, generator=generator).to(outputs.device)
        drawn = outputs.detach().float() + (outputs.shape[1] / 2) ** 0.5 * noise
        found = {"noise": self.noise_of(drawn, batch).to(batch["noise"])}
        if self.prediction != "noise":
            found["inputs"] = self.original_clean(drawn, batch).to(batch["inputs"])
        return {**batch, **found}

    def score(self, outputs: Tensor, batch: Batch) -> Tensor:
        return torch.exp(-self.loss(outputs, batch))

    def groups(self, data: Data) -> Tensor:
        if self.conditions is None:
            return super().groups(data)
        return data.column("targets").long()

    def _check_classes(self, data: Data, part: str) -> None:
        conditions = data.column("targets")
        bad = (conditions < 0) | (conditions >= (self.conditions or 0))
        if bad.any():
            row = int(bad.nonzero()[0])
            raise DataError(
                f"{part} condition {int(conditions[row])} of example {int(data.ids[row])} is outside "
                f"0..{(self.conditions or 0) - 1}."
            )

    def _key(self, batch: Batch) -> str | None:
        """The column that holds the condition."""
        if "input_ids" in batch:
            return "input_ids"
        return None if self.conditions is None else "targets"

    def _timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        if not self.antithetic:
            return torch.randint(self.timesteps, (count,), generator=generator)
        half = torch.randint(self.timesteps, ((count + 1) // 2,), generator=generator)
        return torch.cat([half, self.timesteps - 1 - half])[:count]

    def _dropped(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch in which some examples have another condition in place of their own."""
        key = self._key(batch)
        if not self.dropout or key is None:
            return batch
        own = batch[key]
        draws = torch.rand(len(own), generator=generator).to(own.device)
        chosen, low = own, 0.0
        for name, share in self.dropout.items():
            here = ((draws >= low) & (draws < low + share)).view(-1, *[1] * (own.ndim - 1))
            chosen = torch.where(here, self.instead(batch, name)[key], chosen)
            low += share
        return {**batch, key: chosen}


def _has(data: Data, name: str) -> bool:
    try:
        data.column(name)
    except DataError:
        return False
    return True


def _draw(shape: torch.Size, timesteps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, generator=generator), torch.randint(timesteps, (), generator=generator)
