import datetime
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from expunge import config
from expunge.errors import ConfigError
from expunge.methods import methods
from expunge.methods.gradient.salun import SalUn
from expunge.methods.modifiers.saliency_mask import SaliencyMask
from expunge.training.engine import Engine
from expunge.training.optim import SGD, AdamW, Optim, optimisers
from expunge.training.recipe import Training


@dataclass(frozen=True)
class Plan:
    """Every kind of field."""

    name: str
    rate: float = 0.1
    count: int = 1
    fast: bool = False
    kind_of: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = ()
    where: Path | None = None
    optim: Optim = SGD()
    second: Optim | None = None
    training: Training = Training()
    several: dict[str, Optim] = field(default_factory=dict)
    free: dict[str, object] = field(default_factory=dict)


def parse(**fields):
    return config.parse(Plan, {"name": "x", **fields})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"conut": 1}, r"^unknown key 'conut'. Did you mean 'count'\?$"),
        ({"training": {"epoch": 3}}, r"^training: unknown key 'epoch'. Did you mean 'epochs'\?$"),
        ({"optim": {"kind": "sgd", "momentun": 0}}, r"^optim: unknown key 'momentun'. Did you mean 'm.*'\?$"),
        ({"training": {"optim": "sdg"}}, r"^training.optim: Unknown optimiser 'sdg'. Did you mean 'sgd'\?$"),
        ({"optim": 3}, r"^optim: expected a name or a mapping for the optimiser, got 3\.$"),
        ({"training": 3}, r"^training: expected a mapping, got 3\.$"),
        ({"count": "three"}, r"^count: input should be a valid integer, got 'three'\.$"),
        ({"count": 1.5}, r"^count: .*integer.*, got 1\.5\.$"),
        ({"count": True}, r"^count: .*integer.*, got True\.$"),
        ({"rate": "fast"}, r"^rate: .*number, got 'fast'\.$"),
        ({"rate": float("nan")}, r"^rate: expected a finite number, got nan\.$"),
        ({"rate": None}, r"^rate: .*number, got None\.$"),
        ({"fast": "yes"}, r"^fast: .*boolean, got 'yes'\.$"),
        ({"fast": 1}, r"^fast: .*boolean, got 1\.$"),
        ({"kind_of": "c"}, r"^kind_of: .*'a' or 'b', got 'c'\.$"),
        ({"sizes": [1, "two"]}, r"^sizes\[1\]: .*integer, got .*\.$"),
        ({"name": 5}, r"^name: .*string, got 5\.$"),
        ({"several": [1]}, r"^several: expected a mapping, got \[1\]\.$"),
        ({"several": {"a": {"kind": "sgd", "lr": "x"}}}, r"^several\.a\.lr: .*number, got 'x'\.$"),
        ({"optim": {"kind": "sgd", "lr": -1}}, r"^optim\.lr: must be above 0, got -1"),
        ({"training": {"optim": {"kind": "sgd", "warmup": 1.0}}}, r"^training\.optim\.warmup: is a fraction"),
        ({"name": datetime.date(2020, 1, 1)}, r"^name: datetime\.date\(2020, 1, 1\) is not a value of type"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_path(fields, said):
    with pytest.raises(ConfigError, match=said):
        parse(**fields)


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match=r"^'name' is missing\.$"):
        config.parse(Plan, {})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"modifiers": [{"kind": "saliency_mask", "keep": 2}]}, r"^run\.modifiers\[0\]\.keep: is a fraction"),
        ({"modifiers": ["saliency_mask", "x"]}, r"^run\.modifiers\[1\]: Unknown modifier 'x'"),
        ({"modifiers": "saliency_mask"}, r"^run\.modifiers: expected a list, got 'saliency_mask'"),
        ({"scope": {"kind": "modules"}}, r"^run\.scope: 'patterns' is missing"),
        ({"mode": "test"}, r"^run\.mode: .*'train' or 'eval'"),
    ],
)
def test_the_path_leads_through_lists_and_kinds(fields, said):
    with pytest.raises(ConfigError, match=said):
        config.build(methods, {"kind": "salun", **fields}, "run")


def test_values_of_every_kind_arrive_as_their_type():
    plan = parse(
        rate=1, count=2, sizes=[1, 2], where="a/b", optim="adamw", second={"kind": "sgd", "lr": 1},
        several={"x": "sgd"}, training={"epochs": 3}, free={"a": [1, "b"]},
    )  # fmt: skip
    assert plan.rate == 1.0
    assert plan.sizes == (1, 2)
    assert plan.where == Path("a/b")
    assert plan.optim == AdamW()
    assert plan.second == SGD(lr=1.0)
    assert plan.several == {"x": SGD()}
    assert plan.training == Training(epochs=3)
    assert parse(second=None).second is None


def test_objects_are_taken_as_they_are():
    optim = SGD(lr=0.3)
    assert parse(optim=optim).optim is optim
    assert config.build(optimisers, optim) is optim


def test_an_object_of_another_registry_is_refused():
    with pytest.raises(
        ConfigError, match=r"^optim: expected a name or a mapping for the optimiser, got SalUn"
    ):
        parse(optim=SalUn())


@pytest.mark.parametrize(
    "value",
    [
        Plan("x"),
        Plan("x", rate=1e-5, sizes=(3, 4), where=Path("a/b"), optim=AdamW(lr=0.5), second=SGD(), fast=True),
        Plan("x", several={"a": SGD(nesterov=True), "b": AdamW(betas=(0.5, 0.6))}, free={"k": [1, None]}),
        SalUn(modifiers=(SaliencyMask(keep=0.3), SaliencyMask())),
        Engine(device="cpu", accumulate=3),
    ],
)
def test_what_is_dumped_is_json_and_parses_to_an_equal_object(value):
    dumped = json.loads(json.dumps(config.dump(value)))
    if isinstance(value, SalUn):
        assert config.build(methods, dumped) == value
    else:
        assert config.parse(type(value), dumped) == value


def test_yaml_written_is_yaml_read_in_the_order_of_the_fields(tmp_path):
    path = tmp_path / "plan.yaml"
    plan = Plan("é", rate=1e-7, optim=AdamW(lr=1e-5))
    config.write_yaml(plan, path)
    read = config.read_yaml(path)
    assert config.parse(Plan, read) == plan
    assert list(read)[:3] == ["name", "rate", "count"]


def test_an_object_that_cannot_be_written_is_refused():
    with pytest.raises(ConfigError, match="object cannot be written to a configuration file"):
        config.dump({"a": object()})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        ("5e4", 5e4),
        ("-2e+1", -20.0),
        (".5e1", 5.0),
        ("1.e2", 100.0),
        ("1.5e-3", 1.5e-3),
    ],
)
def test_numbers_with_an_exponent_are_numbers(tmp_path, text, value):
    path = tmp_path / "a.yaml"
    path.write_text(f"rate: {text}\n", encoding="utf-8")
    assert config.read_yaml(path) == {"rate": value}
    assert config.override({}, [f"rate={text}"]) == {"rate": value}


@pytest.mark.parametrize("text", ["e5", "1e", "1e5x", "'1e5'", "v1e5"])
def test_what_only_looks_like_one_stays_text(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(f"name: {text}\n", encoding="utf-8")
    assert config.read_yaml(path) == {"name": text.strip("'")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2", "line 2 is not valid YAML"),
        ("- 1\n- 2\n", r"holds \[1, 2\]; expected a mapping"),
        ("", "holds None; expected a mapping"),
        ("a: !!python/object:os.system x\n", "line 1 is not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, said):
    path = tmp_path / "a.yaml"
    path.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"a\.yaml'.*{said}"):
        config.read_yaml(path)


def test_a_missing_file_or_one_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read '.*none\.yaml': No such file"):
        config.read_yaml(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match=r"bytes\.yaml': not a text file"):
        config.read_yaml(tmp_path / "bytes.yaml")


GIVEN = {
    "method": "salun",
    "seeds": [0, 1],
    "optim": {"kind": "sgd"},
    "modifiers": ["saliency_mask"],
    "task": None,
}


@pytest.mark.parametrize(
    ("assignment", "key", "expected"),
    [
        ("seed=3", "seed", 3),
        ("optim.lr=1e-3", "optim", {"kind": "sgd", "lr": 1e-3}),
        ("method.epochs=2", "method", {"kind": "salun", "epochs": 2}),
        ("method=npo", "method", "npo"),
        ("seeds.1=7", "seeds", [0, 7]),
        ("seeds=[4, 5]", "seeds", [4, 5]),
        ("modifiers.0.keep=0.3", "modifiers", [{"kind": "saliency_mask", "keep": 0.3}]),
        ("task.kind=regression", "task", {"kind": "regression"}),
        ("a.b.c=x", "a", {"b": {"c": "x"}}),
        ("a=", "a", None),
        ("a=x=y", "a", "x=y"),
    ],
)
def test_an_override_sets_one_value(assignment, key, expected):
    result = config.override(GIVEN, [assignment])
    assert result[key] == expected
    assert {k: v for k, v in result.items() if k != key} == {k: v for k, v in GIVEN.items() if k != key}


def test_overrides_follow_one_another_and_leave_what_was_given_alone():
    before = json.dumps(GIVEN)
    result = config.override(GIVEN, ["method.epochs=2", "method.optim.kind=adamw", "method.epochs=5"])
    assert result["method"] == {"kind": "salun", "epochs": 5, "optim": {"kind": "adamw"}}
    assert json.dumps(GIVEN) == before


def test_values_that_json_does_not_know_survive_an_override_elsewhere():
    given = {"day": datetime.date(2020, 1, 1), 3: "x"}
    assert config.override(given, ["a=1"]) == {**given, "a": 1}


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("seed", "'seed' is not an override. Write key=value"),
        ("=3", "'=3' is not an override"),
        ("seeds.2=1", "there is no '2' to set"),
        ("seeds.x=1", "there is no 'x' to set"),
        ("seeds.-1=1", "there is no '-1' to set"),
        ("seeds.0.a=1", "there is no 'a' to set"),
        ("a=[1", "the value of 'a=\\[1' is not valid YAML"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(assignment, said):
    with pytest.raises(ConfigError, match=said):
        config.override(GIVEN, [assignment])


def test_a_mapping_without_kind_changes_fields_of_the_default() -> None:
    tuned = config.build(methods, {"kind": "finetune", "optim": {"lr": 0.3}})
    assert tuned.optim == SGD(lr=0.3, weight_decay=5e-4)
    assert config.build(methods, {"kind": "finetune", "optim": {"kind": "adamw"}}).optim == AdamW()
    with pytest.raises(ConfigError, match=r"optim: unknown key 'rate'"):
        config.build(methods, {"kind": "finetune", "optim": {"rate": 0.3}})


def test_a_key_that_stands_twice_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("seed: 1\nname: a\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"line 3 .*'seed' stands twice"):
        config.read_yaml(path)
    path.write_text("base: &b {lr: 1e-3, decay: 0}\nother: {<<: *b, lr: 2}\n")
    assert config.read_yaml(path)["other"] == {"lr": 2, "decay": 0}


def test_betas_outside_their_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"betas: both must be in \[0, 1\)"):
        config.build(optimisers, {"kind": "adamw", "betas": [2.0, 3.0]})


@dataclass(frozen=True)
class Grown:
    """Had one field when results were kept by it, and has three."""

    first: int = 1
    second: int = config.later(2)
    optim: Optim = SGD()


def test_an_identity_leaves_out_what_came_later_and_has_its_default():
    assert config.identity(Grown()) == {"first": 1, "optim": config.dump(SGD())}
    assert config.identity(Grown(second=3)) == {"first": 1, "second": 3, "optim": config.dump(SGD())}
    assert config.dump(Grown())["second"] == 2
    assert config.parse(Grown, {"second": 5}).second == 5
    assert "gradient_penalty" not in config.identity(Training())
    assert config.identity(AdamW(lr=0.5)) == config.dump(AdamW(lr=0.5))
