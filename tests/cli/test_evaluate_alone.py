"""``expunge evaluate`` and ``audit`` on models that were not made here, and on odd ones among them."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.cli.main import main
from expunge.data.builtin import Digits
from expunge.errors import CheckpointError, ConfigError, DataError
from expunge.evaluation.attacks.membership import SVC
from expunge.evaluation.attacks.separation import Separation
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metrics.distance import JensenShannon
from expunge.evaluation.metrics.utility import Accuracy, Loss
from expunge.evaluation.report import Report
from expunge.foreign import METRICS, audit, read_data, read_network, read_task
from expunge.tasks import CausalLM, Classification
from expunge.training.checkpoint import save_weights
from expunge.training.networks import MLP

QUICK = (Accuracy(part="forget"), Accuracy(part="test"), SVC(), JensenShannon())

CODE = """
import torch
from torch import nn
from expunge.data.builtin import Digits

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def trained():
    torch.manual_seed(7)
    return build()

def data():
    found = Digits().load()
    return found.train, found.test

def wrong():
    raise ValueError("no such run")
"""


def linear(seed: int, outputs: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))


class Broken(nn.Module):
    """Sound weights, but NaN for every input whose first pixels are bright."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.flatten(1)[:, 20:21] > 0.9, torch.nan, self.inner(x))


class Constant(nn.Module):
    """Every class is as likely as any other, whatever the input."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        return self.answer.expand(len(x), 10)


@dataclass(frozen=True, kw_only=True)
class Confidence(Separation):
    """The plainest attack of its kind: the confidence itself."""

    attack = "confidence"

    def scores(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        read = evidence.subject.read
        return read(self.part).confidence, read(self.against).confidence


@pytest.fixture(scope="module")
def split() -> expunge.Split:
    digits = Digits().load()
    return expunge.Split.from_ids(digits.train, range(0, 300, 3), test=digits.test)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the page, whose charts take longer than everything else."""
    monkeypatch.setattr(Report, "to_html", lambda self, path: path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("before", "after", "honest1", "honest2", "honest3")):
        torch.manual_seed(i)
        save_weights(MLP(64, (8,), 10), f"{name}.safetensors")
    Path("ids.txt").write_text("\n".join(map(str, range(0, 300, 3))))
    Path("mine.py").write_text(CODE)
    return tmp_path


def rows(report: Report) -> dict[str, dict[str, tuple[float, str | None]]]:
    (table,) = report.tables
    return {
        row.name: {id_: (score.value, score.reason) for id_, score in row.scores.items()}
        for row in table.rows
    }


def reasons(report: Report, name: str) -> dict[str, str]:
    return {id_: reason for id_, (_, reason) in rows(report)[name].items() if reason}


# ---- the command ----

ALONE = "evaluate --data digits --forget ids.txt --metrics accuracy,svc,jensen_shannon --directory out "
SMALL = "--model '{kind: mlp, hidden: [8]}' "


def command(text: str) -> int:
    return main(shlex.split(text))


def test_weights_with_retrained_ones(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    honest = " ".join(f"--retrained honest{i}.safetensors" for i in (1, 2, 3))
    line = ALONE + SMALL + f"--original before.safetensors --unlearned after.safetensors {honest}"
    assert command(line) == 0
    said = capsys.readouterr()
    assert "10 classes counted in the training labels" in said.out
    assert "No retrained model" not in said.out
    assert {path.name for path in Path("out").iterdir()} >= {"result.json", "report.html", "table.csv"}
    report = Report.read(Path("out/result.json"))
    assert list(rows(report)) == ["original", "retrained 1", "retrained 2", "retrained 3", "after"]
    (table,) = report.tables
    assert table.size == 100
    assert table.verdicts(table.rows[-1])  # three retrained models allow verdicts
    # the same as the Python call with the same models
    loaded = {name: MLP(64, (8,), 10) for name in ("before", "after")}
    for name, model in loaded.items():
        expunge.training.checkpoint.load_weights(model, f"{name}.safetensors")
    digits = Digits().load()
    split = expunge.Split.from_ids(digits.train, range(0, 300, 3), test=digits.test)
    other = audit(loaded["before"], {"after": loaded["after"]}, split=split, metrics=["accuracy", "svc"])
    for id_, (value, _) in rows(other)["after"].items():
        assert rows(report)["after"][id_][0] == value


@pytest.mark.usefixtures("quick")
def test_without_retrained_models_there_are_values_and_no_verdicts(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ALONE + SMALL + "--original before.safetensors --unlearned after.safetensors"
    assert command(line) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "No retrained model was given" in last
    assert "--retrained" in last
    assert "--train" in last
    report = Report.read(Path("out/result.json"))
    assert list(reasons(report, "after")) == ["divergence.forget.jensen-shannon"]
    assert all("no (other) retrained model" in reason for reason in reasons(report, "after").values())
    (table,) = report.tables
    assert not table.verdicts(table.rows[-1])


@pytest.mark.usefixtures("quick")
def test_functions_and_training_here(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "evaluate --data mine.py:data --task classification --forget ids.txt "
        "--metrics 'accuracy, {kind: accuracy, part: test}' --directory out --original mine:trained "
        "--unlearned mine.py:trained --unlearned mine.py:trained "
        "--model mine.py:build --train '{epochs: 1}' --trainings 2 --engine.dtype bfloat16 --seed 3"
    )
    assert command(line) == 0
    report = Report.read(Path("out/result.json"))
    assert list(rows(report)) == ["original", "retrained 1", "retrained 2", "trained", "trained 2"]
    assert report.provenance["seed"] == 3
    # one epoch of training, in bfloat16, beats an untrained network
    accuracy = {name: scores["accuracy.test"][0] for name, scores in rows(report).items()}
    assert accuracy["retrained 1"] > accuracy["trained"] + 0.2


@pytest.mark.usefixtures("quick")
def test_reference_models_controls_and_margins(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "evaluate --data mine.py:data --task classification --forget ids.txt --directory out "
        "--metrics '{kind: accuracy, part: test}, lira' --original mine:trained --unlearned mine:trained "
        "--model mine.py:build --train '{epochs: 1}' --trainings 2 --controls constant "
    )
    assert command(line + "--shadows 4 --margins '{accuracy.test: 0.05, lira: 0.2}'") == 0
    report = Report.read(Path("out/result.json"))
    (table,) = report.tables
    assert list(rows(report)) == ["original", "retrained 1", "retrained 2", "trained", "constant"]
    assert rows(report)["trained"]["membership.forget.lira-auc"][1] is None
    assert table.margin("accuracy.test") == 0.05
    assert table.margin("membership.forget.lira-auc") == 0.2
    assert len(list(Path("out/store").glob("shadows-*"))) == 1
    capsys.readouterr()
    assert command(line + "--margins '{lyra: 0.2}'") == 2
    assert "called 'lyra'. Did you mean 'lira'?" in capsys.readouterr().err
    assert command(line.replace("--train '{epochs: 1}' --trainings 2", "") + "--shadows 4") == 2
    assert "shadows: needs --train" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_an_experiment_file_still_decides_everything(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = {
        "name": "mine",
        "data": "digits",
        "model": {"kind": "mlp", "inputs": 64, "outputs": 10, "hidden": [8]},
        "task": {"kind": "classification", "classes": 10},
        "train": {"epochs": 1},
        "forget": {"random": {"kind": "random_set", "size": 10}},
        "methods": {"finetune": {"epochs": 1}},
        "metrics": ["accuracy", "lira"],
        "retrained": 2,
        "shadows": {"count": 4},
        "controls": ["constant"],
    }
    Path("mine.yaml").write_text(json.dumps(experiment))
    line = "evaluate mine.yaml --original before.safetensors --unlearned mine:trained --forget ids.txt "
    assert command(line + "--directory out") == 0
    report = Report.read(Path("out/result.json"))
    assert report.name == "mine"
    assert list(rows(report)) == ["original", "retrained 1", "retrained 2", "trained", "constant"]
    assert rows(report)["trained"]["membership.forget.lira-auc"][1] is None
    assert command(line + "--directory out --retrained honest1.safetensors --metrics loss") == 0
    report = Report.read(Path("out/result.json"))
    assert {row: list(scores) for row, scores in rows(report).items()} == {
        "original": ["loss.forget"],
        "retrained 1": ["loss.forget"],
        "trained": ["loss.forget"],
        "constant": ["loss.forget"],
    }
    capsys.readouterr()
    assert command(line + "--seed 4") == 2
    assert "seed: the experiment file decides it" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_hugging_face_checkpoints(
    place: Path, split: expunge.Split, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        ResNetConfig,
        ResNetForImageClassification,
        ResNetModel,
    )

    sizes = {
        "num_channels": 1,
        "embedding_size": 4,
        "hidden_sizes": [4],
        "depths": [1],
        "layer_type": "basic",
    }
    torch.manual_seed(0)
    made = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=10)).eval()
    made.to(torch.bfloat16).save_pretrained("resnet")
    ResNetModel(ResNetConfig(**sizes)).save_pretrained("headless")
    ResNetForImageClassification(ResNetConfig(**{**sizes, "num_channels": 3}, num_labels=10)).save_pretrained(
        "colour"
    )
    GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=8)).save_pretrained(
        "gpt"
    )
    for name in ("hollow", "cut"):
        Path(name).mkdir()
        (Path(name) / "config.json").write_bytes(Path("resnet/config.json").read_bytes())
    whole = Path("resnet/model.safetensors").read_bytes()
    (Path("cut") / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    capfd.readouterr()

    line = "evaluate --data digits --forget ids.txt --metrics accuracy --directory out --original "
    assert command(line + "mine:trained --unlearned resnet") == 0
    assert capfd.readouterr().err == ""  # no progress bar or warning of transformers
    report = Report.read(Path("out/result.json"))
    batch = next(iter(split.forget.batches([torch.arange(100)], device="cpu")))
    with torch.no_grad():  # weights saved as bfloat16 are computed with in float32
        answers = made.float()(batch["inputs"]).logits.argmax(-1)
    expected = float((answers == batch["targets"]).float().mean())
    assert rows(report)["resnet"]["accuracy.forget"][0] == pytest.approx(expected)

    for folder, message in {
        "hollow": "'hollow' has a config.json but no weights",
        "cut": "'cut' cannot be loaded by AutoModelForImageClassification",
        "headless": "'headless' has no weights for 'classifier.1.bias', 'classifier.1.weight'",
        "gpt": "'gpt' cannot be loaded by AutoModelForImageClassification",
        "colour": "'colour' cannot take this data (a batch of inputs (4, 1, 8, 8), targets (4,))",
    }.items():
        assert command(line + f"mine:trained --unlearned {folder}") == 2
        (only,) = capfd.readouterr().err.splitlines()
        assert only.startswith(f"error: unlearned: {message}"), only

    tokens = torch.randint(11, (12, 6), generator=torch.Generator().manual_seed(0))
    text = {"input_ids": tokens, "labels": tokens}
    report = audit(
        "gpt", "gpt", data=(text, text), forget=[0, 1], task=CausalLM(11), metrics=[Loss(part="forget")]
    )
    assert rows(report)["gpt"]["loss.forget"][0] == rows(report)["original"]["loss.forget"][0] > 0


# ---- what is out of the ordinary: a reason in the table, the rest computed ----


def test_other_architectures_and_other_shapes(split: expunge.Split) -> None:
    torch.manual_seed(0)
    report = audit(
        linear(0),
        {"same": linear(1), "wider": linear(2, outputs=12)},
        retrained=[MLP(64, (8,), 10), linear(4)],
        split=split,
        metrics=QUICK,
    )
    assert not reasons(report, "same")
    found = reasons(report, "wider")
    assert set(found) == set(rows(report)["wider"])
    assert all("outputs of shape" in reason and "10 classes" in reason for reason in found.values())


def test_a_retrained_model_of_another_shape_leaves_what_needs_no_retraining(split: expunge.Split) -> None:
    report = audit(
        linear(0), {"a": linear(1)}, retrained=[linear(3), linear(2, outputs=12)], split=split, metrics=QUICK
    )
    assert list(reasons(report, "a")) == ["divergence.forget.jensen-shannon"]
    assert set(reasons(report, "retrained 2")) == set(rows(report)["a"])
    assert not math.isnan(rows(report)["a"]["accuracy.forget"][0])


def test_nan_outputs_of_one_model(split: expunge.Split) -> None:
    report = audit(linear(0), {"a": linear(1), "broken": Broken()}, split=split, metrics=QUICK[:3])
    found = reasons(report, "broken")
    assert set(found) == set(rows(report)["broken"])
    assert all("NaN or infinite" in reason for reason in found.values())
    assert not reasons(report, "a")
    assert not reasons(report, "original")


def test_constant_outputs_have_no_auc(split: expunge.Split) -> None:
    metrics = [Accuracy(part="forget"), Confidence()]
    report = audit(linear(0), {"a": linear(1), "even": Constant()}, split=split, metrics=metrics)
    (reason,) = reasons(report, "even").values()
    assert "every example the same score" in reason
    assert not reasons(report, "a")
    zeros = float((split.forget.column("targets") == 0).float().mean())
    assert rows(report)["even"]["accuracy.forget"][0] == pytest.approx(zeros)


def test_too_few_non_members_for_the_rate_says_how_many(split: expunge.Split) -> None:
    metrics = [Confidence(read="tpr", fpr=0.001), Confidence(read="tpr", fpr=0.01)]
    report = audit(linear(0), {"a": linear(1)}, split=split, metrics=metrics)
    (id_, reason), *others = reasons(report, "a").items()
    assert "tpr@0.001" in id_
    assert not others
    assert "at least 1000 non-members" in reason
    assert f"are {len(split.test)}" in reason


def test_a_forget_set_of_one(split: expunge.Split) -> None:
    digits = Digits().load()
    one = expunge.Split.from_ids(digits.train, [7], test=digits.test)
    report = audit(
        linear(0), {"a": linear(1)}, retrained=[linear(i) for i in (2, 3, 4)], split=one, metrics=METRICS
    )
    for name, scores in rows(report).items():
        for id_, (value, reason) in scores.items():
            assert math.isnan(value) == (reason is not None), (name, id_, reason)
    value, reason = rows(report)["a"]["accuracy.forget"]
    assert reason is None
    assert value in (0.0, 1.0)


# ---- the parts of the call ----


def test_models_given_are_left_as_they_are(split: expunge.Split) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    audit(model, model, split=split, metrics=["accuracy"])
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_names_of_rows_are_distinct(split: expunge.Split) -> None:
    report = audit(linear(0), [linear(1), linear(2)], split=split, metrics=["accuracy"])
    assert list(rows(report)) == ["original", "unlearned", "unlearned 2"]
    with pytest.raises(ConfigError, match="unlearned: 'retrained 9' cannot be used as a name"):
        audit(linear(0), {"retrained 9": linear(1)}, split=split)
    with pytest.raises(ConfigError, match="unlearned: there is no model to judge"):
        audit(linear(0), [], split=split)


def test_what_the_data_decides_need_not_be_written(split: expunge.Split) -> None:
    task = Classification(10)
    for kind in ("mlp", "small_cnn", "resnet20"):
        network = read_network(kind, task, split.forget)
        with torch.no_grad():
            assert network().eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ConfigError, match="model: unknown key 'widht'"):
        read_network({"kind": "small_cnn", "widht": 3}, task, split.forget)


def test_the_classes_are_counted_in_forget_and_retain_together() -> None:
    labels = torch.tensor([0, 1, 2, 1, 0, 2])
    data = expunge.Split.from_ids((torch.zeros(6, 2), labels), [2, 5])  # all of class 2 is forgotten
    assert read_task(None, data.forget, data.retain) == Classification(3)
    assert read_task("classification", data.retain) == Classification(2)
    assert read_task({"kind": "classification", "classes": 7}, data.retain) == Classification(7)
    numbers = expunge.Split.from_ids((torch.zeros(6, 2), torch.zeros(6)), [2])
    with pytest.raises(ConfigError, match="task: the targets are not class labels"):
        read_task(None, numbers.retain)


def test_data_from_everywhere(place: Path) -> None:
    x = np.zeros((6, 4, 4), dtype=np.uint8)
    np.savez("own.npz", x=x, y=np.arange(6) % 2, x_test=x[:2], y_test=np.arange(2))
    assert len(read_data("own.npz").train) == 6
    assert len(read_data({"kind": "blobs", "size": 30}).train) == 30
    assert len(read_data("mine.py:data").test) == len(read_data("digits").test)
    assert len(read_data(((x, np.arange(6)), (x, np.arange(6)))).test) == 6
    with pytest.raises(DataError, match="data is int"):
        read_data(3)


def test_a_model_that_is_counted_wrong_says_what_to_do(split: expunge.Split) -> None:
    with pytest.raises(DataError, match=r"original: .* 10 classes .* state them with task"):
        audit(linear(0, outputs=12), linear(1, outputs=12), split=split)


def test_nan_weights_of_a_module_are_refused(split: expunge.Split) -> None:
    model = linear(0)
    model[1].weight.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="retrained: the model: '1.weight' holds 1 NaN"):
        audit(linear(0), linear(1), retrained=model, split=split)
