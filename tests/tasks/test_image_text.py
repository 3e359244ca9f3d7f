"""Matching images and captions, and the small pair of encoders."""

import pytest
import torch

from expunge.errors import ConfigError, Unsupported
from expunge.tasks import ImageText

SCORES = torch.tensor([[2.0, 0.0], [3.0, 1.0]])


def test_the_loss_and_the_score_by_hand():
    task = ImageText()
    outputs = task.outputs(lambda images, ids: SCORES, {"ids": torch.arange(2), "inputs": 0, "input_ids": 0})
    assert outputs.tolist() == [[[2.0, 0.0], [2.0, 3.0]], [[3.0, 1.0], [0.0, 1.0]]]
    expected = [(0.126928 + 1.313262) / 2, (2.126928 + 0.313262) / 2]
    assert torch.allclose(task.loss(outputs, {}), torch.tensor(expected))
    assert task.score(outputs, {}).tolist() == [0.5, 0.5]
    assert torch.equal(task.divergence(outputs, outputs, {}), torch.zeros(2))
    assert (task.divergence(outputs, outputs.flip(-1), {}) > 0).all()


def test_another_kind_of_model_is_refused():
    with pytest.raises(Unsupported, match="Give a ClipPair"):
        ImageText().outputs(lambda images, ids: images, {
            "ids": torch.arange(2), "inputs": torch.zeros(2, 5), "input_ids": torch.zeros(2, 3),
        })  # fmt: skip


def test_what_comes_after_the_end_of_a_caption_is_not_read():
    pytest.importorskip("transformers")
    from expunge.training.clip_models import ClipPairSpec

    spec = {"vocabulary": 12, "context": 6, "image_size": 8, "width": 8, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    model = ClipPairSpec(**spec)().eval()
    padded = torch.tensor([[3, 4, 11, 0, 0, 0], [3, 4, 11, 11, 11, 11], [3, 5, 11, 0, 0, 0]])
    with torch.no_grad():
        found = model.text_features(padded)
        scores = model(torch.rand(2, 3, 8, 8), padded[:2])
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert not torch.allclose(found[0], found[2], atol=1e-4)
    assert scores.shape == (2, 2)
    with pytest.raises(ConfigError):
        ClipPairSpec(**{**spec, "image_size": 9})
