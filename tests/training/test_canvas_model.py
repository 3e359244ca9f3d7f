"""The trained text-to-image model that slow tests share draws what it is told."""

import pytest
import torch

from expunge.data.captions import tokenise
from expunge.training.sampling import noise, sample


@pytest.mark.slow
def test_images_are_nearest_to_training_images_of_the_style_that_was_asked_for(trained_canvas):
    canvas, each = trained_canvas, 5
    prompts = [prompt for prompt in canvas.source.prompts() for _ in range(each)]
    start = noise(canvas.model.latent_shape, range(len(prompts)))
    ids = tokenise(canvas.data.tokenizer, prompts)
    found = sample(canvas.model, canvas.task, ids, empty=canvas.empty, start=start)
    known = canvas.data.column("inputs").flatten(1)
    nearest = torch.cdist(found.flatten(1), known).argmin(1)
    styles = torch.arange(9).repeat_interleave(each) // 3
    assert (canvas.data.column("style")[nearest] == styles).float().mean() > 0.9
