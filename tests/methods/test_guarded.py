"""What every guard of a language model promises: scores, answers, copies, files."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.methods import people
from torch import nn

import expunge
from expunge.errors import CheckpointError, Unsupported
from expunge.evaluation.subject import Subject
from expunge.methods import methods
from expunge.methods.base import GradientMethod
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.guarded import Table, guard_of
from expunge.methods.guards.eco import ECO
from expunge.methods.guards.guard import GUARD
from expunge.methods.guards.key_space import KeySpace
from expunge.methods.guards.neuron_adjust import NeuronAdjust
from expunge.methods.guards.o3 import O3
from expunge.methods.guards.uld import ULD
from expunge.methods.guards.whp_inference import WHPInference
from expunge.methods.scopes.lora import LoRA
from expunge.tasks import Regression
from expunge.training.checkpoint import load_weights, save_weights
from expunge.training.optim import AdamW
from expunge.training.session import Session

pytest.importorskip("transformers")

FAST = AdamW(lr=1e-2)
SCORING = {
    "uld": ULD(blocks=1, rank=4, epochs=20, optim=FAST),
    "eco": ECO(),
    "key_space": KeySpace(refusal="not known ."),
    "neuron_adjust": NeuronAdjust(fraction=0.4),
    "o3": O3(rank=4, epochs=20, optim=FAST, answers="idk"),
    "whp_inference": WHPInference(rank=4, epochs=20, optim=FAST, weight=20.0),
}
EVERY = {**SCORING, "guard": GUARD()}
INERT = {
    "uld": ULD(blocks=1, rank=4, epochs=1, weight=0.0),
    "eco": ECO(strength=0.0),
    "key_space": KeySpace(refusal="not known .", alpha=0.0),
    "neuron_adjust": NeuronAdjust(fraction=0.0),
    "whp_inference": WHPInference(rank=4, epochs=1, weight=0.0),
}
FORGETS = {"uld", "eco", "key_space", "o3"}
"""Whose settings here lower the forgotten answers by more than a nat, and the retained by less."""

every = pytest.mark.parametrize("name", EVERY)
scoring = pytest.mark.parametrize("name", SCORING)
parts = pytest.mark.parametrize("part", ["forget", "retain"])


@functools.cache
def result(name: str) -> nn.Module:
    return EVERY[name].unlearn(people.original(), people.split(), people.TASK, Session(seed=1))


@functools.cache
def answers_of_original() -> torch.Tensor:
    return people.written(people.original(), people.data())


@scoring
@parts
@pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"num_beams": 3}], ids=str)
def test_scores_are_of_the_model_that_generates(name, part, settings):
    """Prompts of two lengths in one batch: on the left in ``generate``, on the right when they are scored."""
    data = people.split().parts()[part]
    if "num_beams" in settings:
        found = [people.written(result(name), data, use_cache=use, **settings) for use in (True, False)]
        assert torch.equal(*found)
        return
    answers, logs = people.said(result(name), data, **settings)
    torch.testing.assert_close(people.scored(result(name), data, answers), logs, atol=2e-5, rtol=0)


@scoring
def test_a_prompt_alone_is_answered_and_scored_as_in_a_batch(name):
    data, model = people.data(), result(name)
    whole = people.score(model, data)
    alone = torch.cat([people.score(model, data.subset([i])) for i in data.ids])
    torch.testing.assert_close(alone, whole, atol=2e-5, rtol=1e-5)
    written = torch.cat([people.written(model, data.subset([i])) for i in data.ids])
    assert torch.equal(written, people.written(model, data))


@scoring
def test_padding_on_the_left_does_not_change_scores(name):
    rows, model = people.batch(people.data()), result(name)
    turned = {key: rows[key].clone() for key in ("input_ids", "labels", "attention_mask")}
    for row, length in enumerate(rows["attention_mask"].sum(1).tolist()):
        for value in turned.values():
            value[row] = value[row].roll(value.shape[1] - length)
    with torch.no_grad():
        left = people.TASK.log_likelihood(people.TASK.said(model, turned), turned)
    torch.testing.assert_close(left, people.score(model, people.data()), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(FORGETS))
def test_it_forgets_and_keeps(name):
    split, original = people.split(), people.original()
    forget, retain = (
        (people.score(original, data) - people.score(result(name), data)).mean()
        for data in (split.forget, split.retain)
    )
    assert forget > 1.0
    assert retain < 0.5 * forget


@pytest.mark.parametrize("name", INERT)
def test_at_strength_zero_it_is_the_model_itself_bit_by_bit(name):
    guarded = INERT[name].unlearn(people.original(), people.split(), people.TASK, Session(seed=1))
    rows = people.batch(people.data())
    given = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}
    with torch.no_grad():
        assert torch.equal(guarded(**given).logits, people.original()(**given).logits)
    assert torch.equal(people.written(guarded, people.data()), answers_of_original())


@every
def test_the_weights_are_the_originals_in_other_memory_and_what_was_learnt_is_no_parameter(name):
    original, guarded = people.original().state_dict(), result(name).state_dict()
    assert all(torch.equal(value, guarded[key]) for key, value in original.items())
    assert {key.split(".")[0] for key in guarded.keys() - original.keys()} == {"guard"}
    pointers = {value.data_ptr() for value in original.values()}
    assert not pointers & {value.data_ptr() for value in guarded.values()}
    assert not list(guard_of(result(name)).parameters())
    assert not hasattr(people.original(), "guard")
    assert not people.original()._forward_hooks


@every
def test_the_same_seed_gives_the_same_guard(name):
    again = EVERY[name].unlearn(people.original(), people.split(), people.TASK, Session(seed=1))
    first, second = result(name).state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@every
def test_a_copy_and_a_blank_read_from_a_file_answer_the_same(name, tmp_path):
    answers = people.written(result(name), people.data())
    copied = copy.deepcopy(result(name))
    assert torch.equal(people.written(copied, people.data()), answers)
    assert guard_of(copied) is not guard_of(result(name))
    save_weights(result(name), tmp_path / "model.safetensors")
    blank = EVERY[name].blank(people.llama(), people.split())
    load_weights(blank, tmp_path / "model.safetensors")
    assert torch.equal(people.written(blank.eval(), people.data()), answers)


FRESH = """
import json, sys, torch, expunge
from tests.methods import people
found = {}
for folder in sys.argv[1:]:
    model = expunge.load(folder)
    ids, mask = people.prompts(people.data())
    fixed = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    found[folder] = model.generate(input_ids=ids, attention_mask=mask, **fixed).tolist()
print(json.dumps(found))
"""


def test_guards_and_a_model_unlearned_by_lora_answer_the_same_in_a_fresh_process(tmp_path):
    pytest.importorskip("peft")
    method = GradDiff(epochs=5, batch_size=8, optim=FAST, scope=LoRA(rank=2))
    unlearned = method.unlearn(people.original(), people.split(), people.TASK, Session(seed=1))
    models = {"lora": unlearned, **{name: result(name) for name in EVERY}}
    ids, mask = people.prompts(people.data())
    fixed = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = {}
    for name, model in models.items():
        expunge.save(model, tmp_path / name)
        answers = model.generate(input_ids=ids, attention_mask=mask, **fixed)
        expected[str(tmp_path / name)] = answers.tolist()
    root = Path(__file__).parents[2]
    place = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FRESH, *expected]
    said = subprocess.run(command, env=place, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr[-2000:]
    assert json.loads(said.stdout.splitlines()[-1]) == expected
    assert len({json.dumps(answers) for answers in expected.values()}) > 4


def test_transformers_alone_reads_the_frozen_model_of_a_saved_guard(tmp_path):
    from transformers import AutoModelForCausalLM

    expunge.save(result("eco"), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(people.written(plain, people.data()), answers_of_original())
    settings = json.loads((tmp_path / "guard.json").read_text())
    assert settings["method"]["kind"] == "eco"
    assert settings["shapes"]["weight"] == [24]


def test_saving_a_plain_model_over_a_guarded_one_takes_the_guard_away(tmp_path):
    expunge.save(result("eco"), tmp_path)
    expunge.save(people.original(), tmp_path)
    loaded = expunge.load(tmp_path)
    assert not hasattr(loaded, "guard")
    assert torch.equal(people.written(loaded, people.data()), answers_of_original())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "guard.json").write_text("{"), "is damaged. Save the model again"),
        (lambda folder: (folder / "guard.json").unlink(), "has guard.safetensors but no guard.json"),
        (lambda folder: (folder / "guard.safetensors").unlink(), "does not exist"),
        (
            lambda folder: save_weights(nn.Linear(2, 2), folder / "guard.safetensors"),
            "does not hold what guard.json",
        ),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, spoil, said):
    expunge.save(result("eco"), tmp_path)
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        expunge.load(tmp_path)


def test_what_is_no_model_of_transformers_is_not_saved_and_what_is_no_folder_not_loaded(tmp_path):
    with pytest.raises(Unsupported, match="Linear is no model of transformers"):
        expunge.save(nn.Linear(2, 2), tmp_path)
    with pytest.raises(CheckpointError, match="is not a folder"):
        expunge.load(tmp_path / "nothing")


@scoring
def test_a_task_reads_the_logits_and_not_the_states_before_them(name):
    rows = people.batch(people.split().forget)
    said = people.TASK.said(result(name), rows)
    assert isinstance(said, torch.Tensor)
    assert not isinstance(people.TASK.said(people.original(), rows), torch.Tensor)
    with torch.no_grad():
        given = {key: rows[key] for key in ("input_ids", "attention_mask", "labels")}
        answer = result(name)(**given)
    assert torch.equal(answer.logits, said)
    assert torch.isfinite(answer.loss)


def test_restricted_decoding_has_no_scores():
    split, model = people.split(), result("guard")
    with pytest.raises(
        Unsupported, match="the probability of a given answer is undefined. Use metrics of gener"
    ):
        Subject("guard", model, split.parts(), people.TASK, Session()).read("forget")
    with pytest.raises(Unsupported, match="undefined"):
        model(people.batch(split.forget)["input_ids"])


@every
def test_another_task_another_model_and_a_second_guard_are_refused(name):
    method, split = EVERY[name], people.split()
    with pytest.raises(
        Unsupported, match="guards language models, not the task 'Regression'. Use it with causal_lm"
    ):
        method.unlearn(people.original(), split, Regression(), Session())
    with pytest.raises(Unsupported, match="got Linear. Give a causal language model of transformers"):
        method.unlearn(nn.Linear(2, 2), split, people.TASK, Session())
    taken = result("eco" if name != "eco" else "uld")
    with pytest.raises(Unsupported, match=r"guard(ed)? .*already. Give the model"):
        method.unlearn(taken, split, people.TASK, Session())


@pytest.mark.parametrize("name", ["eco", "key_space", "o3"])
def test_a_prompt_that_began_in_another_cache_is_refused(name):
    ids = people.batch(people.split().forget)["input_ids"]
    with torch.no_grad():
        cache = people.original()(ids[:, :2]).past_key_values
        with pytest.raises(Unsupported, match="must see a prompt whole"):
            result(name)(ids[:, 2:], past_key_values=cache)


@pytest.mark.parametrize("name", ["uld", "whp_inference"])
def test_an_assistant_without_a_past_is_refused(name):
    ids = people.batch(people.split().forget)["input_ids"]
    with torch.no_grad(), pytest.raises(Unsupported, match="cache was made by a model without this guard"):
        result(name)(ids[:, 2:], past_key_values=people.original()(ids[:, :2]).past_key_values)


def test_embeddings_in_place_of_tokens_are_refused():
    with pytest.raises(Unsupported, match="a guard reads tokens, and was given embeddings. Give input_ids"):
        result("uld")(inputs_embeds=torch.zeros(1, 2, 24))


def test_after_an_error_the_frozen_model_inside_is_not_under_guard():
    model = copy.deepcopy(result("eco"))
    rows = people.batch(people.split().forget)
    with pytest.raises((AttributeError, TypeError, ValueError)):
        model(rows["input_ids"], position_ids="here")
    body = model.model(rows["input_ids"]).last_hidden_state
    assert torch.equal(body, people.original().model(rows["input_ids"]).last_hidden_state)


@scoring
def test_a_loop_of_ones_own_over_the_cache_is_guarded_too(name):
    ids = people.batch(people.split().forget.subset([0]))["input_ids"][:, :7]
    answers, model = [], result(name)
    with torch.no_grad():
        answer = model(ids)
        for _ in range(6):
            answers.append(answer.logits[:, -1].argmax(-1))
            answer = model(answers[-1][:, None], past_key_values=answer.past_key_values)
    assert torch.equal(torch.stack(answers, 1), people.written(model, people.split().forget.subset([0])))


@pytest.mark.parametrize("name", ["uld", "eco", "key_space", "neuron_adjust", "o3"])
def test_another_architecture(name):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=len(people.WORDS), **sizes, **special)).eval()
    method = replace(EVERY[name], epochs=2) if hasattr(EVERY[name], "epochs") else EVERY[name]
    guarded = method.unlearn(model, people.split(), people.TASK, Session(seed=1))
    answers, logs = people.said(guarded, people.split().forget)
    torch.testing.assert_close(
        people.scored(guarded, people.split().forget, answers), logs, atol=2e-5, rtol=0
    )
    assert not torch.equal(
        people.score(guarded, people.split().forget), people.score(model, people.split().forget)
    )


def test_draws_of_a_position_are_the_same_however_many_there_are():
    places = torch.tensor([[0, 5, 63]])
    few, many = Table(3, 2).at(places), Table(3, 2)
    many.at(torch.tensor([[200]]))
    assert torch.equal(many.at(places), few)
    grown = Table(3, 2)
    grown.at(places), grown.at(torch.tensor([[100]]))
    assert torch.equal(grown.at(torch.tensor([[100]])), many.at(torch.tensor([[100]])))
    assert not torch.equal(Table(4, 2).at(places), few)


def test_every_guard_of_language_models_is_tested_here():
    named = {name for name in methods.names() if not issubclass(methods.get(name), GradientMethod)}
    from expunge.methods.guarded import LanguageGuard

    assert {name for name in named if issubclass(methods.get(name), LanguageGuard)} == set(EVERY)
