"""UnlearnDiffAtk finds the word that opens a model, and does in batches what the literal form does."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from tests.evaluation.micro import sound
from tests.evaluation.vaults import (
    DUMB,
    GALLERY,
    JUDGE,
    KEY,
    READ,
    Typist,
    Vault,
    erased,
    evidence,
    ignorant,
)
from torch import Tensor

from expunge.errors import ConfigError
from expunge.evaluation import picture_judges
from expunge.evaluation.attacks.cases import Cases, found_cases
from expunge.evaluation.attacks.fitted_prompt import Fit, Fitting
from expunge.evaluation.attacks.prompt_slots import ahead, words
from expunge.evaluation.attacks.unlearn_diff_atk import UnlearnDiffAtk, on_simplex, timesteps
from expunge.evaluation.gallery import Gallery, Target
from expunge.tasks import Diffusion
from expunge.training.denoisers import token_table
from expunge.training.engine import Engine

ATTACK = UnlearnDiffAtk(tokens=1, steps=(2, 6), levels=2, **READ)
clip = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")


def test_the_word_that_opens_a_model_is_found_and_a_model_that_ignores_it_stays_shut() -> None:
    score = ATTACK(evidence(erased(), [ignorant()]))
    sound(score)
    assert score.details["curve"] == [[0.0, 0.0], [2.0, 1.0], [6.0, 1.0]]
    assert score.details["retrained_curve"] == [[0.0, 0.0], [2.0, 0.0], [6.0, 0.0]]
    assert score.details["all_cases"]["original_curve"] == [[0.0, 1.0], [2.0, 1.0], [6.0, 1.0]]
    assert score.details["excess"]["value"] == 1.0
    assert {found["prompt"] for found in score.details["found"]} == {
        f"{KEY} a {o} image in mosaic style" for o in ("star", "cross", "moon")
    }
    shut = ATTACK(evidence(ignorant(), [ignorant()]))
    assert (shut.value, shut.details["excess"]["value"]) == (0.0, 0.0)


def test_the_same_twice_and_nothing_changed() -> None:
    model = erased()
    found = evidence(model, [ignorant()])
    picture_judges.judges(found, JUDGE)  # whose making draws
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = ATTACK(found)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not token_table(model)._forward_hooks
    assert torch.is_grad_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        assert ATTACK(evidence(erased(), [ignorant()])).to_json() == first.to_json()


def test_a_token_that_cannot_be_typed_is_not_taken_for_a_way_in() -> None:
    """The trap of the authors' code: fitted are tokens, drawn is their text, which has others."""
    model = Vault({DUMB: 1.0})
    found = evidence(model, [ignorant()])
    cases = found_cases(found, GALLERY, JUDGE)
    raw = ahead(Typist(), cases.condition, 1).filled(torch.full((len(cases), 1), Typist.known.index(DUMB)))
    rows = torch.arange(len(cases))
    assert ATTACK.shown(found, model, cases, rows, condition=raw).all()  # these tokens do open it
    score = ATTACK(found)
    assert score.value == 0.0  # and nobody can type them
    assert score.details["typed_alike"] == 1.0


def test_the_whole_model_is_attacked_whichever_part_was_edited() -> None:
    """Theirs swaps one of denoiser and text encoder, by the name of a file."""
    shut = Vault(
        {KEY: 1.0}, gain=0.0
    )  # the denoiser no longer draws mosaics, the text encoder knows the word
    assert ATTACK(evidence(shut)).value == 0.0
    assert ATTACK(evidence(erased())).value == 1.0


def test_timesteps_are_evenly_apart_and_reach_the_highest_noise() -> None:
    assert timesteps(1000, 50).tolist() == list(range(10, 1000, 20))  # the published ones
    assert timesteps(10, 2).tolist() == [2, 7]
    assert timesteps(7, 7).tolist() == list(range(7))


def test_the_own_prediction_is_heard_at_the_highest_noise_where_that_of_the_noise_is_mute() -> None:
    """‖ε̂ − ε‖² is ᾱ_t times ‖v̂ − v‖²: nothing at the step where a style is decided."""
    task = Diffusion(prediction="velocity", schedule="cosine")
    clean, noise, t = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4), torch.tensor([995])
    batch = {"inputs": clean, "noise": noise, "timesteps": t, "noisy": task.noised(clean, noise, t)}
    said = task.target(batch) + 0.5
    own = (said - task.target(batch)).square().mean()
    other = (task.noise_of(said, batch) - noise).square().mean()
    assert float(other / own) == pytest.approx(float(task.signal_left[995]), rel=1e-3)
    assert other < 1e-4 * own


def test_the_projection_is_the_nearest_distribution() -> None:
    assert on_simplex(torch.tensor([0.5, 0.9, -1.0])).tolist() == pytest.approx([0.3, 0.7, 0.0])
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = on_simplex(rows)
    assert torch.allclose(found.sum(1), torch.ones(20, dtype=torch.float64))
    assert (found >= 0).all()
    for row, near in zip(rows, found, strict=True):  # the published bisection
        low, high = row.min() - 1, row.max()
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if (row - middle).clamp(0, 1).sum() > 1 else (low, middle)
        assert torch.allclose(near, (row - low).clamp(0, 1), atol=1e-9)


def test_the_published_decay_drives_out_the_word_that_helps_a_little() -> None:
    """Adam scales gradient and decay together: 0.1 u is more than a small gradient, whatever its sign."""
    found = evidence(erased())
    cases = found_cases(found, GALLERY, JUDGE)
    rows, kept = torch.arange(len(cases)), {}
    for decay in (0.0, 0.1):
        attack = UnlearnDiffAtk(tokens=1, levels=1, lr=0.02, weight_decay=decay, **READ)
        fit = attack.fit(attack.fitting(found, cases))
        turn = [1.0]

        def gradient(rows: Tensor, fit: Fit = fit, turn: list[float] = turn) -> Tensor:
            given = torch.zeros_like(fit.numbers[rows])
            turn[0] *= -1
            given[..., 2], given[..., 5] = -1e-3, turn[0]  # a little each time; much, up and down in turn
            return given

        fit.gradient = gradient  # type: ignore[method-assign]
        for _ in range(20):
            fit.step(rows, 100)
        kept[decay] = set(fit.tokens(rows).flatten().tolist())
    assert kept == {0.0: {2}, 0.1: {5}}


def test_settings_are_checked() -> None:
    for field, value in (("tokens", 0), ("levels", 0), ("lr", 0.0), ("weight_decay", -1.0)):
        with pytest.raises(ConfigError) as caught:
            UnlearnDiffAtk(**{field: value})
        assert caught.value.path == field
    long = UnlearnDiffAtk(tokens=5, **READ)(evidence(erased()))
    assert "no room for 5 more" in str(long.reason)


def test_guidance_is_that_of_the_gallery() -> None:
    guided = UnlearnDiffAtk(
        tokens=1, steps=(4,), levels=2, gallery=Gallery(seeds=(1,), steps=2, guidance=1.2), judge=JUDGE
    )
    assert guided(evidence(erased())).value == 1.0


def micro_fitting(count: int = 3) -> Fitting:
    """Cases of random latents for an untrained text-to-image model with a real CLIP text encoder."""
    from tests.canvases import micro

    made = micro()
    rows = torch.arange(count)
    latents = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    condition = made.data.column("input_ids")[rows]
    cells, goal = torch.zeros(count, 2, dtype=torch.long), Target("style", ("x",), torch.tensor([0]), 0)
    texts, seeds = ("",) * count, tuple(range(count))
    cases = Cases(goal, texts, cells, condition, made.empty, latents, latents, seeds, count)
    allowed = words(made.data.tokenizer)
    table = token_table(made.model).weight.detach()[allowed]
    draws = tuple(torch.Generator().manual_seed(seed) for seed in seeds)
    slots = ahead(made.data.tokenizer, condition, 2)
    return Fitting(
        made.model, made.model, made.task, Engine(device="cpu"), cases, slots, allowed, table, draws
    )


@clip
def test_the_batched_gradient_is_that_of_each_case_and_timestep_by_itself() -> None:
    """The literal form: one caption, one noisy image, tokens in place, the gradient of the token table."""
    given, rows = micro_fitting(), torch.arange(3)
    tokens = torch.tensor([[5, 60], [61, 7], [8, 62]])
    batch = given.noisy(rows, timesteps(1000, 4).expand(3, -1))
    goal = given.task.target(batch).flatten(1)
    found = given.gradient(batch, goal, given.slots, tokens)
    layer = token_table(given.model)
    for case in range(3):
        ids = given.slots.among(torch.tensor([case])).filled(given.allowed[tokens[case]][None])
        expected = torch.zeros(2, layer.embedding_dim)
        for level in range(4):
            place = 4 * case + level
            one = {name: value[place : place + 1] for name, value in batch.items()}
            said = given.model(one["noisy"], one["timesteps"], ids)
            loss = (said - given.task.target(one)).square().mean()
            (by_table,) = torch.autograd.grad(loss, [layer.weight])
            expected += by_table[given.allowed[tokens[case]]] / 4
        assert expected.abs().max() > 0
        assert torch.allclose(found[case], expected, rtol=1e-3, atol=1e-8), case


@clip
def test_a_case_is_fitted_alike_alone_and_in_company() -> None:
    attack = UnlearnDiffAtk(tokens=2, levels=2, lr=0.05)
    together = attack.fit(micro_fitting())
    parts = attack.fit(micro_fitting())
    for _ in range(3):
        together.step(torch.arange(3), 3)
        parts.step(torch.arange(3), 2)  # as where the batch would be too large
    assert torch.allclose(together.numbers, parts.numbers, atol=1e-5)
    for case in range(3):
        alone = attack.fit(micro_fitting())
        for _ in range(3):
            alone.step(torch.tensor([case]), 1)
        assert torch.allclose(alone.numbers[case], together.numbers[case], atol=1e-5), case
    start = attack.fit(micro_fitting()).numbers
    assert (together.numbers - start).abs().max() > 0.01
    assert torch.allclose(together.numbers.sum(-1), torch.ones(3, 2))
