"""The scope and the modifier for mixtures of experts, on micro Mixtral and Qwen2-MoE models."""

import pytest
import torch

from expunge.errors import ConfigError, Unsupported
from expunge.methods.edits.ssd import SSD
from expunge.methods.gradient.grad_ascent import GradAscent
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.modifiers.gru import GRU
from expunge.methods.modifiers.latent_adversary import LatentAdversary
from expunge.methods.modifiers.router_anchor import RouterAnchor
from expunge.methods.scopes.expert import Expert
from expunge.training import experts
from expunge.training.language_models import MixtureOfExperts
from expunge.training.optim import SGD, AdamW

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)


def _mixtral():
    torch.manual_seed(3)
    return MixtureOfExperts(vocabulary=11, width=8, layers=2, heads=2, mlp=6, context=8, active=1).network()


def _qwen():
    torch.manual_seed(3)
    config = transformers.Qwen2MoeConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        moe_intermediate_size=6, shared_expert_intermediate_size=6, num_experts=4, num_experts_per_tok=2,
        intermediate_size=12, decoder_sparse_step=1,
    )  # fmt: skip
    config._experts_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # transformers starts its routers at zero
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.normal_()
    return model


every_model = pytest.mark.parametrize("build", [_mixtral, _qwen])


def _batch(setting):
    (batch,) = setting.split.forget.batches([torch.arange(len(setting.split.forget))], device="cpu")
    return batch


def _usage(setting, model):
    """Mean router probability of each expert, ``(blocks, experts)``, from the model's own logits."""
    batch = _batch(setting)
    with torch.no_grad():
        found = model.eval()(
            batch["input_ids"], attention_mask=batch["attention_mask"], output_router_logits=True
        ).router_logits
    mask = batch["attention_mask"].flatten().bool()
    return torch.stack([logits.softmax(-1)[mask].mean(0) for logits in found])


def _run(setting, model, **fields):
    method = GradDiff(**{"epochs": 2, "batch_size": 8, "optim": AdamW(lr=0.05, weight_decay=0.5), **fields})
    return method.unlearn(model, setting.split, setting.task, setting.session)


@every_model
def test_the_expert_is_the_one_with_the_largest_mean_probability_without_padding(setting, build):
    model = build()
    usage = _usage(setting, model)
    bank, expert = experts.chosen(model, setting.split.forget, setting.task, setting.session, batch_size=4)
    assert (bank.block, expert) == tuple(torch.unravel_index(usage.argmax(), usage.shape))
    other = 1 - bank.block
    bank, expert = experts.chosen(
        model, setting.split.forget, setting.task, setting.session, batch_size=4, block=other
    )
    assert (bank.block, expert) == (other, int(usage[other].argmax()))


@every_model
@pytest.mark.parametrize("router", [True, False])
def test_one_expert_and_its_router_row_move_and_nothing_else_under_weight_decay(setting, build, router):
    model = build()
    usage = _usage(setting, model)
    block, expert = (int(i) for i in torch.unravel_index(usage.argmax(), usage.shape))
    result = _run(setting, model, scope=Expert(router=router)).state_dict()
    prefix, before = f"model.layers.{block}.mlp", model.state_dict()
    cut = {f"{prefix}.experts.gate_up_proj", f"{prefix}.experts.down_proj"}
    cut |= {f"{prefix}.gate.weight"} if router else set()
    assert list(result) == list(before)
    moved = {name for name in before if not torch.equal(before[name], result[name])}
    assert moved == cut
    for name in cut:
        rows = (before[name] != result[name]).flatten(1).any(1).nonzero()[:, 0].tolist()
        assert rows == [expert]


@every_model
def test_the_function_on_entering_is_the_originals(setting, build):
    model, batch = build().eval(), _batch(setting)
    expected = setting.task.outputs(model, batch)
    entered = Expert().fitted(model, setting.split, setting.task, setting.session).enter(model)
    assert torch.equal(setting.task.outputs(entered, batch), expected)
    memory = sum(p.numel() for p in entered.parameters() if p.requires_grad)
    assert memory == 6 * 16 + 8 * 6 + 8  # one expert and one row


@every_model
def test_a_given_expert_is_the_one_that_moves(setting, build):
    model = build()
    result = _run(setting, model, scope=Expert(block=1, expert=2, router=False)).state_dict()
    name = "model.layers.1.mlp.experts.down_proj"
    changed = (result[name] != model.state_dict()[name]).flatten(1).any(1)
    assert set(changed.nonzero()[:, 0].tolist()) <= {2}


@every_model
def test_the_anchor_is_the_equation(setting, build):
    """One step of plain descent from a model in which nothing but the anchor has a gradient."""
    model, batch = build().eval(), _batch(setting)
    anchor = RouterAnchor(weight=3.0, block=0, expert=1)
    state = anchor.prepare(model, setting.split, setting.task, setting.session)
    assert state == (experts.banks(model)[0], 1)
    found = model(batch["input_ids"], attention_mask=batch["attention_mask"], output_router_logits=True)
    probabilities = found.router_logits[0].softmax(-1)[batch["attention_mask"].flatten().bool()]
    target = torch.tensor([0.0, 1.0, 0.0, 0.0])
    value = 3.0 * (probabilities - target).square().sum(-1).mean()
    row = model.model.layers[0].mlp.gate.weight
    (expected,) = torch.autograd.grad(value, [row])

    def moved(*modifiers):
        method = GradAscent(
            epochs=1, batch_size=64, mode="eval", optim=SGD(lr=1.0, momentum=0.0), modifiers=modifiers
        )
        result = method.unlearn(model, setting.split, setting.task, setting.session)
        return result.model.layers[0].mlp.gate.weight - row

    assert torch.allclose(moved(anchor) - moved(), -expected, atol=1e-5)
    assert expected.abs().max() > 1e-3


@every_model
def test_scope_and_anchor_choose_the_same_expert_though_one_is_cut_out_by_then(setting, build):
    model = build()
    expected = experts.chosen(model, setting.split.forget, setting.task, setting.session, batch_size=32)
    entered = Expert().fitted(model, setting.split, setting.task, setting.session).enter(model)
    assert RouterAnchor().prepare(entered, setting.split, setting.task, setting.session) == expected
    modifiers = (RouterAnchor(), LatentAdversary(steps=1), GRU())  # each term with a gradient of its own
    result = _run(setting, build(), scope=Expert(), modifiers=modifiers)
    assert all(torch.isfinite(value).all() for value in result.state_dict().values())


@every_model
def test_the_anchor_keeps_the_router_choosing_the_expert(setting, build):
    model = build()
    usage = _usage(setting, model)
    place = tuple(int(i) for i in torch.unravel_index(usage.argmax(), usage.shape))
    fields = {"epochs": 6, "optim": SGD(lr=0.3), "retain_weight": 0.3, "mode": "eval"}
    free = _usage(setting, _run(setting, model, **fields))[place]
    held = _usage(setting, _run(setting, model, modifiers=(RouterAnchor(weight=5.0),), **fields))[place]
    assert held > free + 0.05


def test_experts_and_blocks_that_do_not_exist_are_refused(setting):
    for fields in ({"block": 2}, {"expert": 4}):
        with pytest.raises(Unsupported, match="no experts where.*Give others: block 0 has 4, block 1 has 4"):
            _run(setting, _mixtral(), scope=Expert(**fields))


def test_a_frozen_expert_is_refused(setting):
    model = _mixtral()
    for bank in experts.banks(model):
        model.get_submodule(bank.experts).requires_grad_(False)
    with pytest.raises(Unsupported, match=r"is frozen. Choose another expert"):
        _run(setting, model, scope=Expert())


@pytest.mark.parametrize("fields", [{"scope": Expert()}, {"modifiers": (RouterAnchor(),)}])
def test_a_dense_model_is_refused(setting, fields):
    with pytest.raises(Unsupported, match="no mixture of experts.*Use the scope feed_forward"):
        _run(setting, setting.original, **fields)


def test_a_one_shot_edit_cannot_use_it(setting):
    with pytest.raises(Unsupported, match="Choose feed_forward"):
        SSD(scope=Expert()).unlearn(_mixtral(), setting.split, setting.task, setting.session)


def test_fields_out_of_range_are_refused_by_name(setting):
    for fields in ({"block": -1}, {"expert": -1}, {"batch_size": 0}):
        for kind in (Expert, RouterAnchor):
            with pytest.raises(ConfigError, match=next(iter(fields))):
                kind(**fields)
    with pytest.raises(ConfigError, match="weight: must be above 0"):
        RouterAnchor(weight=0.0)
