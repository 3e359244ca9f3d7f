"""Where the parts of transformers are, on real architectures and on models that have none."""

import pytest
import torch
from torch import nn

from expunge.errors import Unsupported
from expunge.training import experts
from expunge.training.blocks import blocks, feed_forwards, value_matrices
from expunge.training.language_models import GptNeoX, Llama, MixtureOfExperts
from expunge.training.networks import LanguageModel

SIZES = {"vocabulary": 11, "width": 8, "heads": 2, "mlp": 12, "layers": 2}


def _llama(**fields):
    pytest.importorskip("transformers")
    return Llama(**SIZES, **fields).network()


def _gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_positions=6)
    return transformers.AutoModelForCausalLM.from_config(config)


def _qwen2_moe():
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2MoeConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        moe_intermediate_size=6, shared_expert_intermediate_size=6, num_experts=3, num_experts_per_tok=2,
        intermediate_size=12,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


ARCHITECTURES = [
    (_llama, "model.layers", "mlp"),
    (_gpt2, "transformer.h", "mlp"),
    (lambda: pytest.importorskip("transformers") and GptNeoX(**SIZES).network(), "gpt_neox.layers", "mlp"),
    (
        lambda: pytest.importorskip("transformers") and MixtureOfExperts(**SIZES).network(),
        "model.layers",
        "mlp",
    ),
    (_qwen2_moe, "model.layers", "mlp"),
    (lambda: LanguageModel(11, 8, 2, 2, 6), "blocks", "mlp"),
]


@pytest.mark.parametrize(("build", "path", "part"), ARCHITECTURES)
def test_blocks_and_feed_forward_layers_are_found_by_structure(build, path, part):
    model = build()
    assert [name for name, _ in blocks(model)] == [f"{path}.0", f"{path}.1"]
    assert [name for name, _ in feed_forwards(model)] == [f"{path}.{i}.{part}" for i in range(2)]
    assert all(model.get_submodule(name) is module for name, module in feed_forwards(model))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (_llama, ("model.layers.{}.mlp.down_proj.weight", 1)),
        (_gpt2, ("transformer.h.{}.mlp.c_proj.weight", 0)),
        (lambda: LanguageModel(11, 8, 2, 2, 6), ("blocks.{}.mlp.2.weight", 1)),
    ],
)
def test_a_value_vector_is_as_long_as_the_residual_stream_is_wide(build, expected):
    model = build()
    found = value_matrices(model)
    assert found == [(expected[0].format(i), expected[1]) for i in range(2)]
    for name, dim in found:
        assert model.get_parameter(name).select(dim, 0).shape == (8,)


def test_experts_with_a_router_are_no_single_layer_of_value_vectors():
    with pytest.raises(Unsupported, match=r"'model.layers.0' has 2 activation functions.*Use another method"):
        value_matrices(_qwen2_moe())


@pytest.mark.parametrize("find", [blocks, feed_forwards, value_matrices, experts.banks])
def test_a_perceptron_has_no_blocks(find):
    with pytest.raises(Unsupported, match="no list of blocks of one class.*Use the scope"):
        find(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))


@pytest.mark.parametrize("build", [_llama, lambda: LanguageModel(11, 8, 2, 2, 6)])
def test_a_dense_model_has_no_experts(build):
    with pytest.raises(Unsupported, match="no mixture of experts.*Use the scope feed_forward"):
        experts.banks(build())


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: pytest.importorskip("transformers") and MixtureOfExperts(**SIZES).network(), 4),
        (_qwen2_moe, 3),
    ],
)
def test_routers_and_experts_are_found(build, count):
    found = experts.banks(build())
    assert [(bank.block, bank.experts, bank.router, bank.count) for bank in found] == [
        (i, f"model.layers.{i}.mlp.experts", f"model.layers.{i}.mlp.gate", count) for i in range(2)
    ]


class ListedBlock(nn.Module):
    """A block in the older layout: a list of experts, a linear router."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(4, 3, bias=False)
        self.parts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))


def test_experts_in_a_list_are_found_too():
    model = nn.Module()
    model.body = nn.ModuleList(ListedBlock() for _ in range(2))
    assert experts.banks(model)[1] == experts.Bank(1, "body.1.parts", "body.1.router", 3)


def test_router_probabilities_are_those_of_the_model():
    pytest.importorskip("transformers")
    model = MixtureOfExperts(**SIZES).network().eval()
    ids = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), experts.routed(model, experts.banks(model)) as seen:
        logits = model(ids, output_router_logits=True).router_logits
    for found, expected in zip(seen, logits, strict=True):
        assert torch.allclose(found, expected.softmax(-1))
        assert found.shape == (10, 4)
