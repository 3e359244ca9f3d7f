"""Tokenizers of Hugging Face: trained on the data, or read from a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from expunge.data.hub import local
from expunge.errors import ConfigError, DataError, MissingExtra

PAD, UNKNOWN, END, BEGIN = "<pad>", "<unk>", "<eos>", "<bos>"
"""The special tokens of a trained tokenizer, numbered from 0 in this order."""

BYTES = 256
"""Tokens that a ``bpe`` tokenizer begins with: it can spell every text."""

SPARE = 0.1
"""Share of a model's vocabulary that no token may use: models round theirs up."""

_MARK = "▁"
_PIECES = rf"[^\w\s{_MARK}]|\s"


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocabulary: int | None = None,
    kind: Literal["word", "bpe"] = "word",
    bos: bool = False,
    chat_template: str | None = None,
) -> Any:
    """A tokenizer whose vocabulary comes from the texts; the same texts always give the same one.

    - ``word``: a token is a word, with the space before it if there is one, a punctuation mark or a line
      break. Words are taken by number of occurrences, then in alphabetical order; others become
      ``<unk>``. A known text comes back from ``decode`` as it was, but for a space at its start.
    - ``bpe``: byte pairs, from all 256 bytes up; every text comes back as it was.

    Args:
        texts: what is counted.
        vocabulary: most tokens, special ones included; ``None`` takes all words, and 1,024 byte pairs.
        bos: whether ``<bos>`` stands before every text.
        chat_template: in Jinja, as ``apply_chat_template`` wants it.

    Returns:
        A ``PreTrainedTokenizerFast`` with the tokens ``<pad>``, ``<unk>``, ``<eos>`` and, with ``bos``,
        ``<bos>``.

    Raises:
        ConfigError: a vocabulary too small for the special tokens (and bytes).
        DataError: no word in the texts.
        MissingExtra: transformers is not installed.
    """
    try:
        from tokenizers.processors import TemplateProcessing
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise MissingExtra("a tokenizer", "llm") from None
    special = [PAD, UNKNOWN, END, *([BEGIN] if bos else [])]
    least = len(special) + (BYTES if kind == "bpe" else 1)
    if vocabulary is not None and vocabulary < least:
        raise ConfigError(
            f"a {kind} tokenizer needs at least {least} tokens, got {vocabulary}. Raise it.", "vocabulary"
        )
    texts = list(texts)
    if not any(text.strip() for text in texts):
        raise DataError("there is no text to train a tokenizer on. Give at least one word.")
    trained = (_words if kind == "word" else _byte_pairs)(texts, vocabulary, special)
    if bos:
        trained.post_processor = TemplateProcessing(
            single=f"{BEGIN} $A",
            pair=f"{BEGIN} $A {BEGIN} $B",
            special_tokens=[(BEGIN, special.index(BEGIN))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        bos_token=BEGIN if bos else None,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def load_tokenizer(path: Path | str) -> Any:
    """The tokenizer in a folder that ``save_pretrained`` wrote, or of a model of the Hub by its id.

    Where it has no padding token the end-of-text token pads; padding is masked everywhere, so that the
    choice changes no number.

    Raises:
        DataError: no such folder, no tokenizer in it, or one without an end-of-text token.
        CheckpointError: an id that cannot be fetched.
        MissingExtra: transformers is not installed.
    """
    path = local(path)
    if not path.is_dir():
        raise DataError(f"'{path}' is not a folder. Give the folder of a model with its tokenizer files.")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra(f"the tokenizer in '{path}'", "llm") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers, tokenizers, json and sentencepiece each raise their own
        said = " ".join(str(error).split())[:200].rstrip(".")
        raise DataError(
            f"'{path}' holds no tokenizer that can be loaded: {said}. Copy tokenizer.json and "
            "tokenizer_config.json of the model there."
        ) from None
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer in '{path}' has no end-of-text token, so no answer could end. Set eos_token in "
            "its tokenizer_config.json to the token that ended texts when the model was trained."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_vocabulary(tokenizer: Any, model_vocabulary: int) -> None:
    """Refuses a tokenizer that cannot belong to a model with this many tokens.

    Its tokens must be numbered within the model's vocabulary and use nine tenths of it at least:
    models round their vocabulary up, by a few percent.

    Raises:
        DataError: they do not fit.
    """
    tokens = len(tokenizer)
    if (1 - SPARE) * model_vocabulary <= tokens <= model_vocabulary:
        return
    raise DataError(
        f"the tokenizer has {tokens:,} tokens and the model {model_vocabulary:,}: they do not belong "
        f"together. Give the model's own tokenizer, or a model with vocabulary={tokens}."
    )


def _words(texts: list[str], vocabulary: int | None, special: list[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=_MARK, prepend_scheme="always"),
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
        ]
    )
    counts = Counter(piece for text in texts for piece, _ in cut.pre_tokenize_str(text))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    known = [*special, *(word for word in words if word not in special)][:vocabulary]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.Metaspace(replacement=_MARK, prepend_scheme="always")
    tokenizer.add_special_tokens(special)
    return tokenizer


def _byte_pairs(texts: list[str], vocabulary: int | None, special: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary or 1024,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
