import math
from typing import get_args, get_type_hints

import pytest
import torch
from tests.methods.questions import (
    batch,
    check_padding_does_not_count,
    check_parts_add_up,
    check_prompts_get_no_gradient,
    gradients,
    llama,
    split,
    step,
    task,
)

from expunge.errors import Unsupported
from expunge.methods.gradient.flat import FLAT, FORMS
from expunge.training.optim import AdamW
from expunge.training.session import Session

DIVERGENCES = get_args(get_type_hints(FLAT)["divergence"])
every_divergence = pytest.mark.parametrize("name", DIVERGENCES)

GENERATORS = {
    "total_variation": lambda u: (u - 1).abs() / 2,
    "kl": lambda u: u * u.log(),
    "reverse_kl": lambda u: -u.log(),
    "jeffrey": lambda u: (u - 1) * u.log(),
    "squared_hellinger": lambda u: (u.sqrt() - 1) ** 2,
    "pearson": lambda u: (u - 1) ** 2,
    "neyman": lambda u: (1 - u) ** 2 / u,
    "jensen_shannon": lambda u: -(u + 1) * ((1 + u) / 2).log() + u * u.log(),
}
"""``f`` of ``D(P ‖ Q) = Σ q f(p / q)``."""


def test_every_divergence_has_its_form_and_its_generator():
    assert set(DIVERGENCES) == set(FORMS) == set(GENERATORS)


@every_divergence
def test_the_second_function_is_the_conjugate_of_f_taken_of_the_first(name):
    """``f*(t) = max_u (u t − f(u))``, found on a fine grid."""
    u = torch.cat([torch.logspace(-5, 0, 40001), torch.logspace(0, 5, 40001)]).double()
    activation, conjugate = FORMS[name]
    for v in (0.0, 0.25, 0.5, 1.0):
        value = torch.tensor(v, dtype=torch.float64)
        t = activation(value)
        found = float((u * t - GENERATORS[name](u)).max())
        loose = 0.018 if name == "jeffrey" else 1e-4  # cut after the third power, and so below
        assert 0 <= found - float(conjugate(value)) + 1e-4 < loose + 2e-4


@every_divergence
def test_both_functions_rise_so_that_refusals_become_likelier_and_old_answers_less_likely(name):
    v = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert all((form(v).diff() > 0).all() for form in FORMS[name])


def test_an_activation_of_the_other_sign_would_make_refusals_less_likely():
    """The authors' code has it for three divergences: for ``reverse_kl`` the term ``+exp P(idk)``."""
    P = torch.tensor(0.3, requires_grad=True)
    torch.exp(P).backward()
    theirs, P.grad = float(P.grad), None
    (-FORMS["reverse_kl"][0](P)).backward()
    assert theirs > 0 > float(P.grad)


def _probability(prefix):
    rows, found = batch("forget"), []
    for ids, labels in zip(rows[f"{prefix}input_ids"], rows[f"{prefix}labels"], strict=True):
        with torch.no_grad():
            said = llama(1)(ids[None]).logits[0].softmax(-1)
        places = [t for t in range(1, len(labels)) if labels[t] != -100]
        found.append(sum(float(said[t - 1, labels[t]]) for t in places) / len(places))
    return found


def test_total_variation_by_hand():
    pairs = list(zip(_probability(""), _probability("idk."), strict=True))
    expected = sum(math.tanh(old) / 2 - math.tanh(new) / 2 for old, new in pairs) / len(pairs)
    assert float(FLAT().objective(step(llama(1), llama(), state=task()))["forget"]) == pytest.approx(
        expected, abs=1e-6
    )


@every_divergence
def test_equal_probabilities_give_no_negative_divergence_and_the_gradients_oppose(name):
    """At one and the same answer the two gradients point against each other."""
    method = FLAT(divergence=name)

    def same(rows):
        own = {f"idk.{key}": rows[key] for key in ("input_ids", "labels", "attention_mask")}
        return {**rows, **own}

    model = llama(1)
    views = step(model, llama(), same, task())
    value = method.objective(views)["forget"]
    P = torch.tensor(_probability(""), requires_grad=True)
    activation, conjugate = FORMS[name]
    assert float(value) == pytest.approx(float((conjugate(P) - activation(P)).mean()), abs=1e-6)
    assert float(value) > -1e-6  # f*(t) ≥ t − f(1) = t


def test_the_probability_is_of_answer_tokens_and_not_diluted_by_the_prompt():
    rows = batch("forget")
    labelled = rows["labels"][:, 1:] != -100
    diluted = [p * int(n) / labelled.shape[1] for p, n in zip(_probability(""), labelled.sum(1), strict=True)]
    assert all(p > 1.5 * d for p, d in zip(_probability(""), diluted, strict=True))
    value = float(FLAT(divergence="pearson").objective(step(llama(1), llama(), state=task()))["forget"])
    old, new = torch.tensor(_probability("")), torch.tensor(_probability("idk."))
    assert value == pytest.approx(float((old**2 / 4 + old - new).mean()), abs=1e-6)


def test_the_gradient_of_a_rare_token_vanishes():
    p = torch.tensor([-1.0, -30.0], requires_grad=True)  # log-probabilities
    FORMS["total_variation"][1](p.exp()).sum().backward()
    assert p.grad[0] > 0.1 > 1e-10 > p.grad[1]


@every_divergence
def test_a_run_makes_refusals_likelier_and_old_answers_less_likely(name):
    method = FLAT(divergence=name, epochs=8, optim=AdamW(lr=5e-3))
    result = method.unlearn(llama(), split(), task(), Session(seed=0))
    before, after = (_mean_probabilities(model) for model in (llama(), result))
    assert after["idk"] > before["idk"]
    assert after["old"] < before["old"]


def _mean_probabilities(model):
    view = step(model, llama()).forget
    found = {}
    for name, rows in (("old", view), ("idk", view.instead("idk"))):
        logs, mask = task().token_log_probs(rows.said, rows.batch)
        found[name] = float((logs.exp() * mask).sum() / mask.sum())
    return found


def test_no_retain_set_and_no_original_is_asked():
    class Untouched:
        def __getattr__(self, name):
            raise AssertionError(name)

    views = step(llama(1), llama(), state=task())
    views.forget._original = Untouched()
    views._views.pop("retain")
    assert set(FLAT().objective(views)) == {"forget"}
    assert [pass_.beside for pass_ in FLAT().passes(0)] == [None]


@pytest.mark.parametrize("setting", ["causal_lm", "diffusion"], indirect=True)
def test_without_refusals_it_says_so_before_anything_is_trained(setting):
    said = {"causal_lm": "the data has no 'idk' answers", "diffusion": "has no other answers. Use a method"}
    with pytest.raises(Unsupported, match=said[setting.name]):
        FLAT().check(setting.split, setting.task)


def test_padding_does_not_count():
    check_padding_does_not_count(FLAT(), task())


@every_divergence
def test_parts_add_up(name):
    check_parts_add_up(FLAT(divergence=name), task())


def test_prompts_get_no_gradient():
    check_prompts_get_no_gradient(FLAT(), answers=("idk",), state=task())


def test_the_gradient_is_not_zero():
    model = llama(1)
    found = gradients(FLAT().objective(step(model, llama(), state=task())), model)
    assert float(found.abs().max()) > 1e-4
