"""FMN: the attention itself, whose it is when several images go together, and when to stop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.canvases import micro
from tests.methods.told import CLASSES, split, told
from torch import nn

from expunge.data import Split
from expunge.data.arrays import fixed_order
from expunge.data.captions import word_positions
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.gradient.fmn import FMN, attended
from expunge.methods.scopes.denoiser import Denoiser
from expunge.tasks import Classification
from expunge.training.attention_maps import attention_maps
from expunge.training.cross_attention import cross_attention
from expunge.training.optim import SGD, AdamW
from expunge.training.session import Session

SESSION = Session(seed=0)
HEADS = 2


def canvas_split():
    data = micro().data
    return Split.from_ids(data, data.ids[data.column("style") == 1])


def prepared(data, count=3):
    (batch,) = data.batches(fixed_order(len(data), 100), device="cpu")
    batch = {name: values[:count] for name, values in batch.items()}
    return micro().task.prepare(batch, torch.Generator().manual_seed(0))


def by_the_processor(model, batch):
    """The probabilities that diffusers' own explicit attention computes, ``(N · heads, P, T)`` a layer."""
    found = []

    class Explicit:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
            found.append(attn.get_attention_scores(query, key))
            return attn.to_out[0](attn.batch_to_head_dim(torch.bmm(found[-1], value)))

    model = SESSION.engine.copy(model).eval()
    for _, module in cross_attention(model):
        module.set_processor(Explicit())
    with torch.no_grad():
        micro().task.outputs(model, batch)
    return found


def state_of(method, model=None):
    made = micro()
    return method.setup(model or made.model, canvas_split(), made.task.unlearning(), SESSION)


def test_the_maps_are_those_of_explicit_attention_example_by_example():
    made, batch = micro(), prepared(canvas_split().forget)
    wanted = by_the_processor(made.model, batch)
    with torch.no_grad(), attention_maps(made.model) as maps:
        plain = made.task.outputs(made.model, batch)
    assert torch.equal(plain, made.task.outputs(made.model, batch))
    by_name = dict(maps)
    assert len(by_name) == len(wanted) == 4
    for found, explicit in zip(by_name.values(), wanted, strict=True):
        assert torch.allclose(found, explicit.unflatten(0, (3, HEADS)), atol=1e-6)
        assert torch.allclose(found.sum(-1), torch.ones(found.shape[:-1]), atol=1e-5)


def test_the_norm_by_hand():
    maps = {"a": torch.zeros(2, 1, 1, 3), "b": torch.zeros(2, 1, 2, 3)}
    maps["a"][0, 0, 0] = torch.tensor([0.1, 0.3, 0.6])
    maps["b"][0, 0] = torch.tensor([[0.5, 0.4, 0.1], [0.2, 0.0, 0.8]])
    maps["b"][1, 0, 0] = torch.tensor([0.0, 0.0, 0.7])
    places = torch.tensor([[False, True, False], [False, False, True]])
    assert torch.allclose(attended(maps, places), torch.tensor([0.5, 0.7]))


def test_the_mask_tiled_by_heads_suppresses_other_tokens_of_a_batch_and_ours_does_not():
    """The authors' code repeats the ``(N, T)`` mask ``heads`` times over, where rows are ``(N, heads)``."""
    made, data = micro(), canvas_split().forget
    batch = prepared(data)
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][1] = torch.roll(batch["input_ids"][1], 1)  # so that the word is elsewhere
    places = word_positions(data.tokenizer, batch["input_ids"], "mosaic")
    assert not torch.equal(places[0], places[1])

    def norm(rows, tiled):
        told = {n: v[rows] for n, v in batch.items()}
        masks = places[rows].repeat(HEADS, 1) if tiled else places[rows].repeat_interleave(HEADS, 0)
        return torch.cat([p[m.unsqueeze(1).expand_as(p)] for p in by_the_processor(made.model, told)
                          for m in [masks]]).norm()  # fmt: skip

    with torch.no_grad(), attention_maps(made.model) as maps:
        made.task.outputs(made.model, batch)
    ours = attended(maps, places)
    for row in range(3):  # of one image both are right
        assert torch.allclose(ours[row], norm([row], tiled=True), atol=1e-6)
        assert torch.allclose(ours[row], norm([row], tiled=False), atol=1e-6)
    whole = ours.square().sum().sqrt()
    assert torch.allclose(whole, norm([0, 1, 2], tiled=False), atol=1e-6)
    assert not torch.allclose(whole, norm([0, 1, 2], tiled=True), atol=1e-4)


def test_one_step_goes_down_the_gradient_of_the_unsquared_norm():
    made = micro()
    method = FMN(epochs=1, samples=1, optim=SGD(lr=0.5, momentum=0.0), batch_size=1)
    result = method.unlearn(made.model, canvas_split(), made.task, SESSION)
    chosen = method.plan(made.model, canvas_split(), made.task.unlearning(), SESSION).parts["forget"]
    (batch,) = chosen.batches(fixed_order(1, 1), device="cpu")
    batch = made.task.unlearning().prepare(batch, SESSION.generator("draws"))
    copy = SESSION.engine.copy(made.model).eval()
    name, layer = cross_attention(copy)[0]
    layer.to_k.weight.requires_grad_(True)
    norm = state_of(method).norms(copy, batch).mean()
    (slope,) = torch.autograd.grad(norm, layer.to_k.weight)
    moved = result.get_parameter(f"{name}.to_k.weight")
    assert slope.abs().max() > 1e-6
    assert torch.allclose(moved, layer.to_k.weight - 0.5 * slope, atol=1e-6)


def test_attention_to_the_concepts_tokens_falls():
    made, batch = micro(), prepared(canvas_split().forget)
    method = FMN(epochs=5, batch_size=3, optim=AdamW(lr=1e-2, weight_decay=0.0))
    state = state_of(method)
    before = state.norms(made.model, batch)
    result = method.unlearn(made.model, canvas_split(), made.task, SESSION)
    after = state.norms(result, batch)
    assert (after < 0.8 * before).all()
    moved = {n for n, v in made.model.state_dict().items() if not torch.equal(v, result.state_dict()[n])}
    assert moved
    assert all(".attn2." in name for name in moved)


def test_a_floor_stops_before_the_epochs_do_and_earlier_where_it_is_higher():
    made, steps = micro(), {}
    for floor in (0.0, 0.8, 0.97):
        seen = []
        session = replace(SESSION, callbacks=(seen.append,))
        method = FMN(epochs=8, batch_size=3, samples=3, floor=floor, optim=AdamW(lr=2e-2))
        method.unlearn(made.model, canvas_split(), made.task, session)
        steps[floor] = sum(event.kind == "step" and event.what == "fmn" for event in seen)
    assert steps[0.0] == 8
    assert steps[0.97] < steps[0.8] < 8


def test_the_end_of_the_text_is_suppressed_on_demand():
    ids = canvas_split().forget.column("input_ids")[:1]
    places, with_end = state_of(FMN()).places(ids), state_of(FMN(end=True)).places(ids)
    extra = (with_end & ~places)[0].nonzero().flatten().tolist()
    assert extra == [ids[0].tolist().index(micro().data.tokenizer.eos_token_id)]


def test_another_caption_of_the_images_is_used_by_name():
    made = micro()
    options = {"epochs": 1, "batch_size": 6, "optim": SGD(lr=0.5)}
    own, style = (
        FMN(**options, captions=captions).unlearn(made.model, canvas_split(), made.task, SESSION).state_dict()
        for captions in ("", "style")
    )
    assert any(not torch.equal(own[name], style[name]) for name in own)
    with pytest.raises(DataError, match="have no word of the concept 'mosaic'"):
        FMN(captions="object").unlearn(made.model, canvas_split(), made.task, SESSION)
    with pytest.raises(Unsupported, match="no 'artist' captions; it has: empty, style, object"):
        FMN(captions="artist").unlearn(made.model, canvas_split(), made.task, SESSION)


def test_only_so_many_images_are_looked_at_and_the_seed_says_which():
    made = micro()

    def chosen(seed):
        plan = FMN(samples=2).plan(made.model, canvas_split(), made.task.unlearning(), Session(seed=seed))
        return tuple(plan.parts["forget"].ids.tolist())

    assert chosen(0) == chosen(0)
    assert len({chosen(seed) for seed in range(8)}) > 1
    assert all(len(chosen(seed)) == 2 for seed in range(3))


def test_bad_input_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        FMN().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="Use esd or sa for classes"):
        FMN(scope=Denoiser(part="all")).unlearn(told(), split(), CLASSES, SESSION)
    for bad in ({"samples": 0}, {"floor": 1.0}):
        with pytest.raises(ConfigError):
            FMN(**bad)


def test_attention_that_norms_its_queries_is_refused():
    model = SESSION.engine.copy(micro().model)
    cross_attention(model)[0][1].norm_q = nn.LayerNorm(4)
    with pytest.raises(Unsupported, match="it has norm_q. Use a method"), attention_maps(model):
        pass
