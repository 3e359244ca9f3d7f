"""What published benchmarks for language models measure, as metrics by the names of their tables."""

from __future__ import annotations

from collections.abc import Mapping

from expunge.data.benchmarks import ATTACKS, of_attack
from expunge.evaluation.attacks.text_membership import PrivLeak, TextMembership
from expunge.evaluation.generation import Decoding
from expunge.evaluation.metric import Metric
from expunge.evaluation.metrics.language import Fluency, Rouge
from expunge.evaluation.metrics.leakage import Leakage
from expunge.evaluation.metrics.locality import Locality

VERBATIM, KNOWLEDGE, SHORT = Decoding(max_tokens=128), Decoding(max_tokens=32), Decoding(max_tokens=30)
"""How long answers may be: MUSE's continuations, MUSE's answers, RWKU's answers."""


def muse(
    verbatim: str = "verbatim",
    knowledge: str = "knowledge_forget",
    utility: str = "knowledge_retain",
    members: str = "members",
    against: str = "test",
) -> dict[str, Metric]:
    """The four numbers that MUSE measures on one model; probes are those of the data ``muse`` by default.

    Its two others are these four over several sizes of the forget set (scalability) and after each of several
    requests (sustainability): ``bench/muse.py``.

    Differs: published questions stand behind ten examples of questions with answers; here they are asked by
        themselves. ``privleak`` divides by the retrained models' AUC and says how much these differ
        (``details["noise"]``), where the published one divides by a constant.
    """
    return {
        "verbatim memory": Rouge(part=verbatim, read="f1", stemmer=False, cut=True, decoding=VERBATIM),
        "knowledge memory": Rouge(part=knowledge, read="f1", stemmer=False, decoding=KNOWLEDGE),
        "privacy leak": PrivLeak(part=members, against=against),
        "utility": Rouge(part=utility, read="f1", stemmer=False, decoding=KNOWLEDGE),
    }


def rwku() -> dict[str, Metric]:
    """What RWKU measures of a target and its neighbourhood; probes are those of the data ``rwku``.

    Level 1 are clozes, level 2 questions, level 3 attacks: all of them together, and ``attack …`` for each
    of the nine types by itself, whose answers are those to all of them. ``leakage`` lists the targets, the
    worst first, which a mean over two hundred hides; ``locality`` is the change from the targets to their
    neighbours.

    Differs: the published membership numbers are mean scores of two kinds of passages, with no upper end, so
        that making texts ever unlikelier counts as better; here they are AUCs of passages about the targets
        against those about their neighbours, which no model can bring to ½ where the texts differ (the note
        says so). Words are those of ``rouge``, not of the package of that name, which cuts at spaces alone.
        An affirmative suffix ends the question, where its file has it; the published code builds the prompts
        of that type in another way than the rest.
    """
    found: dict[str, Metric] = {
        f"forget level {level}": Rouge(part=f"forget_level{level}", stemmer=False, decoding=SHORT)
        for level in (1, 2, 3)
    }
    found |= {
        f"attack {kind}": Rouge(part=of_attack(kind), stemmer=False, decoding=SHORT) for kind in ATTACKS
    }
    found |= {
        f"neighbours level {level}": Rouge(part=f"neighbor_level{level}", stemmer=False, decoding=SHORT)
        for level in (1, 2)
    }
    found |= {
        f"targets level {level}": Leakage(part=f"forget_level{level}", decoding=SHORT) for level in (2, 3)
    }
    found["locality"] = Locality(decoding=SHORT)
    for score in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        found[f"members {score}"] = TextMembership(against="retain", score=score)
    found["fluency"] = Fluency(part="neighbor_level2", decoding=SHORT)
    return found


BENCHMARKS: Mapping[str, Mapping[str, Metric]] = {"muse": muse(), "rwku": rwku()}
"""The metrics of each benchmark, by the names of its table."""
