"""Everything a user can get wrong, through the real command line: one line that names it, exit code 2.

``python tests/cli/bad_input.py`` prints a table of case and message; ``test_bad_input.py`` runs the same.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import situations
from workplace import furnish

UNLEARN = "unlearn base.yaml --method finetune --output out.safetensors --model trained.safetensors"
FORGET = "unlearn base.yaml --method finetune --output out.safetensors --forget ids.txt --model"
EVALUATE = "evaluate base.yaml --original trained.safetensors --forget ids.txt"


@dataclass(frozen=True)
class Outcome:
    code: int
    stderr: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.strip()]


@dataclass(frozen=True)
class Case:
    """A command line, or a function that stages one, and what its only line on stderr must contain."""

    title: str
    act: str | Callable[[Path], tuple[int, str]]
    expected: tuple[str, ...]

    def run(self, folder: Path) -> Outcome:
        if callable(self.act):
            return Outcome(*self.act(folder))
        return Outcome(*in_process(shlex.split(self.act), folder))

    def complaints(self, outcome: Outcome) -> Iterator[str]:
        """What is wrong with the answer; nothing where it is as it should be."""
        if outcome.code != 2:
            yield f"exit code {outcome.code}, not 2"
        if "Traceback" in outcome.stderr:
            yield "a traceback"
        if len(outcome.lines) != 1:
            yield f"{len(outcome.lines)} lines, not 1"
        elif not outcome.lines[0].startswith(("error: ", "interrupted; ")):
            yield "the line does not begin with 'error: '"
        yield from (f"no {text!r}" for text in self.expected if text not in outcome.stderr)


def in_process(words: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and stderr of ``expunge`` with these arguments in this folder."""
    from expunge.cli.main import main

    stderr = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stderr(stderr),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            code = main(words)
        except Exception:
            traceback.print_exc(file=stderr)
            code = 1
    return code, stderr.getvalue()


def case(title: str, act: str | Callable[[Path], tuple[int, str]], *expected: str) -> Case:
    return Case(title, act, expected)


def check(title: str, changes: str, *expected: str, source: str = "base.yaml") -> Case:
    """A mistake in an experiment; ``expunge run`` must find it before it trains anything."""
    return Case(title, f"run {source} {changes}", expected)


USAGE = [
    case("unknown command", "rnu", "'rnu'", "Did you mean 'run'"),
    case("unknown option", "run base.yaml --dirctory x", "--dirctory", "--directory"),
    case("no experiment", "run", "EXPERIMENT"),
    case("missing option", "unlearn base.yaml", "--method"),
    case("option without value", "run base.yaml --directory", "--directory"),
    case("unknown suite", "run digts", "'digts'", "Did you mean 'digits'"),
    case("unknown kind to list", "list metods", "'metods'", "Did you mean 'methods'"),
    case("too many arguments", "report a b", "b"),
    case(
        "unknown method on the command line",
        UNLEARN.replace("finetune", "finetun") + " --forget ids.txt",
        "'finetun'",
        "Did you mean 'finetune'",
    ),
    case(
        "unknown field of a method", UNLEARN + " --forget ids.txt epoch=1", "'epoch'", "Did you mean 'epochs'"
    ),
    case(
        "unknown search",
        "search base.yaml --model trained.safetensors --output o.txt --search bilevl",
        "'bilevl'",
        "Did you mean 'bilevel'",
    ),
]

FILES = [
    case("missing file", "run missing.yaml", "missing.yaml", "neither a file nor"),
    case("a folder as experiment", "run folder", "folder"),
    case("invalid YAML", "run invalid.yaml", "invalid.yaml", "line 2"),
    case("empty YAML", "run empty.yaml", "empty.yaml", "None"),
    case("binary YAML", "run binary.yaml", "binary.yaml"),
    case("list at the top", "run list.yaml", "list.yaml", "mapping"),
    case("no name", "run no_name.yaml", "'name' is missing"),
    check("override without =", "epochs", "'epochs'", "key=value"),
    check("override without key", "=3", "'=3'"),
    check("override not YAML", "train.epochs=[1", "'train.epochs=[1'"),
    check("override below a number", "seed.x=1", "seed", "{'x': 1}"),
]

NAMES = [
    check("unknown section", "traning.epochs=1", "'traning'", "Did you mean 'train'"),
    check("unknown key", "train.epoch=1", "train", "'epoch'", "Did you mean 'epochs'"),
    check("unknown key of an optimiser", "train.optim.learning_rate=1", "train.optim", "'learning_rate'"),
    check("unknown method", "methods.a.kind=sallun", "methods.a", "'sallun'", "Did you mean 'salun'"),
    check("unknown model", "model.kind=mpl", "model", "'mpl'", "Did you mean 'mlp'"),
    check("unknown task", "task.kind=clasification", "'clasification'", "Did you mean 'classification'"),
    check("unknown data", "data.kind=blob", "data", "'blob'", "Did you mean 'blobs'"),
    check("unknown search of a set", "forget.a.kind=randm_set", "forget.a", "Did you mean 'random_set'"),
    check("unknown metric", "metrics=[acuracy]", "metrics[0]", "Did you mean 'accuracy'"),
    check("unknown optimiser", "train.optim.kind=sdg", "train.optim", "Did you mean 'sgd'"),
    check("unknown scope", "methods.finetune.scope=everthing", "methods.finetune.scope", "'everything'"),
    check("unknown modifier", "methods.finetune.modifiers=[salency_mask]", "modifiers[0]", "'saliency_mask'"),
    check("a set called original", "forget.original.kind=random_set", "'original'"),
    check("a name with a slash", "name=a/b", "name", "'a/b'"),
]

TYPES = [
    check("string for int", "train.epochs=many", "train.epochs", "integer", "'many'"),
    check("float for int", "train.epochs=1.5", "train.epochs", "1.5"),
    check("bool for int", "train.epochs=true", "train.epochs", "True"),
    check("bool for float", "train.optim.lr=true", "train.optim.lr", "True"),
    check("number for list", "model.hidden=8", "model.hidden", "8"),
    check("list for mapping", "train=[1]", "train", "mapping"),
    check("number for methods", "methods=3", "methods", "mapping"),
    check("null for the model", "model=null", "model"),
    check("NaN", "train.optim.lr=.nan", "train.optim.lr", "nan"),
    check(
        "infinity", "'methods.a={kind: finetune, optim: {kind: sgd, lr: .inf}}'", "methods.a.optim.lr", "inf"
    ),
    check("unknown choice", "engine.dtype=float8", "engine.dtype", "float8"),
    check("string for seed", "seed=one", "seed", "'one'"),
]

MISSING = [
    check("no data", "data=null", "data"),
    check("model without outputs", "'model={kind: mlp, inputs: 2}'", "model", "'outputs' is missing"),
    check("required field", "forget.a.kind=class_set", "forget.a", "'classes' is missing"),
    check("kind without a name", "'model={inputs: 2}'", "model"),
]

RANGES = [
    check("negative rate", "train.optim.lr=-1", "train.optim.lr", "-1"),
    check("rate 0", "'methods.a={kind: finetune, optim: {kind: sgd, lr: 0}}'", "methods.a.optim.lr"),
    check("no epochs", "train.epochs=0", "train.epochs", "0"),
    check("no method epochs", "methods.finetune.epochs=0", "methods.finetune.epochs"),
    check("no batch", "train.batch_size=0", "train.batch_size"),
    check("size 0", "forget.random.size=0", "forget.random.size", "0"),
    check("size 1.5", "forget.random.size=1.5", "forget.random.size", "1.5"),
    check("negative size", "forget.random.size=-3", "forget.random.size", "-3"),
    check("more than the data", "forget.random.size=1000", "forget.random", "1000", "80"),
    check("all of the data", "forget.random.size=80", "forget.random", "80"),
    check(
        "keep above 1",
        "'methods.a={kind: finetune, modifiers: [{kind: saliency_mask, keep: 2}]}'",
        "modifiers[0].keep",
        "2",
    ),
    check("negative momentum", "train.optim.momentum=-1", "train.optim", "momentum", "-1"),
    check("Nesterov without momentum", "train.optim.momentum=0 train.optim.nesterov=true", "nesterov"),
    check("clip 0", "train.optim.clip=0", "train.optim.clip"),
    check("no retrained models", "retrained=0", "retrained", "0"),
    check("no forget sets", "forget={}", "forget"),
    check("one class", "task.classes=1", "task.classes", "1"),
    check("no data at all", "data.size=0", "data.size", "0"),
    check("metric of no part", "'metrics=[{kind: accuracy, part: train}]'", "metrics[0].part", "train"),
    check("no such device", "engine.device=gpu", "engine.device", "'gpu'"),
    check("no such CUDA device", "engine.device=cuda:99", "engine.device"),
    check("accumulate 0", "engine.accumulate=0", "engine.accumulate"),
    check(
        "no blocks to compute twice",
        "engine.activation_checkpointing=true",
        "MLP has no list of blocks",
        "engine.accumulate=4",
    ),
    check("a negative penalty", "train.gradient_penalty=-1", "train.gradient_penalty", "-1"),
]

FIT = [
    check("class not in the data", "forget.a.kind=class_set forget.a.classes=[7]", "forget.a", "7"),
    check("labels outside the classes", "task.classes=3 model.outputs=3", "label 3", "0..2"),
    check("outputs other than classes", "model.outputs=5", "5", "4"),
    check("inputs of the wrong size", "model.inputs=3", "3 numbers", "2"),
    check("grey images for colour", "model.in_channels=3", "inputs (4, 1, 8, 8)", source="images.yaml"),
    check("wrong kind of model", "'model={kind: tiny_lm, vocabulary: 9}'", "inputs (4, 2)"),
    check("LoRA on an edit", "methods.ssd.scope=lora", "methods.ssd", "LoRA"),
    check(
        "pattern without match",
        "methods.finetune.scope.kind=modules methods.finetune.scope.patterns=[stem]",
        "methods.finetune",
        "'stem'",
    ),
    check(
        "too many layers",
        "methods.finetune.scope.kind=last_layers methods.finetune.scope.count=9",
        "methods.finetune",
        "9",
    ),
    check(
        "relabelling without conditions", "", "methods.random_labels", "condition", source="diffusion.yaml"
    ),
    check("classes of a regression", "", "forget.class_set", "no classes", source="regression.yaml"),
]

DATA = [
    check("missing archive", "data.path=missing.npz", "missing.npz", source="arrays.yaml"),
    check("text as archive", "data.path=text.npz", "text.npz", source="arrays.yaml"),
    check("archive without labels", "data.path=inputs.npz", "inputs.npz", source="arrays.yaml"),
    check("objects in the archive", "data.path=objects.npz", "objects.npz", source="arrays.yaml"),
    check("NaN in the data", "data.path=nan.npz", "NaN", "row 5", source="arrays.yaml"),
    check("unequal lengths", "data.path=unequal.npz", "12", "11", source="arrays.yaml"),
    check("three examples", "data.path=few.npz", "3 examples", source="arrays.yaml"),
    check("missing image folder", "'data={kind: image_folder, path: pictures}'", "'pictures'"),
    check("folder without images", "'data={kind: image_folder, path: folder}'", "folder"),
]

IDS = [
    case("missing ids", f"{UNLEARN} --forget missing.txt", "missing.txt"),
    case("ids out of range", f"{UNLEARN} --forget far.txt", "99", "0..79"),
    case("repeated ids", f"{UNLEARN} --forget twice.txt", "more than once", "3"),
    case("ids that are words", f"{UNLEARN} --forget words.txt", "words.txt", "line 2", "'three'"),
    case("no ids", f"{UNLEARN} --forget none.txt", "none.txt", "empty"),
    case("every id", f"{UNLEARN} --forget every.txt", "80"),
    case("ids in an unknown format", f"{UNLEARN} --forget ids.csv", "ids.csv", ".txt"),
    case("ids that are not text", f"{UNLEARN} --forget binary.txt", "binary.txt"),
    check("ids of a set", "forget.a.kind=given forget.a.path=far.txt", "forget.a", "99"),
]

WEIGHTS = [
    case("missing weights", f"{FORGET} missing.safetensors", "missing.safetensors"),
    case("a folder as weights", f"{FORGET} folder", "'folder'"),
    case("truncated weights", f"{FORGET} truncated.safetensors", "truncated.safetensors", "truncated"),
    case("text as weights", f"{FORGET} text.safetensors", "text.safetensors"),
    case("text as a pickle", f"{FORGET} text.pt", "text.pt"),
    case("a foreign checkpoint", f"{FORGET} foreign.safetensors", "foreign.safetensors", "MLP"),
    case("weights of another shape", f"{FORGET} wide.safetensors", "wide.safetensors", "shape"),
    case("NaN weights", f"{FORGET} nan.safetensors", "nan.safetensors", "NaN"),
    case("a pickle that runs code", f"{FORGET} evil.pt", "evil.pt", "run code"),
    case("a whole training state", f"{FORGET} state.pt", "state.pt", "state dict"),
    case("unlearned weights", f"{EVALUATE} --unlearned wide.safetensors", "wide.safetensors"),
    case(
        "retrained weights",
        f"{EVALUATE} --unlearned trained.safetensors --retrained missing.safetensors",
        "missing.safetensors",
    ),
    check("weights of an experiment", "original=missing.safetensors", "missing.safetensors"),
]

TAKEN = "evaluate --data blobs.npz --forget ids.txt --directory judged"
"""Without an experiment file; blobs.npz is of the size of base.yaml."""
NETWORK = "--model '{kind: mlp, hidden: [8]}'"
ALONE = f"{TAKEN} {NETWORK} --original trained.safetensors"
JUDGED = f"{ALONE} --unlearned trained.safetensors"

FOREIGN = [
    case("neither data nor experiment", JUDGED.replace("--data blobs.npz", ""), "--data", "experiment file"),
    case("data and experiment", JUDGED.replace("evaluate", "evaluate base.yaml"), "data", "base.yaml"),
    case("weights without network", f"{ALONE.replace(NETWORK, '')} --unlearned mine:build", "resnet20"),
    case("unlearned weights that are not there", f"{ALONE} --unlearned no.pt", "unlearned", "'no.pt'"),
    case("truncated unlearned weights", f"{ALONE} --unlearned truncated.safetensors", "truncated"),
    case("weights of another size", f"{ALONE} --unlearned wide.safetensors", "wide.safetensors", "shape"),
    case("NaN in retrained weights", f"{JUDGED} --retrained nan.safetensors", "retrained", "NaN"),
    case("neither file nor function", f"{ALONE} --unlearned org/name", "'org/name'", "nothing is downloaded"),
    case("folder without configuration", f"{ALONE} --unlearned folder", "'folder'", "config.json"),
    case("checkpoint without weights", f"{ALONE} --unlearned hollow", "'hollow'", "no weights"),
    case("no such module of a model", f"{ALONE} --unlearned nomodule:f", "unlearned", "nomodule"),
    case("no such file of a function", f"{ALONE} --unlearned no.py:f", "unlearned", "'no.py'"),
    case("no such function in a file", f"{ALONE} --unlearned mine.py:buld", "'buld'", "'build'"),
    case("a function that gives no module", f"{ALONE} --unlearned mine:number", "mine:number", "int"),
    case("a function that fails", f"{ALONE} --unlearned mine:fail", "KeyError", "mine.py, line 4"),
    case("a model of other inputs", f"{ALONE} --unlearned mine:narrow", "mine:narrow", "inputs (3, 2)"),
    case("an original of other classes", f"{TAKEN} --original mine:odd --unlearned mine:odd", "4 classes"),
    case("unknown network", JUDGED.replace("kind: mlp", "kind: mpl"), "model", "Did you mean 'mlp'"),
    case("unknown field of a network", JUDGED.replace("hidden", "hiden"), "model", "'hiden'", "'hidden'"),
    case("network that is not YAML", JUDGED.replace("[8]}", "[8"), "model", "not valid YAML"),
    case("unknown data set", JUDGED.replace("blobs.npz", "digts"), "'digts'", "Did you mean 'digits'"),
    case("a function that gives no data", JUDGED.replace("blobs.npz", "mine:number"), "mine:number", "int"),
    case(
        "labels outside the stated classes", f"{JUDGED} --task '{{kind: classification, classes: 3}}'", "0..2"
    ),
    case("unknown task of foreign models", f"{JUDGED} --task clasification", "Did you mean 'classification'"),
    case("regression on labels", f"{JUDGED} --task regression", "floating-point"),
    case(
        "training without a network",
        f"{TAKEN} --original mine:build --unlearned mine:build --train '{{}}'",
        "--model",
    ),
    case("number of trainings without one", f"{JUDGED} --trainings 3", "--train"),
    case("no trainings at all", f"{JUDGED} --train '{{epochs: 1}}' --trainings -1", "--trainings", "1"),
    case("unknown metric of an audit", f"{JUDGED} --metrics acuracy", "metrics", "Did you mean 'accuracy'"),
    case("no metric", f"{JUDGED} --metrics ''", "metrics", "at least one"),
    case("unknown precision", f"{JUDGED} --engine.dtype float8", "engine.dtype", "float8"),
    case("ids outside the foreign data", JUDGED.replace("ids.txt", "far.txt"), "99", "0..79"),
    case("an empty file of ids", JUDGED.replace("ids.txt", "none.txt"), "none.txt", "empty"),
    case("report in a read-only place", JUDGED.replace("judged", "/proc/judged"), "/proc/judged"),
]

LOADED = [
    check("no such module", "'model={kind: load, function: nomodule:f}'", "model.function", "nomodule"),
    check("no such function", "'model={kind: load, function: mine:buld}'", "'buld'", "'build'"),
    check("no colon", "'model={kind: load, function: mine}'", "model.function", "module:function"),
    check("not a Module", "'model={kind: load, function: mine:number}'", "mine:number", "int"),
    check(
        "wrong arguments",
        "'model={kind: load, function: mine:build, arguments: {a: 1}}'",
        "mine:build",
        "'a'",
    ),
    check("a module with an error", "'model={kind: load, function: broken:f}'", "broken", "ZeroDivision"),
]

DIRECTORIES = [
    case("a directory below a file", "run base.yaml --directory ids.txt/run", "ids.txt/run"),
    case("a directory that is a file", "run base.yaml --directory ids.txt", "ids.txt"),
    case("a read-only place", "run base.yaml --directory /proc/run", "/proc/run"),
    case(
        "output in a read-only place",
        f"{UNLEARN.replace('out.', '/proc/out.')} --forget ids.txt",
        "/proc/out.safetensors",
    ),
    case(
        "output is a folder", f"{UNLEARN.replace('out.safetensors', 'folder')} --forget ids.txt", "'folder'"
    ),
    case("report of nothing", "report nowhere", "nowhere"),
    case("report without result", "report folder", "folder/result.json"),
    case("truncated result", "report truncated", "truncated/result.json", "not valid JSON"),
    case("result of another version", "report newer", "newer/result.json", "version"),
    case("damaged result", "report damaged", "damaged/result.json", "damaged"),
]

SITUATIONS = [
    case("damaged piece in the store", situations.damaged_value, "original-", "damaged"),
    case("truncated model in the store", situations.truncated_model, "original-", "truncated"),
    case("two runs in one directory", situations.two_runs, "another run", "busy"),
    case("the disk is full", situations.full_disk, "No space left", "make room"),
    case("the disk is full for the log", situations.full_log, "No space left"),
    case("Ctrl-C", situations.ctrl_c, "interrupted", "continue"),
    case("SIGTERM", situations.terminated, "interrupted", "continue"),
]

CASES = [
    *USAGE,
    *FILES,
    *NAMES,
    *TYPES,
    *MISSING,
    *RANGES,
    *FIT,
    *DATA,
    *IDS,
    *WEIGHTS,
    *FOREIGN,
    *LOADED,
    *DIRECTORIES,
    *SITUATIONS,
]


def main() -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = furnish(Path(name))
        for item in CASES:
            outcome = item.run(folder)
            complaints = list(item.complaints(outcome))
            failed += bool(complaints)
            print(f"{item.title:<36} {outcome.stderr.strip()}")
            for complaint in complaints:
                print(f"{'':<36} !! {complaint}")
    print(f"\n{len(CASES)} cases, {failed} wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
