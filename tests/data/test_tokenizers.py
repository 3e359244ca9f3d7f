"""Tokenizers: what is a token, that text comes back, and what does not fit."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from expunge.data.text import Record, TextData
from expunge.data.tokenizers import check_vocabulary, load_tokenizer, train_tokenizer
from expunge.errors import ConfigError, DataError

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)

TEXTS = [
    "Question: Where was Nora Vell born?\nAnswer:",
    " Nora Vell was born in Ardmor.",
    'The father\'s job (in 1950): "baker, or so".',
]


def test_a_word_a_mark_and_a_line_break_are_tokens() -> None:
    tokenizer = train_tokenizer(TEXTS)
    tokens = tokenizer.tokenize(TEXTS[0])
    assert " ".join(tokens) == "▁Question : ▁Where ▁was ▁Nora ▁Vell ▁born ? \n Answer :"
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<unk>", "<eos>"]) == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.bos_token_id is None
    assert tokenizer("zebra")["input_ids"] == [1]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_text_comes_back(kind: str, text: str) -> None:
    tokenizer = train_tokenizer(TEXTS, kind=kind)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode([*ids, 2, 0], skip_special_tokens=True).strip() == text.strip()


def test_bpe_spells_what_it_has_not_seen() -> None:
    tokenizer = train_tokenizer(TEXTS, kind="bpe", vocabulary=300)
    assert len(tokenizer) == 300
    assert tokenizer.decode(tokenizer("Zürich 漢")["input_ids"]) == "Zürich 漢"


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_the_same_texts_give_the_same_tokenizer(kind: str) -> None:
    first, again = (train_tokenizer(iter(TEXTS * 3), kind=kind).get_vocab() for _ in range(2))
    assert first == again


def test_the_most_frequent_words_are_kept() -> None:
    tokenizer = train_tokenizer(["b b b a a c"], vocabulary=5)
    assert tokenizer.get_vocab() == {"<pad>": 0, "<unk>": 1, "<eos>": 2, "▁b": 3, "▁a": 4}


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_beginning_is_put_before_a_prompt_once(kind: str) -> None:
    tokenizer = train_tokenizer(TEXTS, kind=kind, bos=True)
    data = TextData([Record(question="Where?", answer="Ardmor.")], tokenizer)
    assert data.column("input_ids")[0].tolist().count(3) == 1
    assert data.column("input_ids")[0, 0] == 3
    assert data.column("labels")[0, 0] == -100


def test_a_chat_template_is_used_and_saved(tmp_path: Path) -> None:
    chat = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    texts = ["user: Where?\nassistant: Ardmor."]
    train_tokenizer(texts, chat_template=chat).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    shown = TextData([Record(question="Where?", answer=" Ardmor.")], tokenizer).shown(0)
    assert shown.endswith("assistant :\nlabels: ▁Ardmor . <eos>")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where?"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "user: Where?\nassistant:"


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert [loaded(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert loaded.decode(loaded(TEXTS[2])["input_ids"]) == TEXTS[2]


def _without(folder: Path, *names: str) -> None:
    train_tokenizer(TEXTS).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = {name: value for name, value in json.loads(path.read_text()).items() if name not in names}
    path.write_text(json.dumps(settings))


def test_a_tokenizer_without_an_end(tmp_path: Path) -> None:
    _without(tmp_path, "eos_token")
    with pytest.raises(DataError, match="has no end-of-text token, so no answer could end. Set eos_token in"):
        load_tokenizer(tmp_path)


def test_the_end_pads_where_nothing_else_does(tmp_path: Path) -> None:
    _without(tmp_path, "pad_token")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


def test_folders_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(DataError, match="holds no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)


def test_vocabularies_that_do_not_fit() -> None:
    tokenizer = train_tokenizer(["a b c d e f"])
    assert len(tokenizer) == 9
    check_vocabulary(tokenizer, 9)
    check_vocabulary(tokenizer, 10)  # rounded up
    for size in (8, 11):
        with pytest.raises(
            DataError, match=f"has 9 tokens and the model {size}: they do not belong together"
        ):
            check_vocabulary(tokenizer, size)


def test_bad_requests() -> None:
    with pytest.raises(ConfigError, match="vocabulary: a word tokenizer needs at least 4 tokens, got 3"):
        train_tokenizer(TEXTS, vocabulary=3)
    with pytest.raises(ConfigError, match="vocabulary: a bpe tokenizer needs at least 259 tokens, got 258"):
        train_tokenizer(TEXTS, kind="bpe", vocabulary=258)
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_tokenizer([" \n"])
