"""SalUn: random labels, for the salient weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.anchors import ANCHOR, Anchor, anchored
from expunge.methods.base import GradientMethod, methods
from expunge.methods.conditions import conditional
from expunge.methods.modifiers.saliency_mask import SaliencyMask
from expunge.tasks.base import Task
from expunge.training.loop import Pass, Plan
from expunge.training.modifier import Modifier
from expunge.training.optim import SGD, Optim
from expunge.training.session import Session
from expunge.training.step import Step


@methods.register("salun")
@dataclass(frozen=True, kw_only=True)
class SalUn(GradientMethod):
    """Random-label training in which only the weights that matter for the forget set may move.

    ``m = 1[ |∇_θ mean_{i∈D_f} ℓ_i(θ_o)| ≥ γ ]`` with ``γ`` the threshold that keeps a fraction (half)
    of all weights, then ``θ ← θ_o + m ⊙ Δ`` with ``Δ`` from random labels on ``D_f`` and the true
    ones on ``D_r``. It is ``random_labels`` × the modifier ``saliency_mask``, and nothing else.

    A denoiser's label is its condition ``c``: the forget loss is
    ``‖f_θ(x_t, t, c) − sg f_θ(x_t, t, c')‖² / D`` with ``c'`` another condition and no gradient through
    ``sg``: the model itself is the target, not the original. With ``anchor`` ``c'`` is the anchor's, and a
    step is of ``D_f`` and ``D_r`` together: ``mean_{i∈D_f} ‖…‖² / D + α mean_{i∈D_r} ℓ_i``.

    Args:
        anchor: what a denoiser's concept turns into: see ``anchored``; ``null`` for the task's random labels,
            drawn anew for each step: of classes any, of captions the empty one.
        concept: its words, where the captions do not tell.
        retain_weight: ``α``. Both losses are means over elements; the authors' DDPM code adds up the squares
            of the retain loss alone, so that its 1e-3 is 3 here at 3 × 32 × 32. Without the retain loss every
            class is lost.

    Shapes: as the task's; with an anchor denoisers of captions or classes. Unsupported where the task has no
        targets to replace.
    Cost: one pass over the forget set for the mask, then ``epochs`` passes over all data, with an anchor over
        the forget set with a retain batch beside each batch; of denoisers a further forward pass over the
        forget set. Two copies of the parameters (mask as booleans, values to restore).
    Guarantee: empirical.
    Differs: weights outside the mask are restored after every step, so that weight decay and momentum
        cannot move them; until 2026-02-28 the authors' code masked only the gradient, and all
        published figures predate that fix. The mask's gradient is taken without augmentation.
        BatchNorm's running statistics are not weights and move, as in the authors' code. As there, the
        true label may be drawn. Of denoisers: the "random" label of
        both generators' code is a fixed one, the next class: ``anchor: next``. Both predictions are of the
        same ``x_t``, and of the conditions asked for; there the image is encoded twice, each time with
        other noise, and each branch drops a tenth of its conditions. The mask is of the denoising loss
        under the caption alone, with neither guidance nor clipping of each batch; ``L_r`` and Adam are set
        by ``optim`` and ``retain_weight``.
    References: Fan et al., SalUn, ICLR 2024, arXiv:2310.12508. On CIFAR-10 (ResNet-18, 10 % random)
        the paper reports UA 2.85, RA 99.62, TA 93.93, MIA 14.39. Its code trains DDPM with Adam at 1e-4 for
        1,000 steps of 128, Stable Diffusion at 1e-5 with batches of 8 and ``α`` 0.5 for 5 epochs.
    """

    epochs: int = 10
    optim: Optim = SGD(lr=0.013, weight_decay=5e-4)
    modifiers: tuple[Modifier, ...] = (SaliencyMask(),)
    anchor: Anchor | None = None
    concept: str = ""
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.retain_weight > 0:
            raise ConfigError(f"must be above 0, got {self.retain_weight}.", "retain_weight")

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        if self.anchor is not None:
            conditional(split, task, "salun with an anchor")

    def passes(self, epoch: int) -> Sequence[Pass]:
        if self.anchor is not None:
            return (Pass("forget", beside="retain"),)
        return (Pass("forget"), Pass("retain"))

    def plan(self, model: nn.Module, split: Split, task: Task, session: Session) -> Plan:
        if self.anchor is not None:
            split = anchored(split, task, session, self.anchor, concept=self.concept, model=model)
        return super().plan(model, split, task, session)

    def objective(self, step: Step) -> dict[str, Tensor]:
        if self.anchor is not None:
            return {"forget": _towards(step), "retain": self.retain_weight * step.retain.loss.mean()}
        if step.over == "forget":
            return {"forget": step.forget.uninformed_loss.mean()}
        return {"retain": self.retain_weight * step.retain.loss.mean()}


def _towards(step: Step) -> Tensor:
    """How far the answers to the concept are from those that the model itself gives to the anchor."""
    with torch.no_grad():
        wanted = step.forget.instead(ANCHOR).outputs
    return (step.forget.outputs.float() - wanted.float()).square().mean()
