"""A run that turns NaN: where it stops, what it says, and what is handed back."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from expunge.data.arrays import ArrayData
from expunge.errors import Diverged
from expunge.tasks import Classification
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import SGD
from expunge.training.session import Session
from expunge.training.soundness import unsound

PLAN = Plan(
    what="test",
    objective=lambda step: {"loss": step.retain.loss.mean()},
    parts={"retain": ArrayData({"inputs": torch.eye(4), "targets": torch.arange(4)})},
    passes=lambda epoch: (Pass("retain"),),
    epochs=8,
    batch_size=4,
    optim=SGD(lr=0.1),
)


def start() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4))


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_run_that_diverges_stops_at_the_step_and_hands_back_the_model_before_it(how):
    """Three steps are good in loss and gradient; the fourth has a NaN in one of them."""
    seen = []

    def objective(step):
        loss = step.retain.loss.mean()
        if step.index == 3:
            loss = loss * torch.nan if how == "loss" else loss + 0 * (loss - loss).sqrt()  # its slope is NaN
        return {"loss": loss}

    def after(running: nn.Module, index: int) -> bool:
        seen.append({name: value.clone() for name, value in running.state_dict().items()})
        return False

    plan = replace(PLAN, objective=objective, after=after)
    with pytest.raises(Diverged, match=r"at step 4 of 8") as caught:
        optimise(start(), plan, Classification(4), Session(0))
    assert len(seen) == 3
    assert ("the gradient" in str(caught.value)) == (how == "gradient")
    kept = caught.value.model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in seen[-1].items())
    assert not torch.equal(kept["0.weight"], start().state_dict()["0.weight"])
    assert not caught.value.model.training


def test_a_model_whose_statistics_are_spoilt_is_not_handed_back() -> None:
    """Losses were finite before, but what BatchNorm has counted is not."""
    model = nn.Sequential(start(), nn.BatchNorm1d(4))
    model[1].running_var.fill_(torch.inf)  # passes in training mode use the batch's own
    plan = replace(PLAN, objective=lambda step: {"loss": step.retain.loss.mean() / 0})
    with pytest.raises(Diverged, match="at step 1 of 8") as caught:
        optimise(model, plan, Classification(4), Session(0))
    assert caught.value.model is None


def test_what_is_wrong_is_named() -> None:
    one, nan = torch.tensor(1.0), torch.tensor(torch.nan)
    big = {"w": torch.full((3,), 1e30)}
    assert unsound({"a": one}, {"t": big}) is None
    assert unsound({}, {}) is None
    assert unsound({"a": one, "b": nan}, {}) == "the term 'b' became nan"
    assert unsound({"a": one}, {"t": big, "u": {"w": nan[None]}}) == "the gradient became NaN or infinite"
