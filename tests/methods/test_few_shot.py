"""Few-shot erasing: a step by hand, the bound of the ascent, layers by structure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.canvases import micro
from tests.methods.told import CLASSES, split, told
from torch import nn

from expunge.data import Split
from expunge.data.arrays import fixed_order
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.few_shot import FewShot
from expunge.methods.scopes.text_encoder import TextEncoder
from expunge.tasks import Classification
from expunge.training.optim import SGD, AdamW
from expunge.training.session import Session

SESSION = Session(seed=0)
PLAIN = SGD(lr=0.5, momentum=0.0)


def canvas_split():
    data = micro().data
    return Split.from_ids(data, data.ids[data.column("style") == 1])


def run(**fields):
    return FewShot(**fields).unlearn(micro().model, canvas_split(), micro().task, SESSION)


def moved(result, original):
    before, after = original.state_dict(), result.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def losses(model):
    data, task = canvas_split().forget, micro().task.unlearning()
    (batch,) = data.batches(fixed_order(len(data), 100), device="cpu")
    batch = task.prepare(batch, None)
    with torch.no_grad():
        return task.loss(task.outputs(model, batch), batch)


def slope_and_step(bound):
    """The gradient of the mean bounded loss at one image, and how far the method went; of one matrix."""
    made, task = micro(), micro().task.unlearning()
    method = FewShot(epochs=1, samples=1, optim=PLAIN, bound=bound)
    chosen = method.plan(made.model, canvas_split(), task, SESSION).parts["forget"]
    (batch,) = chosen.batches(fixed_order(1, 1), device="cpu")
    batch = task.prepare(batch, SESSION.generator("draws"))
    copy, name = SESSION.engine.copy(made.model).eval(), "text_encoder.encoder.layers.0.mlp.fc1.weight"
    weight = copy.get_parameter(name)
    loss = task.loss(task.outputs(copy, batch), batch)
    (slope,) = torch.autograd.grad(loss.mean(), weight)
    result = method.unlearn(made.model, canvas_split(), made.task, SESSION)
    return float(loss.detach()), slope, result.get_parameter(name) - weight


def test_one_step_goes_up_the_gradient_of_the_denoising_loss():
    _, slope, step = slope_and_step(None)
    assert slope.abs().max() > 1e-5
    assert torch.allclose(step, 0.5 * slope, atol=1e-7)


def test_an_image_that_has_reached_the_bound_is_left_alone():
    loss, slope, above = slope_and_step(10.0)
    assert torch.allclose(above, 0.5 * slope, atol=1e-7)
    _, _, below = slope_and_step(0.5 * loss)
    assert not below.any()


def test_without_a_bound_more_epochs_go_ever_further_and_with_one_they_stop():
    made = micro()
    start = float(losses(made.model).mean())
    options = {"batch_size": 6, "samples": None, "optim": SGD(lr=3.0, momentum=0.0)}
    few, many = (float(losses(run(epochs=n, bound=None, **options)).mean()) for n in (4, 24))
    assert start < few < many
    bounded = float(losses(run(epochs=24, bound=start, **options)).mean())
    assert start < bounded < many


def test_only_feed_forward_layers_and_the_last_attention_of_the_text_encoder_move():
    names = moved(run(epochs=2, optim=AdamW(lr=1e-2)), micro().model)
    assert {name.split(".")[0] for name in names} == {"text_encoder"}
    assert {name.split(".")[4] for name in names} == {"mlp", "self_attn"}


class Nested(nn.Module):
    """The layout of transformers 4: the text model is a child of its own."""

    def __init__(self, inner):
        super().__init__()
        self.text_model = inner

    def forward(self, ids):
        return self.text_model(ids)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("layers", [1, 3, 12])
def test_the_last_attention_is_that_of_the_last_block_however_many_there_are(layers, nested):
    """The authors' code asks for ``11.self_attn.``: of three layers that is nothing."""
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    encoder = CLIPTextModel(CLIPTextConfig(num_hidden_layers=layers, **sizes))
    model = nn.Module()
    model.text_encoder = Nested(encoder) if nested else encoder
    model.unet = nn.Linear(2, 2)
    names = TextEncoder().names(model)
    attention = {n.split("encoder.layers.")[1].split(".")[0] for n in names if ".self_attn." in n}
    feeding = {n.split("encoder.layers.")[1].split(".")[0] for n in names if ".mlp.fc" in n}
    assert attention == {str(layers - 1)}
    assert feeding == {str(i) for i in range(layers)}
    assert len(names) == 4 * layers + 8
    assert bool([n for n in names if "11.self_attn." in n]) == (layers == 12)
    whole = TextEncoder(parts=("all",)).names(model)
    assert len(whole) == len(list(encoder.parameters()))
    assert not set(TextEncoder(parts=("feed_forward",)).names(model)) & {n for n in names if "attn" in n}


def test_a_few_images_are_drawn_once_by_the_seed():
    def chosen(seed):
        plan = FewShot(samples=2).plan(micro().model, canvas_split(), micro().task, Session(seed=seed))
        return tuple(plan.parts["forget"].ids.tolist())

    assert chosen(0) == chosen(0)
    assert len({chosen(seed) for seed in range(8)}) > 1


def test_other_captions_of_the_images_are_used_by_name():
    options = {"epochs": 1, "batch_size": 6, "samples": None, "optim": PLAIN}
    assert moved(run(captions="style", **options), run(**options))
    with pytest.raises(Unsupported, match="the data has no 'artist' captions"):
        run(captions="artist", **options)


def test_nothing_retained_is_looked_at():
    data = micro().data
    other = replace(canvas_split(), retain=data.subset(data.ids[data.column("style") == 0][:1]))
    options = {"epochs": 1, "optim": PLAIN}
    again = FewShot(**options).unlearn(micro().model, other, micro().task, SESSION)
    assert not moved(again, run(**options))


def test_bad_input_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        FewShot().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="Use grad_ascent or sa"):
        FewShot().unlearn(told(), split(), CLASSES, SESSION)
    with pytest.raises(Unsupported, match="has no text encoder. Use a text-to-image model"):
        TextEncoder().names(nn.Linear(2, 2))
    for bad in ({"samples": 0}, {"bound": 0.0}):
        with pytest.raises(ConfigError):
            FewShot(**bad)
    with pytest.raises(ConfigError):
        TextEncoder(parts=())
