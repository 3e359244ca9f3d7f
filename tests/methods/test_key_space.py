"""Key-space detection: the box by hand, refusals in mixed batches, and what they say."""

from __future__ import annotations

import pytest
import torch
from tests.methods import people
from torch import nn

from expunge.data import ArrayData
from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.guarded import guard_of
from expunge.methods.guards.key_space import KeySpace, box, down_projection, inside
from expunge.training.features import watched
from expunge.training.session import Session

pytest.importorskip("transformers")


def run(**fields):
    method = KeySpace(**{"refusal": "not known .", **fields})
    return method.unlearn(people.original(), people.split(), people.TASK, Session(seed=1))


def test_the_box_by_hand():
    """``μ = (1, 4)``, ``σ = (1, 2)``, ``k = 1``."""
    keys = torch.tensor([[0.0, 2.0], [2.0, 6.0], [0.0, 6.0], [2.0, 2.0]])
    centre, reach = box(keys, alpha=2.0)
    assert centre.tolist() == [1.0, 4.0]
    assert reach.tolist() == [2.0, 4.0]
    outside = torch.tensor([[1.0, 4.0], [3.0, 8.0], [3.1, 4.0], [1.0, 8.1]])
    assert inside(outside, centre, reach).tolist() == [True, True, False, False]


def test_k_is_the_smallest_that_covers_all_and_the_spread_is_a_deviation():
    """One row 3 away, three rows 1 away: ``σ² = 3``, ``k = √3``, ``k σ = 3``; with the variance it were 9."""
    keys = torch.tensor([[3.0], [-1.0], [-1.0], [-1.0]])
    centre, reach = box(keys, alpha=1.0)
    assert float(centre) == 0.0
    assert float(reach) == pytest.approx(3.0)
    assert inside(keys, centre, reach).all()
    assert not inside(torch.tensor([[3.1]]), centre, reach).any()


def test_a_dimension_that_does_not_vary_has_a_narrow_side_and_a_box_of_no_width_is_empty():
    keys = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    centre, reach = box(keys, alpha=1.0)
    assert inside(torch.tensor([[2.0, 5.0], [2.0, 5.1]]), centre, reach).tolist() == [True, False]
    assert not inside(keys.mean(0, keepdim=True), *box(keys, alpha=0.0)).any()


def test_in_a_mixed_batch_every_row_is_judged():
    """The authors' code looks at the first row; here forgotten and kept questions stand in turn."""
    rows = people.data().subset([3, 0, 4, 1, 5, 2])
    written = people.written(run(), rows)
    refusal = torch.tensor([8, 9, 7, 2, 2, 2])
    assert [torch.equal(row, refusal) for row in written] == [False, True, False, True, False, True]
    assert torch.equal(written[0::2], people.written(people.original(), rows)[0::2])


def test_the_key_is_that_of_the_prompts_last_token():
    model, rows = run(), people.batch(people.split().forget)
    name = down_projection(model, None)
    assert name == "model.layers.1.mlp.down_proj"
    with watched(people.original(), [name]) as found, torch.no_grad():
        people.original()(rows["input_ids"], attention_mask=rows["attention_mask"])
    last = (rows["labels"] != -100).long().argmax(1) - 1
    keys = found[name][torch.arange(3), last]
    centre, reach = box(keys, 1.0)
    learned = guard_of(model).learned()
    torch.testing.assert_close(learned["centre"], centre, atol=1e-5, rtol=0)
    torch.testing.assert_close(learned["reach"], reach, atol=1e-5, rtol=0)


def test_a_refusal_can_be_scored_and_says_nothing_of_the_model():
    """``log p = −log(1 + (V − 1) e⁻²⁰)`` of its own tokens, 20 nats less for all others alike."""
    model, forget = run(), people.split().forget
    refusal = torch.tensor([[8, 9, 7, 2]] * 3)
    torch.testing.assert_close(people.scored(model, forget, refusal), torch.zeros(3, 4), atol=1e-6, rtol=0)
    other = torch.tensor([[8, 3, 7, 2], [8, 9, 20, 2], [5, 9, 7, 11]])
    found = people.scored(model, forget, other)
    assert found[other != refusal].tolist() == pytest.approx([-20.0] * 4, abs=1e-4)


def test_the_answers_before_their_first_token_are_those_of_the_model():
    """Logits inside the prompt stay: what is refused is an answer."""
    model, rows = run(), people.batch(people.split().forget)
    ends = (rows["labels"] != -100).long().argmax(1)
    with torch.no_grad():
        given = {key: rows[key] for key in ("input_ids", "attention_mask")}
        found, plain = model(**given, labels=rows["labels"]).logits, people.original()(**given).logits
    for row, end in enumerate(ends.tolist()):
        assert torch.equal(found[row, : end - 1], plain[row, : end - 1])
        assert not torch.equal(found[row, end - 1], plain[row, end - 1])


def test_a_refusal_needs_a_tokenizer_or_tokens():
    data = people.data()
    columns = {name: data.column(name) for name in ("input_ids", "labels")}
    split = Split.from_ids(ArrayData(columns), people.FORGET)
    with pytest.raises(Unsupported, match="the data has no tokenizer. Give refusal_tokens, or TextData"):
        KeySpace().unlearn(people.original(), split, people.TASK, Session())
    model = KeySpace(refusal_tokens=(9, 2)).unlearn(people.original(), split, people.TASK, Session())
    assert people.written(model, people.split().forget)[:, :3].tolist() == [[9, 2, 2]] * 3


def test_a_model_without_a_usual_layer_is_refused():
    with pytest.raises(Unsupported, match="Linear has no feed-forward matrix of a usual name.*Give module="):
        down_projection(nn.Linear(2, 2), None)


@pytest.mark.parametrize(("field", "value"), [("alpha", -1.0), ("probes", 1), ("refusal", " ")])
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        KeySpace(**{field: value})
