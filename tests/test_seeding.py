import random

import numpy as np
import pytest
import torch

from expunge import seeding


def _draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def _states():
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()


def test_the_same_seed_gives_the_same_numbers_in_all_three_libraries():
    draws = []
    for seed in (3, 3, 4):
        with seeding.seeded(seed):
            draws.append(_draw())
    assert draws[0] == draws[1]
    assert all(first != other for first, other in zip(draws[0], draws[2], strict=True))


def test_the_callers_generators_go_on_where_they_were():
    before = _states()
    with seeding.seeded(0):
        _draw()
    assert _states() == before


def test_they_do_so_after_an_error_too():
    before = _states()
    with pytest.raises(ZeroDivisionError), seeding.seeded(0):
        _draw(), 1 / 0
    assert _states() == before


def test_blocks_nest():
    with seeding.seeded(1):
        plain = _draw(), _draw()
    with seeding.seeded(1):
        first = _draw()
        with seeding.seeded(2):
            _draw()
        second = _draw()
    assert (first, second) == plain


def test_derived_seeds_are_what_they_always_were():
    assert seeding.derive(0) == 0x5FECEB66FFC86F38 >> 1  # the first 64 bits of SHA-256 of "0"


@pytest.mark.parametrize("names", [(), ("train",), ("retrain", 1), ("a" * 1000,)])
def test_derived_seeds_fit_every_generator(names):
    for seed in (0, 1, 2**62, -5):
        derived = seeding.derive(seed, *names)
        assert 0 <= derived < 2**63
        with seeding.seeded(derived):
            _draw()


def test_every_purpose_has_a_seed_of_its_own():
    purposes = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a", 1), ("a", 11), ("a", 1, 1)]
    seeds = {seeding.derive(seed, *names) for seed in (0, 1, 11) for names in purposes}
    assert len(seeds) == 3 * len(purposes)


def test_a_generator_is_seeded_with_the_derived_seed():
    expected = torch.Generator().manual_seed(seeding.derive(5, "draws"))
    assert torch.equal(
        torch.rand(4, generator=seeding.generator(5, "draws")), torch.rand(4, generator=expected)
    )
