"""Representations: CKA, probes and head-only forgetting, against closed forms and on digits."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from expunge import config
from expunge.data import ArrayData, Split
from expunge.data.builtin import Digits
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.evaluation.attacks.membership import SVC
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.metrics.cka import CKA, cka, hsic
from expunge.evaluation.metrics.head_only import HeadOnly, Way
from expunge.evaluation.metrics.probes import KNN, LinearProbe, deal
from expunge.evaluation.metrics.utility import Accuracy
from expunge.evaluation.subject import Subject
from expunge.evaluation.table import Table
from expunge.tasks import Classification, Regression
from expunge.training import features
from expunge.training.models import models
from expunge.training.optim import SGD
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize("unbiased", [True, False])
def test_cka_is_1_for_equal_rotated_and_scaled_representations(unbiased) -> None:
    x = normal(30, 6)
    rotation = np.linalg.qr(normal(6, 6, seed=1))[0]
    assert cka(x, x, unbiased) == pytest.approx(1)
    assert cka(x, 7 * x @ rotation + 3, unbiased) == pytest.approx(1)
    stretched = x * np.array([20, 1, 1, 1, 1, 1])
    assert cka(x, stretched, unbiased) < 0.7  # invariant to rotations, not to every linear map


def test_cka_by_hand() -> None:
    # off the diagonal x x' y y' adds up to −4, both kernels to −4, rows to −1:
    # HSIC(x, y) ∝ −4 + 16/6 − 4 = −16/3, HSIC(x, x) ∝ 12 + 16/6 − 4 = 32/3
    x, y = np.array([[-1.0], [-1], [1], [1]]), np.array([[-1.0], [1], [-1], [1]])
    assert cka(x, y) == pytest.approx(-0.5)
    assert cka(x, y, unbiased=False) == pytest.approx(0)
    assert hsic(x, y) == pytest.approx(-4 / 3)


@pytest.mark.parametrize("d", [3, 40])
def test_the_unbiased_hsic_is_the_formula_with_kernels(d) -> None:
    n = 12
    x, y = normal(n, d), normal(n, 5, seed=1) + normal(n, d)[:, :1]
    x, y = x - x.mean(0), y - y.mean(0)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0), np.fill_diagonal(m, 0)
    one = np.ones(n)
    whole = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    expected = (whole - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))
    assert hsic(x, y) == pytest.approx(expected)


def test_unrelated_wide_representations_are_unrelated_only_when_debiased() -> None:
    pairs = [(normal(40, 200, seed=2 * s), normal(40, 200, seed=2 * s + 1)) for s in range(10)]
    biased = np.mean([cka(x, y, unbiased=False) for x, y in pairs])
    corrected = np.array([cka(x, y) for x, y in pairs])
    assert biased > 0.7
    assert abs(corrected.mean()) < 3 * corrected.std(ddof=1) / 10**0.5 + 0.01


def test_a_constant_layer_has_no_cka() -> None:
    with pytest.raises(DataError, match="the same for all examples"):
        cka(np.ones((9, 2)), normal(9, 2))


def test_examples_that_are_all_equally_far_from_each_other_have_no_unbiased_cka() -> None:
    """Their unbiased HSIC is 0 but for rounding, and a ratio of roundings is no similarity."""
    with pytest.raises(DataError, match="all 5 examples are equally far from each other"):
        cka(np.eye(5), normal(5, 3))
    assert 0 < cka(np.eye(5), normal(5, 3), unbiased=False) < 1
    # an unbiased estimate of no similarity is below 0 half of the time, and never below -1
    found = [cka(normal(6, 4, seed=s), normal(6, 4, seed=100 + s)) for s in range(40)]
    assert -1 <= min(found) < -0.05
    assert max(found) <= 1


class Body(nn.Module):
    """Features ``x @ mix``, then a head."""

    def __init__(self, mix: torch.Tensor, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Linear(*mix.shape, bias=False)
        self.body.weight.data = mix.T.clone()
        self.head = nn.Linear(mix.shape[1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def evaluation(retained: list[nn.Module], subject: nn.Module, original: nn.Module, split: Split, task=None):
    candidates = [Candidate("original", "original", original)]
    candidates += [Candidate(f"r{i}", "retrained", m) for i, m in enumerate(retained)]
    candidates.append(Candidate("subject", "unlearned", subject))
    return Evaluation(candidates, split, task or Classification(3), Session(0))


def blobs(n: int = 60, subjects: torch.Tensor | None = None) -> Split:
    """Three well-separated classes; class 2 is forgotten."""
    y = torch.arange(n) % 3
    x = 4 * torch.eye(3)[y] + 0.3 * torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    columns = {"inputs": x, "targets": y}
    if subjects is not None:
        columns["subjects"] = subjects
    return Split.from_ids(ArrayData(columns), torch.arange(n)[y == 2])


def of(found: Evaluation, name: str = "subject"):
    return found.evidence(next(c for c in found.candidates if c.name == name))


def test_cka_against_retrained_and_original_reads_the_named_layers() -> None:
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    split, same, flat = blobs(), torch.eye(3), torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    found = evaluation([Body(turned), Body(same)], Body(same), Body(flat), split)
    score = CKA()(of(found))
    assert score.value == pytest.approx(1, abs=1e-5)  # turned, but not otherwise different
    assert score.details["layers"] == {"head": score.value}
    x = split.forget.column("inputs").double().numpy()
    expected = cka(x, x @ flat.double().numpy())
    score = CKA(against="original", modules=("body", "head"))(of(found))
    assert score.value == pytest.approx(expected, rel=1e-4)
    assert expected < 0.95
    assert score.details["layers"]["body"] == pytest.approx(1, abs=1e-5)
    assert score.interval[0] < score.value < score.interval[1]
    assert CKA(against="original")(of(found, "original")).value == pytest.approx(1, abs=1e-6)
    biased = CKA(against="original", definition="conformance")(of(found))
    assert biased.id == "CKA.forget.linear-original-conformance"
    assert biased.value == pytest.approx(cka(x, x @ flat.double().numpy(), unbiased=False), rel=1e-4)


def test_cka_says_what_it_lacks() -> None:
    eye = torch.eye(3)
    small = evaluation([Body(eye)], Body(eye), Body(eye), blobs(9))
    assert CKA()(of(small)).reason == "the unbiased CKA needs at least 4 forget examples; there are 3."
    alone = evaluation([], Body(eye), Body(eye), blobs())
    assert "no (other) retrained model" in CKA()(of(alone)).reason
    assert "no module 'haed'" in CKA(modules=("haed",))(of(small)).reason
    assert "no test data" in CKA(part="test")(of(small)).reason
    with pytest.raises(ConfigError, match="at least 4"):
        CKA(limit=3)


def test_probes_find_separated_classes_and_nothing_where_the_features_are_gone() -> None:
    eye, gone = torch.eye(3), torch.zeros(3, 3)
    found = evaluation([Body(eye)], Body(gone), Body(eye), blobs())
    for probe in (LinearProbe(), LinearProbe(shots=0), KNN()):
        whole, lost = probe(of(found, "original")), probe(of(found))
        assert whole.value == 1
        assert whole.interval[1] == 1
        assert whole.interval[0] == pytest.approx(0.832, abs=1e-3)
        assert lost.value in (0, 1)  # one answer for everything, so all right or all wrong in each draw
        assert lost.details["layers"].keys() == {"head"}
    assert LinearProbe()(of(found)).value < 0.5


def test_ridge_has_the_same_answer_in_rows_and_in_columns() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=20)
    known, asked = rng.normal(size=(20, 15)) + labels[:, None], rng.normal(size=(50, 15))
    wide = np.concatenate([known, np.zeros((20, 30))], 1), np.concatenate([asked, np.zeros((50, 30))], 1)
    assert (
        LinearProbe().predict(known, labels, asked) == LinearProbe().predict(wide[0], labels, wide[1])
    ).all()


def test_one_shot_labels_one_example_of_each_class_and_every_forget_example_is_asked_equally_often() -> None:
    labels, subjects = np.array([2] * 10 + [0, 1] * 20), np.arange(50)
    asked = np.zeros(10)
    for draw in LinearProbe(repeats=3).draws(labels, subjects, 10):
        assert sorted(labels[draw.fit]) == [0, 1, 2]
        assert not set(draw.fit) & set(draw.held)
        asked[draw.held] += 1
    assert (asked == 3).all()


def test_no_subject_is_both_learned_from_and_asked() -> None:
    # forget rows 0..11 of six subjects, retain rows 12..23 of the same six
    subjects = np.concatenate([np.arange(12) % 6, np.arange(12) % 6])
    for known, held in deal(subjects, 12, folds=2, seed=0):
        assert len(held) == 6
        assert not set(subjects[known]) & set(subjects[held])


def test_a_probe_that_can_only_recognise_people_learns_nothing_across_them() -> None:
    # each subject has a random code and a random class: only a leak between halves could be recognised
    rng = torch.Generator().manual_seed(0)
    people = torch.arange(24).repeat_interleave(10)
    codes, classes = torch.randn(24, 40, generator=rng), torch.randint(2, (24,), generator=rng)
    columns = {"inputs": codes[people], "targets": classes[people]}
    split = Split.from_ids(ArrayData({**columns, "subjects": people}), range(200))
    leaky = Split.from_ids(ArrayData(columns), range(200))
    eye = torch.eye(40)
    values = [
        LinearProbe(shots=0, repeats=5)(
            of(evaluation([Body(eye)], Body(eye), Body(eye), s, Classification(3)))
        )
        for s in (split, leaky)
    ]
    assert values[0].value < 0.7
    assert values[1].value == 1
    # the interval is that of 20 subjects and not of 200 examples
    assert values[0].interval[1] - values[0].interval[0] > 0.35


def test_probes_say_what_they_lack() -> None:
    x = torch.randn(20, 3)
    data = ArrayData({"inputs": x, "targets": x[:, 0]})
    found = evaluation(
        [], Body(torch.eye(3), 1), Body(torch.eye(3), 1), Split.from_ids(data, range(5)), Regression()
    )
    assert "no classes to forget" in LinearProbe()(of(found)).reason
    assert "no classes to forget" in KNN()(of(found)).reason
    one = evaluation([], Body(torch.eye(3)), Body(torch.eye(3)), blobs(3))
    assert "at least 2 forget examples" in LinearProbe()(of(one)).reason
    for bad in ({"shots": -1}, {"repeats": 0}, {"limit": 2}):
        with pytest.raises(ConfigError, match="must"):
            LinearProbe(**bad)


def test_the_way_to_retraining_by_hand() -> None:
    way = Way(np.array([1.0, 0, 0, 0]), np.array([1.0, 1, 1, 1]), np.array([0.0, 0, 0.5, 0.5]))
    assert way.done == pytest.approx(0.75 / 0.75)
    half = Way(np.array([1.0, 1, 0, 0]), np.ones(4), np.zeros(4))
    assert half.done == 0.5
    assert half.draws().mean() == pytest.approx(0.5, abs=0.05)


def test_head_only_is_not_computed_where_retraining_changes_nothing() -> None:
    eye = torch.eye(3)
    score = HeadOnly()(of(evaluation([Body(eye)], Body(eye), Body(eye), blobs())))
    assert "no way between them" in score.reason


def test_layers_are_one_forward_pass_kept_for_all_metrics() -> None:
    found = evaluation([], Body(torch.eye(3)), Body(torch.eye(3)), blobs())
    subject, calls = of(found).subject, []
    subject.model.register_forward_hook(lambda *_: calls.append(1))
    first = subject.layers("forget", ("body", "head"), 10)
    assert {name: tuple(v.shape) for name, v in first.items()} == {"body": (10, 3), "head": (10, 3)}
    assert subject.layers("forget", ("body", "head"), 10) is first
    assert len(calls) == 1
    subject.model.spare = nn.Linear(2, 2)
    with pytest.raises(Unsupported, match="never calls 'spare'"):
        subject.layers("forget", ("spare",), 10)


def test_layers_of_every_kind_of_task_have_one_row_an_example(setting) -> None:
    subject = Subject("original", setting.original, setting.split.parts(), setting.task, setting.session)
    names = features.depths(setting.original)
    found = subject.layers("retain", names)
    assert tuple(found) == names
    assert all(v.shape[0] == len(setting.split.retain) and v.ndim == 2 for v in found.values())
    if setting.name == "classification":
        whole = subject.features("retain")
        assert torch.allclose(found[names[-1]], whole)


@pytest.mark.parametrize("kind", ["hf_resnet", "hf_vit"])
def test_layers_of_hugging_face_models(kind) -> None:
    pytest.importorskip("transformers")
    size = (
        {"width": 8, "layers": 2, "heads": 2, "image_size": 8}
        if kind == "hf_vit"
        else {"widths": (4, 6, 8), "stem": 4}
    )
    model = config.build(models, {"kind": kind, "classes": 3, **size})()
    data = ArrayData({"inputs": torch.rand(12, 3, 8, 8), "targets": torch.arange(12) % 3})
    found = evaluation([copy.deepcopy(model)], model, model, Split.from_ids(data, range(6)))
    score = CKA()(of(found))
    assert score.value == pytest.approx(1, abs=1e-4)
    assert len(score.details["layers"]) == 4


@pytest.fixture(scope="module")
def digits() -> Table:
    """Forgetting the eights: original, five retrained models, and one whose last layer was edited."""
    data, task = Digits().load(), Classification(10)
    spec = {"kind": "small_cnn", "in_channels": 1, "classes": 10, "width": 8}
    training = Training(epochs=8, batch_size=64, optim=SGD(lr=0.05))
    recipe = Recipe(config.build(models, spec), task, training)
    split = Split.from_ids(data.train, data.train.ids[data.train.column("targets") == 8], test=data.test)
    original = recipe.train(data.train, Session(20))
    edited = copy.deepcopy(original)
    with torch.no_grad():
        edited.head.bias[8] -= 100.0
    candidates = [Candidate("original", "original", original)]
    candidates += [
        Candidate(f"r{i}", "retrained", recipe.train(split.retain, Session(30 + i))) for i in range(5)
    ]
    candidates.append(Candidate("head edit", "unlearned", edited))
    measured = [Accuracy(part="forget"), Accuracy(part="retain"), SVC()]
    measured += [CKA(against="original"), LinearProbe(), KNN(), HeadOnly()]
    rows = Evaluation(candidates, split, task, Session(0)).rows(measured)
    return Table("eights", "class 8", len(split.forget), len(data.train), tuple(rows))


def test_a_model_that_only_edits_its_last_layer_is_exposed_by_its_depth(digits: Table) -> None:
    row = digits.rows[-1]
    verdicts, anchors = digits.verdicts(row), digits.anchors
    for outputs in ("accuracy.forget", "membership.forget.svc-confidence"):
        assert row.scores[outputs].value == pytest.approx(anchors[outputs].retrained, abs=0.01)
        assert verdicts[outputs].kind != "different"
    assert verdicts["CKA.forget.linear-original"].kind == "different"
    for depth in (
        "CKA.forget.linear-original",
        "linear probe.forget.1-shot",
        "head-only forgetting.forget.1-shot",
    ):
        assert abs(digits.noise_units(row, depth)) > 3, depth
    for depth in ("linear probe.forget.1-shot", "nearest neighbours.forget.5-cosine"):
        assert row.scores[depth].value == pytest.approx(anchors[depth].original)
        assert row.scores[depth].interval[0] > anchors[depth].retrained
    named = row.scores["head-only forgetting.forget.1-shot"]
    assert named.value == pytest.approx(1, abs=0.05)
    assert "the outputs moved 100% of the way to retraining, the features 0%" in named.details["note"]
    honest = [r.scores[named.id].value for r in digits.by_role("retrained")]
    assert max(abs(value) for value in honest) < 0.5
    assert named.interval[0] > 0.5
