"""CA: a closed form on a table of answers, images drawn once by the original, the token that stays."""

from __future__ import annotations

import pytest
import torch
from tests.canvases import micro
from tests.methods.told import CLASSES, ROWS, split, told
from torch import nn

from expunge.data import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods import conditions
from expunge.methods.conditions import imagined
from expunge.methods.gradient.ca import CA, first_token_still
from expunge.tasks import Classification, Diffusion
from expunge.training.cross_attention import cross_attention
from expunge.training.optim import SGD
from expunge.training.sampling import sample
from expunge.training.scope import Everything
from expunge.training.session import Session

SESSION = Session(seed=0)
PLAIN = {"scope": Everything(), "optim": SGD(lr=0.3, momentum=0.0), "steps": 5, "regularisation": 0.0}


def test_the_concept_goes_to_the_anchor_which_gets_no_gradient():
    result = CA(epochs=2, **PLAIN).unlearn(told(), split(), CLASSES, SESSION).table
    own, anchor = torch.tensor(ROWS[0]), torch.tensor(ROWS[1])
    assert torch.allclose(result[0], anchor + 0.7**2 * (own - anchor), atol=1e-6)
    assert torch.equal(result[1:], torch.tensor(ROWS[1:]))


class Shared(nn.Module):
    """``f(0) = w + u`` and ``f(1) = w``: the anchor moves with the concept."""

    def __init__(self):
        super().__init__()
        self.w, self.u = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([4.0, -8.0]))

    def forward(self, x, timesteps, condition):
        return self.w + (condition == 0).float()[:, None] * self.u


def test_the_target_is_the_current_model_without_a_gradient():
    """With ``u_n = f_n(0) − f_n(1)`` each step takes ``0.3 u_n`` from both; a frozen target would have
    stopped ``w`` from drifting, and a gradient through the target would have left it where it was."""
    model = Shared()
    result = CA(epochs=3, **PLAIN).unlearn(model, split(), CLASSES, SESSION)
    u = model.u.detach()
    assert torch.allclose(result.u, 0.7**3 * u, atol=1e-5)
    assert torch.allclose(result.w, model.w.detach() - 0.3 * (1 + 0.7 + 0.49) * u, atol=1e-5)


def test_the_regularisation_is_the_denoising_loss_of_the_anchors_images():
    options = {**PLAIN, "regularisation": 0.5, "guidance": 3.0}
    result = CA(epochs=1, **options).unlearn(told(), split(), CLASSES, SESSION).table
    anchor, free = torch.tensor(ROWS[1]), torch.tensor(ROWS[2])
    image = free + 3 * (anchor - free)  # what the table draws with guidance 3
    assert torch.allclose(result[1], anchor - 0.3 * 0.5 * (anchor - image), atol=1e-5)


def test_the_images_are_drawn_once_by_the_original_whatever_the_epochs(monkeypatch):
    calls = []

    def counted(model, *rest, **options):
        calls.append(model)
        return sample(model, *rest, **options)

    monkeypatch.setattr(conditions, "sample", counted)
    model = told()
    CA(epochs=3, **PLAIN).unlearn(model, split(), CLASSES, SESSION)
    assert calls == [model]


def test_as_many_images_as_samples_say():
    plan = CA(samples=3, **PLAIN).plan(told(), split(), CLASSES, SESSION)
    assert len(plan.parts["forget"]) == 3
    assert torch.isin(plan.parts["forget"].ids, split().forget.ids).all()


def test_imagined_examples_have_the_models_images_for_the_other_condition():
    made = micro()
    data = made.data.subset([0, 4, 5]).with_captions("anchor", ["a star image", "", "an image"])
    found = imagined(made.model, data, made.task, SESSION, under="anchor", steps=2, guidance=2.0)
    start = torch.randn((3, 3, 8, 8), generator=SESSION.generator("imagined", "anchor"))
    ids, empty = data.column("anchor.input_ids"), data.column("empty.input_ids")[:1]
    wanted = sample(made.model, made.task, ids, empty=empty, steps=2, guidance=2.0, start=start)
    assert torch.equal(found.column("inputs"), wanted)
    assert torch.equal(found.column("input_ids"), data.column("input_ids"))


def test_on_captions_only_keys_and_values_move_and_the_first_tokens_get_no_gradient():
    made = micro()
    parts = Split.from_ids(made.data, made.data.ids[made.data.column("style") == 1])
    method = CA(epochs=1, batch_size=3, steps=2, optim=SGD(lr=0.1))
    result = method.unlearn(made.model, parts, made.task, SESSION).state_dict()
    before = made.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], result[name])}
    assert moved == {n for n in before if ".attn2.to_k." in n or ".attn2.to_v." in n}


def test_the_first_token_is_cut_inside_the_block_alone():
    _, layer = cross_attention(micro().model)[0]
    hidden = torch.randn(1, 5, layer.to_k.in_features, requires_grad=True)

    def reached():
        (found,) = torch.autograd.grad(layer.to_k(hidden).sum() + layer.to_v(hidden).sum(), hidden)
        return (found[0] != 0).any(1).tolist()

    assert reached() == [True] * 5
    with first_token_still(micro().model):
        assert reached() == [False, True, True, True, True]
    assert reached() == [True] * 5


def test_what_cannot_be_ablated_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        CA().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="is told nothing"):
        CA().check(split(), Diffusion(timesteps=10))
    with pytest.raises(Unsupported, match="has no cross-attention"):
        CA(steps=5).unlearn(told(), split(), CLASSES, SESSION)
    for field in ({"samples": 0}, {"regularisation": -0.1}):
        with pytest.raises(ConfigError):
            CA(**field)
