import math
import re
from types import SimpleNamespace

import pytest
import torch

from expunge.data import ArrayData
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.tasks import Classification

TASK = Classification(3)


def _data(targets):
    return ArrayData({"inputs": torch.zeros(len(targets), 2), "targets": targets})


def test_the_loss_is_minus_the_log_probability_of_the_label():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    loss = TASK.loss(probabilities.log(), {"targets": torch.tensor([1, 2])})
    assert torch.allclose(loss, torch.tensor([math.log(4), -math.log(0.8)]))


def test_the_log_likelihood_is_minus_the_loss():
    logits, batch = torch.randn(5, 3), {"targets": torch.tensor([0, 1, 2, 0, 1])}
    assert torch.equal(TASK.log_likelihood(logits, batch), -TASK.loss(logits, batch))


def test_the_score_is_whether_the_largest_logit_is_the_labels():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    assert TASK.score(logits, {"targets": torch.tensor([0, 1])}).tolist() == [1.0, 0.0]


def test_an_output_object_with_logits_is_understood():
    logits = torch.randn(4, 3)
    outputs = TASK.outputs(lambda x: SimpleNamespace(logits=logits), {"inputs": torch.zeros(4, 2)})
    assert torch.equal(outputs, logits)


@pytest.mark.parametrize("shape", [(4, 2), (4,), (4, 3, 1)])
def test_outputs_of_another_shape_are_refused_with_both_shapes(shape):
    said = re.escape(f"returned outputs of shape {shape}; a classifier of 3 classes needs (4, 3)")
    with pytest.raises(DataError, match=said):
        TASK.outputs(lambda x: torch.zeros(shape), {"inputs": torch.zeros(4, 2)})


def test_an_answer_that_is_no_tensor_is_refused():
    with pytest.raises(
        Unsupported, match=r"the model returned tuple; expected a tensor or an output with .logits"
    ):
        TASK.outputs(lambda x: (1, 2), {"inputs": torch.zeros(4, 2)})


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_named_with_its_example(label):
    data = _data(torch.tensor([0, 1, 2, label])).subset([2, 3])
    with pytest.raises(DataError, match=rf"test label {label} of example 3 is outside 0\.\.2"):
        TASK.check(data, "test")


@pytest.mark.parametrize("targets", [torch.zeros(4), torch.zeros(4, 3).long()])
def test_labels_that_are_not_integers_one_each_are_refused(targets):
    with pytest.raises(DataError, match=r"forget targets must be integer labels of shape \(N,\)"):
        TASK.check(_data(targets), "forget")


def test_one_class_is_not_enough():
    with pytest.raises(ConfigError, match="classes: a classifier needs at least 2 classes, got 1"):
        Classification(1)
