import pytest
import torch

from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.whp import WHP, generic_logits
from expunge.training.optim import SGD, AdamW
from expunge.training.recipe import Training

REINFORCE = Training(epochs=20, batch_size=4, optim=AdamW(lr=0.01))


def test_only_logits_that_reinforcing_raised_are_lowered():
    original = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    reinforced = torch.tensor([[3.0, 0.5, 0.0, 1.0]])
    assert generic_logits(original, reinforced, 1.5).tolist() == [[0.5, 1.0, 0.0, -4.0]]
    assert torch.equal(generic_logits(original, reinforced, 0.0), original)


def _labels(setting, alpha, reinforced=None, **fields):
    """The generic labels of the forget set, true ones and the original's likeliest: each of all labels."""
    method = WHP(alpha=alpha, reinforce=REINFORCE, **fields)
    arguments = (setting.split.forget, setting.task, setting.session)
    if reinforced is None:
        state = method.setup(setting.original, setting.split, setting.task, setting.session)
    else:
        state = method.generic(setting.original, reinforced, *arguments)
    data = setting.split.forget
    (batch,) = data.batches([torch.arange(len(data))], device="cpu")
    with torch.no_grad():
        logits = setting.task.outputs(setting.original, batch)
    if setting.name == "classification":
        return state.labels[:, 0], batch["targets"], logits.argmax(-1)
    where = batch["labels"][:, 1:] != -100
    return state.labels[where], batch["labels"][:, 1:][where], logits[:, :-1].argmax(-1)[where]


@pytest.mark.parametrize("setting", ["classification", "causal_lm"], indirect=True)
def test_alpha_0_and_a_copy_that_learnt_nothing_give_the_originals_likeliest_labels(setting):
    for alpha, reinforced in ((0.0, None), (5.0, setting.fresh())):
        generic, _, likeliest = _labels(setting, alpha, reinforced)
        assert torch.equal(generic, likeliest)


@pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
def test_the_labels_avoid_the_true_ones_that_the_original_says(setting):
    generic, true, likeliest = _labels(setting, 20.0)
    knows = (likeliest == true).float().mean()
    assert float(knows) > 0.7
    assert float((generic == true).float().mean()) < float(knows) / 2


@pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
def test_batches_of_any_size_give_the_same_labels(setting):
    one, all_ = (_labels(setting, 5.0, _moved(setting), batch_size=size)[0] for size in (1, 64))
    assert torch.equal(one, all_)


def _moved(setting):
    torch.manual_seed(0)
    model = setting.fresh()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
def test_one_step_is_descent_on_the_text_with_generic_labels(setting):
    method = WHP(
        epochs=1,
        batch_size=64,
        alpha=20.0,
        reinforce=REINFORCE,
        optim=SGD(lr=0.05, momentum=0.0),
    )
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session)
    generic = _labels(setting, 20.0, batch_size=64)[0]
    data = setting.split.forget
    (batch,) = data.batches([torch.arange(len(data))], device="cpu")
    labels, where = batch["labels"].clone(), batch["labels"][:, 1:] != -100
    labels[:, 1:][where] = generic
    model = setting.fresh().eval()
    setting.task.loss(setting.task.outputs(model, batch), {**batch, "labels": labels}).mean().backward()
    for (name, p), q in zip(model.named_parameters(), result.parameters(), strict=True):
        assert torch.allclose(p.detach() - 0.05 * p.grad, q, atol=1e-5), name


@pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
def test_it_forgets(setting):
    method = WHP(epochs=20, alpha=20.0, reinforce=REINFORCE, optim=AdamW(lr=0.02), retain_weight=1.0)
    result = method.unlearn(setting.original, setting.split, setting.task, setting.session)
    scores = []
    for data in (setting.split.forget, setting.split.retain):
        (batch,) = data.batches([torch.arange(len(data))], device="cpu")
        with torch.no_grad():
            scores.append(float(setting.task.score(setting.task.outputs(result, batch), batch).mean()))
    assert scores[0] < 0.4
    assert scores[1] > 0.6


@pytest.mark.parametrize("setting", ["regression", "diffusion"], indirect=True)
def test_tasks_without_classes_are_refused_by_the_check(setting):
    with pytest.raises(Unsupported, match="whp compares the probabilities"):
        WHP().check(setting.split, setting.task)


def test_a_negative_alpha_is_refused():
    with pytest.raises(ConfigError, match="alpha"):
        WHP(alpha=-1.0)
