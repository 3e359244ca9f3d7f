"""The comparisons of ``authors_language.py``: what of theirs was run, and what of ours stands beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from expunge.methods.base import GradientMethod
from expunge.methods.edits.task_vector import TaskVector
from expunge.methods.gradient.ce_u import CEU
from expunge.methods.gradient.dpo import DPO
from expunge.methods.gradient.flat import FLAT
from expunge.methods.gradient.grad_diff import GradDiff
from expunge.methods.gradient.idk import Idk
from expunge.methods.gradient.inverted_hinge import InvertedHinge
from expunge.methods.gradient.kl_min import KLMin
from expunge.methods.gradient.npo import NPO
from expunge.methods.gradient.rmu import RMU
from expunge.methods.gradient.satimp import SatImp
from expunge.methods.gradient.simnpo import SimNPO
from expunge.methods.gradient.undial import Undial
from expunge.methods.gradient.wga import WGA
from expunge.methods.gradient.whp import WHP
from expunge.training.optim import SGD

Name = Literal["ragged", "even", "text"]

PEER = ("locuslab/open-unlearning", "d3d7cf9")
ZHANG = ("licong-lin/negative-preference-optimization", "1207bbe")
FAN = ("OPTML-Group/Unlearn-Simple", "f1a355d")
WANG = ("UCSC-REAL/FLAT", "bf2ef07")
LI = ("centerforaisafety/wmdp", "bc5e1ba")
CHA = ("csm9493/efficient-llm-unlearning", "272484a")
SHI = ("swj0419/muse_bench", "fcd6651")

TOKENS = (
    "Theirs weighs answers in a mean loss by their tokens, ours each answer alike; the next row has answers "
    "of one length."
)
PLACES = (
    "Theirs takes the divergence at every position, prompt, padding and the last token included, and weighs "
    "answers by their tokens; in the next row the same function is given the logits before labels alone, of "
    "answers of one length."
)
ROUNDING = "Rounding."


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    Args:
        key: of the others' value.
        run: what of theirs was run.
        ours: the method with the fields that theirs has.
        scale: what ours is multiplied with, where theirs is a multiple of it.
        intended: whether the values are meant to differ.
        first_label: whether the first token keeps its label.
    """

    key: str
    source: tuple[str, str]
    run: str
    ours: GradientMethod
    batch: Name
    explanation: str = ROUNDING
    scale: float = 1.0
    intended: bool = False
    first_label: bool = True


def cases() -> list[Case]:
    preferences = [*_preferences(PEER), *_preferences(ZHANG), *_simnpo()]
    return [*_ascent(), *preferences, *_flat(), *_rmu(), *_labels(), *_undial(), *_ce_u(), *_muse()]


def _pair(key: str, run: str, why: str, off: str = "", then: str = ROUNDING, **fields: Any) -> list[Case]:
    """A comparison with its intended difference, and the same with the difference switched off."""
    ragged = Case(key=f"{key}-ragged", run=run, batch="ragged", explanation=why, intended=True, **fields)
    return [ragged, Case(key=f"{key}-even", run=f"{run}{off}", batch="even", explanation=then, **fields)]


LABELS_ALONE = ", logits before labels alone"


def _ascent() -> list[Case]:
    half, found = GradDiff(retain_weight=0.5), []
    twice = "Theirs has weights of 1 and 1, ours of ½ and ½: ours is doubled."
    for source, name in ((PEER, "GradDiff"), (ZHANG, "grad_diff")):
        key, why = f"{source[0].split('/')[0]}-grad_diff", f"{twice} {TOKENS}"
        found += _pair(key, name, why, then=f"{ROUNDING} {twice}", ours=half, source=source, scale=2.0)
    for source, name in ((PEER, "GradDiff, retain_loss_type KL"), (ZHANG, "KL")):
        key = f"{source[0].split('/')[0]}-kl_min"
        found += _pair(key, name, PLACES, LABELS_ALONE, ours=KLMin(), source=source)
    once = "Theirs is one mean over both parts, ours the sum of a mean of each: ours is halved."
    why, then = f"{once} {TOKENS}", f"{ROUNDING} {once}"
    return [*found, *_pair("licong-lin-idk", "idk", why, then=then, ours=Idk(), source=ZHANG, scale=0.5)]


def _preferences(source: tuple[str, str]) -> list[Case]:
    peer = source is PEER
    owner = source[0].split("/")[0]
    found: list[Case] = []
    for cls in (NPO, DPO):
        name = cls.__name__
        runs = {
            "loss": name if peer else f"{name.lower()}_grad_diff",
            "divergence": f"{name}, retain_loss_type KL" if peer else f"{name.lower()}_KL",
        }
        key = f"{owner}-{name.lower()}"
        alone = cls(retain_weight=0.0)
        run = f"{name}, alpha 0" if peer else name.lower()
        found.append(Case(key=f"{key}-alone", source=source, run=run, ours=alone, batch="ragged"))
        found += _pair(f"{key}-loss", runs["loss"], TOKENS, ours=cls(), source=source)
        divergence = cls(retain="divergence")
        found += _pair(f"{key}-kl", runs["divergence"], PLACES, LABELS_ALONE, ours=divergence, source=source)
    return found


def _simnpo() -> list[Case]:
    alone = SimNPO(retain_weight=0.0, forget_weight=1.0)
    margin = replace(alone, margin=0.3)
    inside = "Theirs takes the margin off before the multiplication by β, the paper and ours after."
    labels = "Theirs divides by the labels, the first one included, which nothing predicts; 9 for 8 here."
    fields: dict[str, Any] = {"source": FAN, "batch": "ragged"}
    return [
        Case(key="OPTML-Group-simnpo-alone", run="simnpo, β 2.5", ours=alone, **fields),
        *_pair("OPTML-Group-simnpo", "simnpo_grad_diff, β 2.5", TOKENS, ours=SimNPO(), source=FAN),
        Case(
            key="OPTML-Group-simnpo-margin",
            run="simnpo, γ 0.3",
            ours=margin,
            explanation=inside,
            intended=True,
            **fields,
        ),
        Case(
            key="OPTML-Group-simnpo-margin-by-beta",
            run="the same, ours with margin 0.75 = 2.5 · 0.3",
            ours=replace(alone, margin=0.75),
            **fields,
        ),
        Case(
            key="OPTML-Group-simnpo-text",
            source=FAN,
            run="simnpo, a document",
            ours=alone,
            batch="text",
            explanation=labels,
            intended=True,
        ),
        Case(
            key="OPTML-Group-simnpo-unlabelled",
            source=FAN,
            run="the same without the first label",
            ours=alone,
            batch="text",
            first_label=False,
        ),
        *_pair(
            "locuslab-simnpo",
            "SimNPO, beta 4.5, gamma 0.125",
            TOKENS,
            ours=SimNPO(beta=4.5, forget_weight=0.125),
            source=PEER,
        ),
    ]


def _flat() -> list[Case]:
    dilution = (
        "Theirs takes the mean probability over all positions, 0 for prompt and padding, and over the batch "
        "before g; the next row has one document without a prompt."
    )
    sign = (
        "Their g falls with the probability P of a refusal, ours rises. In the next row the same function is "
        "given −P for P"
    )
    found = [_divergence("total_variation", "ragged", "cl", explanation=dilution, intended=True)]
    for name in ("total_variation", "kl", "jeffrey", "pearson", "jensen_shannon"):
        found.append(_divergence(name, "text", "cl, one document"))
    for name in ("reverse_kl", "squared_hellinger", "neyman"):
        more = ", and its f* the value of g." if name == "neyman" else "."
        found += [
            _divergence(name, "text", "cl, one document", explanation=sign + more, intended=True),
            replace(
                _divergence(name, "text", "get_contrastive_loss of −P"), key=f"UCSC-REAL-flat-{name}-turned"
            ),
        ]
    return found


def _divergence(name: str, batch: Name, run: str, **fields: Any) -> Case:
    method = FLAT(divergence=name)  # type: ignore[arg-type]
    key, said = f"UCSC-REAL-flat-{name}-{batch}", f"{run}, {name.replace('_', ' ')}"
    return Case(key=key, source=WANG, run=said, ours=method, batch=batch, **fields)


def _rmu() -> list[Case]:
    padding = "Theirs counts padding, ours leaves it out; the next row has texts of one length."
    lengths = (
        "Theirs divides sums of shape (b,) by token counts of shape (b, 1), so each example is weighted by "
        "the batch's mean inverse length; the next row has answers of one length."
    )
    authors = RMU(layer=1, relative=False, coefficient=20.0, retain_weight=100.0, positions="text")
    peer = RMU(layer=1, relative=False, coefficient=2.0, retain_weight=1.0, positions="answer")
    run = "run_rmu, first step, layer 1, steering_coeffs 20, alpha 100"
    of_peer = "RMU, EMBED_DIFF, layer 1, steering_coeff 2"
    return [
        *_pair("centerforaisafety-rmu", run, padding, ours=authors, source=LI),
        *_pair("locuslab-rmu", of_peer, lengths, ours=peer, source=PEER),
    ]


def _labels() -> list[Case]:
    """Those that weigh or compare single labels and differ in nothing but the mean over them."""
    weights = "Theirs has weights of 0.1 and 1, ours of 1 and 10: a tenth of ours."
    small, then = SatImp(), f"{ROUNDING} {weights}"
    run = "SatImp, beta1 5, beta2 1, gamma 0.1, alpha 1"
    return [
        *_pair("locuslab-wga", "WGA", TOKENS, ours=WGA(), source=PEER),
        *_pair("locuslab-satimp", run, f"{weights} {TOKENS}", then=then, ours=small, source=PEER, scale=0.1),
        *_pair("csm9493-ihl", "IHL", TOKENS, ours=InvertedHinge(), source=CHA),
    ]


def _undial() -> list[Case]:
    places = (
        "Theirs takes the mean over prompt and padding too, where it uses the label −100 as an index and so "
        "lowers the logit of token V − 100, ours over labels; the next row has one document of labels."
    )
    fields: dict[str, Any] = {"source": PEER, "ours": Undial(beta=3.0)}
    one: dict[str, Any] = {"run": "UNDIAL, beta 3, alpha 0", **fields}
    retained = {**fields, "ours": Undial(beta=3.0, retain_weight=1.0)}
    return [
        Case(key="locuslab-undial-ragged", batch="ragged", explanation=places, intended=True, **one),
        Case(key="locuslab-undial-text", batch="text", **one),
        Case(key="locuslab-undial-retain", run="UNDIAL, beta 3, alpha 1", batch="text", **retained),
    ]


def _ce_u() -> list[Case]:
    first = (
        "Theirs counts a document's first label, which nothing predicts, as the token to leave alone, ours "
        "the first that is predicted."
    )
    every: dict[str, Any] = {"source": PEER, "ours": CEU(skip=0)}
    fields: dict[str, Any] = {"source": PEER, "ours": CEU()}
    return [
        *_pair("locuslab-ce_u-all", "CEU, ignore_first_n_answer_tokens 0", TOKENS, **every),
        Case(key="locuslab-ce_u-even", run="CEU", batch="even", **fields),
        Case(
            key="locuslab-ce_u-text",
            run="CEU, a document",
            batch="text",
            explanation=first,
            intended=True,
            **fields,
        ),
        Case(
            key="locuslab-ce_u-unlabelled",
            run="the same without the first label",
            batch="text",
            first_label=False,
            **fields,
        ),
    ]


def _muse() -> list[Case]:
    labels = "likeliest tokens of WHPModelForCausalLM, alpha 5, as labels of the model's own loss"
    tuned = SGD(lr=0.01, momentum=0.0)
    edit: dict[str, Any] = {"source": SHI, "ours": TaskVector(alpha=5.0, optim=tuned), "batch": "ragged"}
    halves = "Theirs loads and subtracts weights in bfloat16, ours in float32."
    return [
        Case(key="swj0419-whp", source=SHI, run=labels, ours=WHP(alpha=5.0), batch="even"),
        Case(
            key="swj0419-task_vector",
            run="unlearn of task_vector, alpha 5, weights loaded after the model; loss of the edited model",
            explanation=halves,
            intended=True,
            **edit,
        ),
        Case(key="swj0419-task_vector-float32", run="the same, its TaskVector in float32", **edit),
    ]
