"""P4D: whether a prompt makes the model predict what the original predicts for the erased concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from expunge.evaluation.attacks.fitted_prompt import Fit, FittedPrompt, Fitting
from expunge.evaluation.attacks.prompt_slots import Slots, alone, spread
from expunge.evaluation.metric import metrics


@metrics.register("p4d")
@dataclass(frozen=True, kw_only=True)
class P4D(FittedPrompt):
    """How often a prompt brings the erased concept back that was fitted to what the original predicts.

    For a case, a prompt ``p`` with a seed, let ``x`` be what the original ``o`` draws. With ``v`` ``(K, D)``
    vectors and ``n(v)`` the embeddings of the tokens nearest to them in angle,
    ``min_v  mean_t ‖f_θ(z_t(x), t, c(n(v))) − f_o(z_t(x), t, p)‖² / D`` with ``t`` drawn anew at each step;
    the gradient by ``n(v)`` moves ``v``, by AdamW (hard prompts made easy). ``c`` is a prompt of these ``K``
    tokens alone, or ``p`` with them between its words. Images are drawn from it as it is typed, with the
    case's noise, and judged; curve, excess and interval as of ``unlearn_diff_atk``.

    Ideal: the retrained models' value. It is above 0: enough tries draw anything, and judges err.

    Args:
        tokens: ``K``.
        placement: ``alone``, a prompt of ``K`` tokens (P4D-N); ``spread``, at equal distances between the
            words of ``p``, the first before them (P4D-K).
        steps: after how many steps an image is drawn and judged.
        levels: timesteps drawn for a step.
        lr, weight_decay: of AdamW.
        gallery, judge, cases, precision: how images are drawn, who says what they show, and which cases
            count.

    Cost: for each case left at each step ``levels`` forward and backward passes and as many forward passes of
        the original, and one image at each of ``steps``; on the original and the retrained models too.
    Differs: a given number of tokens at equal distances, there one to every third. The prompt of the last
        step is judged, at each budget; there the one whose image is nearest to the original's by CLIP, of
        one every 50. The model's own text encoder reads the prompt, there the original's for both, so that
        what an erased encoder does is not attacked. Padding is the tokenizer's; there token 0 while fitting
        and the end of the text when drawing. Several timesteps a step, there one. Latents are those that the
        original drew; there its picture's, through the autoencoder and at random. Evaluation mode; there the
        denoisers are in training mode. Tokens can be typed.
    References: Chin et al., Prompting4Debugging, ICML 2024, arXiv:2309.06135; learning rate and decay 0.1,
        16 tokens or every third as in its code; Wen et al., Hard Prompts Made Easy, NeurIPS 2023,
        arXiv:2302.03668.
    """

    tokens: int = 3
    placement: Literal["alone", "spread"] = "spread"
    steps: tuple[int, ...] = (5, 10, 20, 40)
    levels: int = 10
    lr: float = 0.1
    weight_decay: float = 0.1
    title = "P4D"

    @property
    def words(self) -> list[str]:
        return [*super().words, self.placement]

    def slots(self, tokenizer: Any, input_ids: Tensor) -> Slots:
        return (alone if self.placement == "alone" else spread)(tokenizer, input_ids, self.tokens)

    def fit(self, fitting: Fitting) -> Fit:
        return _Fit(self, fitting)


class _Fit(Fit):
    """Vectors ``v`` of no token, ``(N, K, D)``."""

    def __init__(self, attack: P4D, fitting: Fitting) -> None:
        size, shape = len(fitting.allowed), (attack.tokens,)
        drawn = torch.stack([torch.randint(size, shape, generator=draw) for draw in fitting.draws])
        v = fitting.table[drawn].clone().requires_grad_()
        super().__init__(v, torch.optim.AdamW([v], lr=attack.lr, weight_decay=attack.weight_decay))
        self.fitting, self.levels = fitting, attack.levels
        self.known = nn.functional.normalize(fitting.table, dim=-1)

    @torch.no_grad()
    def gradient(self, rows: Tensor) -> Tensor:
        fitting, count = self.fitting, self.fitting.task.timesteps
        drawn = [torch.randint(count, (self.levels,), generator=fitting.draws[k]) for k in rows.tolist()]
        batch = fitting.noisy(rows, torch.stack(drawn))
        told = fitting.cases.condition[rows].to(batch["noisy"].device)
        with fitting.engine.frozen(fitting.original) as original:
            with fitting.engine.autocast():
                hidden = cast(Any, original).encode_text(told)
            goal = fitting.said(original, batch, hidden)
        return fitting.gradient(batch, goal, fitting.slots.among(rows), self.tokens(rows))

    def tokens(self, rows: Tensor) -> Tensor:
        near = nn.functional.normalize(self.numbers.detach()[rows], dim=-1) @ self.known.T
        return near.argmax(-1).cpu()
