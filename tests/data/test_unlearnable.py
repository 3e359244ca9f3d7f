"""Unlearnable examples: what is added is what the equations say, bounded, counted, and labels stay."""

import pytest
import torch

from expunge import config
from expunge.data import Sourced, sources
from expunge.data.poison import Examples, manipulations
from expunge.data.unlearnable import CUDA, BayesError, Clusters, bayes_error, principal
from expunge.errors import ConfigError, DataError
from expunge.searches import searches
from expunge.tasks import Classification
from expunge.training.models import models
from expunge.training.optim import AdamW
from expunge.training.recipe import Recipe, Training
from expunge.training.session import Session

KINDS = ["cuda", "clusters", "bayes_error"]


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 60, classes: int = 3, channels: int = 2) -> Examples:
    return Examples(torch.rand(n, channels, 5, 5, generator=draw(1)), torch.arange(n) % classes, classes)


def poisoned(manipulation: dict[str, object], source: object = "digits") -> Sourced:
    return config.build(sources, {"kind": "poisoned", "source": source, "manipulation": manipulation}).load()


def test_kernels_have_one_entry_of_one_and_the_others_below_the_blur() -> None:
    kernels = CUDA(blur=0.3).kernels(50, draw()).flatten(1)
    assert ((kernels == 1).sum(1) == 1).all()
    rest = kernels[kernels != 1]
    assert 0 <= rest.min() < 0.02 < 0.28 < rest.max() <= 0.3
    assert rest.mean() == pytest.approx(0.15, abs=4 * 0.3 / 12**0.5 / 400**0.5)
    assert len((kernels == 1).nonzero()[:, 1].unique()) > 5  # anywhere, not in the middle alone
    assert torch.equal(kernels, CUDA(blur=0.3).kernels(50, draw()).flatten(1))


def test_a_picture_is_filtered_by_the_kernel_of_its_class_in_every_channel() -> None:
    """The filter written out: ``y[r, c] = Σ k[a, b] x[r + a − 1, c + b − 1]`` with zeros around."""
    clean = pictures(6)
    kernels = CUDA().kernels(3, draw())
    padded = torch.zeros(6, 2, 7, 7)
    padded[:, :, 1:-1, 1:-1] = clean.inputs
    expected = torch.zeros(6, 2, 5, 5)
    for i in range(6):
        for a in range(3):
            for b in range(3):
                expected[i] += kernels[i % 3, a, b] * padded[i, :, a : a + 5, b : b + 5]
    found, rows = CUDA().apply(clean, draw())
    assert torch.allclose(found.inputs, expected * clean.inputs.max() / expected.max(), atol=1e-6)
    assert rows.tolist() == list(range(6))
    assert found.inputs.max() == pytest.approx(float(clean.inputs.max()))


def test_one_constant_keeps_the_brightness_that_a_maximum_of_each_picture_takes_away() -> None:
    """One picture is the other at a tenth of its brightness: by its own maximum it becomes the same."""
    bright = torch.rand(1, 1, 5, 5, generator=draw(1))
    clean = Examples(torch.cat([bright, 0.1 * bright]), torch.zeros(2).long(), 1)
    constant, image = (CUDA(scale=scale).apply(clean, draw())[0].inputs for scale in ("constant", "image"))
    assert torch.allclose(constant[1], 0.1 * constant[0], atol=1e-6)
    assert torch.allclose(image[1], image[0], atol=1e-6)


def test_bytes_are_rounded_and_not_cut_off() -> None:
    clean = pictures()
    as_bytes = Examples((clean.inputs * 255).to(torch.uint8), clean.targets, 3)
    exact = CUDA().apply(Examples(as_bytes.inputs.float() / 255, clean.targets, 3), draw())[0].inputs * 255
    found = CUDA().apply(as_bytes, draw())[0].inputs
    assert found.dtype == torch.uint8
    assert (found.float() - exact).abs().max() <= 0.5 + 1e-3
    assert abs(float((found.float() - exact).mean())) < 0.1  # cut off it would be −0.5


def test_a_network_learns_the_filters_and_fails_on_clean_digits() -> None:
    spec = {"kind": "mlp", "inputs": 64, "outputs": 10, "hidden": [32]}
    training = Training(epochs=8, batch_size=64, optim=AdamW(lr=5e-3))
    recipe = Recipe(config.build(models, spec), Classification(10), training)
    scores = []
    for found in (config.build(sources, "digits").load(), poisoned({"kind": "cuda"})):
        model = recipe.train(found.train, Session(0))
        right = model(found.test.column("inputs")).argmax(1) == found.test.column("targets")
        scores.append(float(right.float().mean()))
    clean, protected = scores
    assert clean > 0.85
    assert protected < clean - 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_rows_change_alone_their_labels_stay_and_a_search_finds_them(kind: str) -> None:
    steps = {} if kind == "cuda" else {"steps": 3}
    manipulation = {"kind": kind, "classes": [1, 4], "count": 30, **steps}
    found, clean = poisoned(manipulation), config.build(sources, "digits").load()
    marked = found.train.column("manipulated") == 1
    assert int(marked.sum()) == 30
    assert torch.isin(found.train.column("targets")[marked], torch.tensor([1, 4])).all()
    assert torch.equal(found.train.column("targets"), clean.train.column("targets"))
    changed = (found.train.column("inputs") != clean.train.column("inputs")).flatten(1).any(1)
    assert torch.equal(changed, marked)
    affected = found.test.column("affected") == 1
    assert torch.equal(affected, torch.isin(found.test.column("targets"), torch.tensor([1, 4])))
    assert found.train.fingerprint() == poisoned(manipulation).train.fingerprint()
    search = config.build(searches, {"kind": "manipulated"})
    ids = search._manipulated(found.train)
    assert torch.equal(ids, marked.nonzero()[:, 0])


@pytest.mark.parametrize("cls", [Clusters, BayesError])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_no_number_moves_by_more_than_the_bound_or_leaves_the_range(cls, scale) -> None:
    draws = draw(3)
    clean = Examples(scale * (torch.randn(80, 6, generator=draws) - 0.5), torch.arange(80) % 3, 3)
    found, _ = cls(epsilon=0.05, steps=5).apply(clean, draw())
    low, high = clean.inputs.min(), clean.inputs.max()
    moved = (found.inputs - clean.inputs).abs()
    assert moved.max() <= 0.05 * (high - low) * (1 + 1e-4)
    assert moved.max() > 0.04 * (high - low)
    assert found.inputs.min() >= low
    assert found.inputs.max() <= high


def blobs(n: int = 120, distance: float = 4.0) -> Examples:
    """Three round classes in the plane, at the corners of a triangle."""
    targets = torch.arange(n) % 3
    corners = distance * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.9]])
    return Examples(corners[targets] + 0.3 * torch.randn(n, 2, generator=draw(2)), targets, 3)


def test_every_cluster_gets_one_change_whatever_the_labels() -> None:
    clean = blobs()
    method = Clusters(clusters=3, offset=1, components=2, epsilon=0.2, steps=20)
    change = method.apply(clean, draw())[0].inputs - clean.inputs
    inner = (clean.inputs > clean.inputs.min() + 1.5) & (clean.inputs < clean.inputs.max() - 1.5)
    for label in range(3):  # the clusters are the classes here; where the range is not left, one change
        for axis in range(2):
            own = change[(clean.targets == label) & inner[:, axis], axis]
            assert len(own) < 2 or own.std() < 1e-5
    relabelled = Examples(clean.inputs, clean.targets.roll(1), 3)
    again = method.apply(relabelled, draw())[0].inputs - clean.inputs
    assert torch.equal(change, again)


def test_with_room_enough_the_mean_softmax_becomes_that_of_the_centre_a_cluster_is_sent_to() -> None:
    """Where no bound holds the change back, ``mean_i softmax(φ(x_i + δ))`` is the aim: the gradient is 0."""
    targets = torch.arange(80) % 4
    inputs = 4 * torch.eye(4)[targets] + 0.1 * torch.randn(80, 4, generator=draw(2))
    project = principal(inputs, 3)
    features = (inputs - inputs.mean(0)) @ project
    assert torch.allclose(features.T @ features / 80, torch.eye(3), atol=1e-3)
    method = Clusters(clusters=4, offset=1, components=3, steps=300)
    delta = method.perturbation(inputs, 20.0, targets, torch.arange(80), draw())
    aims = torch.stack([features[targets == label].mean(0) for label in range(4)]).softmax(-1)
    sent = []
    for label in range(4):
        said = (features + delta[targets == label][0] @ project).softmax(-1).mean(0)
        sent.append(int((aims - said).abs().amax(1).argmin()))
        assert torch.allclose(said, aims[sent[-1]], atol=0.03)
    assert sorted(sent) == [0, 1, 2, 3]  # a cycle through all of them
    assert all(aim != label for label, aim in enumerate(sent))


def test_the_estimated_error_is_zero_for_classes_apart_and_a_half_for_equal_ones() -> None:
    apart = blobs(distance=50.0)
    assert float(bayes_error(apart.inputs, apart.targets, 0.5, 10)) < 1e-6
    draws = draw(5)
    same = torch.randn(3000, 2, generator=draws)
    labels = torch.randint(2, (3000,), generator=draws)
    # a mean over many neighbours; the larger of two shares is 1/2 + √(1 / 2π n) on average
    assert float(bayes_error(same, labels, 50.0, 500)) == pytest.approx(
        0.5 - (1 / (6.28 * 500)) ** 0.5, abs=0.01
    )


def test_the_estimate_is_that_of_two_known_gaussians() -> None:
    """Means ``±1``, unit variance: the Bayes error is ``Φ(−1) = 0.1587``."""
    draws = draw(6)
    labels = torch.randint(2, (4000,), generator=draws)
    inputs = torch.randn(4000, 1, generator=draws) + (2.0 * labels - 1)[:, None]
    assert float(bayes_error(inputs, labels, 0.2, 200)) == pytest.approx(0.1587, abs=0.02)


def test_two_points_by_hand() -> None:
    """Neighbours at distances 1 and 2 of other classes: weights e^(−½) and e^(−2) under σ = 1."""
    inputs, labels = torch.tensor([[0.0], [1.0], [-2.0]]), torch.tensor([0, 1, 2])
    weight = torch.exp(torch.tensor([-0.5, -2.0]))
    first = 1 - float(weight[0] / weight.sum())
    weight = torch.exp(torch.tensor([-0.5, -4.5]))
    second = 1 - float(weight[0] / weight.sum())
    weight = torch.exp(torch.tensor([-2.0, -4.5]))
    third = 1 - float(weight[0] / weight.sum())
    assert float(bayes_error(inputs, labels, 1.0, 2)) == pytest.approx((first + second + third) / 3, rel=1e-5)


def test_moving_the_inputs_raises_the_estimated_error_more_than_noise_does() -> None:
    clean = blobs(distance=2.0)
    found, _ = BayesError(epsilon=0.2, steps=30).apply(clean, draw())
    bound = 0.2 * (clean.inputs.max() - clean.inputs.min())
    noise = clean.inputs + bound * torch.randn(clean.inputs.shape, generator=draw(7)).sign()
    errors = [float(bayes_error(x, clean.targets, 0.3, 10)) for x in (clean.inputs, noise, found.inputs)]
    assert errors[0] < 0.01
    assert errors[2] > 1.5 * errors[1]


@pytest.mark.parametrize(
    ("manipulation", "source", "said"),
    [
        ({"kind": "cuda"}, "blobs", r"images of shape \(N, C, H, W\)"),
        ({"kind": "cuda", "classes": [12]}, "digits", "no example of class 12"),
        ({"kind": "cuda", "classes": [3], "count": 2000}, "digits", r"2000 examples of the classes \[3\]"),
        ({"kind": "clusters", "clusters": 5000, "steps": 1}, "digits", "do not fall into 5000 clusters"),
        ({"kind": "bayes_error", "neighbours": 5000}, "digits", "have no 5000 neighbours"),
    ],
)
def test_data_that_cannot_be_protected_is_refused(manipulation, source, said) -> None:
    with pytest.raises(DataError, match=said):
        poisoned(manipulation, source)


@pytest.mark.parametrize(
    ("manipulation", "said"),
    [
        ({"kind": "cuda", "blur": 0.0}, "manipulation.blur"),
        ({"kind": "cuda", "size": 4}, "manipulation.size: is an odd number"),
        ({"kind": "cuda", "count": 0}, "manipulation.count"),
        ({"kind": "cuda", "classes": [1, 1]}, "manipulation.classes: holds a class twice"),
        ({"kind": "clusters", "offset": 10}, "manipulation.offset: 10 sends every one of 10 to itself"),
        ({"kind": "clusters", "clusters": 1}, "manipulation.clusters"),
        ({"kind": "clusters", "components": 0}, "manipulation.components"),
        ({"kind": "clusters", "sharpness": 0.0}, "manipulation.sharpness"),
        ({"kind": "clusters", "epsilon": 0.0}, "manipulation.epsilon"),
        ({"kind": "bayes_error", "steps": 0}, "manipulation.steps"),
        ({"kind": "bayes_error", "bandwidth": 0.0}, "manipulation.bandwidth"),
        ({"kind": "bayes_error", "neighbours": 0}, "manipulation.neighbours"),
    ],
)
def test_mistakes_in_the_configuration_have_their_place(manipulation, said) -> None:
    with pytest.raises(ConfigError, match=said):
        poisoned(manipulation)


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_comes_back(kind: str) -> None:
    built = config.build(manipulations, {"kind": kind, "classes": [2], "count": 4})
    assert config.build(manipulations, config.dump(built)) == built


def test_by_default_the_whole_training_set_is_protected() -> None:
    clean = pictures()
    assert CUDA().apply(clean, draw())[1].tolist() == list(range(60))
