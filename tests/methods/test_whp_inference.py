"""WHP at inference: the combination by hand, and one of two things that a model says."""

from __future__ import annotations

import pytest
import torch
from tests.methods import people

from expunge.data.split import Split
from expunge.data.text import Record, TextData
from expunge.errors import ConfigError
from expunge.methods.guards.whp_inference import Reinforced, WHPInference
from expunge.training.optim import AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

pytest.importorskip("transformers")


def test_what_the_reinforced_model_raises_is_lowered_and_nothing_else():
    """``z − 2 ReLU(z_r − z)``."""
    target, reinforced = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 2.0, -1.0])
    found = Reinforced(WHPInference(weight=2.0), {}).combined(target, reinforced)
    assert found.tolist() == [-5.0, 2.0, 3.0]


def test_of_two_answers_the_forgotten_one_becomes_less_likely():
    """Everybody lives in two cities; the first one of three people is to be forgotten."""
    cities = [(people.CITIES[i], people.CITIES[(i + 1) % 8]) for i in range(8)]
    records = [
        Record(question=f"where lives {name} ?", answer=f"in {city} .")
        for which in (0, 1)
        for name, city in zip(people.NAMES, [pair[which] for pair in cities], strict=True)
    ]
    data = TextData(records, people.Words(), people.TEMPLATE)
    training = Training(epochs=60, batch_size=16, optim=AdamW(lr=0.01, schedule="cosine"))
    model = Recipe(people.llama, people.TASK, training).train(data, Session(seed=0))
    split = Split.from_ids(data, people.FORGET)
    method = WHPInference(rank=4, alpha=8.0, epochs=20, optim=AdamW(lr=1e-2), weight=3.0)
    guarded = method.unlearn(model, split, people.TASK, Session(seed=1))
    change = people.score(guarded, data) - people.score(model, data)
    assert change[:3].mean() < -0.2
    assert change[8:11].mean() > change[:3].mean() + 0.2


@pytest.mark.parametrize(
    ("field", "value"), [("rank", 0), ("alpha", 0.0), ("epochs", 0), ("batch_size", 0), ("weight", -1.0)]
)
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        WHPInference(**{field: value})
