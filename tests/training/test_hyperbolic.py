"""Identities of the Lorentz model."""

import math

import pytest
import torch

from expunge.training import hyperbolic as h


def points(count=5, scale=1.0):
    return scale * torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


CURVATURES = [torch.tensor(value, dtype=torch.float64) for value in (0.1, 1.0, 4.0)]
every_curvature = pytest.mark.parametrize("c", CURVATURES)


@every_curvature
def test_the_two_maps_undo_each_other_and_land_on_the_hyperboloid(c):
    v = points()
    x = h.exp_root(v, c)
    assert torch.allclose(h.log_root(x, c), v)
    assert torch.allclose(h.product(x, x, c), -1 / c.expand(5))
    assert torch.equal(h.exp_root(torch.zeros(1, 3), torch.tensor(1.0)), torch.zeros(1, 3))


@every_curvature
def test_a_tangent_vectors_length_is_the_distance_from_the_root(c):
    v = points()
    x, root = h.exp_root(v, c), torch.zeros(1, 3, dtype=torch.float64)
    assert torch.allclose(h.from_root(x, c), v.norm(dim=-1))
    assert torch.allclose(h.distances(x, root, c)[:, 0], v.norm(dim=-1), atol=1e-4)


@every_curvature
def test_distances_are_symmetric_obey_the_triangle_and_add_up_along_a_ray(c):
    x = h.exp_root(points(), c)
    d = h.distances(x, x, c)
    assert torch.allclose(d, d.T)
    assert (d[:, None, :] <= d[:, :, None] + d[None] + 1e-6).all()
    direction = torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64)
    near, far = h.exp_root(0.5 * direction, c), h.exp_root(2.0 * direction, c)
    assert h.distances(near, far, c).item() == pytest.approx(1.5, rel=1e-4)


def test_a_distance_by_hand():
    """``c = 1``: ``cosh d = √2 √5 − 1 · 2`` of the points 1 and 2 on a line."""
    x, y = torch.tensor([[1.0]]).double(), torch.tensor([[2.0]]).double()
    expected = math.acosh(math.sqrt(10) - 2)
    assert h.distances(x, y, CURVATURES[1]).item() == pytest.approx(expected)


@every_curvature
def test_the_angle_is_nothing_beyond_and_a_half_turn_before(c):
    direction = torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64)
    near, far = h.exp_root(0.5 * direction, c), h.exp_root(2.0 * direction, c)
    assert h.angle(near, far, c).item() < 0.01
    assert h.angle(far, near, c).item() > math.pi - 0.01


def test_the_angle_is_that_of_the_tangents():
    """At ``x`` between ``log_x y`` and the way on from the root, ``−log_x(root)``."""
    c = CURVATURES[1]
    x, y = h.exp_root(points(2), c)
    full = torch.cat([h.time(x, c)[None], x]), torch.cat([h.time(y, c)[None], y])
    root = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)

    def inner(a, b):
        return (a[1:] * b[1:]).sum() - a[0] * b[0]

    def towards(p, q):
        found = q + inner(p, q) * p
        return found / inner(found, found).sqrt()

    expected = torch.acos(inner(towards(full[0], full[1]), -towards(full[0], root)))
    assert h.angle(x, y, c).item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_cone_closes_with_distance():
    x = torch.tensor([[0.2], [0.4], [2.0]], dtype=torch.float64)
    expected = [math.pi / 2, math.asin(0.5), math.asin(0.1)]
    assert h.aperture(x, CURVATURES[1]).tolist() == pytest.approx(expected, abs=2e-3)


@every_curvature
def test_points_are_drawn_in_by_geodesic_distance_and_any_number_of_them(c):
    v = points(6, 2.0)
    x, bound = h.exp_root(v, c), torch.tensor(2.5, dtype=torch.float64)
    moved = h.drawn_in(x, bound, c)
    outside = v.norm(dim=-1) > bound
    assert 0 < outside.sum() < 6
    assert torch.equal(moved[~outside], x[~outside])
    assert torch.allclose(h.from_root(moved[outside], c), bound)
    cosine = torch.nn.functional.cosine_similarity(moved, x)
    assert torch.allclose(cosine, torch.ones_like(cosine))
    published = x / x.norm(dim=-1, keepdim=True) * bound  # the bound as a Euclidean norm
    assert not torch.allclose(h.from_root(published, c), bound, rtol=0.01)


def test_gradients_are_finite_where_they_could_blow_up():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    c = torch.tensor(1.0, requires_grad=True)
    y = h.exp_root(x, c)
    total = h.distances(y, y, c).sum() + h.angle(y[:1], 2 * y[:1], c).sum() + h.aperture(y[:1], c, 5.0).sum()
    total.backward()
    assert torch.isfinite(x.grad[0]).all()
    assert torch.isfinite(c.grad)
