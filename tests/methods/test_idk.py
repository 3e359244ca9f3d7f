import pytest
import torch
from tests.methods.questions import (
    batch,
    check_padding_does_not_count,
    check_parts_add_up,
    check_prompts_get_no_gradient,
    llama,
    originals,
    split,
    step,
    task,
)

from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.idk import Idk
from expunge.training.optim import AdamW
from expunge.training.session import Session


def _loss(model, part, prefix=""):
    """Mean over examples of the mean over tokens of −log p, one example and token at a time."""
    rows, found = batch(part), []
    for ids, labels in zip(rows[f"{prefix}input_ids"], rows[f"{prefix}labels"], strict=True):
        with torch.no_grad():
            logs = model(ids[None]).logits[0].log_softmax(-1)
        places = [t for t in range(1, len(labels)) if labels[t] != -100]
        found.append(-sum(float(logs[t - 1, labels[t]]) for t in places) / len(places))
    return sum(found) / len(found)


def test_the_terms_are_the_losses_of_refusals_and_of_retained_answers():
    terms = Idk(retain_weight=0.5).objective(step(llama(1), llama()))
    assert float(terms["forget"]) == pytest.approx(_loss(llama(1), "forget", "idk."), rel=1e-5)
    assert float(terms["retain"]) == pytest.approx(0.5 * _loss(llama(1), "retain"), rel=1e-5)


def test_other_answers_are_learnt_by_their_name():
    terms = Idk(answers="alternate").objective(step(llama(1), llama()))
    assert float(terms["forget"]) == pytest.approx(_loss(llama(1), "forget", "alternate."), rel=1e-5)


def test_both_parts_weigh_the_same_however_many_tokens_they_have():
    """The mean over all tokens, TOFU's, gives retained answers more weight the longer they are."""
    counts = [int((batch(part)[name][:, 1:] != -100).sum()) for part, name in PARTS]
    losses = [_loss(llama(1), "forget", "idk."), _loss(llama(1), "retain")]
    ours = sum(float(term) for term in Idk().objective(step(llama(1), llama())).values())
    by_tokens = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)
    assert ours == pytest.approx(sum(losses), rel=1e-5)
    assert abs(2 * by_tokens / ours - 1) > 0.01


PARTS = (("forget", "idk.labels"), ("retain", "labels"))


def _run(**fields):
    method = Idk(**{"epochs": 30, "optim": AdamW(lr=3e-3), **fields})
    return method.unlearn(llama(), split(), task(), Session(seed=0))


def test_refusals_are_learnt_and_with_a_retain_term_the_rest_too():
    result = _run()
    assert _loss(result, "forget", "idk.") < 0.5 * _loss(llama(), "forget", "idk.")
    assert _loss(result, "retain") < 0.5 * _loss(llama(), "retain")


def test_without_a_retain_term_retained_questions_are_refused_too():
    """The trap of refusals: they spread to every question."""
    alone, beside = _run(retain_weight=0.0), _run()
    assert _loss(alone, "retain", "idk.") < _loss(beside, "retain", "idk.")
    assert _loss(alone, "retain", "idk.") < 0.5 * _loss(llama(), "retain", "idk.")


def test_nothing_of_the_original_is_asked():
    class Untouched:
        def __getattr__(self, name):
            raise AssertionError(name)

    views = step(llama(1), originals(llama()))
    for part in (views.forget, views.retain):
        part._original = Untouched()
    Idk().objective(views)


@pytest.mark.parametrize("setting", ["causal_lm", "classification"], indirect=True)
def test_without_refusals_in_the_data_it_says_so_before_anything_is_trained(setting):
    said = {
        "causal_lm": "the data has no 'idk' answers; it has: none. Give every record one",
        "classification": "task 'Classification' has no other answers. Use a method without them",
    }
    with pytest.raises(Unsupported, match=said[setting.name]):
        Idk().check(setting.split, setting.task)


def test_a_name_that_no_record_has_is_refused_with_those_that_there_are():
    with pytest.raises(Unsupported, match="no 'idc' answers; it has: alternate, idk"):
        Idk(answers="idc").check(split(), task())


def test_padding_does_not_count():
    check_padding_does_not_count(Idk())


def test_parts_add_up():
    check_parts_add_up(Idk())


def test_prompts_get_no_gradient():
    check_prompts_get_no_gradient(Idk(), answers=("idk",))


def test_a_negative_weight_is_refused():
    with pytest.raises(ConfigError, match="retain_weight"):
        Idk(retain_weight=-0.1)
