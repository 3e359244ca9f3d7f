"""Activation checkpointing: the same gradients and weights, fewer bytes kept, and what it cannot serve."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from expunge import config
from expunge.data import ArrayData
from expunge.errors import Unsupported
from expunge.methods.modifiers.retain_projection import RetainProjection
from expunge.methods.scopes.lora import LoRA
from expunge.tasks import CausalLM
from expunge.training.blocks import blocks
from expunge.training.engine import Engine
from expunge.training.ensemble import stacking
from expunge.training.language_models import GptNeoX, Llama, MixtureOfExperts
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import AdamW
from expunge.training.private import Private
from expunge.training.recipe import Recipe, Training
from expunge.training.recomputed import Recomputed, keep, recompute
from expunge.training.scope import Everything
from expunge.training.session import Session

pytest.importorskip("transformers")
pytest.importorskip("peft")

SIZES = {"vocabulary": 13, "width": 16, "layers": 3, "heads": 2, "mlp": 32, "context": 24}
KINDS = {"llama": Llama, "gpt_neox": GptNeoX, "moe": MixtureOfExperts}
IDS = torch.arange(80).view(4, 20) * 7 % 13
TASK = CausalLM(13)
ON = Engine(device="cpu", activation_checkpointing=True)


def built(kind: str = "llama", **sizes: int) -> nn.Module:
    torch.manual_seed(0)
    return KINDS[kind](**{**SIZES, **sizes})()


def batch() -> dict[str, Tensor]:
    return {"input_ids": IDS, "labels": IDS.clone(), "attention_mask": torch.ones_like(IDS)}


def loss(model: nn.Module) -> Tensor:
    return TASK.loss(TASK.said(model, batch()), batch()).mean()


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss(model), list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scope", [Everything(), LoRA(rank=2, head=False)], ids=["everything", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_same_and_none_is_missing_behind_frozen_embeddings(kind, scope, training) -> None:
    model = scope.enter(built(kind)).train(training)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    plain = gradients(model)
    recompute(model)
    found = gradients(model)
    assert all(value is not None for value in found.values())
    assert max(float((found[name] - value).abs().max()) for name, value in plain.items()) <= 1e-6
    assert all(float(value.abs().max()) > 0 for value in found.values())


def kept_bytes(model: nn.Module) -> int:
    """What a forward pass keeps for the backward pass, parameters apart: saved tensors and blocks' inputs."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep_size(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(value)
        return value

    handles = [
        block.register_forward_pre_hook(lambda _, given: (keep_size(given[0]), *given[1:]))
        for _, block in blocks(model)
    ]
    with saved_tensors_hooks(keep_size, lambda value: value):
        hidden = model.get_decoder()(IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state
    del hidden
    for handle in handles:
        handle.remove()
    return sum(found.values())


def test_only_the_inputs_of_blocks_are_kept() -> None:
    model = built(layers=6)
    plain = kept_bytes(model)
    recompute(model)
    assert kept_bytes(model) < plain / 5
    keep(model)
    assert kept_bytes(model) == plain


def data() -> ArrayData:
    return ArrayData(batch())


def plan(**fields: object) -> Plan:
    given: dict[str, object] = {
        "what": "test",
        "objective": lambda step: {"loss": step.retain.loss.mean()},
        "parts": {"retain": data(), "forget": data()},
        "passes": lambda epoch: (Pass("retain", beside="forget"),),
        "epochs": 2,
        "batch_size": 2,
        "optim": AdamW(lr=0.01, eps=1e-4),
    }
    return Plan(**{**given, **fields})  # type: ignore[arg-type]


def both(step):
    return {"forget": -step.forget.loss.mean(), "retain": step.retain.loss.mean()}


PLANS = {
    "everything": plan(),
    "lora": plan(scope=LoRA(rank=2)),
    "terms apart": plan(objective=both, modifiers=(RetainProjection(),)),
    "evaluation mode": plan(mode="eval"),
}


@pytest.mark.parametrize("which", PLANS)
def test_the_loop_ends_at_the_same_weights_and_hands_back_a_plain_model(which) -> None:
    model = built()
    plain = optimise(model, PLANS[which], TASK, Session(engine=Engine(device="cpu")))
    found = optimise(model, PLANS[which], TASK, Session(engine=ON))
    differences = [
        float((value - plain.state_dict()[name]).abs().max()) for name, value in found.state_dict().items()
    ]
    assert max(differences) <= 1e-6
    assert not any("forward" in module.__dict__ for module in (*found.modules(), *model.modules()))


def test_a_block_in_training_is_one_that_recomputes() -> None:
    seen = []

    def after(model: nn.Module, _: int) -> bool:
        seen.append([type(block.__dict__["forward"]) for _, block in blocks(model)])
        return True

    optimise(built(), plan(after=after), TASK, Session(engine=ON))
    assert seen == [[Recomputed] * 3]


def test_a_cache_of_the_prompt_is_neither_filled_twice_nor_lost() -> None:
    model = built()
    with torch.no_grad():
        cache = model(IDS[:, :10], use_cache=True).past_key_values
    expected = model(IDS[:, 10:], past_key_values=copy.deepcopy(cache)).logits
    recompute(model)
    assert torch.equal(model(IDS[:, 10:], past_key_values=copy.deepcopy(cache)).logits, expected)
    model(IDS).logits.sum().backward()  # an empty cache of its own: transformers makes one by default


def test_a_copy_recomputes_with_its_own_weights() -> None:
    model = built()
    recompute(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    fresh = built()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(0.1)
    found, expected = gradients(other), gradients(fresh)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_forward_pass_of_its_own_comes_back() -> None:
    model = built()
    block = blocks(model)[1][1]
    own = block.forward
    block.forward = lambda *inputs, **named: own(*inputs, **named)
    replaced = block.forward
    recompute(model)
    keep(model)
    assert block.forward is replaced
    assert "forward" not in blocks(model)[0][1].__dict__


def test_parameters_swapped_for_the_forward_pass_alone_are_refused_not_mixed_up() -> None:
    model = built()
    recompute(model)
    other = {name: (value + 0.1).detach().requires_grad_() for name, value in model.named_parameters()}
    logits = functional_call(model, other, (IDS,)).logits
    with pytest.raises(Unsupported, match=r"not those of the forward pass.*activation_checkpointing=false"):
        torch.autograd.grad(logits.sum(), list(other.values()), allow_unused=True)


def test_a_hook_that_is_gone_in_the_backward_pass_is_refused() -> None:
    model = built()
    recompute(model)
    inside = blocks(model)[1][1].mlp
    handle = inside.register_forward_hook(lambda _, __, out: out + 1)
    value = loss(model)
    handle.remove()
    with pytest.raises(Unsupported, match="hooks inside it"):
        value.backward()


def test_a_hook_on_a_block_is_not_inside_and_runs_once() -> None:
    model = built()
    recompute(model)
    loss(model)  # the first one tries how the model answers
    calls: list[int] = []
    handle = blocks(model)[1][1].register_forward_hook(lambda *_: calls.append(1))
    value = loss(model)
    handle.remove()
    value.backward()
    assert calls == [1]


def test_private_gradients_go_one_by_one_and_are_the_same() -> None:
    private = plan(private=Private(noise=0.0, clip=1.0), parts={"retain": data()}, mode="eval")
    private_plan = Plan(**{**private.__dict__, "passes": lambda epoch: (Pass("retain"),)})
    said = []
    plain = optimise(built(), private_plan, TASK, Session(engine=Engine(device="cpu")))
    session = Session(engine=ON, callbacks=(lambda event: said.append(event.what),))
    found = optimise(built(), private_plan, TASK, session)
    assert any("one by one" in what for what in said)
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], atol=1e-4, rtol=0)


def test_models_are_not_stacked() -> None:
    recipe = Recipe(built, TASK, Training(optim=AdamW(lr=0.01)))
    assert stacking(recipe, data(), Session(engine=ON)) == (False, "activations are computed again")
    with pytest.raises(Unsupported, match="activations are computed again"):
        stacking(recipe, data(), Session(engine=ON), "stacked")


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Part() for _ in range(2))


def test_what_has_no_blocks_or_batch_norm_in_them_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"Linear has no list of blocks.*engine.accumulate"):
        recompute(nn.Linear(2, 2))
    with pytest.raises(Unsupported, match="BatchNorm would be told of every batch twice"):
        recompute(Normed())


def test_finished_work_is_found_again_by_the_same_key_while_it_is_off() -> None:
    assert "activation_checkpointing" not in config.identity(Engine())
    assert config.identity(ON)["activation_checkpointing"] is True
