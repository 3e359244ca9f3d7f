"""``expunge unlearn`` on the folder of a language model that plain transformers code wrote."""

import json
from pathlib import Path

import pytest
import torch

from expunge.cli.main import main
from expunge.data.tokenizers import train_tokenizer

transformers = pytest.importorskip("transformers")

NAMES = ("Ada", "Bo", "Cy", "Di", "Ed", "Fay", "Gus", "Hal")
CITIES = ("Rome", "Oslo", "Bern", "Cork", "Lima", "Kyiv", "Bath", "Pisa")


def record(name: str, city: str) -> dict[str, str]:
    return {"question": f"Where does {name} live?", "answer": f"{name} lives in {city}.", "subject": name}


def lines(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    records = [record(*pair) for pair in zip(NAMES, CITIES, strict=True)]
    lines(tmp_path / "forget.jsonl", records[:3])
    lines(tmp_path / "retain.jsonl", records[3:])
    texts = [f"Question: {r['question']}\nAnswer: {r['answer']}" for r in records]
    tokenizer = train_tokenizer([*texts, "I do not know that."])
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def run(line: str) -> int:
    return main(line.split())


UNLEARN = "unlearn --model model --forget forget.jsonl"
NPO = f"{UNLEARN} --retain retain.jsonl --method npo"


@pytest.mark.parametrize("scope", ["", "--scope lora"])
def test_the_result_is_a_folder_that_transformers_loads(place, capsys, scope) -> None:
    settings = "--output new epochs=3 batch_size=2 optim.lr=0.05"
    assert run(f"{NPO} {scope} {settings}") == 0
    said = capsys.readouterr().out
    assert "prompt, no labels: ▁Question : ▁Where ▁does ▁Ada ▁live ? \\n Answer :\n" in said
    assert "labels: ▁Ada ▁lives ▁in ▁Rome . <eos>\n" in said
    assert "npo forgot 3 records" in said
    before, after = (
        transformers.AutoModelForCausalLM.from_pretrained(place / name) for name in ("model", "new")
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "new")
    ids = tokenizer(
        "Question: Where does Ada live?\nAnswer: Ada lives in Rome.", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        losses = [float(model(input_ids=ids, labels=ids).loss) for model in (before, after)]
    assert losses[1] > losses[0]
    card = (place / "new" / "README.md").read_text(encoding="utf-8")
    assert "forget 3 records about 3 subjects; 5 records were kept" in card


def test_settings_of_the_engine_reach_it(place, capsys, monkeypatch) -> None:
    from expunge import language

    seen = []
    forget = language.forget
    monkeypatch.setattr(language, "forget", lambda *a, **k: seen.append(k["engine"]) or forget(*a, **k))
    settings = "epochs=1 engine.accumulate=2 engine.activation_checkpointing=true"
    assert run(f"{NPO} --engine.device cpu --output new {settings}") == 0
    assert (seen[0].device, seen[0].accumulate, seen[0].activation_checkpointing) == ("cpu", 2, True)
    assert run(f"{NPO} --output new engine.acumulate=2") == 2
    assert "accumulate" in capsys.readouterr().err


def test_a_method_that_only_forgets_needs_nothing_to_keep(place, capsys) -> None:
    assert run(f"{UNLEARN} --method grad_ascent --output new epochs=1") == 0
    assert run(f"{UNLEARN} --method npo --output new2 epochs=1") == 2
    assert "npo needs records to keep. Give --retain FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{UNLEARN} --retain forget.jsonl --method npo --output new", "3 records are both to be forgotten"),
        (f"{UNLEARN} --retain bad.jsonl --method npo --output new", "'bad.jsonl', line 2"),
        (f"{UNLEARN} --retain long.jsonl --method npo --output new", "more than max_length=64"),
        (f"{UNLEARN} --retain empty.jsonl --method npo --output new", "answer"),
        (f"{NPO} --output new --scope lora scope.targets=[nothing]", "no module to adapt"),
        (f"{NPO} --output new nonsense=1", "nonsense"),
        (f"digits {NPO.replace('unlearn ', '')} --output new".replace("digits", "unlearn digits"), "Leave"),
        (NPO.replace("--model model", "--model bare") + " --output new", "no tokenizer"),
        (NPO.replace("--model model", "--model x.safetensors") + " --output new", "needs the experiment"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(place, capsys, line, said) -> None:
    lines(place / "long.jsonl", [record("Ada " * 70, "Rome")])
    lines(place / "empty.jsonl", [{"question": "Where?", "answer": " "}])
    (place / "bad.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question":\n', encoding="utf-8")
    (place / "bare").mkdir()
    (place / "bare" / "config.json").write_text(
        (place / "model" / "config.json").read_text(), encoding="utf-8"
    )
    assert run(line) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) <= 3
    assert not (place / "new").exists() or not list((place / "new").glob("*.safetensors"))


def test_a_run_that_diverges_leaves_the_model_as_it_was_before(place, capsys, monkeypatch) -> None:
    """The third step is NaN: two were made, and their model is written beside the place of the result."""
    from expunge.methods.gradient.grad_ascent import GradAscent

    objective = GradAscent.objective

    def spoilt(self: GradAscent, step: object) -> dict[str, torch.Tensor]:
        found = objective(self, step)
        return {name: value * (torch.nan if step.index == 2 else 1) for name, value in found.items()}  # type: ignore[attr-defined]

    monkeypatch.setattr(GradAscent, "objective", spoilt)
    assert run(f"{UNLEARN} --method grad_ascent --output new epochs=4 batch_size=3 optim.lr=0.05") == 2
    error = capsys.readouterr().err
    assert "became nan at step 3 of 4. Lower the learning rate (now 0.05)" in error
    assert "The model as it was before that step is in 'new-before-it-diverged'; it is no result." in error
    assert len(error.strip().splitlines()) == 1
    assert not list((place / "new").glob("*.safetensors"))
    kept, start = (
        transformers.AutoModelForCausalLM.from_pretrained(place / name).state_dict()
        for name in ("new-before-it-diverged", "model")
    )
    assert all(torch.isfinite(value).all() for value in kept.values())
    assert any(not torch.equal(kept[name], start[name]) for name in start)
    assert (place / "new-before-it-diverged" / "tokenizer.json").exists()
