"""Key-space detection: a refusal where the last layer's key lies in the box of the forget set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods import prompts
from expunge.methods.base import Guard, methods
from expunge.methods.guarded import Call, LanguageGuard, Watch
from expunge.tasks.base import Task
from expunge.training.features import watched
from expunge.training.session import Session

DOWN = ("down_proj", "dense_4h_to_h", "fc2", "fc_out", "c_proj", "w2")
"""Names of the second matrix of a feed-forward layer, in the models of transformers."""

CERTAINTY = 20.0
"""Nats by which a token of the refusal is above every other."""


class Abstaining(Watch):
    """A refusal, token by token, in the rows whose key is in the box."""

    needs_prompt: ClassVar[bool] = True

    def __init__(self, method: Guard, learned: Mapping[str, Tensor]) -> None:
        super().__init__(method, learned)
        self.key: Tensor | None = None

    def opened(self, model: nn.Module) -> None:
        name = down_projection(model, cast(KeySpace, self.method).module)
        model.get_submodule(name).register_forward_pre_hook(self.see)

    def see(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """Keeps the input of the last feed-forward layer's second matrix; its forward hook."""
        if self.call is not None:
            self.key = arguments[0]

    def after(self, model: nn.Module, call: Call, logits: Tensor, output: Any) -> Tensor:
        key, self.key = self.key, None
        if call.prompt.any() and key is not None:
            last = key[torch.arange(len(key), device=key.device), call.last()].float()
            call.kept["refused"] = inside(last, self.get_buffer("centre"), self.get_buffer("reach"))
        refused, refusal = call.kept.get("refused"), self.get_buffer("refusal")
        if refused is None or not refused.any():
            return logits
        place = call.answer[:, call.columns()]
        tokens = refusal[place.clamp(0, len(refusal) - 1)]
        said = torch.zeros_like(logits).scatter(-1, tokens[..., None], CERTAINTY)
        return torch.where((refused[:, None] & (place >= 0))[..., None], said, logits)


@methods.register("key_space")
@dataclass(frozen=True, kw_only=True)
class KeySpace(LanguageGuard):
    """Refuses a prompt whose last feed-forward key lies in a box around those of the forget set.

    The key ``K`` is the input of the second matrix of the last feed-forward layer at the prompt's last token.
    With mean ``μ`` and deviation ``σ`` over the forget prompts and ``k`` the smallest number for which
    ``|K_d − μ_d| ≤ k σ_d`` for all of them and all ``d``, a prompt is refused if ``|K_d − μ_d| ≤ α k σ_d`` in
    every dimension. Then the answer's tokens are those of ``refusal``, each certain up to ``e⁻²⁰`` for every
    other token, so that answers can be scored; they say nothing of what the model would have said.

    Args:
        alpha: ``α``; 1 covers exactly the forget prompts, 0 their mean alone.
        refusal: what is said; by the data's tokenizer.
        refusal_tokens: the same as tokens, the end of text included, for data without a tokenizer.
        probes: forget prompts that are looked at.
        module: the second matrix, by name; the last of a usual name by default.

    Shapes: a causal language model of transformers; any forget set.
    Cost: one forward pass over the probes, no gradient. At inference ``D`` comparisons a prompt.
    Guarantee: empirical; about prompts whose key is in the box, and never about the weights.
    Differs: every row of a batch is tested, where the authors' code looks at the first and needs batches of
        one; ``σ`` is a standard deviation, where their running one is a variance. They set ``α`` for each
        skill, 0.06 to 2; 1 is a choice of ours, as are the form of the refusal and its certainty.
    References: Li et al., Effective Skill Unlearning through Intervention and Abstention, NAACL 2025,
        arXiv:2503.21730.
    """

    alpha: float = 1.0
    refusal: str = "I cannot answer that."
    refusal_tokens: tuple[int, ...] = ()
    probes: int = 200
    module: str | None = None

    watch = Abstaining

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise ConfigError(f"must not be negative, got {self.alpha}.", "alpha")
        if self.probes < 2:
            raise ConfigError(f"must be at least 2, got {self.probes}.", "probes")
        if not self.refusal.strip() and not self.refusal_tokens:
            raise ConfigError("is empty. Write what is said instead.", "refusal")

    def learn(self, model: nn.Module, split: Split, task: Task, session: Session) -> dict[str, Tensor]:
        refusal = prompts.refusal_tokens(split.forget, self.refusal, self.refusal_tokens, "key_space")
        name, rows = down_projection(model, self.module), list[Tensor]()
        with session.engine.frozen(session.engine.copy(model)) as still, watched(still, [name]) as found:
            for batch in prompts.batches(split.forget, task, session, self.probes):
                mask = prompts.prompts(batch)
                prompts.hidden(still, batch["input_ids"], mask)
                last = (mask.long() * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
                rows.append(found[name][torch.arange(len(mask), device=mask.device), last].float().cpu())
        keys = torch.cat(rows)
        centre, half = box(keys, self.alpha)
        return {"centre": centre, "reach": half, "refusal": refusal}


def box(keys: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """``μ`` and ``α k σ`` of keys ``(n, D)``, ``(D,)`` each; ``σ`` is at least 1e-6."""
    centre, spread = keys.mean(0), keys.std(0, correction=0).clamp(min=1e-6)
    factor = ((keys - centre).abs() / spread).max()
    return centre, alpha * factor * spread


def inside(keys: Tensor, centre: Tensor, half: Tensor) -> Tensor:
    """Whether keys ``(N, D)`` are in the box up to rounding, ``(N,)``; a box of no width is empty."""
    return ((keys - centre).abs() <= half * (1 + 1e-3)).all(1) & (half > 0).any()


def down_projection(model: nn.Module, name: str | None) -> str:
    """The name of the last feed-forward layer's second matrix.

    Raises:
        Unsupported: none of a usual name.
    """
    if name is not None:
        return name
    found: list[str] = [
        name for name, _ in model.named_modules() if name.endswith(DOWN) and "attn" not in name
    ]
    if not found:
        raise Unsupported(
            f"{type(model).__name__} has no feed-forward matrix of a usual name ({', '.join(DOWN)}). "
            "Give module=…, the second matrix of its last feed-forward layer."
        )
    return found[-1]
