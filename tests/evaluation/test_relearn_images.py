"""Relearning on images: what a few bring back, and what is not taught with them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests.evaluation.micro import sound
from tests.evaluation.vaults import GALLERY, JUDGE, READ, erased, evidence, ignorant, rows
from torch import Tensor, nn

from expunge.data.arrays import ArrayData
from expunge.data.split import Split
from expunge.errors import ConfigError
from expunge.evaluation.attacks.cases import found_cases
from expunge.evaluation.attacks.relearn_images import RelearnImages
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.picture_judges import Judge
from expunge.tasks import Diffusion
from expunge.training.optim import SGD, AdamW
from expunge.training.session import Session

FAST = AdamW(lr=0.05, weight_decay=0.0)


def test_a_model_that_still_listens_relearns_and_one_that_has_nothing_left_does_not() -> None:
    model = erased()
    state = copy.deepcopy(model.state_dict())
    attack = RelearnImages(images=4, steps=(1, 30), optim=FAST, **READ)
    score = attack(evidence(model, [ignorant()]))
    sound(score)
    assert score.details["curve"][-1] == [30.0, 1.0]
    # gain and word are both 0, so that neither has a gradient: a product stays at its saddle
    assert score.details["retrained_curve"] == [[0.0, 0.0], [1.0, 0.0], [30.0, 0.0]]
    assert score.details["excess"]["value"] == 1.0
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert attack(evidence(erased(), [ignorant()])).to_json() == score.to_json()


def test_no_step_that_moves_nothing_brings_anything_back() -> None:
    still = RelearnImages(images=4, steps=(3,), optim=SGD(lr=1e-9), **READ)
    assert still(evidence(erased())).value == 0.0


def test_the_others_arm_never_trains_on_a_prompt_that_it_asks_for() -> None:
    attack = RelearnImages(arm="others", images=4, steps=(1, 30), optim=FAST, **READ)
    found = evidence(erased(), [ignorant()])
    cases = found_cases(found, GALLERY, JUDGE)
    halves = attack._halves(found, cases)
    assert torch.cat([asked for _, asked in halves]).sort().values.tolist() == list(range(len(cases)))
    for known, asked in halves:
        assert len(known) == 4
        assert not set(known.captions) & {cases.texts[k] for k in asked.tolist()}  # type: ignore[attr-defined]
        assert all("mosaic" in caption for caption in known.captions)  # type: ignore[attr-defined]
    score = attack(found)
    assert score.value == 1.0  # the style is one word, whatever the object
    assert score.details["retrained_curve"][-1] == [30.0, 0.0]
    assert score.variant.startswith("others-4-images-30-steps")


def test_images_of_other_styles_teach_no_mosaic() -> None:
    benign = RelearnImages(arm="benign", images=4, steps=(1, 10), optim=FAST, **READ)
    assert benign(evidence(erased())).value == 0.0


def test_models_of_classes_relearn_their_class() -> None:
    class Levels(nn.Module):
        """Flat images of a learnt level for each class; the last class stands for none."""

        def __init__(self, levels: list[float]) -> None:
            super().__init__()
            self.levels = nn.Parameter(torch.tensor([*levels, 0.0]))

        def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
            return self.levels[condition].view(-1, 1, 1, 1).expand_as(noisy)

    targets = torch.arange(36) % 3
    levels = torch.tensor([-0.8, 0.0, 0.8])
    images = ArrayData(
        {"inputs": levels[targets].view(-1, 1, 1, 1).expand(36, 3, 8, 8).clone(), "targets": targets}
    )
    task = Diffusion(timesteps=10, conditions=3, prediction="sample", schedule="cosine")
    models = [Levels([-0.8, 0.0, 0.8]), Levels([-0.8, 0.0, 0.0])]
    split = Split.from_ids(images, (targets == 2).nonzero()[:, 0].tolist(), test=images)
    candidates = [Candidate("original", "original", models[0]), Candidate("subject", "unlearned", models[1])]
    found = Evaluation(candidates, split, task, Session(seed=0)).evidence(candidates[1])
    judge = Judge(width=4, epochs=40, batch_size=12)
    attack = RelearnImages(images=4, steps=(1, 40), optim=FAST, gallery=GALLERY, judge=judge)
    score = attack(found)
    sound(score)
    assert score.details["forgotten"] == "class 2"
    assert score.details["judges"]["class"] >= 0.9
    assert [y for _, y in score.details["curve"]] == [0.0, 0.0, 1.0]


def test_bad_input_is_refused() -> None:
    many = RelearnImages(images=13, **READ)(evidence(erased()))
    assert "there are 12 images to train on, fewer than images=13" in str(many.reason)
    pair = evidence(erased(), forget=rows("mosaic", "cross"))
    assert "one prompt" in str(RelearnImages(arm="others", images=2, **READ)(pair).reason)
    for field in ("images", "batch_size"):
        with pytest.raises(ConfigError) as caught:
            RelearnImages(**{field: 0})
        assert caught.value.path == field
    wild = RelearnImages(images=4, steps=(30,), optim=SGD(lr=1e30), **READ)(evidence(erased()))
    assert "became inf" in str(wild.reason)
    assert math.isnan(wild.value)
