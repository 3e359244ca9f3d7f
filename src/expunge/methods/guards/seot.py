"""SEOT: suppress the embeddings of a concept and of what follows the end of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.data.captions import CaptionedImages
from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.anchors import concept_terms
from expunge.methods.base import methods
from expunge.methods.caption_guards import (
    Beside,
    CaptionGuard,
    given_tokens,
    phrase_positions,
    text_encoder_of,
    token_ends,
    with_states,
)
from expunge.tasks.base import Task
from expunge.training.session import Session


class Suppressed(Beside):
    """Weaker states in the rows whose tokens name the concept."""

    def opened(self, text_encoder: nn.Module) -> None:
        text_encoder.register_forward_hook(self.leave, with_kwargs=True)

    def leave(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        """After the text encoder's forward pass."""
        if not self.learned():
            return output
        ids = given_tokens(arguments, named)
        method = cast(SEOT, self.method)
        places = self.places(ids, method.following)
        rows = places.any(1).nonzero().flatten().tolist()
        if not rows:
            return output
        states = output[0].clone()
        for row in rows:
            states[row, places[row]] = suppressed(states[row, places[row]], method.alpha)
        return with_states(output, states)

    def places(self, ids: Tensor, following: int) -> Tensor:
        """``I`` of each caption, ``(N, T)``; nothing in captions that lack one of the concept's phrases."""
        ends, end = self.get_buffer("ends"), int(self.get_buffer("end"))
        found = [phrase_positions(ids, phrase, ends, end) for phrase in self.get_buffer("phrases")]
        named = torch.stack([places.any(1) for places in found]).all(0)
        concept = torch.stack(found).any(0)
        chosen = concept
        for _ in range(following):
            chosen = chosen | torch.cat([torch.zeros_like(chosen[:, :1]), chosen[:, :-1]], 1)
        return (chosen | ((ids == end).cumsum(1) > 0)) & named[:, None]


def suppressed(states: Tensor, alpha: float) -> Tensor:
    """``U diag(s e^{−α s}) Vᵀ`` of states ``(n, D)`` with the singular value decomposition ``U diag(s) Vᵀ``.

    Computed in float64. The gradient takes the factors ``e^{−α s}`` and the singular vectors for constants,
    since that of a decomposition with equal singular values, as padding has, is infinite.
    """
    wide = states.double()
    left, values, _ = torch.linalg.svd(wide.detach(), full_matrices=False)
    return cast(Tensor, left * torch.exp(-alpha * values) @ (left.T @ wide)).to(states)


@methods.register("seot")
@dataclass(frozen=True, kw_only=True)
class SEOT(CaptionGuard):
    """Weakens, in prompts that name a concept, its tokens together with the end of the text and the padding.

    For a caption's states ``E`` ``(T, D)`` and ``I`` the places of the concept's tokens, of ``following``
    tokens after them, and of all from the end of the text on: ``E[I] = U diag(s) Vᵀ`` becomes
    ``U diag(s e^{−α s}) Vᵀ``. What the places have in common, large ``s``, nearly vanishes; small ``s`` stay.
    The weights are the original's and know all that they knew.

    The guard acts where it finds the concept's words itself, by their tokens, in any prompt that reaches the
    text encoder, and nowhere else. A paraphrase without these words goes through as it is, and a retained
    prompt that happens to have them does not: both show in evaluation, which tells the guard nothing.

    Args:
        alpha: ``α``; a negative one strengthens instead (the authors' -0.001).
        concept: its words, where the captions do not tell; of a pair both must be in the prompt.
        following: tokens after the concept's words that are weakened too. A causal text encoder passes the
            concept on to them.

    Shapes: text-to-image models with captioned images. Unsupported for others.
    Cost: nothing is trained. At inference a decomposition of at most ``T × D`` for each prompt that names the
        concept. Stored: tokens of the concept and one bit for each of the vocabulary.
    Guarantee: empirical; about prompts with these words, and never about the weights.
    Differs: UnlearnCanvas applies the authors' code to prompts of the target alone, told by the benchmark, so
        that what is retained is the base model's by construction; here the prompt decides. Places are found
        with the tokenizer, words of several tokens included; there they are fixed by the order of words in a
        template, and one token a word. Batches, there single prompts. The second part, which optimises the
        embedding on attention maps for 10 iterations in each of the first steps of sampling, is left out: it
        is no function of the prompt, and takes most of their run time. One following token is what
        UnlearnCanvas takes.
    References: Li et al., Get What You Want, Not What You Don't: Image Content Suppression for Text-to-Image
        Diffusion Models, ICLR 2024, arXiv:2402.05375; ``α`` 1 as in their code.
    """

    alpha: float = 1.0
    concept: str = ""
    following: int = 1

    beside = Suppressed

    def __post_init__(self) -> None:
        if self.alpha == 0:
            raise ConfigError("must not be 0, which changes nothing.", "alpha")
        if self.following < 0:
            raise ConfigError(f"must not be negative, got {self.following}.", "following")

    def learn(self, model: nn.Module, split: Split, task: Task, session: Session) -> dict[str, Tensor]:
        text_encoder_of(model, "seot")
        tokenizer: Any = cast(CaptionedImages, split.forget).tokenizer
        terms = concept_terms(split, self.concept)
        rows = [torch.tensor(tokenizer(term, add_special_tokens=False)["input_ids"]) for term in terms]
        phrases = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
        end = torch.tensor(tokenizer.eos_token_id)
        return {"phrases": phrases, "ends": token_ends(tokenizer), "end": end}
