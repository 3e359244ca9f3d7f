import pytest
import torch
from torch import nn

from expunge.errors import ConfigError, Unsupported
from expunge.methods.edits.ssd import SSD
from expunge.methods.gradient.finetune import Finetune
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.scopes.fila import FILA
from expunge.training.checkpoint import load_weights, save_weights
from expunge.training.optim import AdamW
from expunge.training.parameters import importance
from expunge.training.session import Session

pytest.importorskip("peft")
lm = pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
NAME = "blocks.0.mlp.0"


def _entered(setting, session=None, **fields):
    """The model with its adapters, and their product's scale."""
    scope, model = FILA(**fields), setting.fresh()
    return scope.fitted(model, setting.split, setting.task, session or setting.session).enter(model)


def _outputs(setting, model):
    (batch,) = setting.split.forget.batches([torch.arange(len(setting.split.forget))], device="cpu")
    return setting.task.outputs(model.eval(), batch)


@pytest.mark.parametrize("setting", ["causal_lm", "regression", "classification"], indirect=True)
def test_the_function_at_the_start_is_the_originals_and_so_is_the_merged_weight(setting):
    model = _entered(setting, rank=3)
    assert torch.allclose(_outputs(setting, model), _outputs(setting, setting.fresh()), atol=1e-5)
    merged = model.merge_and_unload().state_dict()
    for name, value in setting.original.state_dict().items():
        assert torch.allclose(merged[name], value, atol=1e-5)


@lm
def test_base_plus_product_is_the_weight_and_the_base_alone_is_not(setting):
    """What is wrong with saving the adapter beside the original base: s B A is not small."""
    layer = _entered(setting, rank=4, alpha=8.0).get_submodule(NAME)
    product = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    weight = setting.original.get_parameter(f"{NAME}.weight")
    assert torch.allclose(layer.base_layer.weight + product, weight, atol=1e-6)
    assert product.norm() > 0.1 * weight.norm()
    assert not torch.allclose(layer.base_layer.weight, weight, atol=1e-2)


@lm
def test_the_factors_are_the_equation(setting):
    """Rank 4 of diag(w) W, unweighted again, from squared gradients of single examples."""
    key, squares = f"{NAME}.weight", {}
    for part in ("forget", "retain"):
        data = getattr(setting.split, part)
        squares[part] = importance(
            setting.fresh(), data, setting.task, setting.session, names=[key], batch_size=1
        )[key]
    rows = (squares["forget"] / (squares["retain"] + 1e-5)).sum(1).sqrt().double()
    weight = setting.original.get_parameter(key).detach().double()
    left, values, right = torch.linalg.svd(rows[:, None] * weight, full_matrices=False)
    best = (left[:, :4] * values[:4]) @ right[:4]
    layer = _entered(setting, rank=4, alpha=8.0).get_submodule(NAME)
    up, down = (getattr(layer, kind)["default"].weight.detach().double() for kind in ("lora_B", "lora_A"))
    assert torch.allclose(2.0 * up @ down, best / (rows[:, None] + 1e-5), atol=1e-5)
    assert torch.allclose(2.0**2 * down @ down.T, torch.diag(values[:4]), atol=1e-4)


@lm
def test_the_squared_mean_gradient_of_a_batch_is_another_start(setting):
    first, second = (
        _entered(setting, rank=2, batch_size=size).get_submodule(NAME).base_layer.weight for size in (1, 8)
    )
    assert not torch.allclose(first, second, atol=1e-3)


@lm
def test_the_decomposition_does_not_depend_on_the_callers_generator(setting):
    runs = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        runs.append(_entered(setting, rank=1).get_submodule(NAME).lora_B["default"].weight)
    assert torch.equal(*runs)


@lm
def test_the_result_is_whole_after_saving_and_loading(setting, tmp_path):
    method = GradDiff(epochs=2, batch_size=8, optim=AdamW(lr=0.01), scope=FILA(rank=2))
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session)
    save_weights(result, tmp_path / "model.safetensors")
    loaded = setting.recipe.initial(Session(seed=9))
    load_weights(loaded, tmp_path / "model.safetensors")
    assert torch.equal(_outputs(setting, loaded), _outputs(setting, result))
    assert [type(m) for m in result.modules()] == [type(m) for m in setting.original.modules()]


@lm
def test_training_changes_the_linear_layers_by_at_most_twice_the_rank(setting):
    """The result is W − s B A + s B' A'."""
    method = GradDiff(epochs=2, batch_size=8, optim=AdamW(lr=0.01), scope=FILA(rank=1))
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session).state_dict()
    before = setting.original.state_dict()
    linear = {f"{n}.weight" for n, m in setting.original.named_modules() if isinstance(m, nn.Linear)}
    moved = {n for n in before if not torch.allclose(before[n], result[n], atol=1e-5)}
    assert moved == linear
    values = torch.linalg.svdvals((result[f"{NAME}.weight"] - before[f"{NAME}.weight"]).double())
    assert values[1] > 1e-4
    assert values[2] < 1e-2 * values[1]


def test_a_matrix_of_lower_rank_than_the_adapters_is_taken_whole(linear):
    scope = FILA(rank=8).fitted
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    expected = model[0].weight.detach().clone()
    entered = scope(model, linear.split, linear.task, linear.session).enter(model)
    assert torch.allclose(entered.get_submodule("0").base_layer.weight, torch.zeros(1, 3), atol=1e-5)
    assert torch.allclose(entered.merge_and_unload()[0].weight, expected, atol=1e-5)


@lm
def test_without_data_it_is_refused(setting):
    with pytest.raises(Unsupported, match="fila starts from data. Use lora"):
        FILA().enter(setting.fresh())
    with pytest.raises(Unsupported, match="cannot use it. Choose another"):
        SSD(scope=FILA()).unlearn(setting.original, setting.split, setting.task, setting.session)
    result = Finetune(epochs=1, scope=FILA(rank=1)).unlearn(
        setting.original, setting.split, setting.task, setting.session
    )
    assert all(torch.isfinite(value).all() for value in result.state_dict().values())


@pytest.mark.parametrize("fields", [{"rank": 0}, {"batch_size": 0}])
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        FILA(**fields)
