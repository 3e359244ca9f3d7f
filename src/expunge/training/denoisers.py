"""Denoisers of diffusers as modules called ``(noisy, timesteps, condition)``; pipelines in and out.

Nothing here imports diffusers before it must: modules are taken as they are and found by what they have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.errors import ConfigError, DataError, MissingExtra, Unsupported
from expunge.tasks.diffusion import Diffusion

CHUNK = 64
"""Images that are decoded at once."""

_NAMES = ("text_encoder", "unet", "vae")
_PREDICTIONS = {"noise": "epsilon", "velocity": "v_prediction", "sample": "sample"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@dataclass(frozen=True)
class Companions:
    """What a pipeline consists of besides the networks at work; copies of a model share it.

    Args:
        kind: the pipeline's class; None for Stable Diffusion's.
        others: further components by name, such as a safety checker.
    """

    tokenizer: Any = None
    scheduler: Any = None
    kind: Any = None
    others: Mapping[str, Any] = field(default_factory=dict)

    def __deepcopy__(self, memo: Any) -> Companions:
        return self


class TextToImage(nn.Module):
    """A text encoder and a denoiser with cross-attention, and the autoencoder of its latents.

    Called with ``(noisy (N, C, h, w), timesteps (N,), input_ids (N, T))`` it gives the prediction, in the
    shape of ``noisy``. The autoencoder is frozen.

    Args:
        text_encoder: of transformers: its first output is ``(N, T, D)``.
        unet: ``UNet2DConditionModel`` of diffusers, or what is called like one.
        vae: an autoencoder of diffusers, ``AutoencoderKL`` or ``PatchVAE``.
        companions: what else belongs to its pipeline.
    """

    def __init__(
        self, text_encoder: nn.Module, unet: nn.Module, vae: nn.Module, companions: Companions | None = None
    ) -> None:
        super().__init__()
        self.text_encoder, self.unet, self.vae = text_encoder, unet, vae
        self.companions = companions or Companions()
        self.vae.requires_grad_(False)

    @classmethod
    def from_pipeline(cls, pipe: Any) -> TextToImage:
        """The model in a pipeline of diffusers, which keeps its modules: they are not copied.

        Raises:
            Unsupported: no text encoder, UNet or autoencoder, or more than one text encoder.
        """
        parts = dict(pipe.components)
        check_parts(type(pipe).__name__, [name for name, part in parts.items() if part is not None])
        modules = {part: parts.pop(part) for part in _NAMES}
        tokenizer, scheduler = parts.pop("tokenizer", None), parts.pop("scheduler", None)
        return cls(**modules, companions=Companions(tokenizer, scheduler, type(pipe), parts)).eval()

    def pipeline(self, tokenizer: Any = None, task: Diffusion | None = None) -> Any:
        """A pipeline of diffusers around these very modules: ``StableDiffusionPipeline``, or the class that
        the model came from.

        Args:
            tokenizer: where the model did not come from a pipeline.
            task: likewise; its noise schedule becomes a DDIM scheduler with trailing timesteps.

        Raises:
            ConfigError: no tokenizer or no task where one is needed.
            MissingExtra: diffusers is not installed.
        """
        tokenizer = self.companions.tokenizer if tokenizer is None else tokenizer
        scheduler = self.companions.scheduler if task is None else ddim_scheduler(task)
        if tokenizer is None:
            raise ConfigError("a pipeline needs a tokenizer. Give the one of the captions.", "tokenizer")
        if scheduler is None:
            raise ConfigError("a pipeline needs a noise schedule. Give the task it was trained by.", "task")
        kind, others = self.companions.kind, dict(self.companions.others)
        if kind is None:
            check_diffusers("a pipeline")
            from diffusers import StableDiffusionPipeline

            kind, others = StableDiffusionPipeline, {"safety_checker": None, "feature_extractor": None}
        if "safety_checker" in others:
            others["requires_safety_checker"] = others["safety_checker"] is not None
        modules = {name: getattr(self, name) for name in _NAMES}
        return kind(**modules, tokenizer=tokenizer, scheduler=scheduler, **others)

    def of(self, tokenizer: Any = None, task: Diffusion | None = None) -> TextToImage:
        """The same modules, a guard among them, with another tokenizer and noise schedule as companions."""
        given = {"tokenizer": tokenizer, "scheduler": None if task is None else ddim_scheduler(task)}
        found = {name: value for name, value in given.items() if value is not None}
        made = TextToImage(self.text_encoder, self.unet, self.vae, replace(self.companions, **found))
        for name, child in self.named_children():
            made.add_module(name, child)
        return made.train(self.training)

    @property
    def task(self) -> Diffusion:
        """What the pipeline that it came from was trained for, without dropout.

        Raises:
            ConfigError: it came from none.
            Unsupported: as ``Diffusion.from_scheduler``.
        """
        if self.companions.scheduler is None:
            raise ConfigError("the model came from no pipeline. Give the task it was trained by.", "task")
        return Diffusion.from_scheduler(self.companions.scheduler)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, h, w)`` of what it denoises."""
        return _shape(self.unet)

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        return self.predict(noisy, timesteps, self.encode_text(condition))

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Hidden states of the captions' tokens, ``(N, T)`` to ``(N, T, D)``.

        Raises:
            DataError: more tokens than the text encoder has positions.
        """
        most = getattr(getattr(self.text_encoder, "config", None), "max_position_embeddings", None)
        if most is not None and input_ids.shape[1] > most:
            raise DataError(
                f"captions have {input_ids.shape[1]} tokens, but the text encoder has {most} positions. Set "
                f"the tokenizer's model_max_length to {most}."
            )
        return cast(Tensor, self.text_encoder(input_ids)[0])

    def predict(self, noisy: Tensor, timesteps: Tensor, hidden_states: Tensor) -> Tensor:
        """The prediction for captions that are encoded already."""
        return cast(Tensor, self.unet(noisy, timesteps, encoder_hidden_states=hidden_states).sample)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents of images ``(N, 3, H, W)`` in [0, 1]: the mode of their distribution, scaled."""
        vae: Any = self.vae
        found = [vae.encode(part * 2 - 1).latent_dist.mode() for part in images.split(CHUNK)]
        return torch.cat(found) * float(vae.config.scaling_factor)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1] of latents ``(N, C, h, w)``."""
        vae: Any = self.vae
        scaled = latents / float(vae.config.scaling_factor)
        return _unit(torch.cat([vae.decode(part).sample for part in scaled.split(CHUNK)]))


class ClassDenoiser(nn.Module):
    """``UNet2DModel`` of diffusers with one class embedding more than there are classes.

    Called with ``(noisy (N, C, H, W), timesteps (N,), condition (N,) | None)``. The condition
    ``conditions``, one more than the last, and ``None`` both mean "no condition".

    Args:
        unet: with ``num_class_embeds = conditions + 1``, or without class embeddings.
        conditions: number of classes; None for an unconditional model.
    """

    def __init__(self, unet: nn.Module, conditions: int | None) -> None:
        super().__init__()
        self.unet, self.conditions = unet, conditions

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of what it denoises: pixels."""
        return _shape(self.unet)

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor | None = None) -> Tensor:
        labels = None
        if self.conditions is not None:
            empty = torch.full_like(timesteps, self.conditions, dtype=torch.long)
            labels = empty if condition is None else condition
        return cast(Tensor, self.unet(noisy, timesteps, class_labels=labels).sample)

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1] of pixels in [−1, 1]."""
        return _unit(latents)


def ddim_scheduler(task: Diffusion) -> Any:
    """The scheduler of diffusers that samples as ``training.sampling`` does.

    Raises:
        MissingExtra: diffusers is not installed.
    """
    check_diffusers("a pipeline")
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=task.timesteps,
        beta_start=task.beta_start,
        beta_end=task.beta_end,
        beta_schedule=_SCHEDULES[task.schedule],
        prediction_type=_PREDICTIONS[task.prediction],
        clip_sample=False,
        timestep_spacing="trailing",
        steps_offset=1,  # not used with trailing timesteps, but pipelines want it
    )


def check_parts(pipeline: str, parts: Collection[str]) -> None:
    """Refuses a pipeline that is not made of one text encoder, a UNet and an autoencoder.

    Args:
        pipeline: what to call it.
        parts: names of its components.

    Raises:
        Unsupported: names what is missing, or the second text encoder.
    """
    if missing := [part for part in _NAMES if part not in parts]:
        words = {"text_encoder": "text encoder", "unet": "UNet", "vae": "autoencoder"}
        raise Unsupported(
            f"{pipeline} has no {words[missing[0]]}, so no prompts to erase from. Use a pipeline like Stable "
            "Diffusion's; for a model of classes use class_denoiser."
        )
    if "text_encoder_2" in parts:
        raise Unsupported(
            f"{pipeline} has two text encoders. Use a pipeline with one: Stable Diffusion 1 or 2."
        )


def check_diffusers(what: str) -> None:
    """Refuses to go on without diffusers and transformers.

    Raises:
        MissingExtra: one of them is not installed.
    """
    if find_spec("diffusers") is None or find_spec("transformers") is None:
        raise MissingExtra(what, "diffusion")


def token_table(model: nn.Module) -> nn.Embedding:
    """The token embeddings of a model's text encoder, whatever modules they stand in.

    Raises:
        Unsupported: the model reads no prompts.
    """
    encoder: Any = getattr(model, "text_encoder", None)
    parts = all(hasattr(model, name) for name in ("encode_text", "predict"))
    if not (parts and hasattr(encoder, "get_input_embeddings")):
        raise Unsupported(
            f"{type(model).__name__} has no text encoder, so it reads no prompts. Use a text-to-image model; "
            "esd, sa and relearn_images need none."
        )
    return cast(nn.Embedding, encoder.get_input_embeddings())


def _shape(unet: nn.Module) -> tuple[int, int, int]:
    config: Any = unet.config
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return config.in_channels, height, width


def _unit(images: Tensor) -> Tensor:
    return (images.float() / 2 + 0.5).clamp(0, 1)
