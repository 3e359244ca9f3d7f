"""Models by name: each is a frozen dataclass that builds a fresh network when called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from expunge.errors import ConfigError, MissingExtra
from expunge.registry import Registry
from expunge.training import functions, networks
from expunge.training.checkpoint import load_weights


@dataclass(frozen=True, kw_only=True)
class ModelSpec(ABC):
    """What a model is, written down. Calling it builds one.

    Args:
        weights: a checkpoint that every training starts from, the original's as the retrained
            ones': safetensors, or a state dict that ``torch.save`` wrote. ``None`` is random
            weights.
    """

    weights: Path | None = None

    @abstractmethod
    def network(self) -> nn.Module:
        """The network with fresh random weights, drawn from torch's global generator."""

    def build(self) -> nn.Module:
        """The network with its starting weights: ``weights`` where given, random ones otherwise.

        Raises:
            CheckpointError: ``weights`` cannot be read or do not fit.
        """
        model = self.network()
        if self.weights is not None:
            load_weights(model, self.weights)
        return model

    def __call__(self) -> nn.Module:
        return self.build()

    def __post_init__(self) -> None:
        """Every integer of a model is a size: at least 1."""
        for item in fields(self):
            value = getattr(self, item.name)
            sizes = value if isinstance(value, tuple) else (value,)
            if any(type(size) is int and size < 1 for size in sizes):
                raise ConfigError(f"must be at least 1, got {value}.", item.name)


models: Registry[ModelSpec] = Registry(
    "model",
    ModelSpec,  # type: ignore[type-abstract]
    (
        "expunge.training.models",
        "expunge.training.language_models",
        "expunge.training.vision_language_models",
        "expunge.training.diffusion_models",
        "expunge.training.gan_models",
        "expunge.training.clip_models",
    ),
)


@models.register("mlp")
@dataclass(frozen=True, kw_only=True)
class Mlp(ModelSpec):
    """Perceptron on flattened inputs; without hidden layers a linear model."""

    inputs: int
    outputs: int
    hidden: tuple[int, ...] = (64,)

    def network(self) -> nn.Module:
        return networks.MLP(self.inputs, self.hidden, self.outputs)


@dataclass(frozen=True, kw_only=True)
class ImageSpec(ModelSpec):
    """An image classifier, ``(N, in_channels, H, W)`` in [0, 1] to ``(N, classes)``.

    Args:
        mean, std: subtracted from and divided by, one number a channel; none by default.

    Raises:
        ConfigError: a mean or std that does not fit the channels, or a std that is not positive.
    """

    classes: int
    in_channels: int = 3
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std"):
            given = len(getattr(self, name))
            if given != (self.in_channels if self.mean or self.std else 0):
                raise ConfigError(f"needs {self.in_channels} numbers, one a channel, got {given}.", name)
        if any(value <= 0 for value in self.std):
            raise ConfigError(f"must be positive, got {list(self.std)}.", "std")

    def normalise(self) -> networks.Normalise:
        """The first layer."""
        return networks.Normalise(self.mean, self.std)


@models.register("small_cnn")
@dataclass(frozen=True, kw_only=True)
class SmallCnn(ImageSpec):
    """Three convolutions with batch norm, for images of any size."""

    width: int = 16

    def network(self) -> nn.Module:
        return networks.SmallCNN(self.in_channels, self.classes, self.width, self.normalise())


@models.register("resnet20")
@dataclass(frozen=True, kw_only=True)
class ResNet20(ImageSpec):
    """ResNet-20 of He et al. (2016) for small images; parameter-free shortcuts (option A)."""

    def network(self) -> nn.Module:
        return networks.ResNet(self.in_channels, self.classes, (16, 32, 64), 3, False, self.normalise())


@models.register("resnet18")
@dataclass(frozen=True, kw_only=True)
class ResNet18(ImageSpec):
    """ResNet-18 with a 3×3 stem and no pooling for small images; 1×1 shortcuts (option B)."""

    width: int = 64

    def network(self) -> nn.Module:
        widths = (self.width, 2 * self.width, 4 * self.width, 8 * self.width)
        return networks.ResNet(self.in_channels, self.classes, widths, 2, True, self.normalise())


@models.register("resnet9")
@dataclass(frozen=True, kw_only=True)
class ResNet9(ImageSpec):
    """ResNet of nine layers that trains in few epochs; ``width`` and ``stride`` of its stem make it small."""

    width: int = 64
    stride: int = 1

    def network(self) -> nn.Module:
        return networks.ResNet9(self.in_channels, self.classes, self.width, self.stride, self.normalise())


@models.register("tiny_lm")
@dataclass(frozen=True, kw_only=True)
class TinyLm(ModelSpec):
    """Decoder-only transformer: ``input_ids`` ``(N, T)`` to logits ``(N, T, vocabulary)``."""

    vocabulary: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    context: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self.width, self.heads)

    def network(self) -> nn.Module:
        return networks.LanguageModel(self.vocabulary, self.width, self.layers, self.heads, self.context)


@models.register("tiny_denoiser")
@dataclass(frozen=True, kw_only=True)
class TinyDenoiser(ModelSpec):
    """Noise predictor for vectors: ``(x (N, D), timesteps (N,), condition (N,) | None)`` to ``(N, D)``.

    Args:
        inputs: the dimension D.
        conditions: number of conditions; ``None`` for an unconditional model.
    """

    inputs: int
    conditions: int | None = None
    width: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 2:
            raise ConfigError(f"must be even (sines and cosines of the timestep), got {self.width}.", "width")

    def network(self) -> nn.Module:
        return networks.Denoiser(self.inputs, self.width, self.layers, self.conditions or 0)


@models.register("hf_resnet")
@dataclass(frozen=True, kw_only=True)
class HfResNet(ModelSpec):
    """ResNet of transformers with random weights; returns its output object, which has ``.logits``.

    Args:
        widths: channels of each stage.
        depths: blocks of each stage.
        stem: channels of the stem.

    Raises:
        ConfigError: as many widths as depths are needed.
        MissingExtra: transformers is not installed.
    """

    classes: int
    in_channels: int = 3
    stem: int = 16
    widths: tuple[int, ...] = (16, 32, 64)
    depths: tuple[int, ...] = (1, 1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.depths) != len(self.widths):
            raise ConfigError(f"needs one for each of {len(self.widths)} widths.", "depths")

    def network(self) -> nn.Module:
        try:
            from transformers import ResNetConfig, ResNetForImageClassification
        except ImportError:
            raise MissingExtra("model 'hf_resnet'", "llm") from None
        config = ResNetConfig(
            num_channels=self.in_channels,
            embedding_size=self.stem,
            hidden_sizes=list(self.widths),
            depths=list(self.depths),
            layer_type="basic",
            num_labels=self.classes,
        )
        model: nn.Module = ResNetForImageClassification(config)
        return model


@models.register("hf_vit")
@dataclass(frozen=True, kw_only=True)
class HfViT(ModelSpec):
    """Vision transformer of transformers with random weights; its output object has ``.logits``.

    Args:
        image_size, patch_size: sides of the square image and its patches, in pixels.

    Raises:
        ConfigError: an image that is not a whole number of patches, or a width not of heads.
        MissingExtra: transformers is not installed.
    """

    classes: int
    in_channels: int = 3
    image_size: int = 32
    patch_size: int = 4
    width: int = 64
    layers: int = 4
    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self.width, self.heads)
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"must divide image_size {self.image_size}, got {self.patch_size}.", "patch_size"
            )

    def network(self) -> nn.Module:
        try:
            from transformers import ViTConfig, ViTForImageClassification
        except ImportError:
            raise MissingExtra("model 'hf_vit'", "llm") from None
        config = ViTConfig(
            num_channels=self.in_channels,
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_labels=self.classes,
        )
        model: nn.Module = ViTForImageClassification(config)
        return model


@models.register("load")
@dataclass(frozen=True, kw_only=True)
class Load(ModelSpec):
    """Your own model: ``function`` names a function or class that returns an ``nn.Module``.

    Args:
        function: ``"module:function"`` or ``"file.py:function"``; modules in the current directory can
            be imported.
        arguments: keyword arguments of the function.

    Raises:
        ConfigError: no such module or function, arguments it does not take, an exception in it, or no
            ``nn.Module``.
    """

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def network(self) -> nn.Module:
        model = functions.call(self.function, self.arguments)
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"'{self.function}' returned {type(model).__name__}; expected a torch nn.Module.", "function"
            )
        return model


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ConfigError(f"must be a multiple of the {heads} heads, got {width}.", "width")
