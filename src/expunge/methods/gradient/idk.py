"""Training on refusals in place of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.answers import check_answers
from expunge.methods.base import GradientMethod, methods
from expunge.tasks.base import Task
from expunge.training.loop import Pass
from expunge.training.optim import AdamW, Optim
from expunge.training.step import Step


@methods.register("idk")
@dataclass(frozen=True, kw_only=True)
class Idk(GradientMethod):
    """Learns to answer the forget set with "I don't know" while it goes on learning the retain set (IdkNLL).

    ``min_θ  mean_{i∈D_f} ℓ(x_i, idk_i; θ) + λ mean_{i∈D_r} ℓ_i(θ)``, ``ℓ`` the mean over the answer tokens.
    Nothing lowers the likelihood of the old answer itself: what other probes find of it may stay.

    Args:
        answers: the name of the answers in the data that are learnt instead; each record brings its own
            line, so that a question has the same refusal in every epoch.
        retain_weight: ``λ``; 0 learns the refusals alone, and then refuses most other questions too.

    Shapes: as the task's; needs a task with other answers (``causal_lm``) and data that brings them.
    Cost: ``epochs`` passes over the forget set with a retain batch beside each batch where ``λ > 0``,
        forward and backward; no copy of the model.
    Guarantee: empirical.
    Differs: TOFU's code takes the mean over all tokens of the refusals and the retained answers together,
        so that a part weighs as many tokens as it has, and refusals are short; here both parts and all
        examples of a part weigh the same. The name PO is avoided: it also stands for DPO with refusals,
        which is another method (``dpo``). Rate, decay, schedule and epochs are those of NPO's code for its
        baselines, the batch is 32 in all.
    References: Maini et al., TOFU, COLM 2024, arXiv:2401.06121 (preference optimisation in its text);
        defaults as in the code of Zhang et al., Negative Preference Optimization, COLM 2024,
        arXiv:2404.05868.
    """

    epochs: int = 10
    batch_size: int = 32
    optim: Optim = AdamW(lr=1e-5, weight_decay=0.01, schedule="linear", warmup=0.1)
    answers: str = "idk"
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retain_weight < 0:
            raise ConfigError(f"must not be negative, got {self.retain_weight}.", "retain_weight")

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        check_answers(split, task, self.answers)

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget", beside="retain" if self.retain_weight > 0 else None),)

    def objective(self, step: Step) -> dict[str, Tensor]:
        terms = {"forget": step.forget.instead(self.answers).loss.mean()}
        if self.retain_weight > 0:
            terms["retain"] = self.retain_weight * step.retain.loss.mean()
        return terms
