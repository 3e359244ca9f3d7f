"""Weight attribution: which weights to unlearn with, for any objective."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.methods.masks import MaskModifier
from expunge.tasks.base import Task
from expunge.training import parameters
from expunge.training.modifier import modifiers
from expunge.training.session import Session


@modifiers.register("wagle")
@dataclass(frozen=True, kw_only=True)
class WAGLE(MaskModifier):
    """Lets only the weights move that matter for the forget set once the retain set has had its say.

    ``S_j = | (θ_j − g_{r,j} / μ) · g_{f,j} |`` with ``g_f`` and ``g_r`` the gradients of the mean loss over
    the forget and the retain set at the start; the fraction ``keep`` with the largest ``S`` moves. ``μ``
    stands for the diagonal of the retain loss's Hessian.

    Every other weight is exactly what it was after each step, under weight decay and momentum too.

    Args:
        keep: fraction of weights that may move; 0.8 to 0.95 on TOFU, 0.4 to 0.6 on WMDP in the authors'
            code.
        batch_size: examples in a backward pass; it does not change the scores.
        hessian: ``μ``. Where ``|g_r| ≫ μ |θ|`` the scores are ``|g_r g_f| / μ`` whatever ``θ``.

    Cost: one forward and backward pass over the forget and the retain set; one boolean and one copy a
        weight; one copy of the scores to find the threshold by selection, without sorting.
    Differs: the mask holds the weights, where the authors' masks the gradient and lets weight decay move
        the rest. Gradients are of the mean over the set, so that ``μ`` does not depend on the number
        of batches. The scores are made here; their pipeline loads finished masks. They have ``μ``
        1e-6 in the configurations and 1e-3 as the default, which is ours.
    References: Jia et al., WAGLE, NeurIPS 2024, arXiv:2410.17509.
    """

    keep: float = 0.8
    hessian: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hessian > 0:
            raise ConfigError(f"must be above 0, got {self.hessian}.", "hessian")

    def scores(
        self, model: nn.Module, names: list[str], split: Split, task: Task, session: Session
    ) -> dict[str, Tensor]:
        forget, retain = (
            parameters.mean_gradient(model, data, task, session, names=names, batch_size=self.batch_size)
            for data in (split.forget, split.retain)
        )
        weights = dict(model.named_parameters())
        return {
            name: ((weights[name].detach() - retain[name] / self.hessian) * forget[name]).abs()
            for name in names
        }
