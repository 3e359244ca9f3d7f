"""A language model that sees: the picture counts, and every number is that of the plain logits."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from tests.eyes import batch, faces, model, spec, split, task

from expunge.data import ArrayData
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.evaluation.generation import Decoding, answers
from expunge.tasks import VisionLanguage
from expunge.tasks.token_states import TokenStates
from expunge.training.engine import Engine


def test_loss_and_likelihood_are_those_of_the_logits_of_a_direct_call() -> None:
    net, rows = model(), batch(split().forget)
    said = task().said(net, rows)
    assert isinstance(said, TokenStates)  # hidden states at labels, no full logits
    names = ("input_ids", "attention_mask", "pixel_values")
    with torch.no_grad():
        logs = net(**{name: rows[name] for name in names}).logits[:, :-1].log_softmax(-1)
    labels = rows["labels"][:, 1:]
    own = logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels >= 0)
    assert torch.allclose(task().log_likelihood(said, rows), own.sum(1), atol=1e-4)
    assert torch.allclose(task().loss(said, rows), -own.sum(1) / (labels >= 0).sum(1), atol=1e-5)
    assert torch.allclose(task().loss(task().outputs(net, rows), rows), task().loss(said, rows), atol=1e-5)


def test_another_picture_gives_another_loss_and_its_gradient_reaches_the_vision_tower() -> None:
    net, rows = model(), batch(split().forget)
    loss = task().loss(task().said(net, rows), rows)
    other = {**rows, "pixel_values": rows["pixel_values"].flip(0, 2)}
    assert (task().loss(task().said(net, other), other) - loss).abs().max() > 1e-4
    loss.mean().backward()
    assert net.get_parameter("model.vision_tower.embeddings.patch_embedding.weight").grad.abs().sum() > 0


def test_another_answer_is_about_the_same_picture() -> None:
    rows = batch(split().forget)
    for name in ("idk", "near_miss", "perturbed_1"):
        other = task().instead(rows, name)
        assert torch.equal(other["pixel_values"], rows["pixel_values"])
        assert not torch.equal(other["labels"], rows["labels"])


def test_random_answers_never_hold_the_image_token() -> None:
    """One more image token than vectors and the model refuses the batch; the plain relabelling draws it."""
    rows = batch(faces().train)
    few = VisionLanguage(task().vocabulary, task().image_token)
    draws = torch.Generator().manual_seed(0)
    replaced = rows["labels"] >= 0
    seen = set()
    for _ in range(60):
        drawn = few.relabel(rows, draws)
        assert not (drawn["labels"] == few.image_token).any()
        assert torch.equal(drawn["input_ids"][~replaced], rows["input_ids"][~replaced])
        seen |= set(drawn["labels"][replaced].tolist())
    assert len(seen) > 0.98 * few.vocabulary
    assert max(seen) == few.vocabulary - 2  # the image token is the last one
    plain = [super(VisionLanguage, few).relabel(rows, draws)["labels"] for _ in range(60)]
    assert any((labels == few.image_token).any() for labels in plain)
    task().loss(task().said(model(), few.relabel(rows, draws)), rows)


def test_the_image_token_is_left_out_wherever_it_stands() -> None:
    small = VisionLanguage(4, 1)
    rows = {"input_ids": torch.zeros(500, 2).long(), "labels": torch.zeros(500, 2).long()}
    drawn = small.relabel(rows, torch.Generator().manual_seed(0))["labels"]
    assert sorted(drawn.unique().tolist()) == [0, 2, 3]


def test_answers_are_written_about_the_picture_padded_or_not() -> None:
    """Prompts of two lengths in one batch give what each gives alone, and the picture matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = spec(tied=False)().eval()
    with torch.no_grad():  # so that an untrained model looks
        net.model.multi_modal_projector.linear_2.weight.mul_(30)
        for layer in net.model.language_model.layers:
            layer.self_attn.o_proj.weight.mul_(100)
    data = faces().train
    together = answers(net, data, Engine(), Decoding(max_tokens=4))
    for row in (0, 1, 9):
        assert answers(net, data.subset([row]), Engine(), Decoding(max_tokens=4)) == [together[row]]
    same_question = [row for row in range(len(data)) if data.record(row).question == data.record(0).question]
    assert len({together[row][0] for row in same_question}) > 1
    sampled = answers(net, data.subset([0, 1]), Engine(), Decoding(max_tokens=3, temperature=1.0, samples=2))
    assert [len(texts) for texts in sampled] == [2, 2]


def test_a_model_that_cannot_generate_is_not_asked_without_its_picture() -> None:
    class Blind(torch.nn.Module):
        pass

    with pytest.raises(Unsupported, match="Blind cannot generate"):
        answers(Blind(), faces().train, Engine())


def test_more_image_tokens_than_patches_are_explained() -> None:
    net = spec(image_size=16)().eval()
    rows = batch(split().forget)
    large = {**rows, "pixel_values": torch.zeros(len(rows["ids"]), 3, 16, 16)}
    with pytest.raises(DataError, match="4 image tokens for a picture, which is not the number of vectors"):
        task().said(net, large)


def test_a_batch_without_its_picture_is_refused() -> None:
    rows = batch(split().forget)
    del rows["pixel_values"]
    with pytest.raises(Unsupported, match="no pixel_values, without which nothing is seen"):
        task().said(model(), rows)


def columns(**changes: object) -> ArrayData:
    ids = torch.tensor([[3, 3, 1, 2], [3, 3, 2, 1]])
    labels = ids.masked_fill(torch.arange(4) < 2, -100)
    return ArrayData({"input_ids": ids, "labels": labels, "pixel_values": torch.zeros(2, 1, 2, 2), **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"input_ids": [[3, 3, 1, 2], [1, 3, 2, 1]]},
            "same number of image tokens .3., at least one; found 1 to 2",
        ),
        ({"input_ids": [[0, 0, 1, 2], [1, 0, 2, 1]]}, "found 0 to 0"),
        ({"pixel_values": torch.zeros(2, 4)}, r"pixel_values are \(N, C, H, W\)"),
        ({"labels": [[-100, -100, 1, 3], [-100, -100, 2, 1]]}, "labels hold the image token 3"),
        ({"labels": [[-100, -100, 1, 4], [-100, -100, 2, 1]]}, "token 4, outside 0..3"),
    ],
)
def test_data_that_does_not_fit_is_refused(changes: dict[str, object], said: str) -> None:
    small = VisionLanguage(4, 3)
    small.check(columns(), "forget")
    with pytest.raises(DataError, match=said):
        small.check(columns(**changes), "forget")


def test_an_image_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"image_token.*0\.\.3, got 4"):
        VisionLanguage(4, 4)
