"""Every metric on evidence with something wrong: a sound number, or a sentence; never a warning of numpy."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from tests.evaluation.micro import made, sound, unmeasured, variants
from torch import Tensor, nn

from expunge.data import ArrayData, Data, Split
from expunge.evaluation.evaluate import Evaluation
from expunge.evaluation.metric import metrics
from expunge.evaluation.score import Score
from expunge.evaluation.shadows import Shadows

OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda outputs: outputs * torch.nan,
    "some nan": lambda outputs: torch.where(outputs > outputs.quantile(0.9), torch.nan, outputs),
    "infinite": lambda outputs: outputs * torch.inf,
    "more classes": lambda outputs: torch.cat([outputs, outputs[:, :1]], 1),
    "fewer classes": lambda outputs: outputs[:, :-1],
    "constant": lambda outputs: 0 * outputs + torch.arange(outputs.shape[1]),
    "saturated": lambda outputs: 1e6 * outputs,
}
"""What becomes of the outputs of one model, or of all."""


def spoiling(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy whose outputs are changed; it has the same layers."""
    changed = copy.deepcopy(model)
    changed.register_forward_hook(lambda module, inputs, outputs: change(outputs))
    return changed


def evaluation(spoilt: str = "", split: Split | None = None, **changes: object) -> Evaluation:
    """That of the micro classifier, after a change.

    Args:
        spoilt: ``"nan: finetune"``, which model's outputs become what; ``all`` for every model.
        split: another one.
        changes: ``retrained``, how many are left; ``shadows``, in the place of its own.
    """
    base = made("classification")
    kind, _, whose = spoilt.partition(": ")
    candidates = [c for c in base.candidates if c.role != "retrained"]
    candidates[1:1] = [c for c in base.candidates if c.role == "retrained"][: changes.get("retrained", 4)]
    for i, candidate in enumerate(candidates):
        if whose in (candidate.name, "all"):
            model = spoiling(candidate.model, OUTPUTS[kind])
            siblings = tuple(spoiling(other, OUTPUTS[kind]) for other in candidate.siblings)
            candidates[i] = dataclasses.replace(candidate, model=model, siblings=siblings)
    task, session = base.evaluation.task, base.evaluation.session
    shadows = changes.get("shadows", base.evaluation.shadows)
    return Evaluation(candidates, split or base.split, task, session, shadows)


def cut(part: str, rows: Callable[[Data], Tensor]) -> Split:
    """The split with fewer examples of one part."""
    split = made("classification").split
    data = getattr(split, part)
    return dataclasses.replace(split, **{part: data.subset(data.ids[rows(data)])})


def with_subjects(count: int) -> Split:
    """The split with examples of so many people."""
    split = made("classification").split
    train, test = (
        ArrayData(
            {name: data.column(name) for name in ("inputs", "targets", "clean_targets", "manipulated")}
            | {"affected": data.column("affected"), "subjects": torch.arange(len(data)) % count}
        )
        for data in (split.train(), split.test)
    )
    return Split.from_ids(train, split.forget.ids, test=test, holdout=test)


def untreated() -> Shadows:
    return dataclasses.replace(made("classification").evaluation.shadows, treated={})


def untested() -> Split:
    return dataclasses.replace(made("classification").split, test=None, holdout=None)


def one(data: Data) -> Tensor:
    return torch.arange(1)


def one_class(data: Data) -> Tensor:
    return (data.column("targets") == 0).nonzero()[:, 0]


NAN = "NaN or infinite"
SHAPE = "the model returned outputs of shape"
SAME = "same (value|score|loss)"
FEW = (
    f"at least|needs? |no half to hold out|every test example|no test example|there is no way|{SAME}|"
    "do not relearn"
)

CASES: dict[str, tuple[Callable[[], Evaluation], str]] = {
    **{
        title: (functools.partial(evaluation, title), said)
        for title, said in {
            "nan: finetune": NAN,
            "nan: retrained 1": NAN,
            "nan: original": NAN,
            "some nan: finetune": NAN,
            "infinite: finetune": NAN,
            "more classes: finetune": SHAPE,
            "more classes: retrained 1": SHAPE,
            "fewer classes: finetune": SHAPE,
            "constant: finetune": "same (value|score)",
            "constant: all": "same (value|score)|divide by 0 steps|no power",
            "saturated: finetune": "same (value|score|loss)|probability 0|NaN or infinite",
            "saturated: all": "same (value|score|loss)|probability 0|relearn",
        }.items()
    },
    "no retrained model": (lambda: evaluation(retrained=0), "retrained"),
    "one retrained model": (lambda: evaluation(retrained=1), "retrained"),
    "no shadow models": (lambda: evaluation(shadows=None), "no shadow models"),
    "untreated shadow models": (lambda: evaluation(shadows=untreated()), "treated with 'finetune'"),
    "one forget example": (lambda: evaluation(split=cut("forget", one)), FEW),
    "one retain example": (lambda: evaluation(split=cut("retain", one)), FEW),
    "one test example": (lambda: evaluation(split=cut("test", one)), FEW),
    "one test class": (lambda: evaluation(split=cut("test", one_class)), FEW),
    "no test examples": (lambda: evaluation(split=untested()), "there is no ('?test'?|holdout) data"),
    "one subject": (lambda: evaluation(split=with_subjects(1)), FEW),
    "two subjects": (lambda: evaluation(split=with_subjects(2)), FEW),
}
"""What is wrong, and what the sentence then says where there is no number."""

LESS_USUAL = {
    "nan: original",
    "infinite: finetune",
    "fewer classes: finetune",
    "constant: all",
    "saturated: finetune",
    "one test class",
    "two subjects",
    "untreated shadow models",
}


def scores(found: Evaluation) -> dict[str, Score]:
    """Every variant of every metric by its id; whatever is not a score is in the list of complaints."""
    evidence, by_id = unmeasured(found), {}
    for name in metrics.names():
        for metric in variants(name):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    score = metric(evidence)
                sound(score)
            except Exception as error:
                error.add_note(f"measuring {metric}")
                raise
            by_id[score.id] = score
    return by_id


@functools.cache
def measured(spoilt: str) -> dict[str, Score]:
    """The scores of a case; of nothing spoilt at all for the empty name."""
    return scores(CASES[spoilt][0]() if spoilt else made("classification").evaluation)


def kind(reason: str | None) -> str:
    """A sentence without its numbers."""
    return re.sub(r"[\d.]+", "#", reason or "")


@pytest.mark.parametrize(
    "spoilt", [pytest.param(c, marks=[pytest.mark.slow] if c in LESS_USUAL else []) for c in CASES]
)
def test_spoilt_evidence_gives_sound_numbers_and_sentences(spoilt: str) -> None:
    said, found, healthy = CASES[spoilt][1], measured(spoilt), measured("")
    reasons = {id_: score.reason for id_, score in found.items() if score.reason is not None}
    new = {id_: r for id_, r in reasons.items() if id_ not in healthy or kind(r) != kind(healthy[id_].reason)}
    assert new, "nothing was spoilt"
    assert not {id_: reason for id_, reason in new.items() if not re.search(said, reason)}
    assert len(reasons) < len(found)  # the rest is computed


def refused(spoilt: str) -> set[str]:
    """Metrics of which no variant has a number."""
    numbers = {score.metric for score in measured(spoilt).values() if score.reason is None}
    return set(metrics.names()) - numbers


OTHERS = ("only a language model", "only a model that draws")


def elsewhere() -> set[str]:
    """Metrics that read tokens or drawings, which the models here have none of."""
    reasons = {score.metric: score.reason or "" for score in measured("").values()}
    return {name for name, reason in reasons.items() if reason.startswith(OTHERS)} & refused("")


REGRESSION = {"loss_svc", "mae", "wasserstein"}
SHADOWED = {"lira", "rmia", "ulira"}


def test_what_a_model_without_usable_outputs_still_has() -> None:
    """Its cost, and its representation where that is sound; nothing else."""
    assert set(metrics.names()) - refused("nan: finetune") == {"cka", "cost", "knn", "linear_probe"}
    assert set(metrics.names()) - refused("more classes: finetune") == {"cost"}


def test_without_shadow_models_their_attacks_alone_are_missing() -> None:
    assert refused("no shadow models") == SHADOWED | REGRESSION | elsewhere() | {"head_only"}


def test_without_a_retrained_model_what_needs_none_is_measured() -> None:
    needed = {"activation_distance", "anamnesis", "average_gap", "completeness", "forensic", "head_only"}
    needed |= {"jensen_shannon", "kl", "klom", "neurips2023", "signed_gap", "tow"}
    assert refused("no retrained model") == needed | REGRESSION | elsewhere()


def test_a_broken_retrained_model_leaves_what_does_not_need_it() -> None:
    """Relearning shows the curves of the other retrained models."""
    relearned = measured("nan: retrained 1")["relearn time.forget"]
    assert relearned.reason is None
    assert "retrained_curve" in relearned.details


TPR = [name for name in metrics.names() if "fpr" in {f.name for f in dataclasses.fields(metrics.get(name))}]


@pytest.mark.parametrize("name", [name for name in TPR if name != "text_membership"])
def test_a_rate_that_needs_more_non_members_says_how_many(name: str) -> None:
    metric = metrics.get(name)(read="tpr", fpr=0.001)
    evidence = unmeasured(made("classification").evaluation)
    score = metric(evidence)
    assert "needs at least 1000 non-members; there are" in score.reason
    assert metrics.get(name)(read="tpr", fpr=0.2)(evidence).reason is None


def test_the_attacks_with_rates_are_all_asked() -> None:
    assert set(TPR) == {"lira", "loss_threshold", "population", "rmia", "text_membership", "ulira"}
