import math

import pytest
import torch
from scipy import stats

from expunge.data import ArrayData
from expunge.errors import ConfigError, DataError
from expunge.tasks import CausalLM

TASK = CausalLM(4)
IDS = torch.tensor([[3, 1, 2, 0], [1, 2, 3, 1]])
LABELS = torch.tensor([[-100, -100, 2, -100], [-100, 2, 3, 1]])
LOGITS = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "labels": LABELS}
LOG_P = LOGITS.log_softmax(-1)


def test_the_log_likelihood_is_the_sum_over_labelled_tokens_each_read_one_place_before():
    first = LOG_P[0, 1, 2]
    second = LOG_P[1, 0, 2] + LOG_P[1, 1, 3] + LOG_P[1, 2, 1]
    assert torch.allclose(TASK.log_likelihood(LOGITS, BATCH), torch.stack([first, second]))


def test_the_loss_is_the_mean_over_labelled_tokens():
    expected = -TASK.log_likelihood(LOGITS, BATCH) / torch.tensor([1.0, 3.0])
    assert torch.allclose(TASK.loss(LOGITS, BATCH), expected)


def test_a_label_at_the_first_place_is_not_predicted_by_anything():
    labels = LABELS.clone()
    labels[:, 0] = 1
    changed = {**BATCH, "labels": labels}
    assert torch.equal(TASK.log_likelihood(LOGITS, changed), TASK.log_likelihood(LOGITS, BATCH))
    assert torch.equal(TASK.loss(LOGITS, changed), TASK.loss(LOGITS, BATCH))


@pytest.mark.parametrize("quantity", ["loss", "log_likelihood", "score"])
def test_logits_at_unlabelled_places_and_after_the_end_have_no_influence(quantity):
    changed = LOGITS.clone()
    changed[0, [0, 2, 3]] = 77.0 * torch.randn(3, 4)
    changed[1, 3] = -5.0
    measure = getattr(TASK, quantity)
    assert torch.equal(measure(changed, BATCH), measure(LOGITS, BATCH))


def test_their_gradient_is_exactly_zero():
    logits = LOGITS.clone().requires_grad_(True)
    TASK.loss(logits, BATCH).sum().backward()
    assert (logits.grad[0, [0, 2, 3]] == 0).all()
    assert (logits.grad[1, :3] != 0).all()


def test_padding_on_the_right_changes_nothing():
    wide = {
        "input_ids": torch.cat([IDS, torch.zeros(2, 3).long()], 1),
        "labels": torch.cat([LABELS, torch.full((2, 3), -100)], 1),
    }
    logits = torch.cat([LOGITS, torch.randn(2, 3, 4)], 1)
    for measure in (TASK.loss, TASK.log_likelihood, TASK.score):
        assert torch.allclose(measure(logits, wide), measure(LOGITS, BATCH))


def test_divergences_are_means_over_the_labelled_places():
    other = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))
    p, q = LOG_P.exp().double().numpy(), other.softmax(-1).double().numpy()
    expected = [stats.entropy(p[0, 1], q[0, 1]), stats.entropy(p[1, :3], q[1, :3], axis=-1).mean()]
    assert TASK.divergence(LOGITS, other, BATCH).tolist() == pytest.approx(expected, rel=1e-5)
    middle = (p + q) / 2
    js = (stats.entropy(p, middle, axis=-1) + stats.entropy(q, middle, axis=-1)) / 2
    expected = [js[0, 1], js[1, :3].mean()]
    assert TASK.jensen_shannon(LOGITS, other, BATCH).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_score_is_the_share_of_labelled_tokens_that_are_most_likely():
    logits = torch.zeros(2, 4, 4)
    logits[0, 1, 2] = logits[1, 0, 2] = logits[1, 1, 3] = 1.0
    logits[1, 2, 0] = 1.0
    assert TASK.score(logits, BATCH).tolist() == pytest.approx([1.0, 2 / 3])


def test_relabelling_draws_answer_tokens_in_inputs_and_labels_alike_and_keeps_the_question():
    labels = LABELS.repeat(1000, 1)
    batch = {"input_ids": IDS.repeat(1000, 1), "labels": labels}
    drawn = TASK.relabel(batch, torch.Generator().manual_seed(0))
    answer = labels != -100
    assert torch.equal(drawn["input_ids"][~answer], batch["input_ids"][~answer])
    assert (drawn["labels"][~answer] == -100).all()
    assert torch.equal(drawn["input_ids"][answer], drawn["labels"][answer])
    counts = torch.bincount(drawn["labels"][answer], minlength=4)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_the_attention_mask_reaches_the_model_where_there_is_one():
    seen = []

    def model(ids, attention_mask=None):
        seen.append(attention_mask)
        return LOGITS

    TASK.outputs(model, BATCH)
    mask = torch.ones(2, 4)
    TASK.outputs(model, {**BATCH, "attention_mask": mask})
    assert seen[0] is None
    assert seen[1] is mask


@pytest.mark.parametrize(
    ("column", "row", "token"),
    [("input_ids", 0, 4), ("input_ids", 1, -1), ("labels", 1, 9), ("labels", 0, -5)],
)
def test_a_token_outside_the_vocabulary_is_named(column, row, token):
    columns = {"input_ids": IDS.clone(), "labels": LABELS.clone()}
    columns[column][row, 2] = token
    said = rf"forget {column} of example {row} holds token {token}, outside 0\.\.3"
    with pytest.raises(DataError, match=said):
        TASK.check(ArrayData(columns), "forget")


def test_an_example_with_nothing_to_predict_is_refused():
    labels = LABELS.clone()
    labels[0] = torch.tensor([1, -100, -100, -100])
    with pytest.raises(DataError, match="retain has an example without a single labelled token"):
        TASK.check(ArrayData({"input_ids": IDS, "labels": labels}), "retain")


def test_a_uniform_model_says_log_of_the_vocabulary():
    loss = TASK.loss(torch.zeros(2, 4, 4), BATCH)
    assert loss.tolist() == pytest.approx([math.log(4)] * 2)


def test_a_vocabulary_of_one_is_refused():
    with pytest.raises(ConfigError, match="vocabulary: a vocabulary needs at least 2 tokens, got 1"):
        CausalLM(1)
