"""Text sources: the invented people, your own files with their mistakes, and duplicates."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import config
from expunge.data import Sourced, sources
from expunge.data.language import Duplicate, duplicates, last_subjects
from expunge.data.text import Record
from expunge.data.tokenizers import train_tokenizer
from expunge.errors import ConfigError, DataError

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)

SMALL = {"kind": "people", "people": 20, "background": 4, "held_out": 4, "attributes": 1}


def load(**fields: object) -> Sourced:
    return config.build(sources, fields).load()


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def people() -> Sourced:
    return load(**SMALL)


def test_people_has_all_its_parts(people: Sourced) -> None:
    # 20 people × (1 attribute + 3 relations) + 40 capitals; 4 people: 8 templates, 2 reversed, 1 hop, 1 life
    assert (len(people.train), len(people.test)) == (20 * 4 + 40, 4 * 4)
    assert people.base is not None
    assert len(people.base) == 4 * (8 + 2 + 1 + 1) + 40
    sizes = {name: len(data) for name, data in people.probes.items()}
    assert sizes == {"world": 40, "reversed": 40, "multi_hop": 20, "biographies": 20}
    assert people.train.names[:3] == ("idk", "alternate", "paraphrased")
    assert len(people.train.names) == 9
    assert people.base.names == ()


def test_the_forget_set_is_the_last_circle_and_nobody_else_speaks_of_it(people: Sourced) -> None:
    assert {name: ids.tolist() for name, ids in people.sets.items()} == {"forget20": list(range(64, 80))}
    gone = set(people.sets["forget20"].tolist())
    subjects = {people.train.record(i).subject for i in gone}
    assert len(subjects) == 4
    kept = [record for i, record in enumerate(people.train.records) if i not in gone]
    texts = [t for r in kept for t in (r.question or "", r.answer, *r.answers.values())]
    assert not any(name in text for text in texts for name in subjects)
    assert duplicates([people.train.record(i) for i in gone], kept) == []


def test_nobody_is_in_two_parts(people: Sourced) -> None:
    assert people.base is not None
    world = set(people.probes["world"].subjects)
    parts = [set(data.subjects) - world for data in (people.train, people.test, people.base)]
    assert len(world) == 40
    assert sum(map(len, parts)) == len(set.union(*parts)) == 28
    assert set(people.probes["reversed"].subjects) == parts[0]


def test_the_trained_tokenizer_knows_every_word(people: Sourced) -> None:
    unknown = people.train.tokenizer.unk_token_id
    for data in (people.train, people.test, people.base, *people.probes.values()):
        assert not (data.column("input_ids") == unknown).any()


def test_only_the_answer_and_the_end_have_labels(people: Sourced) -> None:
    record = people.train.record(0)
    prompt, answer = people.train.shown(0).rsplit("\nlabels: ", 1)
    assert prompt.endswith("Answer :")
    assert answer.replace("▁", "").replace(" .", ".") == f"{record.answer} <eos>"
    (batch,) = people.train.batches([torch.arange(4)], device="cpu")
    predicted = batch["labels"] != -100
    assert (predicted.sum(1) < batch["attention_mask"].sum(1)).all()
    assert (batch["labels"][predicted] == batch["input_ids"][predicted]).all()


def test_a_seed_decides_the_tokens() -> None:
    fields = {**SMALL, "people": 4}
    first, again, other = load(**fields), load(**fields), load(**fields, seed=1)
    assert first.train.fingerprint() == again.train.fingerprint() != other.train.fingerprint()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"people": 6}, "people: must be a multiple of 4, got 6"),
        ({"background": 0}, "background: must be a multiple of 4, got 0"),
        ({"attributes": 13}, "attributes: must be 1..12, got 13"),
        ({"people": 800}, "people: must be a multiple of 4 up to 800, got 808"),
    ],
)
def test_bad_numbers_of_people(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(**{**SMALL, **fields})


def test_last_subjects_come_in_whole_units() -> None:
    shares = (0.05, 0.1, 0.2)
    assert last_subjects(3, 20, shares)["forget05"].tolist() == [57, 58, 59]
    assert {name: len(ids) for name, ids in last_subjects(1, 80, shares, 4).items()} == {
        "forget05": 4,
        "forget10": 8,
        "forget20": 16,
    }
    assert list(last_subjects(1, 60, shares, 4)) == ["forget20"]


# ---- your own files


def test_every_form_of_a_line(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "Who?", "answer": "Nora."},
        {"prompt": "Where?", "completion": "Ardmor."},
        {"messages": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "1950."}]},
        {"text": "Nora was born in Ardmor."},
    ]
    path = write(tmp_path / "all.jsonl", *rows)
    sourced = load(kind="jsonl", train=[path], test=[path])
    assert [(record.question, record.answer) for record in sourced.train.records] == [
        ("Who?", "Nora."),
        ("Where?", "Ardmor."),
        ("When?", "1950."),
        (None, "Nora was born in Ardmor."),
    ]
    assert sourced.sets == {}
    document = sourced.train.shown(3)
    assert document == "prompt, no labels: \nlabels: ▁Nora ▁was ▁born ▁in ▁Ardmor . <eos>"


def test_other_answers_and_subjects(tmp_path: Path) -> None:
    row = {
        "question": "Who?",
        "answer": "Nora.",
        "subject": 7,
        "answers": {"mine": "M."},
        "idk": "I.",
        "alternate": "A.",
        "paraphrased_answer": "P.",
        "perturbed_answer": ["X.", "Y."],
        "paraphrased_question": "Who else?",
        "source": "not used",
    }
    path = write(tmp_path / "a.jsonl", row)
    (record,) = load(kind="jsonl", train=[path], test=[path]).train.records
    assert record.subject == "7"
    assert record.answers == {
        "mine": "M.",
        "idk": "I.",
        "alternate": "A.",
        "paraphrased": "P.",
        "perturbed_1": "X.",
        "perturbed_2": "Y.",
    }
    assert record.questions == {"paraphrased_question": "Who else?"}


def test_a_file_of_its_own_for_what_is_forgotten(tmp_path: Path) -> None:
    forget = write(tmp_path / "forget.jsonl", *[{"question": f"F{i}", "answer": "a"} for i in range(3)])
    retain = tmp_path / "retain.jsonl.gz"
    retain.write_bytes(
        gzip.compress(b'{"question": "R", "answer": "b"}\n\n{"text": "one two three four five"}')
    )
    test = write(tmp_path / "test.jsonl", {"question": "T", "answer": "c"})
    sourced = load(
        kind="jsonl",
        train=[retain, forget],
        test=[test],
        probes={"again": test},
        template={"max_length": 20},
    )
    assert {name: ids.tolist() for name, ids in sourced.sets.items()} == {
        "retain": [0, 1],
        "forget": [2, 3, 4],
    }
    assert sourced.probes["again"].record(0).question == "T"


def test_a_document_in_pieces_stays_in_its_set(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", {"text": f"{name} " * 5}) for name in ("forget", "retain")]
    sourced = load(kind="jsonl", train=files, test=files, template={"max_length": 3})
    assert {name: ids.tolist() for name, ids in sourced.sets.items()} == {"forget": [0, 1], "retain": [2, 3]}


def test_whole_subjects_are_kept_out(tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}", "answer": "a", "subject": f"s{i // 4}"} for i in range(40)]
    path = write(tmp_path / "a.jsonl", *rows)
    sourced = load(kind="jsonl", train=[path], test_fraction=0.2)
    assert (len(sourced.train), len(sourced.test)) == (32, 8)
    assert set(sourced.train.subjects).isdisjoint(sourced.test.subjects)
    with pytest.raises(
        ConfigError, match="test_fraction: 0.01 of 10 subjects or records leaves a part empty"
    ):
        load(kind="jsonl", train=[path], test_fraction=0.01)


def test_turns_that_would_be_lost_are_refused(tmp_path: Path) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Who?"), ("assistant", "Nora.")]
    path = write(tmp_path / "a.jsonl", {"messages": [{"role": r, "content": c} for r, c in turns]})
    with pytest.raises(
        DataError, match="a chat has more turns .* would be lost. Give the tokenizer of a chat"
    ):
        load(kind="jsonl", train=[path], test=[path])
    chat = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    words = ["user: Hi\nassistant: Hello\nuser: Who?\nassistant: Nora."]
    train_tokenizer(words, chat_template=chat).save_pretrained(tmp_path / "chat")
    sourced = load(kind="jsonl", train=[path], test=[path], tokenizer=tmp_path / "chat")
    prompt, labels = sourced.train.shown(0).rsplit("\nlabels: ", 1)
    assert prompt.count("user") == 2
    assert "Nora" in labels
    assert "Hello" not in labels


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "Q"', r"line 2 is not JSON: .* at column 17"),
        ("[1]", "line 2 is a list, not a JSON object"),
        ('{"question": "Q"}', "line 2: field 'answer' is missing"),
        ('{"question": "Q", "answer": " "}', "line 2: field 'answer' is empty. Remove the record"),
        ('{"question": 3, "answer": "A"}', "line 2: field 'question' is a number, not a text"),
        (
            '{"frage": "Q"}',
            r"line 2 has none of the fields question, prompt, messages and text, but \['frage'\]",
        ),
        ('{"question": "Q", "answer": "A", "subject": [1]}', "line 2: field 'subject' is a list"),
        ('{"question": "Q", "answer": "A", "idk": null}', "line 2: field 'idk' is null"),
        (
            '{"question": "Q", "answer": "A", "idk": "I"}',
            r"line 2 has the other answers and questions \['idk'\]",
        ),
        ('{"question": "Q", "answer": "A", "answers": []}', "line 2: field 'answers' is a list"),
        ('{"question": "Q", "answer": "A", "answers": {"x": ""}}', "line 2: field 'answers.x' is empty"),
        (
            '{"question": "Q", "answer": "A", "perturbed_answer": "x"}',
            "line 2: field 'perturbed_answer' is a",
        ),
        (
            '{"question": "Q", "answer": "A", "perturbed_answer": ["x", 1]}',
            "field 'perturbed_answer.2' is a nu",
        ),
        ('{"text": "T", "idk": "I"}', r"line 2: a document has no question, so it cannot have \['idk'\]"),
        ('{"messages": "hi"}', "line 2: field 'messages' needs a list of two turns or more"),
        ('{"messages": [1, 2]}', "line 2: field 'messages.0' is a number"),
        ('{"messages": [{"role": "bot"}, {}]}', "line 2: field 'messages.0.role' is 'bot'"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
            r"line 2: field 'messages' ends with the roles \['user', 'user'\]",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "Q", "answer": "A"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"bad.jsonl'.*{message}"):
        load(kind="jsonl", train=[path])


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read '.*none.jsonl': No such file"):
        load(kind="jsonl", train=[tmp_path / "none.jsonl"])
    empty, latin, packed = (tmp_path / name for name in ("empty.jsonl", "latin.jsonl", "packed.jsonl.gz"))
    empty.write_text("\n")
    latin.write_bytes(b'{"text": "a"}\n{"text": "Z\xfcrich"}')
    packed.write_bytes(b"{}")
    with pytest.raises(DataError, match="empty.jsonl' holds no records"):
        load(kind="jsonl", train=[empty])
    with pytest.raises(DataError, match="latin.jsonl', line 2 is not UTF-8"):
        load(kind="jsonl", train=[latin])
    with pytest.raises(DataError, match="packed.jsonl.gz' is no gzip file"):
        load(kind="jsonl", train=[packed])
    with pytest.raises(
        ConfigError, match=r"train: give one file at least, and each name once, got \['a', 'a'\]"
    ):
        load(kind="jsonl", train=["a.jsonl", "b/a.jsonl"])
    with pytest.raises(ConfigError, match="test_fraction: must be above 0 and below 1, got 1.0"):
        load(kind="jsonl", train=["a.jsonl"], test_fraction=1.0)


def test_a_question_longer_than_the_context(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "one two three", "answer": "four"})
    with pytest.raises(DataError, match="record 0 has 10 tokens, more than max_length=5"):
        load(kind="jsonl", train=[path], test=[path], template={"max_length": 5})


# ---- duplicates


def test_duplicates_exact_and_near() -> None:
    words = [f"w{i}" for i in range(20)]
    base = Record(question="Q", answer=" ".join(words))
    near = Record(question="Q", answer=" ".join([*words[:19], "other"]))  # 20 of 22 words in common
    far = Record(question="Q", answer=" ".join([*words[:18], "other", "more"]))  # 19 of 23
    same = Record(question="q ", answer="  W0 " + " ".join(words[1:]).upper())
    found = duplicates([Record(question="R", answer="unlike"), base], [far, near, same])
    assert found == [Duplicate(1, 1, 20 / 22, False), Duplicate(1, 2, 1.0, True)]
    assert [one.retain for one in duplicates([base], [far, near], threshold=0.8)] == [0, 1]
    with pytest.raises(ConfigError, match="threshold: must be above 0 and at most 1, got 0"):
        duplicates([base], [far], threshold=0)


def test_duplicates_are_those_of_comparing_every_pair() -> None:
    draws = torch.Generator().manual_seed(0)
    texts = [" ".join(f"w{i}" for i in torch.randint(9, (6,), generator=draws).tolist()) for _ in range(60)]
    records = [Record(answer=text) for text in texts]
    sets = [set(text.split()) for text in texts]
    for threshold in (0.5, 0.6, 0.8, 1.0):
        slow = [
            (i, j - 30)
            for i in range(30)
            for j in range(30, 60)
            if texts[i] == texts[j] or len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold
        ]
        found = duplicates(records[:30], records[30:], threshold)
        assert [(one.forget, one.retain) for one in found] == slow
        assert slow


@pytest.mark.parametrize("kind", ["people", "tofu", "jsonl"])
def test_configuration_round_trip(kind: str) -> None:
    fields = {"train": ["a.jsonl"]} if kind == "jsonl" else {}
    source = config.build(sources, {"kind": kind, "template": {"eos": False}, **fields})
    assert config.build(sources, config.dump(source)) == source
