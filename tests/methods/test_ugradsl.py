import pytest
import torch
from torch import nn

from expunge.data import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.ugradsl import UGradSL
from expunge.methods.smoothed_labels import crowding
from expunge.tasks import CausalLM, Classification, Regression
from expunge.training.optim import SGD
from expunge.training.session import Session

RATE, P = 0.5, 0.7
PLAIN = SGD(lr=RATE, momentum=0.0)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    X, y = torch.randn(12, 4), torch.arange(12) % 3
    model = nn.Linear(4, 3, bias=False)
    return model, Split.from_ids((X, y), range(6)), (X[:6], y[:6]), (X[6:], y[6:])


def _gradient(W, X, y, rates):
    """``mean (softmax − t) xᵀ`` with the label ``t = (1 − a) onehot(y) + a / C``; no autograd."""
    labels = (1 - rates)[:, None] * torch.eye(3)[y] + rates[:, None] / 3
    return ((X @ W.T).softmax(1) - labels).T @ X / len(X)


def _expected(W, forget, retain, rates):
    zero = torch.zeros(len(retain[0]))
    return W - RATE * (P * _gradient(W, *retain, zero) - (1 - P) * _gradient(W, *forget, rates))


@pytest.mark.parametrize("a", [-0.4, -1.0, 0.0])
def test_the_step_ascends_on_negatively_smoothed_labels(problem, a):
    model, split, forget, retain = problem
    W = model.weight.detach()
    for _ in range(3):
        W = _expected(W, forget, retain, torch.full((6,), a))
    method = UGradSL(epochs=3, batch_size=6, optim=PLAIN, retain_weight=P, smoothing=a)
    assert torch.allclose(method.unlearn(model, split, Classification(3), Session()).weight, W, atol=1e-5)
    assert float((W - model.weight.detach()).norm()) > 0.1


def test_without_a_rate_each_forget_example_has_its_own_from_the_batch(problem):
    model, split, forget, retain = problem
    W = model.weight.detach()
    logits = [X @ W.T for X, _ in (forget, retain)]
    centred = [z - z.mean(1, keepdim=True) for z in logits]
    rates = torch.zeros(6)
    for j in range(6):
        cosines = [torch.cosine_similarity(centred[0][j], other, dim=0) for other in centred[1]]
        rates[j] = -sum((1 - float(c)) / 2 < 0.1 for c in cosines) / 6
    assert len(rates.unique()) > 1
    method = UGradSL(epochs=1, batch_size=6, optim=PLAIN, retain_weight=P, near=0.1)
    result = method.unlearn(model, split, Classification(3), Session()).weight
    assert torch.allclose(result, _expected(W, forget, retain, rates), atol=1e-5)


def test_the_crowding_of_a_forget_example_is_the_near_fraction_of_the_retain_batch():
    forget = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    retain = torch.tensor([[9.0, 8.0], [1.0, -1.0], [0.0, 0.5], [7.0, 2.0]])  # classes 0, 0, 1, 0
    assert crowding(forget, retain, near=0.1).tolist() == [0.75, 0.25]
    assert crowding(forget + 100, retain, near=0.1).tolist() == [0.75, 0.25]  # a shift is no difference


def test_the_adaptive_rate_stays_within_its_bound_in_a_small_last_batch():
    """Divided by the size of the forget batch, as in the paper, it would be −4 here."""
    same = torch.tensor([[3.0, 0.0, 0.0]])
    assert crowding(same.repeat(2, 1), same.repeat(8, 1), near=0.1).tolist() == [1.0, 1.0]


def test_an_epoch_is_one_pass_over_the_forget_set(problem):
    model, split, *_ = problem
    totals = []
    session = Session(callbacks=(lambda event: totals.append(event.total),))
    UGradSL(epochs=2, batch_size=4).unlearn(model, split, Classification(3), session)
    assert totals[0] == 2 * 2


def test_the_objective_has_no_lower_bound_and_only_the_epochs_stop_it(problem):
    model, split, (X, y), _ = problem
    losses = []
    for epochs in (50, 100, 200):
        method = UGradSL(epochs=epochs, optim=PLAIN, retain_weight=0.1, smoothing=-0.5)
        result = method.unlearn(model, split, Classification(3), Session())
        losses.append(float(nn.functional.cross_entropy(X @ result.weight.detach().T, y)))
    assert losses[1] > 1.5 * losses[0] > 15
    assert losses[2] > 1.5 * losses[1]


def test_the_bound_on_the_rate_bounds_the_gradient_of_each_example():
    """``‖softmax − t‖² < 5`` for ``a ≥ −1`` whatever the logits; at ``a = −4`` it is above 25."""
    norms = {}
    for a in (-1.0, -4.0):
        logits = torch.full((1, 50), -30.0).index_fill(1, torch.tensor([7]), 30.0).requires_grad_()
        log_p = logits.log_softmax(1)
        label = (1 - a) * torch.eye(50)[3] + a / 50
        (gradient,) = torch.autograd.grad(-(label * log_p).sum(), logits)
        norms[a] = float(gradient.square().sum())
    assert 4.9 < norms[-1.0] < 5
    assert norms[-4.0] > 25


@pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
def test_a_language_model_is_smoothed_over_its_vocabulary_token_by_token(setting):
    method = UGradSL(epochs=1, batch_size=64, optim=PLAIN, mode="eval", retain_weight=P, smoothing=-0.3)
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session)
    model = setting.fresh().eval()
    losses = {}
    for part, a in (("forget", -0.3), ("retain", 0.0)):
        data = getattr(setting.split, part)
        (batch,) = data.batches(
            [torch.arange(6)], device="cpu"
        )  # one batch of the forget set, and one beside
        if part == "retain":
            (batch,) = data.batches([torch.arange(len(data))], device="cpu")
        log_p = setting.task.outputs(model, batch)[:, :-1].log_softmax(-1)
        labels = batch["labels"][:, 1:]
        chosen = labels != -100
        smooth = (1 - a) * nn.functional.one_hot(labels.clamp_min(0), 11) + a / 11
        tokens = -(smooth * log_p).sum(-1) * chosen
        losses[part] = (tokens.sum(1) / chosen.sum(1)).mean()
    (P * losses["retain"] - (1 - P) * losses["forget"]).backward()
    for (name, before), (_, after) in zip(model.named_parameters(), result.named_parameters(), strict=True):
        assert torch.allclose(after, before - RATE * before.grad, atol=1e-5), name


@pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
def test_the_adaptive_rate_wants_one_vector_of_logits_an_example(setting):
    with pytest.raises(Unsupported, match=r"these outputs have shape \(6, 6, 11\). Set smoothing"):
        UGradSL().unlearn(setting.original, setting.split, CausalLM(11), setting.session)


@pytest.mark.parametrize("setting", ["regression", "diffusion"], indirect=True)
def test_a_task_without_classes_is_refused_before_any_training(setting):
    events = []
    with pytest.raises(Unsupported, match="has no classes to smooth over. Use a method"):
        UGradSL().unlearn(
            setting.original, setting.split, setting.task, Session(callbacks=(lambda e: events.append(e),))
        )
    assert not events
    assert isinstance(setting.task, Regression) == (setting.name == "regression")


@pytest.mark.parametrize(
    "fields",
    [{"smoothing": -1.01}, {"smoothing": 0.1}, {"retain_weight": 0.0}, {"retain_weight": 1.0}, {"near": 0.0}],
)
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        UGradSL(**fields)
