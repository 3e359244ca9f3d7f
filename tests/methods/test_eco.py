"""ECO: the search by hand, which tokens are corrupted, and how prompts are recognised."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.methods import people

from expunge.data.split import Split
from expunge.errors import ConfigError, MissingEvidence
from expunge.methods import prompts
from expunge.methods.guarded import Table, guard_of
from expunge.methods.guards.eco import ECO, mean_loss
from expunge.training.session import Session

pytest.importorskip("transformers")


def run(**fields):
    return ECO(**fields).unlearn(people.original(), people.split(), people.TASK, Session(seed=1))


def test_the_search_takes_the_steps_written_on_paper():
    """``f = (σ − 3)²``: a two-point difference is exact, ``σ ← σ − η · 2 (σ − 3)``: 1, 1.8, 2.28."""
    method = ECO(strength=1.0, lr=0.2, step=0.1, steps=2)
    assert method.searched(lambda s: (s - 3) ** 2) == pytest.approx(2.28)
    assert replace(method, steps=60).searched(lambda s: (s - 3) ** 2) == pytest.approx(3.0, abs=1e-6)


def test_the_search_stays_above_its_floor_and_stops_when_it_is_near():
    assert ECO(strength=1.0, lr=1.0, floor=0.4).searched(lambda s: s) == 0.4
    asked = []
    found = ECO(strength=1.0, tolerance=0.3).searched(lambda s: asked.append(s) or 0.2)
    assert (found, asked) == (1.0, [1.0])


def test_the_strength_that_is_found_gives_the_loss_that_was_expected():
    model = run(strength=0.3, expected=0.6, lr=0.005, step=0.02, steps=60, tolerance=0.05)
    split = people.split()
    before = abs(mean_loss(run(strength=0.3), split.forget, people.TASK, Session()) - 0.6)
    after = abs(mean_loss(model, split.forget, people.TASK, Session()) - 0.6)
    assert after < 0.5 * before
    assert float(guard_of(model).learned()["strength"]) != pytest.approx(0.3)


def test_the_expected_loss_may_be_that_of_data_the_model_never_saw():
    split = people.split()
    given = Split(split.forget, split.retain, test=split.retain)
    learned = ECO(expected="test", steps=1).learn(people.original(), given, people.TASK, Session())
    assert learned["strength"] != 1.0
    with pytest.raises(MissingEvidence, match="no holdout data to take the expected loss of. Give the split"):
        ECO(expected="holdout").learn(people.original(), split, people.TASK, Session())


def embedded(model, rows):
    """What the blocks get of each token."""
    seen = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    people.TASK.said(model, rows)
    handle.remove()
    return seen[-1]


@pytest.mark.parametrize("dims", [None, 3])
def test_all_tokens_of_a_forget_prompt_but_its_last_are_corrupted(dims):
    """The noise of a position is ``σ ε_t`` on the first dimensions; answers and other prompts stay."""
    model, split = run(strength=2.0, dims=dims), people.split()
    seed = int(guard_of(model).learned()["seed"])
    rows = people.batch(people.data())
    with torch.no_grad():
        moved = embedded(model, rows) - embedded(people.original(), rows)
    wide = dims or 24
    for row in range(len(moved)):
        end = int((rows["labels"][row] != -100).nonzero()[0])
        noise = 2.0 * Table(seed, wide).at(torch.arange(end - 1)[None])[0]
        expected = torch.zeros_like(moved[row])
        if row in people.FORGET:
            expected[: end - 1, :wide] = noise
        torch.testing.assert_close(moved[row], expected, atol=1e-5, rtol=0)
    assert len(split.forget) == 3


def test_without_labels_all_tokens_are_the_prompt_and_in_generate_those_given():
    """A decoder without a cache sees prompt and answer at once; the prompt must still end where it ended."""
    model, forget = run(), people.split().forget.subset([0])
    ids, mask = people.prompts(forget)
    seen = []
    guard_of(model).call = None
    handle = model.model.layers[0].register_forward_pre_hook(
        lambda _, given: seen.append(guard_of(model).spoilt) if guard_of(model).call is not None else None
    )
    model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, do_sample=False, use_cache=False)
    handle.remove()
    counts = [int(spoilt.sum()) for spoilt in seen]
    assert counts == [ids.shape[1] - 1] * len(seen)
    assert len(seen) > 1


@pytest.mark.parametrize("features", ["hidden", "embeddings"])
def test_prompts_are_recognised_alike_on_either_side_of_the_padding(features):
    model, data = run(features=features), people.data()
    rows = people.batch(data)
    right = prompts.pooled(model, rows["input_ids"], prompts.prompts(rows), features)
    ids, mask = people.prompts(data)
    left = prompts.pooled(model, ids, mask != 0, features)
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)
    likely = prompts.probability(guard_of(model).learned(), right)
    assert (likely > 0.5).tolist() == [i in people.FORGET for i in range(8)]


def test_the_regression_is_that_of_raw_features():
    torch.manual_seed(0)
    x, y = torch.randn(20, 3) * 5 + 7, torch.randn(20, 3) * 5
    learned = prompts.logistic(x, y, 1.0)
    from sklearn.linear_model import LogisticRegression

    both = torch.cat([x, y])
    z = ((both - both.mean(0)) / both.std(0)).numpy()
    fit = LogisticRegression(class_weight="balanced", max_iter=2000).fit(z, [1] * 20 + [0] * 20)
    likely = torch.tensor(fit.predict_proba(z)[:, 1]).float()
    torch.testing.assert_close(prompts.probability(learned, both), likely, atol=1e-3, rtol=0)


def test_another_seed_draws_other_noise():
    other = ECO().unlearn(people.original(), people.split(), people.TASK, Session(seed=2))
    assert not torch.equal(
        people.score(other, people.split().forget), people.score(run(), people.split().forget)
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("strength", -1.0), ("floor", -1.0), ("tolerance", -1.0), ("ridge", 0.0), ("lr", 0.0), ("step", 0.0),
     ("steps", 0), ("dims", 0), ("threshold", 1.5)],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        ECO(**{field: value})
