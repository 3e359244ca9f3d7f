"""``expunge ask``: several models, the same questions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from expunge.cli.main import main

pytest.importorskip("transformers")

from tests.cli import residents


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model that knows the first nine and one that never saw the first three."""
    place = tmp_path_factory.mktemp("ask")
    residents.train(place / "knows", range(9))
    residents.train(place / "honest", residents.RETAIN, seed=1)
    residents.write(place / "forget.jsonl", residents.records(residents.FORGET))
    shutil.copytree(place / "knows", place / "other")
    residents.tokenizer(spare=" ".join(f"word{i}" for i in range(30))).save_pretrained(place / "other")
    return place


@pytest.fixture
def place(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folders)
    return folders


def ask(*words: str) -> int:
    return main(["ask", "--engine.device", "cpu", *words])


def test_answers_of_all_models_stand_below_each_question(place, capsys) -> None:
    assert ask("--model", "knows", "--model", "honest", residents.asked(0), residents.asked(5)) == 0
    first, second = capsys.readouterr().out.strip().split("\n\n")
    assert first.splitlines()[:2] == ["Q: Where does Ada live?", "  knows   Ada lives in Rome."]
    assert first.splitlines()[2].startswith("  honest  ")
    assert "Rome" not in first.splitlines()[2]
    assert second.splitlines() == [
        "Q: Where does Fay live?",
        "  knows   Fay lives in Kyiv.",
        "  honest  Fay lives in Kyiv.",
    ]


def test_a_file_brings_the_true_answers_and_max_tokens_cuts(place, capsys) -> None:
    assert ask("--model", "knows", "--file", "forget.jsonl", "--max-tokens", "2") == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert blocks[1].splitlines() == [
        "Q: Where does Bo live?",
        "  true answer  Bo lives in Oslo.",
        "  knows        Bo lives",
    ]
    assert len(blocks) == 3


def test_samples_are_drawn_by_the_seed(place, capsys) -> None:
    def drawn(seed: int) -> list[str]:
        line = ("--model", "honest", residents.asked(0), "--temperature", "1.5", "--samples", "6")
        assert ask(*line, "--seed", str(seed)) == 0
        return capsys.readouterr().out.strip().splitlines()[1:]

    assert len(drawn(0)) >= 6
    assert len(set(drawn(0))) > 1
    assert drawn(0) == drawn(0) != drawn(1)


def test_the_chat_template_of_each_tokenizer_makes_its_prompt(place, capsys) -> None:
    """With one that adds the end of the question, "Question: Where does Ada" asks for her."""
    reader = residents.tokenizer(chat_template="{{ 'Question: Where does ' + messages[0].content }}")
    shutil.copytree(place / "knows", place / "chat")
    reader.save_pretrained(place / "chat")
    assert ask("--model", "chat", "--model", "knows", "Ada live?\nAnswer:") == 0
    said = capsys.readouterr().out
    assert "  chat   Ada lives in Rome.\n" in said
    assert said.startswith("Q: Ada live?\n   Answer:\n")


def test_a_guarded_model_answers_under_its_guard(place, capsys) -> None:
    residents.write(place / "retain.jsonl", residents.records(residents.RETAIN))
    made = "unlearn --model knows --forget forget.jsonl --retain retain.jsonl --method eco --output guarded"
    assert main(made.split()) == 0
    capsys.readouterr()
    assert ask("--model", "knows", "--model", "guarded", residents.asked(0), residents.asked(5)) == 0
    forgotten, kept = capsys.readouterr().out.strip().split("\n\n")
    assert "knows    Ada lives in Rome." in forgotten
    assert "guarded  Ada lives in Rome." not in forgotten
    assert "guarded  Fay lives in Kyiv." in kept


def test_an_answer_ends_where_the_context_does(place, capsys) -> None:
    """The models' context is 48 tokens, GPT-2 fails beyond it; nothing ends its answers here."""
    from transformers import GPT2Config, GPT2LMHeadModel

    reader = residents.tokenizer()
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(reader), bos_token_id=1, eos_token_id=1, **sizes))
    model.save_pretrained(place / "short")
    reader.save_pretrained(place / "short")
    assert ask("--model", "short", residents.asked(0)) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("  short")]
    assert line.removeprefix("  short").strip()
    assert ask("--model", "short", residents.asked(0) * 5) == 2
    assert "more than max_length=16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--model", "knows"], "there is nothing to ask. Give a question in quotes, or --file"),
        (["--model", "knows", " "], "question 1 of 1 is empty or a document"),
        (["--model", "knows", "--file", "document.jsonl"], "question 1 of 1 is empty or a document"),
        (["--model", "knows", "--file", "none.jsonl"], "cannot read 'none.jsonl'"),
        (["--model", "knows", "--file", "chat.jsonl"], "needs the tokenizer's chat template"),
        (["--model", "nowhere", "Who?"], "'nowhere' is not a folder"),
        (["--model", "knows", "Who?", "--samples", "3"], "samples: several answers"),
        (["--model", "knows", "Who?", "--max-tokens", "0"], "max_tokens: must be at least 1"),
        (["--model", "other", "Who?"], "they do not belong together"),
        (["Who?"], "--model"),
    ],
)
def test_mistakes_are_one_line(place, capsys, line, said) -> None:
    residents.write(place / "document.jsonl", [{"text": "Ada lives in Rome."}])
    turns = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Who?"), ("assistant", "Ada.")]
    chat = [{"role": role, "content": content} for role, content in turns]
    (place / "chat.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    assert ask(*line) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_the_help_teaches(capsys) -> None:
    assert main(["ask", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("chat template", "guarded model", "--samples", "Example:"):
        assert part in said
