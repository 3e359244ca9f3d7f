from types import SimpleNamespace

import pytest
import torch

from expunge.data import ArrayData, Split
from expunge.data.text import Record, TextData
from expunge.errors import ConfigError, Unsupported
from expunge.methods import methods
from expunge.methods.gradient.grad_ascent import GradAscent
from expunge.methods.modifiers.prompt_decouple import PromptDecouple
from expunge.tasks import CausalLM
from expunge.training.networks import LanguageModel
from expunge.training.optim import SGD, AdamW
from expunge.training.session import Session

TASK = CausalLM(11)


def data(question=None, answer=None, name="near_miss"):
    """Eight questions of two tokens with answers of two, and another of each unless the own is given."""
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 6, (8, 4), generator=draws)
    other = torch.randint(6, 11, (8, 4), generator=draws)
    if question == "own":
        other[:, :2] = ids[:, :2]
    if answer == "own":
        other[:, 2:] = ids[:, 2:]
    columns = {}
    for prefix, tokens in (("", ids), (f"{name}.", other)):
        columns[f"{prefix}input_ids"] = tokens
        columns[f"{prefix}labels"] = tokens.masked_fill(torch.arange(4) < 2, -100)
        columns[f"{prefix}attention_mask"] = torch.ones_like(tokens)
    return Split.from_ids(ArrayData(columns), range(4))


def model():
    torch.manual_seed(0)
    return LanguageModel(11, 8, 1, 2, 4).eval()


def loss(net, split, prefix=""):
    columns = ("input_ids", "labels", "attention_mask")
    batch = {name: split.forget.column(prefix + name) for name in columns}
    return TASK.loss(TASK.outputs(net, batch), batch).mean()


def value(net, split, prefix=""):
    return float(loss(net, split, prefix).detach())


class Letters:
    """A tokenizer with a token for each lower-case letter."""

    eos_token_id, pad_token_id, bos_token_id, chat_template = 26, 27, None, None

    def __call__(self, text, add_special_tokens=True):
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        return {"input_ids": [ord(letter) - 97 for letter in text.lower() if letter.isalpha()]}


def test_a_name_among_questions_and_answers_is_a_question_with_its_own_answer():
    record = Record(
        question="xyz",
        answer="secret",
        answers={"near_miss": "fine", "idk": "no"},
        questions={"near_miss": "xya", "paraphrased": "zyx"},
    )
    texts = TextData([record], Letters())
    assert texts.names == ("near_miss", "idk", "paraphrased")
    prompts = {
        name: f"question{asked}answer"
        for name, asked in [("near_miss", "xya"), ("idk", "xyz"), ("paraphrased", "zyx")]
    }
    answers = {"near_miss": "fine", "idk": "no", "paraphrased": "secret"}
    for name, prompt in prompts.items():
        ids, labels = (texts.column(f"{name}.{column}")[0] for column in ("input_ids", "labels"))
        said = "".join(chr(97 + token) for token in ids[: len(prompt)].tolist())
        learnt = "".join(chr(97 + token) for token in labels[labels >= 0][:-1].tolist())
        assert (said, learnt) == (prompt, answers[name])


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_step_is_the_methods_plus_the_weighted_descent_on_the_near_misses(weight):
    split, net = data(), model()
    method = GradAscent(
        epochs=1, optim=SGD(lr=0.1, momentum=0.0), modifiers=(PromptDecouple(weight=weight),), mode="eval"
    )
    result = method.unlearn(net, split, TASK, Session())
    (weight * loss(net, split, "near_miss.") - loss(net, split)).backward()
    for p, q in zip(net.parameters(), result.parameters(), strict=True):
        assert torch.allclose((p - 0.1 * p.grad).detach(), q, atol=1e-6)


def test_it_is_logged_apart_and_leaves_the_methods_terms_alone():
    seen = {}

    def keep(event):
        if event.kind == "evaluated":
            seen.update(event.values)

    split, net = data(), model()
    method = GradAscent(epochs=1, modifiers=(PromptDecouple(),), mode="eval")
    method.unlearn(net, split, TASK, Session(callbacks=(keep,)))
    assert seen["forget"] == pytest.approx(-value(net, split), rel=1e-5)
    assert seen["prompt_decouple"] == pytest.approx(0.5 * value(net, split, "near_miss."), rel=1e-5)


@pytest.mark.parametrize(
    "name", ["grad_diff", "npo", "wga", "inverted_hinge", "undial", "rmu", "random_labels"]
)
def test_it_adds_to_any_objective_and_keeps_the_near_misses(name):
    split, net = data(), model()
    fields = {"epochs": 5, "optim": AdamW(lr=0.01)} | ({"matrices": ()} if name == "rmu" else {})
    without = methods.get(name)(**fields).unlearn(net, split, TASK, Session())
    added = methods.get(name)(modifiers=(PromptDecouple(weight=1.0),), **fields)
    result = added.unlearn(net, split, TASK, Session())
    assert value(result, split, "near_miss.") < value(without, split, "near_miss.") - 0.05


def test_a_pass_without_forget_examples_has_no_such_term():
    step = SimpleNamespace(has=lambda part: part == "retain")
    assert PromptDecouple().terms(step, lambda _: {"retain": 1.0}, None) == {"retain": 1.0}


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (data(name="other"), "the forget set has no 'near_miss' questions. Give every record"),
        (data(question="own"), "the 'near_miss' question of example 0 is its own question"),
        (data(answer="own"), "the 'near_miss' answer of example 0 is its own answer"),
    ],
    ids=["none", "same question", "same answer"],
)
def test_data_that_would_teach_something_else_is_refused_before_training(split, said):
    with pytest.raises(Unsupported, match=said):
        GradAscent(modifiers=(PromptDecouple(),)).unlearn(model(), split, TASK, Session())


@pytest.mark.parametrize("setting", ["classification"], indirect=True)
def test_other_tasks_are_refused(setting):
    with pytest.raises(Unsupported, match="task 'Classification' has none. Use it with a language model"):
        PromptDecouple().prepare(setting.original, setting.split, setting.task, setting.session)


def test_a_weight_of_0_is_refused():
    with pytest.raises(ConfigError, match="weight"):
        PromptDecouple(weight=0.0)
