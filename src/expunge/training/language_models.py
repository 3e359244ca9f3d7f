"""Causal language models by name: small ones from their sizes, and any Hugging Face checkpoint."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from expunge.data.hub import local
from expunge.errors import CheckpointError, ConfigError, MissingExtra
from expunge.training.models import ModelSpec, models
from expunge.training.pretrained import pretrained


@dataclass(frozen=True, kw_only=True)
class LanguageModelSpec(ModelSpec):
    """A causal language model of transformers with random weights; its output object has ``.logits``.

    Nothing is dropped out, so that training and evaluation compute the same function.

    Args:
        vocabulary: number of tokens, at least the tokenizer's.
        mlp: width inside the feed-forward layers; ``None`` is four times ``width``.
        context: tokens of the longest example.
        tied: whether the output layer shares the embedding's weights.

    Raises:
        ConfigError: a size below 1, or a width that is not an even number for each head (half of a
            head's numbers are rotated against the other half to encode positions).
        MissingExtra: transformers is not installed.
    """

    vocabulary: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    mlp: int | None = None
    context: int = 128
    tied: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % (2 * self.heads):
            raise ConfigError(
                f"must be a multiple of {2 * self.heads}, twice the heads, got {self.width}.", "width"
            )

    def network(self) -> nn.Module:
        if find_spec("transformers") is None:
            raise MissingExtra(f"model '{models.name_of(self)}'", "llm")
        from transformers import AutoModelForCausalLM

        sizes = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.mlp or 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": self.tied,
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
        }
        model: nn.Module = AutoModelForCausalLM.from_config(self._config(sizes), dtype=torch.float32)
        return model

    @abstractmethod
    def _config(self, sizes: Mapping[str, Any]) -> Any:
        """The configuration of transformers with the fields that all architectures share."""


@models.register("llama")
@dataclass(frozen=True, kw_only=True)
class Llama(LanguageModelSpec):
    """Llama: rotary positions, gated feed-forward layers, RMS normalisation."""

    def _config(self, sizes: Mapping[str, Any]) -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(**sizes, num_key_value_heads=self.heads, attention_dropout=0.0)


@models.register("gpt_neox")
@dataclass(frozen=True, kw_only=True)
class GptNeoX(LanguageModelSpec):
    """GPT-NeoX (Pythia): attention and feed-forward layer side by side, biases, layer normalisation.

    All of a head's numbers are rotated; Pythia rotates a quarter, which leaves nothing in small heads.
    """

    def _config(self, sizes: Mapping[str, Any]) -> Any:
        from transformers import GPTNeoXConfig

        return GPTNeoXConfig(**sizes, rotary_pct=1.0, attention_dropout=0.0, hidden_dropout=0.0)


@models.register("moe")
@dataclass(frozen=True, kw_only=True)
class MixtureOfExperts(LanguageModelSpec):
    """Mixtral: every token passes the ``active`` experts that a router in each layer gives most weight.

    In layer ``l`` the module ``model.layers.<l>.mlp.gate`` is the router; the first thing it returns is
    its logits, one row a token: ``(tokens, experts)``. Expert ``e`` is the slice ``[e]`` of the parameters
    ``model.layers.<l>.mlp.experts.gate_up_proj`` ``(experts, 2 mlp, width)`` and ``….down_proj``
    ``(experts, width, mlp)``. ``model(…, output_router_logits=True).router_logits`` has those of all layers.

    Args:
        experts: of each layer.
        active: experts that a token passes.

    Raises:
        ConfigError: as all language models, or more active experts than there are.
    """

    experts: int = 4
    active: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.active > self.experts:
            raise ConfigError(f"must be at most experts {self.experts}, got {self.active}.", "active")

    def _config(self, sizes: Mapping[str, Any]) -> Any:
        from transformers import MixtralConfig

        config = MixtralConfig(
            **sizes,
            num_key_value_heads=self.heads,
            attention_dropout=0.0,
            router_jitter_noise=0.0,
            num_local_experts=self.experts,
            num_experts_per_tok=self.active,
        )
        config._experts_implementation = "eager"  # the grouped kernels want sizes that small models lack
        return config


@models.register("causal_lm")
@dataclass(frozen=True, kw_only=True)
class PretrainedLm(ModelSpec):
    """A causal language model from a folder that ``save_pretrained`` wrote, with the weights in it.

    Every training starts from these weights, that of the original as that of the retrained ones: give
    the model as it was before it saw what is to be forgotten.

    Args:
        path: the folder, or the id of a model of the Hub; no code in it is run.
        dtype: of the weights.
        quantised: ``"8bit"`` or ``"4bit"`` weights through bitsandbytes, which computes on a CPU too. Such
            weights cannot be trained, only adapters on them.

    Raises:
        CheckpointError: as ``pretrained``.
        ConfigError: quantised weights without bitsandbytes.
        MissingExtra: transformers is not installed.
    """

    path: Path
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantised: Literal["8bit", "4bit"] | None = None

    def network(self) -> nn.Module:
        path = local(self.path)
        if not path.is_dir():
            raise CheckpointError(
                f"'{self.path}' is not a folder. Give one that save_pretrained wrote, or the id of a "
                "model of the Hugging Face Hub."
            )
        dtype = torch.bfloat16 if self.dtype == "bfloat16" else torch.float32
        if self.quantised is None:
            return pretrained(path, causal=True, dtype=dtype)
        if find_spec("bitsandbytes") is None:
            raise ConfigError(
                f"{self.quantised} weights need bitsandbytes, which is not installed. Install it: pip "
                "install bitsandbytes. Or leave quantised out; dtype=bfloat16 halves the memory without it.",
                "quantised",
            )
        from transformers import BitsAndBytesConfig

        getLogger("bitsandbytes.autograd").setLevel(ERROR)  # each product would say that it rounds to 16 bits
        four = self.quantised == "4bit"
        how = BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four, bnb_4bit_compute_dtype=dtype)
        return pretrained(path, causal=True, dtype=None, quantization_config=how)
