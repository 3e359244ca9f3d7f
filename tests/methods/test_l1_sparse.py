import pytest
import torch

from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.finetune import Finetune
from expunge.methods.gradient.l1_sparse import L1Sparse
from expunge.methods.scopes.lora import LoRA
from expunge.methods.scopes.modules import Modules
from expunge.training.optim import SGD
from expunge.training.session import Session

PLAIN = SGD(lr=0.1, momentum=0.0)


def _terms(method, setting):
    found = []
    session = Session(callbacks=(lambda event: found.append(dict(event.values)),))
    method.unlearn(setting.original, setting.split, setting.task, session)
    return [values for values in found if values]


@pytest.mark.parametrize("late", [0, 2])
def test_the_penalty_fades_linearly_and_is_gone_in_the_last_epochs(linear, late):
    alpha, expected = 0.3, linear.start
    shares = {0: [1, 0.75, 0.5, 0.25], 2: [1, 0.5, 0, 0]}[late]
    for share in shares:
        penalty = alpha * share * expected.sign()
        expected = expected - 0.1 * (linear.gradient(expected, "retain") + penalty)
    method = L1Sparse(epochs=4, optim=PLAIN, alpha=alpha, no_l1_epochs=late)
    assert torch.allclose(linear.run(method), expected, atol=1e-6)


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_every_parameter_is_penalised_batch_norm_and_biases_included(setting):
    shared = {"epochs": 1, "batch_size": 64, "optim": PLAIN}
    first, second = (
        method.unlearn(setting.original, setting.split, setting.task, setting.session)
        for method in (L1Sparse(alpha=0.01, **shared), Finetune(**shared))
    )
    plain = dict(second.named_parameters())
    for (name, before), (_, after) in zip(
        setting.original.named_parameters(), first.named_parameters(), strict=True
    ):
        assert torch.allclose(after - plain[name], -0.1 * 0.01 * before.sign(), atol=1e-6), name
        assert not torch.equal(after, plain[name])


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_the_penalty_is_the_sum_of_sizes_of_the_weights_that_may_move(setting):
    sizes = {name: float(p.detach().abs().sum()) for name, p in setting.original.named_parameters()}
    for scope, names in (({}, sizes), ({"scope": Modules(patterns=("head",))}, ("head.weight", "head.bias"))):
        terms = _terms(L1Sparse(epochs=1, batch_size=64, alpha=0.01, **scope), setting)
        assert terms[0]["penalty"] == pytest.approx(0.01 * sum(sizes[name] for name in names), rel=1e-5)


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_weights_become_smaller_than_by_fine_tuning_and_none_becomes_zero(setting):
    shared = {"epochs": 10, "batch_size": 12, "optim": SGD(lr=0.05)}
    sizes = []
    for method in (Finetune(**shared), L1Sparse(alpha=5e-3, **shared)):
        result = method.unlearn(setting.original, setting.split, setting.task, setting.session)
        flat = torch.cat([p.detach().flatten() for p in result.parameters()])
        sizes.append(float(flat.abs().sum()))
        assert not (flat == 0).any()
    assert sizes[1] < 0.9 * sizes[0]


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_the_command_lines_default_of_the_authors_destroys_a_model_that_ours_keeps(setting):
    (batch,) = setting.split.retain.batches([torch.arange(len(setting.split.retain))], device="cpu")
    right = {}
    for alpha in (5e-4, 0.2):
        method = L1Sparse(epochs=10, batch_size=12, alpha=alpha)
        model = method.unlearn(setting.original, setting.split, setting.task, setting.session)
        with torch.no_grad():
            right[alpha] = float(setting.task.score(setting.task.outputs(model, batch), batch).mean())
    assert right[5e-4] > 0.9
    assert right[0.2] < 0.7


def test_penalty_free_epochs_in_every_epoch_are_refused_where_the_authors_codes_disagree():
    with pytest.raises(ConfigError, match="no_l1_epochs: must be from 0 to 2, .* got 3"):
        L1Sparse(epochs=3, no_l1_epochs=3)


def test_a_scope_that_adds_parameters_is_refused(linear):
    with pytest.raises(Unsupported, match="LoRA adds parameters.*Choose another"):
        linear.run(L1Sparse(scope=LoRA()))


@pytest.mark.parametrize(
    "fields", [{"alpha": 0.0}, {"alpha": -1.0}, {"no_l1_epochs": -1}, {"no_l1_epochs": 11}]
)
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        L1Sparse(**fields)
