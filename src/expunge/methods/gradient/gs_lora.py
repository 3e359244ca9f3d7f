"""GS-LoRA: class forgetting by adapters that are sparse over the network's blocks."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.methods.base import methods
from expunge.methods.continual import GroupSparseLoRA


@methods.register("gs_lora")
@dataclass(frozen=True, kw_only=True)
class GSLoRA(GroupSparseLoRA):
    """Forgets classes one request after another through low-rank adapters on a frozen network.

    ``min_{A,B} ℓ(D_r) + β max(0, BND − ℓ(D_f)) + α Σ_g sqrt(Σ_{A,B∈g} ‖A‖² + ‖B‖²)`` with ``ℓ`` the
    mean loss of a batch and ``g`` the blocks of the network. Each adapted weight is
    ``W + (s/r) B A``. The bound makes forgetting stop, the group lasso makes few blocks change. A
    request is one call with the next split, on the result of the last: the adapters are merged at the
    end of each and new ones are added. The loop runs over the replayed retain examples, with a batch of
    the forget set beside each batch.

    Args:
        scope: the adapters; by default on every linear layer and convolution but the head, with rank 8
            and ``s = 1``. ``LoRA(targets=("mlp.0", "mlp.3"), …)`` names them by their endings.

    Shapes: linear layers and convolutions; any task with classes. Unsupported where a class is not
        forgotten whole.
    Cost: ``epochs`` passes over ``retain_fraction`` of the retain set, with as many forget batches
        beside; forward and backward through the whole network, optimiser state for the adapters alone.
    Guarantee: empirical.
    Differs: ``BND`` defaults to ``log C + 2`` for the cross-entropy of ``C`` classes, a choice of ours:
        the authors' 105 to 110 belong to losses with CosFace margins, near 100, and with a plain
        cross-entropy never stop the forgetting. Without margins an example that the model is certain of
        to rounding has no gradient to be forgotten by. The group lasso starts after a fifth of the
        epochs as in their single-request script (20 of 100): from the start it holds adapters at 0 whose
        forget gradient is still small. ``α`` is 1e-4 as in their continual script (0.005 to 0.01 in the
        other). Adapters are on all layers but the head, where theirs are on the two linear layers of
        each feed-forward block; blocks are found by structure, not by name. All of the forget set is
        used, where theirs is a tenth too; the replayed tenth is drawn class by class, so no class is
        missing. The rate falls to 0, theirs to 1e-5. No epoch is chosen; theirs is the best on test
        data. As in their code, the lasso has no factor for the size of a group and no proximal step:
        groups become small, never exactly 0. With gradients accumulated over parts of a batch, the
        bound holds for each part.
    References: Zhao et al., Continual Forgetting for Pre-trained Vision Models, CVPR 2024,
        arXiv:2403.11530.
    """
