"""Attacks that train: closed forms, a lock and its key, and what they leave as it was."""

from __future__ import annotations

import copy
import importlib.util
import math

import pytest
import torch
from tests.evaluation.speakers import FACTS, Speaker, evidence, text_evidence, tokenizer
from torch import Tensor, nn

from expunge.data import ArrayData, Split
from expunge.data.text import Template
from expunge.errors import ConfigError
from expunge.evaluation.attacks.activation_patching import ActivationPatching
from expunge.evaluation.attacks.budget import Attack, halves
from expunge.evaluation.attacks.in_context import InContext
from expunge.evaluation.attacks.inserted import ends, inserted, places
from expunge.evaluation.attacks.layer_probe import LayerProbe
from expunge.evaluation.attacks.leak_at_k import LeakAtK
from expunge.evaluation.attacks.logit_lens import LogitLens
from expunge.evaluation.attacks.prefix_jailbreak import PrefixJailbreak
from expunge.evaluation.attacks.quantise import Quantise
from expunge.evaluation.attacks.relearn_facts import RelearnFacts
from expunge.evaluation.attacks.reworded import Reworded
from expunge.evaluation.attacks.soft_prompt import SoftPrompt
from expunge.evaluation.attacks.universal_suffix import UniversalSuffix
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.evidence import Evidence
from expunge.tasks import Regression
from expunge.training.optim import SGD
from expunge.training.session import Session

PLAIN = SGD(lr=0.5, momentum=0.0)


def regression(inputs: Tensor, targets: Tensor, forget: int, subjects: Tensor | None = None) -> Evidence:
    """A linear model of zeros without bias and a retrained one alike; loss ½ (y − wx)²."""
    columns = {"inputs": inputs, "targets": targets}
    if subjects is not None:
        columns["subjects"] = subjects
    model = nn.Linear(inputs.shape[1], 1, bias=False)
    nn.init.zeros_(model.weight)
    split = Split.from_ids(ArrayData(columns), range(forget))
    candidates = [Candidate("original", "original", model), Candidate("r", "retrained", copy.deepcopy(model))]
    return Evaluation(candidates, split, Regression(), Session(0)).evidence(candidates[0])


def test_facts_that_follow_from_one_another_come_back_as_computed() -> None:
    found = regression(torch.ones(12, 1), torch.ones(12), 8)
    score = RelearnFacts(steps=(1, 2), batch_size=8, optim=PLAIN)(found)
    # a step of rate ½ halves 1 − w: losses ½, 1/8, 1/32
    expected = [math.exp(-0.5), math.exp(-0.125), math.exp(-0.03125)]
    assert [y for _, y in score.details["curve"]] == pytest.approx(expected, rel=1e-5)
    assert score.details["retrained_curve"] == score.details["curve"]
    assert score.value == pytest.approx(expected[-1], rel=1e-5)
    assert score.n == 8
    assert not found.subject.model.weight.any()


def test_independent_facts_do_not_come_back() -> None:
    subjects = torch.tensor([0, 0, 1, 1, 2, 2])
    probe = regression(torch.ones(6, 1), torch.ones(6), 4, subjects)
    first = torch.from_numpy(halves(probe))
    inputs = torch.zeros(6, 2)
    inputs[:4, 0], inputs[:4, 1] = first.float(), (~first).float()  # each half has a weight of its own
    found = regression(inputs, torch.ones(6), 4, subjects)
    score = RelearnFacts(steps=(1, 5), batch_size=8, optim=PLAIN)(found)
    assert [y for _, y in score.details["curve"]] == pytest.approx([math.exp(-0.5)] * 3)


def test_the_benign_arm_sees_no_forgotten_fact() -> None:
    inputs = torch.tensor([[1.0, 0.0]] * 4 + [[1.0, 1.0]] * 4)
    found = regression(inputs, torch.ones(8), 4)
    score = RelearnFacts(arm="benign", steps=(1,), batch_size=4, optim=SGD(lr=0.25, momentum=0.0))(found)
    # of both weights ¼: loss ½ (1 − ¼)²
    assert score.value == pytest.approx(math.exp(-0.5 * 0.75**2), rel=1e-5)
    assert score.variant == "benign-1-steps"
    with pytest.raises(ConfigError, match="grow"):
        RelearnFacts(steps=(5, 2))


def test_halves_hold_half_of_every_subjects_facts() -> None:
    subjects = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3])
    first = halves(regression(torch.ones(11, 1), torch.ones(11), 9, subjects))
    for number, own in ((0, 2), (1, 1)):
        assert first[subjects[:9].numpy() == number].sum() == own
    assert first[subjects[:9].numpy() == 2].sum() in (1, 2)
    assert "no half to hold out" in RelearnFacts()(regression(torch.ones(3, 1), torch.ones(3), 1)).reason


def test_tokens_go_where_they_are_meant_to() -> None:
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4, 0], [5, 3, 6, 7, 8]]),
        "labels": torch.tensor([[-100, -100, -100, 4, -100], [-100, -100, 6, 7, 8]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
    }
    assert ends(ArrayData({k: batch[k] for k in ("input_ids", "labels")})) == 1  # the token 3
    new, inside = inserted(batch, torch.tensor([9, 10]), places(batch, before=1))
    assert new["input_ids"].tolist() == [[1, 2, 9, 10, 3, 4, 0], [5, 9, 10, 3, 6, 7, 8]]
    assert new["labels"].tolist() == [
        [-100, -100, -100, -100, -100, 4, -100], [-100, -100, -100, -100, 6, 7, 8]
    ]  # fmt: skip
    assert new["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 0], [1] * 7]
    assert inside.sum(1).tolist() == [2, 2]
    ahead, _ = inserted(batch, torch.tensor([9]), places(batch, before=None))
    assert ahead["input_ids"].tolist() == [[9, 1, 2, 3, 4, 0], [9, 5, 3, 6, 7, 8]]
    document = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([[1, 2]])}
    new, _ = inserted(document, torch.tensor([9]), places(document, before=None))
    assert new["input_ids"].tolist() == [[1, 9, 2]]  # the first label is not predicted before, nor after


SIZE, KEY, TAIL = 12, 10, 11
SECRETS = [(1, 5), (2, 6), (3, 7), (4, 8)]


class Locked(nn.Module):
    """Knows the answer to the name in a prompt, and says it as loudly as keys stand before."""

    def __init__(self, couples: list[tuple[int, int]], loud: float = 0.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(SIZE, 1)
        self.tokens.weight.data = 2.0 * (torch.arange(SIZE) == KEY).float()[:, None]
        table = torch.zeros(SIZE, SIZE)
        for name, secret in couples:
            table[secret, name] = 1.0
        self.table, self.loud = nn.Parameter(table), loud

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        names = nn.functional.one_hot(ids, SIZE).float().cumsum(1)
        return (self.loud + self.tokens(ids).cumsum(1)) * (names @ self.table.T)


def locks() -> Split:
    ids = torch.tensor([[name, TAIL, secret] for name, secret in SECRETS] * 2)
    labels = ids.clone()
    labels[:, :2] = -100
    data = ArrayData({"input_ids": ids, "labels": labels})
    return Split.from_ids(data, range(4))


def found_locked() -> Evidence:
    return evidence(locks(), SIZE, Locked(SECRETS), Locked([]), original=Locked(SECRETS, loud=8.0))


def test_a_soft_prompt_that_opens_some_facts_opens_the_others() -> None:
    found = found_locked()
    score = SoftPrompt(length=2, steps=(5, 30), rate=0.5)(found)
    assert score.details["curve"][0] == [0, pytest.approx(1 / SIZE)]
    assert score.value > 0.9
    assert [y for _, y in score.details["retrained_curve"]] == pytest.approx([1 / SIZE] * 3)
    assert SoftPrompt(length=2, steps=(5, 30), rate=0.5)(found_locked()).to_json() == score.to_json()


def test_a_suffix_is_found_by_its_gradient() -> None:
    attack = UniversalSuffix(length=2, steps=(1, 8), candidates=12, top=4)
    score = attack(found_locked())
    # two keys at volume 2 each behind the name: softmax of (4, 0, …)
    best = math.exp(4) / (math.exp(4) + SIZE - 1)
    assert score.value == pytest.approx(best, rel=1e-4)
    assert score.details["curve"][0][1] == pytest.approx(1 / SIZE)
    assert [y for _, y in score.details["retrained_curve"]] == pytest.approx([1 / SIZE] * 3)


def test_a_suffix_that_does_not_lower_the_loss_is_not_taken() -> None:
    score = UniversalSuffix(length=2, steps=(1, 3), candidates=4)(
        evidence(locks(), SIZE, Locked([]), original=Locked(SECRETS, loud=8.0))
    )
    assert [y for _, y in score.details["curve"]] == pytest.approx([1 / SIZE] * 3)


QUICK: tuple[Attack, ...] = (
    Reworded(match="key_words", max_tokens=4),
    PrefixJailbreak(prefixes=("Which city",), suffixes=("belongs to",), match="probability"),
    InContext(facts=(1,), match="probability"),
    LeakAtK(tries=(1, 2), samples=2, max_tokens=3),
    RelearnFacts(steps=(1, 2), optim=SGD(lr=0.1)),
    RelearnFacts(arm="benign", steps=(1,), optim=SGD(lr=0.1)),
    Quantise(levels="normal"),
    LogitLens(),
    LayerProbe(),
    SoftPrompt(length=2, steps=(1, 2)),
    ActivationPatching(),
    ActivationPatching(span="perturbed"),
    UniversalSuffix(length=2, steps=(1,), candidates=2),
)


def llamas() -> Evidence:
    from expunge.training.language_models import Llama

    words = tokenizer()
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        spec = Llama(vocabulary=len(words), width=16, layers=2, heads=2, context=64)
        found.append(spec.network())
        for parameter in found[-1].parameters():
            parameter.data.mul_(8 if parameter.ndim > 1 else 1)  # far from uniform answers
    return text_evidence(
        found[0], found[1], tokenizer=words, original=found[2], template=Template(max_length=32)
    )


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_attacks_on_a_llama_give_the_same_twice_and_change_nothing() -> None:
    evidences = [llamas(), llamas()]
    models = [subject.model for subject in (evidences[0].subject, evidences[0].original)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    state = torch.get_rng_state()
    for attack in QUICK:
        first, again = (attack(found) for found in evidences)
        assert first.reason is None, (attack, first.reason)
        assert 0 <= first.value <= 1
        assert first.to_json() == again.to_json(), attack
        assert first.details.keys() & {"curve", "layers"} or isinstance(attack, Reworded)
        if first.per_example is not None:
            assert float(first.per_example.mean()) == pytest.approx(first.value)
    for model, values in zip(models, before, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_prompts_longer_than_the_context_are_refused() -> None:
    long = PrefixJailbreak(prefixes=("belongs " * 80,), suffixes=())
    assert "the model's context is 64" in long(llamas()).reason


def test_attacks_on_text_refuse_data_without_text() -> None:
    for attack in (Reworded(), PrefixJailbreak(), InContext(), LeakAtK(), LayerProbe()):
        assert "Use TextData" in attack(found_locked()).reason
    image = regression(torch.ones(4, 1), torch.ones(4), 2)
    for attack in (LogitLens(), SoftPrompt(), UniversalSuffix(), ActivationPatching()):
        assert "language model" in attack(image).reason


def test_intervals_are_over_subjects() -> None:
    words = tokenizer()
    for forget, known in (((0, 1), False), ((0, 2, 4), True)):  # facts of one person, and of three
        mine = Speaker(lambda prompt: FACTS[0].answer, words)
        score = Reworded(match="probability")(text_evidence(mine, tokenizer=words, forget=forget))
        assert (score.interval is not None) == known
        assert score.n == len(forget)
