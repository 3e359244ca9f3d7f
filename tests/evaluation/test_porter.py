"""The stemmer: one word for each rule, by hand, and where it departs from the paper of 1980."""

from __future__ import annotations

import pytest

from expunge.evaluation.porter import stem

PAIRS = """
caresses caress | ponies poni | caress caress | cats cat | feed feed | agreed agre | plastered plaster
bled bled | motoring motor | sing sing | conflated conflat | troubled troubl | sized size | hopping hop
tanned tan | falling fall | hissing hiss | fizzed fizz | failing fail | filing file | happy happi
relational relat | conditional condit | rational ration | digitizer digit | vietnamization vietnam
predication predic | operator oper | feudalism feudal | decisiveness decis | hopefulness hope
callousness callous | formaliti formal | sensitiviti sensit | sensibiliti sensibl | triplicate triplic
formative form | electrical electr | goodness good | revival reviv | allowance allow | inference infer
airliner airlin | adjustable adjust | defensible defens | irritant irrit | replacement replac
adjustment adjust | dependent depend | adoption adopt | homologou homolog | communism commun
activate activ | effective effect | probate probat | rate rate | cease ceas | controll control | roll roll
"""


@pytest.mark.parametrize(
    "pair", [pair.strip() for pair in PAIRS.replace("\n", "|").split("|") if pair.strip()]
)
def test_the_paper_of_1980(pair: str) -> None:
    word, wanted = pair.split()
    assert stem(word) == wanted


@pytest.mark.parametrize(
    ("word", "wanted", "paper"),
    [
        ("dies", "die", "di"),
        ("died", "die", "di"),
        ("flies", "fli", "fli"),
        ("enjoy", "enjoy", "enjoi"),
        ("spy", "spi", "spy"),
        ("dying", "die", "dy"),
        ("news", "news", "new"),
        ("succeed", "succeed", "succe"),
        ("hopefully", "hope", "hopefulli"),
        ("possibly", "possibl", "possibli"),
        ("geology", "geolog", "geologi"),
        ("traditionally", "tradit", "tradition"),
        ("using", "use", "us"),
        ("is", "is", "i"),
    ],
)
def test_where_nltk_departs(word: str, wanted: str, paper: str) -> None:
    assert stem(word) == wanted
    assert wanted != paper or word == "flies"
