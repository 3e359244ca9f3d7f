from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.rmu import RMU
from expunge.tasks import CausalLM
from expunge.training.engine import Engine
from expunge.training.language_models import GptNeoX, Llama, MixtureOfExperts
from expunge.training.networks import LanguageModel
from expunge.training.optim import AdamW
from expunge.training.scope import Everything
from expunge.training.session import Session
from expunge.training.step import Original, Step, View

V = 13
TASK = CausalLM(V)
SESSION = Session(seed=4, engine=Engine(device="cpu"))


def texts(lengths, prompt=0, seed=0, wide=8):
    ids = torch.randint(1, V, (len(lengths), wide), generator=torch.Generator().manual_seed(seed))
    places = torch.arange(wide)
    padding = places >= torch.tensor(lengths)[:, None]
    return {
        "input_ids": ids.masked_fill(padding, 0),
        "labels": ids.masked_fill(padding | (places < prompt), -100),
        "attention_mask": (~padding).long(),
    }


def network(layers=4, seed=0):
    torch.manual_seed(seed)
    return LanguageModel(V, 8, layers, 2, 16).eval()


def split_of(columns):
    half = len(columns["labels"]) // 2
    return Split.from_ids(ArrayData(columns), range(half))


def terms(method, original, model, split, session=SESSION):
    shared = (model, Original(original, TASK, session.engine, {}), TASK, session.engine, None)
    views = {}
    for part in ("forget", "retain"):
        data = getattr(split, part)
        (batch,) = data.batches([torch.arange(len(data))], device="cpu")
        views[part] = View(part, batch, *shared)
    state = method.setup(original, split, TASK, session)
    found = method.objective(Step("forget", views, model, 0, 0, 1, state))
    return {name: value.detach() for name, value in found.items()}, state


def hidden(model, ids, layer):
    """The output of a block, by hand."""
    found = []
    handle = model.blocks[layer].register_forward_hook(lambda _, __, output: found.append(output))
    model(ids)
    handle.remove()
    return found[0]


def test_the_loss_is_the_mean_square_to_the_direction_and_to_the_original():
    columns = texts([8] * 4)
    split, original, model = split_of(columns), network(), network(seed=1)
    method = RMU(layer=2, coefficient=6.5, relative=False, retain_weight=3.0)
    found, _ = terms(method, original, model, split)
    v = torch.rand(8, generator=SESSION.generator("direction"))
    ids = columns["input_ids"]
    forget = F.mse_loss(hidden(model, ids[:2], 2), (6.5 * v / v.norm()).expand(2, 8, 8))
    retain = 3.0 * F.mse_loss(hidden(model, ids[2:], 2), hidden(original, ids[2:], 2))
    assert float(found["forget"]) == pytest.approx(float(forget.detach()), rel=1e-5)
    assert float(found["retain"]) == pytest.approx(float(retain.detach()), rel=1e-5)


def test_the_direction_is_in_the_positive_orthant_and_drawn_from_the_seed():
    split = split_of(texts([8] * 4))
    method = RMU(layer=1, coefficient=20.0, relative=False)
    first, again, other = (
        method.setup(network(), split, TASK, session).target
        for session in (SESSION, SESSION, replace(SESSION, seed=5))
    )
    assert (first > 0).all()
    assert float(first.norm()) == pytest.approx(20.0)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_a_relative_coefficient_is_in_units_of_the_originals_mean_norm():
    columns = texts([8, 5, 7, 8])
    target = RMU(layer=2, coefficient=2.0).setup(network(), split_of(columns), TASK, SESSION).target
    norms = hidden(network(), columns["input_ids"][:2], 2).norm(dim=-1)
    mean = torch.cat([norms[0, 1:8], norms[1, 1:5]]).mean()
    assert float(target.norm()) == pytest.approx(2 * float(mean.detach()), rel=1e-4)


@pytest.mark.parametrize("positions", ["answer", "text"])
def test_padding_changes_nothing(positions):
    """A mean over all positions, the authors', would change."""
    method = RMU(layer=1, positions=positions)
    narrow, wide = texts([6, 4, 5, 6], prompt=2), texts([6, 4, 5, 6], prompt=2, wide=12)
    for name in narrow:
        wide[name] = F.pad(narrow[name], (0, 4), value=-100 if name == "labels" else 0)
    first, second = (terms(method, network(), network(seed=1), split_of(c))[0] for c in (narrow, wide))
    for name in ("forget", "retain"):
        assert float(first[name]) == pytest.approx(float(second[name]), rel=1e-5)


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_examples():
    """Sums divided by all token counts of the batch, a matrix, would weight them by its lengths."""
    columns = texts([8, 3, 5, 8, 3, 5], prompt=1)
    method = RMU(layer=1, relative=False)
    whole = terms(method, network(), network(seed=1), split_of(columns))[0]
    for name in ("forget", "retain"):
        alone = []
        for i in range(3):
            one = {key: values[[i, i + 3]] for key, values in columns.items()}
            alone.append(float(terms(method, network(), network(seed=1), split_of(one))[0][name]))
        assert float(whole[name]) == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_positions_say_which_tokens_count():
    columns = texts([8] * 4, prompt=5)
    answer, text = (
        terms(RMU(layer=1, relative=False, positions=p), network(), network(seed=1), split_of(columns))[0]
        for p in ("answer", "text")
    )
    bare = {**columns, "labels": columns["input_ids"]}
    every = terms(RMU(layer=1, relative=False), network(), network(seed=1), split_of(bare))[0]
    assert float(text["forget"]) == pytest.approx(float(every["forget"]), rel=1e-6)
    assert abs(float(answer["forget"]) - float(text["forget"])) > 1e-4


def test_layers_after_the_chosen_one_are_not_run_and_the_model_works_afterwards():
    model, ran = network(), []
    for place, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, place=place: ran.append(place))
    split = split_of(texts([8] * 4))
    before = network()(split.forget.column("input_ids"))
    terms(RMU(layer=1, relative=False), network(), model, split)
    assert ran == [0, 1, 0, 1]
    assert torch.equal(model(split.forget.column("input_ids")), before)


@pytest.mark.parametrize(
    ("layer", "depth", "expected"),
    [(2, 3, {0, 1, 2}), (3, 2, {2, 3}), (0, 3, {0}), (None, 3, {0})],
)
def test_only_the_down_projections_of_the_last_blocks_move(layer, depth, expected):
    method = RMU(layer=layer, depth=depth, epochs=1, optim=AdamW(lr=1e-2))
    original = network()
    result = method.unlearn(original, split_of(texts([8] * 4)), TASK, SESSION).state_dict()
    moved = {name for name, value in original.state_dict().items() if not torch.equal(value, result[name])}
    assert moved == {f"blocks.{place}.mlp.2.weight" for place in expected}


def test_the_default_layer_is_7_of_32():
    assert RMU()._layer(network(32)) == 7
    assert RMU()._layer(network(1)) == 0


SIZES = {"vocabulary": V, "width": 16, "layers": 3, "heads": 2, "mlp": 24, "context": 16}
NAMES = {
    Llama: "model.layers.{}.mlp.down_proj.weight",
    GptNeoX: "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight",
    MixtureOfExperts: "model.layers.{}.mlp.experts.down_proj",
}


@pytest.mark.parametrize("spec", NAMES)
def test_matrices_of_transformers_are_found_by_name_and_driven_to_the_direction(spec):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = spec(**SIZES).network().eval()
    method = RMU(layer=2, depth=2, epochs=20, batch_size=3, retain_weight=1.0, optim=AdamW(lr=5e-2))
    assert method.moving(model) == tuple(NAMES[spec].format(place) for place in (1, 2))
    split = split_of(texts([8, 6, 7, 8, 5, 8], prompt=2))
    result = method.unlearn(model, split, TASK, SESSION)
    before, after = (float(terms(method, model, m, split)[0]["forget"]) for m in (model, result))
    assert after < 0.7 * before
    assert result(split.forget.column("input_ids")).logits.isfinite().all()


def test_another_scope_decides_alone():
    split, original = split_of(texts([8] * 4)), network()
    method = RMU(layer=2, epochs=1, matrices=(), optim=AdamW(lr=1e-2))
    assert method.scope == Everything()
    result = method.unlearn(original, split, TASK, SESSION).state_dict()
    same = {name for name, value in original.state_dict().items() if torch.equal(value, result[name])}
    assert {name for name in same if not name.startswith("blocks.3")} == {
        "norm.weight",
        "norm.bias",
        "head.weight",
    }


def test_adapters_serve_as_the_scope():
    pytest.importorskip("peft")
    from expunge.methods.scopes.lora import LoRA

    split, original = split_of(texts([8] * 4)), network()
    method = RMU(layer=1, epochs=3, scope=LoRA(rank=2), optim=AdamW(lr=1e-2))
    result = method.unlearn(original, split, TASK, SESSION)
    assert not torch.equal(result.blocks[1].mlp[2].weight, original.blocks[1].mlp[2].weight)
    assert torch.equal(result.blocks[2].mlp[2].weight, original.blocks[2].mlp[2].weight)


@pytest.mark.parametrize("setting", ["classification", "regression", "diffusion"], indirect=True)
def test_other_tasks_are_refused_by_the_check(setting):
    with pytest.raises(Unsupported, match="rmu steers activations at tokens"):
        RMU().check(setting.split, setting.task)


def test_a_model_without_such_a_layer_or_matrix_is_refused():
    split = split_of(texts([8] * 4))
    with pytest.raises(Unsupported, match="no block 4. Choose a layer from 0 to 3"):
        RMU(layer=4).unlearn(network(), split, TASK, SESSION)
    with pytest.raises(Unsupported, match="ends with one of gate. Set matrices"):
        RMU(matrices=("gate",)).unlearn(network(), split, TASK, SESSION)
    flat = nn.Sequential(nn.Embedding(V, 8), nn.Linear(8, V))
    with pytest.raises(Unsupported, match="no list of blocks"):
        RMU().unlearn(flat, split, TASK, SESSION)


@pytest.mark.parametrize(
    "fields", [{"layer": -1}, {"coefficient": 0.0}, {"retain_weight": -1.0}, {"depth": 0}]
)
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        RMU(**fields)
