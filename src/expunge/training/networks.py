"""Small networks of our own: a perceptron, image classifiers, a language model, a denoiser.

Every network keeps its last linear layer in the attribute ``head``, so that the penultimate
features are what ``head`` is called with: a forward pre-hook on it captures them. ``head_of`` finds
the same layer in models of other libraries.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import DataError, Unsupported

_HEADS = ("head", "classifier", "fc", "lm_head", "score")


def head_of(model: nn.Module) -> nn.Linear:
    """The final linear layer: ``model.head``, or what other libraries call it.

    Looks for ``head``, ``classifier``, ``fc``, ``lm_head`` and ``score``, and takes the last linear
    layer inside where that is a container.

    Raises:
        Unsupported: if the model has none of these.
    """
    for name in _HEADS:
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            linear = [module for module in part.modules() if isinstance(module, nn.Linear)]
            if linear:
                return linear[-1]
    raise Unsupported(
        f"{type(model).__name__} has no final linear layer under the names {', '.join(_HEADS)}. "
        "Give the model an attribute 'head' that is its last nn.Linear."
    )


class Normalise(nn.Module):
    """``(x − mean) / std`` for each channel of ``(N, C, H, W)``; the identity without a mean.

    The two vectors are settings, not weights: they are not part of the state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.active = bool(mean)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std if self.active else x


class MLP(nn.Module):
    """``(N, …)``, flattened to ``(N, inputs)``, through ReLU layers to ``(N, outputs)``.

    Without hidden layers it is a linear model.
    """

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        sizes = (inputs, *hidden)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.inputs = inputs
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if x.shape[1] != self.inputs:
            raise DataError(
                f"the mlp takes {self.inputs} numbers an example, got {x.shape[1]}. Set its 'inputs'."
            )
        return self.head(self.body(x))  # type: ignore[no-any-return]


class SmallCNN(nn.Module):
    """Three 3×3 convolutions with batch norm, of ``width``, 2 and 4 times as many channels.

    The second and third halve the image; the average over what is left feeds ``head``, so any image
    size will do. ``(N, C, H, W)`` to ``(N, classes)``.
    """

    def __init__(self, in_channels: int, classes: int, width: int, normalise: Normalise) -> None:
        super().__init__()
        self.normalise = normalise
        self.body = nn.Sequential(
            *_convolution(in_channels, width, 1),
            *_convolution(width, 2 * width, 2),
            *_convolution(2 * width, 4 * width, 2),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.normalise(x)).mean((2, 3)))  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """``ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut(x))`` (He et al., 2016).

    Args:
        in_channels, channels, stride: of the first convolution.
        projection: what a shortcut does where the shape changes: ``True`` is a 1×1 convolution with
            batch norm (option B), ``False`` subsampling and zero channels (option A).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.added = stride, channels - in_channels
        self.shortcut = nn.Sequential()
        if projection and (stride != 1 or self.added):
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if len(self.shortcut):
            return F.relu(out + self.shortcut(x))
        if self.stride != 1 or self.added:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride],
                (0, 0, 0, 0, self.added // 2, self.added - self.added // 2),
            )
        return F.relu(out + x)


class ResNet(nn.Module):
    """A residual network with a 3×3 stem, for small images: ``(N, C, H, W)`` to ``(N, classes)``.

    Args:
        widths: channels of each stage; every stage but the first halves the image.
        blocks: basic blocks in each stage.
        projection: see ``BasicBlock``.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        widths: tuple[int, ...],
        blocks: int,
        projection: bool,
        normalise: Normalise,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages = []
        before = widths[0]
        for index, width in enumerate(widths):
            strides = [1 if index == 0 else 2] + [1] * (blocks - 1)
            stage = []
            for stride in strides:
                stage.append(BasicBlock(before, width, stride, projection))
                before = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.normalise(x))))
        return self.head(self.stages(x).mean((2, 3)))  # type: ignore[no-any-return]


class ResNet9(nn.Module):
    """Nine layers, seven of them 3×3 convolutions after the stem: ``(N, C, H, W)`` to ``(N, classes)``.

    Stem, convolution, residual pair, two convolutions, residual pair, linear; the convolutions between
    double the channels of ``width`` and halve the image by max pooling. The maximum over what is left
    feeds ``head``.

    Args:
        stride: of the stem; 2 makes everything behind it four times cheaper.
    """

    def __init__(self, in_channels: int, classes: int, width: int, stride: int, normalise: Normalise) -> None:
        super().__init__()
        self.normalise = normalise
        self.stem = nn.Sequential(
            *_convolution(in_channels, width, stride), *_convolution(width, 2 * width, 1), nn.MaxPool2d(2)
        )
        self.first = _residual(2 * width)
        self.middle = nn.Sequential(
            *_convolution(2 * width, 4 * width, 1), nn.MaxPool2d(2),
            *_convolution(4 * width, 8 * width, 1), nn.MaxPool2d(2, ceil_mode=True),
        )  # fmt: skip
        self.second = _residual(8 * width)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.normalise(x))
        x = self.middle(x + self.first(x))
        x = x + self.second(x)
        return self.head(x.amax((2, 3)))  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """A decoder-only transformer: ``input_ids`` ``(N, T)`` to logits ``(N, T, V)``.

    Learned positions, layer norm before each part (GPT-2's order), no dropout.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(_TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """``attention_mask`` ``(N, T)`` is 0 at padding, on either side."""
        length = input_ids.shape[1]
        if length > self.context:
            raise DataError(
                f"{length} tokens do not fit a context of {self.context}. Shorten them or raise 'context'."
            )
        if attention_mask is None:
            places, allowed = torch.arange(length, device=input_ids.device), None
        else:
            kept = attention_mask.bool()
            places = (kept.long().cumsum(1) - 1).clamp(min=0)
            causal = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
            diagonal = torch.eye(length, dtype=torch.bool, device=input_ids.device)
            allowed = (causal & kept[:, None, None, :]) | diagonal  # (N, 1, T, T); no row is empty
        x = self.tokens(input_ids) + self.positions(places)
        for block in self.blocks:
            x = block(x, allowed)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, allowed: Tensor | None) -> Tensor:
        split = self.attention(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (N, heads, T, width / heads) each
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, is_causal=allowed is None
        )
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """Predicts the noise in ``x`` ``(N, D)`` at ``timesteps`` ``(N,)``, given a condition or none.

    The condition ``conditions``, one more than the last, and ``None`` both mean "no condition".
    """

    def __init__(self, inputs: int, width: int, layers: int, conditions: int) -> None:
        super().__init__()
        self.width, self.conditions = width, conditions
        self.enter = nn.Linear(inputs, width)
        self.time = nn.Linear(width, width)
        self.condition = nn.Embedding(conditions + 1, width)
        self.body = nn.Sequential(*(_ResidualLayer(width) for _ in range(layers)))
        self.head = nn.Linear(width, inputs)

    def forward(self, x: Tensor, timesteps: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is None:
            condition = torch.full_like(timesteps, self.conditions, dtype=torch.long)
        flat = x.flatten(1)
        hidden = self.enter(flat) + self.time(_sinusoids(timesteps, self.width).to(flat.dtype))
        return self.head(self.body(hidden + self.condition(condition))).view_as(x)  # type: ignore[no-any-return]


class _ResidualLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(F.silu(x))  # type: ignore[no-any-return]


def _convolution(before: int, after: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()


def _residual(width: int) -> nn.Sequential:
    return nn.Sequential(*_convolution(width, width, 1), *_convolution(width, width, 1))


def _sinusoids(timesteps: Tensor, width: int) -> Tensor:
    """Sines and cosines of ``timesteps`` at ``width / 2`` frequencies: ``(N,)`` to ``(N, width)``."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)
