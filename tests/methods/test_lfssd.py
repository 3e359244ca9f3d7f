import pytest
import torch
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError
from expunge.methods.edits.lfssd import LFSSD
from expunge.methods.edits.ssd import SSD
from expunge.tasks import Classification, Regression
from expunge.training.session import Session


def _run(method, forget, retain, weights=(2.0, 3.0)):
    """``f(x) = 2 x_1 + 3 x_2``; the gradient of ``f(x)²`` is ``2 f(x) x``. The rows are ``(x_1, x_2)``."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    rows = torch.tensor(forget + retain)
    split = Split.from_ids((rows, torch.zeros(len(rows), 1)), range(len(forget)))
    return method.unlearn(model, split, Regression(), Session()).weight.detach()[0]


# The gradients of f² are (4, 0) for the first and (0, 6) for the second kind of row.
FORGET, RETAIN = [(1.0, 0.0)], [(0.0, 1.0)] * 3


def test_importance_of_one_quarter_shrinks_the_weight_to_one_quarter():
    # I_f = (4, 0), I_D = (4/4, 18/4): w_1 is selected for every alpha below 4.
    assert torch.equal(_run(LFSSD(alpha=3.9, batch_size=1), FORGET, RETAIN), torch.tensor([0.5, 3.0]))
    assert torch.equal(_run(LFSSD(alpha=4.0, batch_size=1), FORGET, RETAIN), torch.tensor([2.0, 3.0]))


def test_gradients_are_taken_absolute_and_not_squared():
    # f = 2, 4 for the two rows that have x_1: gradients 4 and 16, so I_f = 16 and I_D = (16 + 4) / 2 = 10.
    # Squares would give a factor of 136 / 256 = 0.53 in the place of 0.625.
    result = _run(LFSSD(alpha=1.5, batch_size=1), [(2.0, 0.0)], [(1.0, 0.0)])
    assert result.tolist() == [1.25, 3.0]


def test_the_absolute_value_is_of_the_mean_over_a_batch():
    rows = [(2.0, -1.0), (-1.0, 1.0)]  # f = 1 and 1: gradients (4, −2) and (−2, 2), of mean (1, 0)
    alone, together = (_run(LFSSD(alpha=1.2, batch_size=b), rows, [(0.0, 0.0)] * 2) for b in (1, 2))
    assert alone.tolist() == pytest.approx([1.0, 1.5])  # I_f = (3, 2), I_D half of it
    assert together[1] == 3.0  # I_f = (1, 0)


def test_no_label_is_read():
    torch.manual_seed(0)
    model, X, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3

    def run(method, labels):
        split = Split.from_ids(ArrayData({"inputs": X, "targets": labels}), range(5))
        return method.unlearn(model, split, Classification(3), Session()).weight

    others = (y + 1) % 3
    assert torch.equal(run(LFSSD(alpha=1.1), y), run(LFSSD(alpha=1.1), others))
    assert not torch.equal(run(SSD(alpha=1.1), y), run(SSD(alpha=1.1), others))
    assert not torch.equal(run(LFSSD(alpha=1.1), y), model.weight)


def test_outputs_of_several_dimensions_are_summed_over_all(setting):
    method = LFSSD(alpha=0.9, dampening=0.5, batch_size=4)
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session)
    after = dict(result.named_parameters())
    assert all((after[name].abs() <= p.abs()).all() for name, p in setting.original.named_parameters())
    assert any((after[name] != p).any() for name, p in setting.original.named_parameters())


@pytest.mark.parametrize("fields", [{"alpha": 0.0}, {"dampening": -1.0}, {"batch_size": 0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        LFSSD(**fields)
