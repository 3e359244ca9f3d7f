import pytest
import torch
from torch import nn

from expunge.data import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.edits.ssd import SSD
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.scopes.lora import LoRA
from expunge.tasks import Classification
from expunge.training.optim import AdamW
from expunge.training.session import Session

pytest.importorskip("peft")


def _run(setting, scope):
    method = GradDiff(epochs=2, batch_size=8, optim=AdamW(lr=0.01, weight_decay=0.1), scope=scope)
    return method.unlearn(setting.original, setting.split, setting.task, setting.session)


def _changed(setting, result):
    before, after = setting.original.state_dict(), result.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_by_default_the_weights_of_linear_layers_and_convolutions_change_and_nothing_else(setting):
    kinds = (nn.Linear, nn.Conv2d)
    adapted = {f"{n}.weight" for n, m in setting.original.named_modules() if isinstance(m, kinds)}
    assert _changed(setting, _run(setting, LoRA(rank=2))) == adapted


def test_only_the_named_modules_are_adapted(setting):
    assert _changed(setting, _run(setting, LoRA(targets=("head",)))) == {"head.weight"}


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
def test_the_change_of_a_matrix_has_at_most_the_rank_of_the_adapters(setting, rank):
    result = _run(setting, LoRA(rank=rank, targets=("attention",)))
    (name,) = _changed(setting, result)
    change = result.state_dict()[name] - setting.original.state_dict()[name]
    values = torch.linalg.svdvals(change.double())
    assert values[rank - 1] > 1e-4
    assert values[rank] < 1e-4 * values[0]


def test_the_result_is_the_original_class_with_its_flags(setting):
    model = setting.fresh()
    frozen, parameter = list(model.named_parameters())[-1]
    parameter.requires_grad_(False)
    method = GradDiff(epochs=1, batch_size=8, scope=LoRA(rank=2))
    result = method.unlearn(model, setting.split, setting.task, setting.session)
    assert [type(module) for module in result.modules()] == [type(m) for m in setting.original.modules()]
    assert {n for n, p in result.named_parameters() if not p.requires_grad} == {frozen}


class Nested(nn.Module):
    """``"0"`` is a linear layer and ``"body.0"`` is not."""

    def __init__(self):
        super().__init__()
        self.add_module("0", nn.Linear(4, 4))
        self.body = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))

    def forward(self, x):
        return self.body(self.get_submodule("0")(x))


def test_a_module_whose_name_ends_like_an_adapted_one_is_not_adapted():
    split = Split.from_ids((torch.randn(12, 4), torch.arange(12) % 3), range(4))
    model = Nested()
    method = GradDiff(epochs=1, batch_size=4, scope=LoRA(rank=1), optim=AdamW(lr=0.01))
    result = method.unlearn(model, split, Classification(3), Session()).state_dict()
    before = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], result[name])}
    assert changed == {"0.weight", "body.1.weight"}


def test_a_frozen_layer_is_not_adapted():
    split = Split.from_ids((torch.randn(12, 4), torch.arange(12) % 3), range(4))
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    method = GradDiff(epochs=1, batch_size=4, scope=LoRA(rank=1), optim=AdamW(lr=0.01))
    result = method.unlearn(model, split, Classification(3), Session())
    assert torch.equal(result[0].weight, model[0].weight)
    assert not torch.equal(result[2].weight, model[2].weight)


class Tied(nn.Module):
    """An output layer with the embedding's matrix, as most small language models have."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.body(self.tokens(ids))))


def test_a_tied_output_layer_is_not_adapted_so_that_merging_keeps_the_function():
    torch.manual_seed(0)
    model, ids = Tied(), torch.arange(5)
    scope = LoRA(rank=2)
    entered = scope.enter(model)
    for name, parameter in entered.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    trained = entered(ids)
    merged = scope.leave(entered)
    assert torch.allclose(merged(ids), trained, atol=1e-5)
    assert merged.head.weight is merged.tokens.weight
    with pytest.raises(Unsupported, match="not frozen or tied to another.*Give other targets"):
        LoRA(targets=("head",)).enter(Tied())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.LayerNorm(3)),
        nn.Linear(3, 3),
        nn.Sequential(nn.Linear(3, 3)).requires_grad_(False),
    ],
    ids=["none", "root", "frozen"],
)
def test_a_model_with_nothing_to_adapt_is_refused(model):
    with pytest.raises(Unsupported, match="no module to adapt"):
        LoRA().enter(model)


def test_a_one_shot_edit_cannot_use_it(setting):
    with pytest.raises(Unsupported, match="a method that edits weights cannot use it"):
        SSD(scope=LoRA()).unlearn(setting.original, setting.split, setting.task, setting.session)


def test_a_rank_below_one_is_refused():
    with pytest.raises(ConfigError, match="rank: must be at least 1"):
        LoRA(rank=0)
