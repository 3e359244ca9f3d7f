"""How much of the forgotten is still in the hidden states, by putting them into the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data.arrays import Batch
from expunge.data.text import TextData
from expunge.errors import ConfigError, Unsupported
from expunge.evaluation import language
from expunge.evaluation.attacks import hidden
from expunge.evaluation.attacks.budget import Attack, Tried
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics
from expunge.evaluation.statistics import Floats
from expunge.tasks.causal_lm import CausalLM, labelled


@metrics.register("activation_patching")
@dataclass(frozen=True, kw_only=True)
class ActivationPatching(Attack):
    """How much the original still knows when it goes on from the unlearned model's hidden states (1 − UDS).

    Let ``s`` be the mean log-probability that the original gives to the tokens of an answer, and ``s_l(m)``
    the same after the output of its block ``l`` was replaced, at the positions that predict them, by that of
    model ``m``. With a retrained ``r``: ``Δ₁ = s − s_l(r)``; layers with ``Δ₁ > threshold`` hold the
    knowledge. With the model judged ``u``: ``Δ₂ = s − s_l(u)``. The unlearning depth score is
    ``UDS = Σ_l Δ₁ · clip(Δ₂/Δ₁, 0, 1) / Σ_l Δ₁``; the value is the mean of ``1 − UDS`` over the forget set: 1
    where all is still there, 0 where no more is than in a retrained model. Examples without such a layer
    are left out. ``details["layers"]`` has ``1 − clip(Δ₂/Δ₁, 0, 1)`` by layer, ``details["unclipped"]``
    the value without the clip: below 0 the states harm the answer more than retrained ones do, which the
    clip hides.

    Interval: over questions, or over data subjects.

    Ideal: the value of retrained models, each against another one: about 0, above it by their noise.

    Args:
        span: ``answer``: all its labelled tokens; or those that stand between the common beginning and the
            common end of right and wrong answers: ``perturbed``, of the paraphrased answer and the wrong ones
            in its wording, or ``alternate``, of the answer itself and that other one.
        threshold: in nats.

    Differs: UDS is reported, which is low where much is left. Where there are several retrained models, the
        first other than the model judged is taken.
    Cost: two forward passes over the forget set for each layer, and three more.
    References: Unlearning Depth Score, 2026, arXiv:2605.24614; Meng et al., Locating and Editing Factual
        Associations in GPT, NeurIPS 2022, arXiv:2202.05262.
    """

    span: Literal["answer", "perturbed", "alternate"] = "answer"
    threshold: float = 0.05
    x_label = "layer"

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ConfigError(f"must be above 0, got {self.threshold}.", "threshold")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "activation patching", "forget", self.span

    def tried(self, evidence: Evidence) -> Tried:
        language.tokens(evidence, "forget")
        retrained = evidence.references()[0]
        first, second = self._drops(evidence, retrained.model), self._drops(evidence, evidence.subject.model)
        known = first > self.threshold
        weight = np.where(known, first, 0.0)
        total = weight.sum(0)
        kept = np.where(known, 1 - second / np.where(known, first, 1.0), np.nan)
        with np.errstate(invalid="ignore"):
            clipped = (weight * np.nan_to_num(kept.clip(0, 1))).sum(0) / np.where(total > 0, total, np.nan)
            plain = (weight * np.nan_to_num(kept)).sum(0) / np.where(total > 0, total, np.nan)
        rows = np.concatenate([kept.clip(0, 1), plain[None], clipped[None]])
        return Tried(tuple(float(i + 1) for i in range(len(rows))), rows)

    def curves(self, evidence: Evidence, found: Tried) -> dict[str, Any]:
        means = {
            str(layer): float(np.nanmean(row))
            for layer, row in enumerate(found.success[:-2], 1)
            if not np.isnan(row).all()
        }
        return {"layers": means, "unclipped": float(np.nanmean(found.success[-2]))}

    def _drops(self, evidence: Evidence, source: nn.Module) -> Floats:
        """``Δ`` of each layer and example where the states of ``source`` are put in, ``(layers, N)``."""
        task, engine = evidence.task, evidence.session.engine
        assert isinstance(task, CausalLM)
        model, other = engine.placed(evidence.original.model), engine.placed(source)
        blocks = hidden.layers(model)
        if len(hidden.layers(other)) != len(blocks):
            raise Unsupported(
                f"the original has {len(blocks)} blocks and the other model {len(hidden.layers(other))}; "
                "their states cannot be exchanged. Compare models of one architecture."
            )
        answer, spans = self._spans(evidence)
        place, rows = 0, []
        with engine.frozen(model), engine.frozen(other):
            for batch in hidden.batches(evidence, evidence.parts["forget"], answer):
                span = _span(batch, spans, place)
                place += len(batch["ids"])
                said, own = hidden.states(model, batch, task, engine)
                _, given = hidden.states(other, batch, task, engine)
                if own[0].shape != given[0].shape:
                    raise Unsupported(
                        f"the hidden states are {own[0].shape[-1]} and {given[0].shape[-1]} wide; they "
                        "cannot be exchanged. Compare models of one architecture."
                    )
                where = torch.nn.functional.pad(span, (0, 1))
                before, after = _mean(task, said, batch, span), []
                for block, states in zip(blocks, given, strict=True):
                    with hidden.patched(block, states, where), engine.autocast():
                        after.append(_mean(task, task.said(model, batch), batch, span))
                rows.append(torch.stack([before - value for value in after]).cpu().numpy())
        return np.concatenate(rows, 1)

    def _spans(self, evidence: Evidence) -> tuple[str, np.ndarray[Any, Any] | None]:
        """The name of the answer that is read, and the columns of its span ``(N, 2)``; None for all."""
        if self.span == "answer":
            return "", None
        data: TextData = language.text(evidence, "forget")
        right, _, starts, ends = hidden.parting(data, "forget", self.span)
        return right, np.stack([starts, ends], 1)


def _span(batch: Batch, spans: np.ndarray[Any, Any] | None, place: int) -> Tensor:
    """The positions that predict the tokens of the span, ``(N, T − 1)``."""
    mask = labelled(batch)
    if spans is None:
        return mask
    own = torch.from_numpy(spans[place : place + len(mask)]).to(mask.device)
    column = torch.arange(1, mask.shape[1] + 1, device=mask.device)  # of the token that is predicted
    return mask & (column >= own[:, :1]) & (column < own[:, 1:])


def _mean(task: CausalLM, said: Any, batch: Batch, span: Tensor) -> Tensor:
    """The mean log-probability of the tokens of the span, ``(N,)`` float64."""
    logs = task.token_log_probs(said, batch)[0].double()
    return (logs * span).sum(1) / span.sum(1)
