"""Next-token prediction of answers to questions about pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch, Data
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.tasks.base import tasks
from expunge.tasks.causal_lm import IGNORED, CausalLM
from expunge.tasks.token_states import TokenStates


@tasks.register("vision_language")
@dataclass(frozen=True)
class VisionLanguage(CausalLM):
    """A language model that is shown a picture (LLaVA): ``causal_lm`` with ``pixel_values``.

    Batches hold what those of ``causal_lm`` do and ``pixel_values`` ``(N, C, H, W)``. The token
    ``image_token`` stands in every prompt once for each vector that the model makes of a picture; it is never
    an answer. ``log p(y | x, picture) = Σ_t log p(y_t | picture, y_<t)``, and losses, divergences and other
    answers are those of ``causal_lm``: of the same picture.

    Args:
        image_token: the number of that token.
    """

    image_token: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.image_token < self.vocabulary:
            raise ConfigError(
                f"is a token of the {self.vocabulary}, 0..{self.vocabulary - 1}, got {self.image_token}.",
                "image_token",
            )

    def check(self, data: Data, part: str) -> None:
        super().check(data, part)
        if data.column("pixel_values").ndim != 4:
            raise DataError(f"{part} pixel_values are (N, C, H, W). Use VisionTextData.")
        found = data.column("input_ids") == self.image_token
        counts = found.sum(1)
        if (counts != counts[0]).any() or counts[0] == 0:
            raise DataError(
                f"every {part} example needs the same number of image tokens ({self.image_token}), at least "
                f"one; found {int(counts.min())} to {int(counts.max())}. Use VisionTextData."
            )
        if (data.column("labels") == self.image_token).any():
            raise DataError(
                f"the {part} labels hold the image token {self.image_token}. Take it out of the answers."
            )

    def beside(self, batch: Batch) -> dict[str, Tensor]:
        if "pixel_values" not in batch:
            raise Unsupported(
                "the batch has no pixel_values, without which nothing is seen. Use a method or metric that "
                "keeps all columns of a batch."
            )
        return {"pixel_values": batch["pixel_values"]}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        with _fitting(batch, self.image_token):
            return super().outputs(model, batch)

    def said(self, model: nn.Module, batch: Batch) -> Tensor | TokenStates:
        with _fitting(batch, self.image_token):
            return super().said(model, batch)

    def relabel(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Every labelled token drawn uniformly from the vocabulary without the image token.

        One more image token in the inputs than the picture has vectors, and the model refuses the batch.
        """
        labels = batch["labels"]
        drawn = torch.randint(self.vocabulary - 1, labels.shape, generator=generator).to(labels.device)
        drawn = drawn + (drawn >= self.image_token)
        replaced = labels != IGNORED
        return {
            **batch,
            "input_ids": torch.where(replaced, drawn, batch["input_ids"]),
            "labels": torch.where(replaced, drawn, labels),
        }


@contextmanager
def _fitting(batch: Batch, image_token: int) -> Iterator[None]:
    """Says what does not fit where the model finds more image tokens than vectors, or fewer."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if "image features and image tokens" not in str(error).lower():
            raise
        count = int((batch["input_ids"][0] == image_token).sum())
        raise DataError(
            f"the data has {count} image tokens for a picture, which is not the number of vectors that the "
            "model makes of one. Give VisionTextData image_tokens(model.config) of them, and pictures of the "
            "size that the model wants."
        ) from None
