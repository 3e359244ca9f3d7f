"""SPM: one step by hand, facilitated transport and what the authors' form of it does, saving, pipelines."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tests.canvases import micro
from tests.methods.told import CLASSES, split, told
from torch import nn
from torch.nn.functional import cosine_similarity

from expunge import saved
from expunge.data import Split
from expunge.data.captions import tokenise
from expunge.errors import ConfigError, Unsupported
from expunge.methods import membranes
from expunge.methods.guards.spm import SPM, Erasure, summary
from expunge.methods.membranes import MEMBRANE, Membranes, adapted_layers, drawn_states, through
from expunge.tasks import Classification
from expunge.training.checkpoint import load_weights, save_weights
from expunge.training.engine import Engine
from expunge.training.optim import SGD
from expunge.training.sampling import sample
from expunge.training.session import Session
from expunge.training.step import Original, Step, View

SESSION = Session(seed=0)
FAST = {"epochs": 1, "batch_size": 6, "steps": 2}
MOSAIC, SKETCH = "a circle image in mosaic style", "a circle image in sketch style"


def canvas_split():
    data = micro().data
    return Split.from_ids(data, data.ids[data.column("style") == 1])


def tokens(*captions):
    return tokenise(micro().data.tokenizer, captions)


def asked(model, *captions, at=500):
    """Predictions for the captions, all of the same noise."""
    ids = tokens(*captions)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).expand(len(ids), -1, -1, -1)
    with torch.no_grad():
        return model(x, torch.full((len(ids),), at), ids)


@cache
def learned(transport="end"):
    """Factors drawn at random in the place of trained ones, so that an open membrane shows."""
    method, made = SPM(transport=transport), micro()
    draws, found = torch.Generator().manual_seed(0), {}
    for name, layer in adapted_layers(made.model).items():
        outputs, *inputs = layer.weight.shape
        plain = name.replace(".", "/")
        found[f"down/{plain}"] = torch.randn(1, *inputs, generator=draws)
        found[f"up/{plain}"] = 0.1 * torch.randn(outputs, 1, *[1] * (len(inputs) - 1), generator=draws)
    return {**found, **method.compared(made.model, canvas_split(), SESSION)}


@cache
def guarded(transport="end"):
    model = SESSION.engine.copy(micro().model)
    return SPM(transport=transport).attach(model, learned(transport))


def openings(model, *captions):
    asked(model, *captions)
    return model.guard.opening


def merged(strength):
    """The model with ``W + m B A`` for its weights: what a membrane open by ``m`` amounts to."""
    model, found = SESSION.engine.copy(micro().model), learned()
    with torch.no_grad():
        for name, layer in adapted_layers(model).items():
            plain = name.replace(".", "/")
            down, up = found[f"down/{plain}"], found[f"up/{plain}"]
            layer.weight += strength * torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).view_as(
                layer.weight
            )
    return model


def test_a_membrane_beside_a_linear_layer_and_a_convolution_by_hand():
    x, down, up = torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, -1.0]]), torch.tensor([[4.0], [0.5]])
    assert through(nn.Linear(2, 2), x, down, up).tolist() == [[-4.0, -0.5]]
    layer = nn.Conv2d(1, 2, 3, stride=2, padding=1)
    image = torch.arange(16.0).view(1, 1, 4, 4)
    kernel = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    wide = torch.tensor([2.0, -1.0]).view(2, 1, 1, 1)
    weight = wide * kernel  # B A, (2, 1, 3, 3)
    whole = torch.nn.functional.conv2d(image, weight, None, 2, 1)
    assert torch.allclose(through(layer, image, kernel, wide), whole, atol=1e-5)


def test_every_layer_of_the_transformers_has_a_membrane_and_no_other():
    found = adapted_layers(micro().model)
    assert all(
        ".attentions." in name and isinstance(layer, nn.Linear | nn.Conv2d) for name, layer in found.items()
    )
    ends = {name.rpartition("transformer_blocks.0.")[2] for name in found if "transformer_blocks" in name}
    attention = {f"attn{i}.{part}" for i in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")}
    assert ends == attention | {"ff.net.0.proj", "ff.net.2"}
    assert any(isinstance(layer, nn.Conv2d) for layer in found.values())  # proj_in and proj_out


def step_of(method):
    """A model under fresh membranes with its first step, and the run that it belongs to."""
    made, model = micro(), SESSION.engine.copy(micro().model)
    Membranes(model, method.rank, method.alpha / method.rank, torch.Generator().manual_seed(0))
    data, engine = canvas_split().forget, Engine(device="cpu")
    (batch,) = data.batches([torch.arange(len(data))], device="cpu")
    task = made.task.unlearning()
    batch = task.prepare(batch, torch.Generator().manual_seed(0))
    known = Original(made.model, task, engine, {"forget": data})
    view = View("forget", batch, model, known, task, engine, None)
    run = Erasure(made.model, task, engine, 3, method)
    return model, run, Step("forget", {"forget": view}, model, 0, 0, 1, None)


def test_shut_membranes_give_the_distance_of_the_original_from_its_target_and_no_anchoring():
    """At first ``B = 0``: ``f_Δ = f_o``, so the terms are ``(1 + η)² mean (f_o(c) − f_o(∅))²`` and 0."""
    model, run, step = step_of(SPM(steps=3, negative_guidance=1.5))
    terms = run.objective(step)
    batch = run.drawn(model, step.forget.batch, 0)
    with torch.no_grad():
        own = run.task.outputs(run.original, batch)
        free = run.task.outputs(run.original, run.task.instead(batch, "empty"))
    assert torch.allclose(terms["forget"], 2.5**2 * (own - free).square().mean(), rtol=1e-4)
    assert float(terms["retain"].detach()) == 0.0


def test_the_anchoring_weighs_a_thousand_and_is_of_states_that_mean_nothing():
    method = SPM(steps=3, anchors=2)
    model, run, step = step_of(method)
    with torch.no_grad():
        for name, value in getattr(model, MEMBRANE).named_parameters():
            if name.startswith("up/"):
                value.add_(0.3)
    terms = run.objective(step)
    batch = run.drawn(model, step.forget.batch, 0)
    with torch.no_grad():
        like = run.original.encode_text(batch["input_ids"]).repeat_interleave(2, 0)
        seeds = run.seeds("anchor", batch, 0)
        states = drawn_states(like, [membranes_seed(s, i) for s in seeds for i in range(2)])
        twice = [batch[name].repeat_interleave(2, 0) for name in ("noisy", "timesteps")]
        apart = model.predict(*twice, states) - run.original.predict(*twice, states)
    assert torch.allclose(terms["retain"].detach(), 1000 * apart.square().mean(), rtol=1e-4)
    assert terms["retain"] > 0
    assert "retain" not in step_objective(SPM(steps=3, anchoring=0.0))


def membranes_seed(seed, i):
    from expunge import seeding

    return seeding.derive(seed, i)


def step_objective(method):
    _, run, step = step_of(method)
    return run.objective(step)


def test_anchors_are_as_long_as_the_captions_states_and_seldom_alike():
    like = torch.randn(2000, 1, 2, generator=torch.Generator().manual_seed(0))
    found = drawn_states(like, list(range(2000)))
    lengths = found.flatten(1).norm(dim=1) / like.flatten(1).norm(dim=1)
    assert lengths.min() > 0.8
    assert lengths.max() < 1.2
    assert lengths.std() > 0.1  # 0.4 / √12 = 0.115
    close = cosine_similarity(found.flatten(1), like.flatten(1))
    wanted = -torch.pi / 2 / (2 * torch.pi - 2)  # of min(1, 1 − cos) over a circle: −0.367
    assert float(close.mean()) == pytest.approx(wanted, abs=0.05)
    assert torch.equal(drawn_states(like[3:4], [3]), found[3:4])


def test_one_step_of_descent_moves_the_factors_alone_and_lowers_the_loss():
    """``∂L / ∂A = 0`` while ``B = 0``, so that the first step moves ``B`` alone."""
    method = SPM(epochs=1, batch_size=6, steps=3, optim=SGD(lr=0.1, momentum=0.0))
    before, after = (
        SPM(**{**FAST, "optim": SGD(lr=lr, momentum=0.0)}).learn(
            micro().model, canvas_split(), micro().task, SESSION
        )
        for lr in (1e-12, 0.1)
    )
    downs = [name for name in after if name.startswith("down/")]
    assert all(torch.equal(before[name], after[name]) for name in downs)
    moved = [name for name in after if name.startswith("up/") and after[name].norm() > 1e-6]
    assert len(moved) > len(downs) / 2
    assert method.rank == 1
    assert all(value.shape[0] == 1 for name, value in after.items() if name.startswith("down/"))


def test_the_level_told_is_the_one_that_the_latents_are_at_and_pure_noise_is_one_of_them():
    model, run, step = step_of(SPM(steps=4))
    told = [int(run.drawn(model, step.forget.batch, index)["timesteps"][0]) for index in range(4)]
    assert sorted(told) == [249, 499, 749, 999]


def test_membranes_open_by_the_words_of_the_concept_and_are_shut_for_the_empty_caption():
    found = openings(guarded(), MOSAIC, "mosaic", "", "a mosaic", SKETCH)
    assert found[[0, 1, 3]].tolist() == [1.0, 1.0, 1.0]
    assert float(found[2]) == 0.0
    assert float(found[4]) < 1.0
    said, plain = asked(guarded(), MOSAIC, ""), asked(micro().model, MOSAIC, "")
    assert torch.equal(said[1], plain[1])
    assert torch.allclose(said[0], asked(merged(1.0), MOSAIC)[0], atol=1e-5)
    assert not torch.allclose(said[0], plain[0], atol=1e-2)


def test_a_pair_opens_half_way_for_one_of_its_words():
    data = micro().data
    chosen = (data.column("style") == 1) & (data.column("object") == 0)
    pair = Split.from_ids(data, data.ids[chosen])
    method, model = SPM(concept="circle mosaic"), SESSION.engine.copy(micro().model)
    near = method.compared(model, pair, SESSION)
    near["direction"] = torch.zeros_like(near["direction"])  # the share of the tokens alone
    model = method.attach(model, {**learned(), **near})
    found = openings(model, MOSAIC, "a square image in mosaic style", "a circle image", "a square image")
    assert found.tolist() == [1.0, 0.5, 0.5, 0.0]


def test_the_cosine_opens_for_captions_without_the_words():
    """Of a caption whose state is the concept's own direction the opening is 1, whatever its tokens are."""
    model = SESSION.engine.copy(micro().model)
    near = SPM().compared(model, canvas_split(), SESSION)
    ids = tokens("a square image")
    with torch.no_grad():
        state = summary(model.encode_text(ids), ids, near["end"], "end")[0]
    near["direction"] = 3.0 * (state - near["empty"])
    guard = SPM().attach(model, {**learned(), **near})
    assert openings(guard, "a square image").tolist() == pytest.approx([1.0])
    near["direction"] = -near["direction"]
    shut = SPM().attach(SESSION.engine.copy(micro().model), {**learned(), **near})
    assert openings(shut, "a square image").tolist() == [0.0]


def test_the_authors_cosine_of_all_positions_keeps_membranes_open_for_every_caption():
    """What captions have in common, start and padding, is alike in all of them."""
    captions = ("", SKETCH, "a square image", "an image in sketch style")
    model = guarded("reference")
    assert openings(model, *captions).min() > 0.3
    with torch.no_grad():
        states = micro().model.encode_text(tokens("", "mosaic")).flatten(1)
    assert openings(model, "")[0] == pytest.approx(float(cosine_similarity(states[:1], states[1:])), abs=1e-5)
    assert openings(guarded(), *captions)[0] == 0.0


def test_the_authors_scale_both_factors_so_that_membranes_open_by_the_square():
    """By hand: ``m² B A`` and not ``m B A`` at an opening below 1."""
    model = guarded("reference")
    m = float(openings(model, SKETCH)[0])
    assert 0.0 < m < 0.99
    said = asked(model, SKETCH)
    assert torch.allclose(said, asked(merged(m**2), SKETCH), atol=1e-5)
    assert not torch.allclose(said, asked(merged(m), SKETCH), atol=1e-3)


def test_half_open_is_half_of_the_product_otherwise():
    model = SESSION.engine.copy(guarded())
    model.guard.concept = torch.cat(
        [model.guard.concept, torch.tensor([10**6])]
    )  # a token that no caption has
    model.guard.direction = torch.zeros_like(model.guard.direction)
    assert openings(model, MOSAIC).tolist() == [0.5]
    assert torch.allclose(asked(model, MOSAIC), asked(merged(0.5), MOSAIC), atol=1e-5)


def test_always_open_reads_no_caption():
    model = guarded("off")
    assert torch.allclose(asked(model, MOSAIC, ""), asked(merged(1.0), MOSAIC, ""), atol=1e-5)
    with torch.no_grad():
        model.predict(torch.zeros(1, 3, 8, 8), torch.tensor([5]), torch.ones(1, 16, 16))


def test_rows_of_a_batch_open_each_by_itself_in_any_order_of_encoding():
    model, captions = guarded(), [MOSAIC, SKETCH, "", "a square image in mosaic style"]
    together = asked(model, *captions)
    for row, caption in enumerate(captions):
        assert torch.allclose(together[row], asked(model, caption)[0], atol=1e-5)
    with (
        torch.no_grad()
    ):  # as a pipeline does: the prompts, then the negative ones, asked the other way round
        told, free = (model.encode_text(tokens(caption)) for caption in (MOSAIC, ""))
        x = torch.zeros(3, 3, 8, 8)
        model.predict(x, torch.full((3,), 500), torch.cat([free, told, free]))
    assert model.guard.opening.tolist() == [0.0, 1.0, 0.0]


def test_states_that_the_text_encoder_did_not_make_are_refused_and_16_bit_copies_are_not():
    model = SESSION.engine.copy(guarded())
    with torch.no_grad(), pytest.raises(Unsupported, match="Give captions, or use transport=off"):
        model.predict(torch.zeros(1, 3, 8, 8), torch.tensor([5]), torch.ones(1, 16, 16))
    with torch.no_grad():
        states = model.encode_text(tokens(MOSAIC, SKETCH)).bfloat16().float()
        model.predict(torch.zeros(2, 3, 8, 8), torch.full((2,), 5), states)
    assert model.guard.opening[0] == 1.0
    assert model.guard.opening[1] < 1.0


def test_a_sampler_and_a_pipeline_draw_the_same(tmp_path):
    """Retained captions are drawn as before; the concept's are not."""
    made, model = micro(), guarded()
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"empty": made.empty, "steps": 2, "guidance": 2.0, "start": start}
    drawn, plain = (sample(m, made.task, tokens(MOSAIC, ""), **options) for m in (model, made.model))
    assert torch.equal(drawn[1], plain[1])
    assert not torch.allclose(drawn[0], plain[0], atol=1e-2)
    pipe = model.pipeline(made.data.tokenizer, made.task)
    pipe.set_progress_bar_config(disable=True)
    found = pipe(
        [MOSAIC, ""], latents=start, num_inference_steps=2, guidance_scale=2.0, output_type="latent"
    ).images
    assert torch.allclose(found, drawn, atol=1e-4)


def test_the_weights_are_the_originals_and_the_guard_goes_to_disk_and_back(tmp_path):
    made, model = micro(), guarded()
    state = model.state_dict()
    assert all(torch.equal(v, state[n]) for n, v in made.model.state_dict().items())
    saved.save(model, tmp_path, made.data.tokenizer, made.task)
    loaded, captions = saved.load(tmp_path), (MOSAIC, SKETCH, "")
    assert torch.allclose(asked(loaded, *captions), asked(model, *captions), atol=1e-6)
    assert torch.equal(openings(loaded, *captions), openings(model, *captions))


def test_the_weights_of_a_run_are_read_into_a_blank_model(tmp_path):
    run = SPM(**FAST).unlearn(micro().model, canvas_split(), micro().task, SESSION)
    again = SPM(**FAST).unlearn(micro().model, canvas_split(), micro().task, SESSION)
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in run.state_dict().items())
    save_weights(run, tmp_path / "model.safetensors")
    blank = SPM(**FAST).blank(SESSION.engine.copy(micro().model), canvas_split())
    assert torch.equal(asked(blank, MOSAIC), asked(micro().model, MOSAIC))
    load_weights(blank, tmp_path / "model.safetensors")
    assert torch.equal(asked(blank, MOSAIC), asked(run, MOSAIC))
    assert not torch.equal(asked(blank, MOSAIC), asked(micro().model, MOSAIC))


def test_training_moves_away_from_the_concept_by_rows_that_are_whole_examples():
    """More steps bring the prediction nearer to the target than none; other captions stay near themselves."""
    fields = {"epochs": 6, "batch_size": 6, "steps": 2, "anchoring": 1.0, "optim": SGD(lr=8.0, momentum=0.0)}
    result = SPM(**fields).unlearn(micro().model, canvas_split(), micro().task, SESSION)
    own, free = asked(micro().model, MOSAIC, "")
    target = free - (own - free)
    assert (asked(result, MOSAIC)[0] - target).norm() < 0.9 * (own - target).norm()
    assert torch.allclose(asked(result, "")[0], free, atol=1e-5)


def test_bad_input_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        SPM().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="Use esd or sa"):
        SPM().unlearn(told(), split(), CLASSES, SESSION)
    with pytest.raises(Unsupported, match="is guarded by spm already. Give the model"):
        SPM(**FAST).attach(SESSION.engine.copy(guarded()), learned())
    with pytest.raises(Unsupported, match="no transformers with layers to adapt. Use a text-to-image model"):
        membranes.adapted_layers(told())
    with pytest.raises(Unsupported, match="the data has no 'artist' captions"):
        SPM(captions="artist", **FAST).unlearn(micro().model, canvas_split(), micro().task, SESSION)
    bad = ({"rank": 0}, {"alpha": 0.0}, {"anchoring": -1.0}, {"anchors": 0}, {"guidance": 0.0}, {"steps": 0})
    for fields in (*bad, {"negative_guidance": -0.1}):
        with pytest.raises(ConfigError):
            SPM(**fields)
