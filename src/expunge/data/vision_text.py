"""Questions about pictures, with answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from expunge.data.arrays import Batch, check_finite, digest
from expunge.data.text import Record, Template, TextData, plain
from expunge.errors import DataError

IMAGE = "<image>"
"""What stands in a prompt where the picture is shown."""


class VisionTextData(TextData):
    """Records that are each asked about one picture.

    A batch is that of ``TextData`` with ``pixel_values`` ``(N, C, H, W)``. The prompt holds ``image_token``
    once; in the tokens it stands ``image_tokens`` times, one for each vector that the model makes of the
    picture. Nothing is resized or normalised: pictures are as the model wants them. They are stored once
    each, however many records ask about them.

    Args:
        records: as for ``TextData``; each asks something.
        pictures: ``(P, C, H, W)``, floating.
        shown: for each record the number of its picture.
        tokenizer: it knows ``image_token`` as a single token.
        image_tokens: ``expunge.training.vision_language_models.image_tokens(model.config)`` of them.
        template: its prompt holds ``image_token``.

    Raises:
        DataError: as ``TextData``; pictures of another kind or with NaN, a number that is no picture's, a
            document, a tokenizer without the image token, or a prompt that holds it not exactly once.
    """

    beside: ClassVar[tuple[str, ...]] = ("pixel_values",)

    def __init__(
        self,
        records: Sequence[Record],
        pictures: Tensor,
        shown: Sequence[int] | Tensor,
        tokenizer: Any,
        image_tokens: int,
        template: Template | None = None,
        image_token: str = IMAGE,
    ) -> None:
        if pictures.ndim != 4 or not pictures.is_floating_point():
            raise DataError(
                f"pictures are floats of shape (P, C, H, W), got {pictures.dtype} of shape "
                f"{tuple(pictures.shape)}."
            )
        check_finite("pictures", pictures)
        if image_tokens < 1:
            raise DataError(f"a picture takes at least 1 token, got image_tokens={image_tokens}.")
        places = torch.as_tensor(shown).long()
        if len(places) != len(records):
            raise DataError(f"shown has {len(places)} numbers for {len(records)} records. Give one for each.")
        bad = (places < 0) | (places >= len(pictures))
        if bad.any():
            raise DataError(
                f"record {int(bad.nonzero()[0])} is about picture {int(places[bad][0])}, and there are "
                f"0..{len(pictures) - 1}."
            )
        self.pictures, self.image_tokens, self.image_token = pictures, image_tokens, image_token
        self._image = _image_id(tokenizer, image_token)
        super().__init__(records, tokenizer, template or Template(prompt=f"{IMAGE}\n{{question}}"),
                         {"picture": places})  # fmt: skip

    def batches(
        self,
        order: Iterable[Tensor],
        *,
        device: torch.device | str,
        generator: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        for batch in super().batches(order, device=device, generator=generator):
            shown = self.pictures[batch.pop("picture").cpu()]
            yield {**batch, "pixel_values": shown.to(device, non_blocking=True)}

    def column(self, name: str) -> Tensor:
        if name == "pixel_values":
            return self.pictures[super().column("picture")]
        return super().column(name)

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            text = super().fingerprint()
            self._fingerprint = digest([("pictures", self.pictures.cpu())], text)
        return self._fingerprint

    def posed(self, records: Sequence[Record]) -> VisionTextData:
        if len(records) != len(self):
            raise DataError(f"there are {len(records)} questions for {len(self)} pictures. Ask one of each.")
        return VisionTextData(
            records,
            self.pictures,
            super().column("picture"),
            self.tokenizer,
            self.image_tokens,
            replace(self.template, max_length=None),
            self.image_token,
        )

    def _encoded(self, records: Sequence[Record]) -> dict[str, list[tuple[list[int], int]]]:
        """The image token of every prompt as many times as the picture has vectors."""
        for number, record in enumerate(records):
            if record.question is None:
                raise DataError(
                    f"record {number} is a document, and a picture is asked about. Give it a question."
                )
        found = super()._encoded(records)
        return {
            name: [self._spread(tokens, prompt, number) for number, (tokens, prompt) in enumerate(rows)]
            for name, rows in found.items()
        }

    def _spread(self, tokens: list[int], prompt: int, number: int) -> tuple[list[int], int]:
        if not tokens:
            return tokens, prompt  # there is no answer of this name
        there = tokens.count(self._image)
        place = tokens.index(self._image) if there else prompt
        if there != 1 or place >= prompt:
            raise DataError(
                f"the prompt of record {number} must hold '{self.image_token}' once and its answer never, "
                f"found it {there} times. Put it into the template: "
                f"prompt='{self.image_token}\\n{{question}}'."
            )
        spread = [*tokens[:place], *[self._image] * self.image_tokens, *tokens[place + 1 :]]
        return spread, prompt + self.image_tokens - 1


def _image_id(tokenizer: Any, image_token: str) -> int:
    found = plain(tokenizer, image_token)
    if len(found) != 1 or found[0] == getattr(tokenizer, "unk_token_id", None):
        raise DataError(
            f"the tokenizer does not know '{image_token}' as one token. Add it: tokenizer.add_special_tokens("
            f"{{'additional_special_tokens': ['{image_token}']}}), and resize the model's embedding."
        )
    return int(found[0])
