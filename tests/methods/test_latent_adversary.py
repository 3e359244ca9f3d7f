from typing import ClassVar

import pytest
import torch
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.base import GradientMethod
from expunge.methods.gradient.grad_ascent import GradAscent
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.modifiers.latent_adversary import LatentAdversary, _changed
from expunge.methods.scopes.lora import LoRA
from expunge.tasks import Regression
from expunge.training.engine import Engine
from expunge.training.modifier import Modifier
from expunge.training.optim import SGD
from expunge.training.scope import Everything
from expunge.training.session import Session
from expunge.training.step import Original, Step, View

lm = pytest.mark.parametrize("setting", ["causal_lm"], indirect=True)
PLAIN = SGD(lr=0.1, momentum=0.0)


class Watched(LatentAdversary):
    """Keeps what the adversary found, and what the objective was asked with."""

    found: ClassVar[list] = []

    def _search(self, step, objective, state):
        changes = super()._search(step, objective, state)
        self.found.append((step.forget.batch, changes, state))
        return changes


@pytest.fixture(autouse=True)
def _empty():
    Watched.found.clear()


def _run(setting, modifier, method=GradDiff, **fields):
    fields = {"epochs": 1, "batch_size": 4, "mode": "eval", "optim": PLAIN, **fields}
    return method(modifiers=(modifier,), **fields).unlearn(
        setting.original, setting.split, setting.task, setting.session
    )


class Two(nn.Module):
    """``f(x) = vᵀ (W x)``; the adversary acts between the two."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False)

    def forward(self, x):
        return self.last(self.first(x))


@pytest.fixture
def two():
    torch.manual_seed(0)
    X, y = torch.randn(12, 3), torch.randn(12, 1)
    return Two(), Split.from_ids((X, y), range(4)), (X[:4], y[:4])


@pytest.mark.parametrize("aim", ["targeted", "untargeted"])
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_the_change_by_hand(two, aim, steps):
    """``∂ℓ/∂h = r v``: the adversary moves along ``∓ sign(r) v`` by a quarter of ε a step, at most ε."""
    model, split, (X, y) = two
    adversary = Watched(modules=("first",), steps=steps, epsilon=0.01, relative=False, aim=aim)
    method = GradAscent(epochs=1, batch_size=4, optim=PLAIN, modifiers=(adversary,))
    method.unlearn(model, split, Regression(), Session())
    ((batch, changes, _),) = Watched.found
    order = [int((row == X).all(1).nonzero()) for row in batch["inputs"]]
    residual = (model(X) - y).detach()[order]
    direction = model.last.weight.detach() / model.last.weight.norm()
    # targeted: lower the loss on what is to be forgotten; untargeted: raise ascent's −ℓ, which is the same
    expected = -residual.sign() * direction * 0.01 * min(1.0, 0.25 * steps)
    assert residual.abs().min() > 0.05  # ε is too small to turn a sign
    assert torch.allclose(changes["first"], expected, atol=1e-6)


def _step(model, split):
    """A step on the whole forget set."""
    task, engine = Regression(), Engine()
    (batch,) = split.forget.batches([torch.arange(4)], device="cpu")
    parts = {"forget": split.forget, "retain": split.retain}
    view = View("forget", batch, model, Original(model, task, engine, parts), task, engine, None)
    return Step("forget", {"forget": view}, model, 0, 0, 1, None)


def test_the_untargeted_adversary_works_against_the_objective_whatever_it_is(two):
    """A method that descends the forget loss: now the adversary raises it, the targeted one lowers it."""
    model, split, _ = two

    class Descent(GradientMethod):
        def objective(self, step):
            return {"forget": step.forget.loss.mean()}

    found = {}
    for aim in ("targeted", "untargeted"):
        adversary = Watched(modules=("first",), steps=2, epsilon=0.01, relative=False, aim=aim)
        state = adversary.prepare(model, split, Regression(), Session())
        found[aim] = adversary._search(_step(model, split), Descent().objective, state)["first"]
    assert torch.allclose(found["targeted"], -found["untargeted"], atol=1e-7)


def test_a_step_of_ascent_under_the_change_by_hand(two):
    model, split, _ = two
    adversary = Watched(modules=("first",), steps=4, epsilon=0.5, relative=False)
    method = GradAscent(epochs=1, batch_size=4, optim=PLAIN, modifiers=(adversary,))
    result = method.unlearn(model, split, Regression(), Session())
    ((batch, changes, _),) = Watched.found
    hidden = model.first(batch["inputs"]) + changes["first"]
    loss = 0.5 * (model.last(hidden) - batch["targets"]).square().sum(1).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for after, before, gradient in zip(result.parameters(), model.parameters(), gradients, strict=True):
        assert torch.allclose(after, before + 0.1 * gradient, atol=1e-6)


@lm
@pytest.mark.parametrize("places", ["prompt", "all"])
def test_only_the_chosen_tokens_change_each_by_at_most_epsilon(setting, places):
    _run(setting, Watched(steps=6, epsilon=0.2, relative=False, places=places))
    assert Watched.found
    for batch, changes, _ in Watched.found:
        (change,) = changes.values()
        lengths = change.norm(dim=-1)
        labels = batch["labels"] != -100
        allowed = batch["attention_mask"].bool()
        if places == "prompt":
            allowed = allowed & ~labels
            allowed[:, 2:] = False  # two tokens of question; the padding behind has no label either
        assert lengths.max() <= 0.2 * (1 + 1e-5)
        assert lengths.max() > 0.19
        assert (lengths[~allowed] == 0).all()
        assert (lengths[:, 1] > 0).all()  # the answer's first token is predicted from there


@lm
def test_epsilon_is_a_fraction_of_the_mean_length_without_padding(setting):
    seen = []
    block = setting.original.blocks[0]
    handle = block.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    forget = setting.split.forget
    (batch,) = forget.batches([torch.arange(len(forget))], device="cpu")
    with torch.no_grad():
        setting.original.eval()(batch["input_ids"], batch["attention_mask"])
    handle.remove()
    expected = float(seen[0].norm(dim=-1)[batch["attention_mask"].bool()].mean())
    adversary = LatentAdversary(epsilon=0.3)
    state = adversary.prepare(setting.fresh(), setting.split, setting.task, setting.session)
    assert state.bounds == {"blocks.0": pytest.approx(0.3 * expected, rel=1e-5)}


@lm
def test_the_adversary_brings_the_answers_back(setting):
    """The loss on the forgotten answers is lower under what it found."""
    _run(setting, Watched(steps=8, epsilon=0.3), epochs=1)
    batch, changes, _ = Watched.found[0]
    model = setting.fresh().eval()
    with torch.no_grad():
        plain = setting.task.loss(setting.task.outputs(model, batch), batch).mean()
        with _changed(model, changes):
            attacked = setting.task.loss(setting.task.outputs(model, batch), batch).mean()
    assert attacked < plain - 0.01


@lm
@pytest.mark.parametrize("modules", [(), ("blocks.0",)])
@pytest.mark.parametrize("scope", [Everything(), LoRA(rank=2)])
def test_the_retain_set_is_seen_without_the_change(setting, scope, modules):
    """GradDiff with weight 1 on the retain set trains as if there were no adversary, adapters or not."""
    if isinstance(scope, LoRA):
        pytest.importorskip("peft")
    fields = {"retain_weight": 1.0, "scope": scope}
    plain = _run(setting, Modifier(), **fields)
    attacked = _run(setting, Watched(epsilon=0.5, modules=modules), **fields)
    assert all(change.norm() > 0.1 for _, found, _ in Watched.found for change in found.values())
    for first, second in zip(plain.parameters(), attacked.parameters(), strict=True):
        assert torch.allclose(first, second, atol=1e-6)


@lm
def test_other_answers_of_another_length_see_the_same_change_and_can_be_driven_away_from(setting):
    columns = {name: setting.split.forget.column(name) for name in ("input_ids", "labels", "attention_mask")}
    idk = torch.cat([columns["input_ids"][:, :2], torch.full((len(columns["labels"]), 1), 7)], 1)
    labels = idk.clone()
    labels[:, :2] = -100
    columns |= {"idk.input_ids": idk, "idk.labels": labels, "idk.attention_mask": torch.ones_like(idk)}
    split = Split(ArrayData(columns), setting.split.retain)
    found = {}
    for away in ("", "idk"):
        Watched.found.clear()
        method = GradDiff(
            epochs=1, batch_size=64, mode="eval", optim=PLAIN, modifiers=(Watched(away=away, epsilon=0.5),)
        )
        method.unlearn(setting.original, split, setting.task, setting.session)
        found[away] = Watched.found[0]
    model = setting.fresh().eval()

    def refusal(changes, batch):
        with torch.no_grad(), _changed(model, changes):
            other = setting.task.instead(batch, "idk")
            return float(setting.task.log_likelihood(setting.task.outputs(model, other), other).exp().mean())

    batch = found[""][0]
    assert refusal(found["idk"][1], found["idk"][0]) < refusal(found[""][1], batch)
    with pytest.raises(Unsupported, match="no 'other' answers"):
        _run(setting, LatentAdversary(away="other"))


@lm
def test_a_retain_pass_of_the_methods_own_is_left_alone_and_a_forget_pass_is_not(setting):
    """As RMU does it: forward passes that are no view's, over batches of any size and of equal size."""
    seen = {}

    class Own(GradDiff):
        def objective(self, step):
            for part in ("forget", "retain"):
                view = getattr(step, part)
                outputs = step.model(view.batch["input_ids"], attention_mask=view.batch["attention_mask"])
                seen[part] = (view.batch, outputs.detach())
            return super().objective(step)

    adversary = Watched(epsilon=0.5, steps=1)
    state = adversary.prepare(setting.fresh(), setting.split, setting.task, setting.session)
    model = state.model
    views = {}
    for part, rows in (("forget", torch.arange(4)), ("retain", torch.arange(4))):
        data = getattr(setting.split, part)
        (batch,) = data.batches([rows], device="cpu")
        original = Original(model, setting.task, Engine(), {part: data})
        views[part] = View(part, batch, model, original, setting.task, Engine(), None)
    model.eval()
    adversary.terms(Step("forget", views, model, 0, 0, 1, None), Own().objective, state)
    with torch.no_grad():
        plain = {
            part: model(b["input_ids"], attention_mask=b["attention_mask"]) for part, (b, _) in seen.items()
        }
    assert torch.equal(seen["retain"][1], plain["retain"])
    assert not torch.allclose(seen["forget"][1], plain["forget"], atol=1e-3)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_modifier_that_does_nothing_leaves_every_bit(setting):
    """The hook around the objective: without a modifier that uses it, nothing is different."""
    plain = GradDiff(epochs=1, batch_size=4).unlearn(
        setting.original, setting.split, setting.task, setting.session
    )
    hooked = GradDiff(epochs=1, batch_size=4, modifiers=(Modifier(),)).unlearn(
        setting.original, setting.split, setting.task, setting.session
    )
    first, second = plain.state_dict(), hooked.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@lm
def test_halves_of_a_batch_find_the_same_change(setting):
    adversary = LatentAdversary(epsilon=0.3, steps=3)
    whole, halves = (
        GradDiff(epochs=1, batch_size=6, mode="eval", optim=PLAIN, modifiers=(adversary,)).unlearn(
            setting.original, setting.split, setting.task, Session(seed=1, engine=Engine(accumulate=n))
        )
        for n in (1, 2)
    )
    moved = 0.0
    for first, second, start in zip(
        whole.parameters(), halves.parameters(), setting.original.parameters(), strict=True
    ):
        assert torch.allclose(first, second, atol=1e-5)
        moved = max(moved, float((first - start).detach().abs().max()))
    assert moved > 1e-3


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_feature_maps_unknown_modules_and_models_without_blocks_are_refused(setting):
    for fields, said in (
        ({"modules": ("body.0",)}, r"returns .*Give another module"),
        ({"modules": ("nowhere",)}, "no module 'nowhere'. Give dotted names"),
        ({}, "no list of blocks of one class"),
        ({"away": "idk", "modules": ("head",)}, "no other answers. Set away to nothing"),
    ):
        with pytest.raises(Unsupported, match=said):
            _run(setting, LatentAdversary(**fields))


@pytest.mark.parametrize(
    "fields",
    [{"steps": 0}, {"epsilon": 0.0}, {"rate": 0.0}, {"away": "idk", "aim": "untargeted"}],
)
def test_fields_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        LatentAdversary(**fields)
