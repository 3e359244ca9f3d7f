"""Porter's stemmer: words without their endings, so that "signs" and "signed" are one word."""

from __future__ import annotations

from functools import lru_cache

IRREGULAR = {
    "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news", "sky": "sky",
    "inning": "inning", "innings": "inning", "outing": "outing", "outings": "outing", "canning": "canning",
    "cannings": "canning", "howe": "howe", "proceed": "proceed", "exceed": "exceed", "succeed": "succeed",
}  # fmt: skip

DOUBLE = (
    "ational:ate tional:tion enci:ence anci:ance izer:ize bli:ble fulli:ful entli:ent eli:e ousli:ous "
    "ization:ize ation:ate ator:ate alism:al iveness:ive fulness:ful ousness:ous aliti:al iviti:ive "
    "biliti:ble"
)
MIDDLE = "icate:ic ative: alize:al iciti:ic ical:ic ful: ness:"
LAST = "al: ance: ence: er: ic: able: ible: ant: ement: ment: ent: ou: ism: ate: iti: ous: ive: ize:"


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Porter's stem of a lower-case word, with the extensions of NLTK that rouge-score uses.

    The steps of 1980, but: a few irregular words have stems of their own (``dying`` becomes ``die``);
    ``-ies`` and ``-ied`` keep their ``e`` in words of four letters; a final ``y`` becomes ``i`` after every
    consonant but the first letter; ``-fulli``, ``-bli`` and ``-logi`` are reduced, ``-alli`` twice; and the
    ``e`` after a vowel and a consonant stays (``use``).

    References: Porter, An algorithm for suffix stripping, Program 14, 1980.
    """
    if word in IRREGULAR or len(word) <= 2:
        return IRREGULAR.get(word, word)
    word = _past(_plural(word))
    if word[-1] == "y" and len(word) > 2 and _letters(word)[-2] == "c":
        word = word[:-1] + "i"
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        word = word[:-2]
    if word.endswith("logi"):
        word = word[:-1] if _measure(word[:-3]) > 0 else word
    else:
        word = _reduced(word, DOUBLE, 0)
    word = _reduced(word, MIDDLE, 0)
    if word.endswith(("sion", "tion")):
        word = word[:-3] if _measure(word[:-3]) > 1 else word
    else:
        word = _reduced(word, LAST, 1)
    return _final(word)


def _plural(word: str) -> str:
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word[-1] == "s" and word[-2] != "s" else word


def _past(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    root = word[:-2] if word.endswith("ed") else word[:-3] if word.endswith("ing") else ""
    if "v" not in _letters(root):
        return word
    if root.endswith(("at", "bl", "iz")):
        return root + "e"
    if len(root) > 1 and root[-1] == root[-2] and _letters(root)[-1] == "c":
        return root if root[-1] in "lsz" else root[:-1]
    return root + "e" if _measure(root) == 1 and _short(root) else root


def _final(word: str) -> str:
    if word[-1] == "e":
        m = _measure(word[:-1])
        word = word[:-1] if m > 1 or (m == 1 and not _short(word[:-1])) else word
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _reduced(word: str, rules: str, above: int) -> str:
    """The first rule whose ending fits decides: it is applied to roots with a measure over ``above``."""
    for rule in rules.split():
        ending, replacement = rule.split(":")
        if word.endswith(ending):
            root = word[: -len(ending)]
            return root + replacement if _measure(root) > above else word
    return word


def _letters(word: str) -> str:
    """``c`` or ``v`` for each letter; ``y`` is a vowel after a consonant."""
    kinds = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and kinds.endswith("c"))
        kinds += "v" if vowel else "c"
    return kinds


def _measure(word: str) -> int:
    """Porter's ``m``: how often a consonant follows a vowel."""
    return _letters(word).count("vc")


def _short(word: str) -> bool:
    """Consonant, vowel, consonant at the end (the last one not w, x or y), or just vowel and consonant."""
    kinds = _letters(word)
    return kinds == "vc" or (kinds[-3:] == "cvc" and word[-1] not in "wxy")
