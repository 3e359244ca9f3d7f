"""HySAC: seven terms and their weights by hand, the order it learns, and redirection by geodesic distance."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from expunge.data import ArrayData, Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.gradient.hysac import HySAC
from expunge.tasks import Classification, ImageText
from expunge.training import hyperbolic as h
from expunge.training.clip_models import HyperbolicPair
from expunge.training.engine import Engine
from expunge.training.optim import AdamW
from expunge.training.session import Session
from expunge.training.step import Step

SESSION = Session(seed=0, engine=Engine(device="cpu"))
TASK = ImageText()


class Encoders(nn.Module):
    """Linear features of images and a table of tokens for captions."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(4, 3), nn.Embedding(16, 3)

    def image_features(self, images):
        return self.image(images)

    def text_features(self, input_ids):
        return self.text(input_ids).mean(1)

    def forward(self, images, input_ids):
        return self.image_features(images) @ self.text_features(input_ids).T


def encoders():
    torch.manual_seed(0)
    return Encoders().eval()


def split(count=8):
    draws = torch.Generator().manual_seed(0)
    safe, ids = torch.randn(count, 4, generator=draws), torch.arange(count)[:, None]
    columns = {"inputs": safe + 0.3, "input_ids": ids + 8, "safe.inputs": safe, "safe.input_ids": ids}
    return Split.from_ids(ArrayData(columns), range(count - 2))


def method(**fields):
    return HySAC(**{"epochs": 2, "batch_size": 6, "optim": AdamW(lr=0.02, weight_decay=0.0), **fields})


class View:
    def __init__(self, batch):
        self.batch = batch


def step_of(model, data):
    batch = next(data.batches([torch.arange(len(data))], device="cpu"))
    return Step("forget", {"forget": View(batch)}, model, 0, 0, 1, SESSION.engine), batch


def test_the_seven_terms_by_hand():
    model = HyperbolicPair(encoders(), 3)
    step, batch = step_of(model, split().forget)
    found = {name: value.item() for name, value in method(entailment=0.5).objective(step).items()}
    c, alpha, rows = torch.tensor(1.0), 3**-0.5, torch.arange(6)
    V = {kind: h.exp_root(alpha * model.pair.image_features(batch[f"{name}inputs"]), c)
         for kind, name in (("s", "safe."), ("u", ""))}  # fmt: skip
    T = {kind: h.exp_root(alpha * model.pair.text_features(batch[f"{name}input_ids"]), c)
         for kind, name in (("s", "safe."), ("u", ""))}  # fmt: skip
    cross = nn.functional.cross_entropy
    expected = {}
    for shown, told in ("ss", "uu", "us", "su"):
        scores = -h.distances(V[shown], T[told], c) / 0.07
        expected[f"contrast_{shown}{told}"] = float(cross(scores, rows) + cross(scores.T, rows)) / 2 / 5.5
    for name, x, y in (("safe", T["s"], V["s"]), ("unsafe", T["u"], V["u"]), ("order", V["s"], T["u"])):
        outside = (h.angle(x, y, c) - h.aperture(x, c, 0.1)).clamp(min=0)
        expected[f"entail_{name}"] = 0.5 * float(outside.mean()) / 5.5
    assert found == pytest.approx(expected, rel=1e-4)
    assert len(found) == 7


def test_the_weights_add_up_to_one_whatever_the_entailments():
    step, _ = step_of(HyperbolicPair(encoders(), 3), split().forget)
    for weight in (0.0, 0.2, 3.0):
        terms = method(entailment=weight).objective(step)
        plain = method(entailment=1.0).objective(step)
        for name, value in terms.items():
            own = weight if name.startswith("entail") else 1.0
            assert float(value) == pytest.approx(float(plain[name]) * 7 * own / (4 + 3 * weight), rel=1e-5)


@pytest.fixture(scope="module")
def trained():
    return method(epochs=120, entailment=1.0).unlearn(encoders(), split(), TASK, SESSION)


def points(model, part, *, redirect=False):
    with torch.no_grad():
        images, ids = (part.column(name) for name in ("inputs", "input_ids"))
        return model.embed_images(images, redirect=redirect), model.embed_texts(ids, redirect=redirect)


def safe(model, part):
    with torch.no_grad():
        return model.embed_images(part.column("safe.inputs")), model.embed_texts(
            part.column("safe.input_ids")
        )


def test_it_learns_the_order_from_the_root(trained):
    part = split().forget
    (shown, told), (safe_shown, safe_told) = points(trained, part), safe(trained, part)
    depth = [float(h.from_root(x, trained.curvature).mean()) for x in (safe_told, safe_shown, told, shown)]
    assert depth[0] < depth[1] < depth[2]  # safe text, safe image, unsafe text
    before = HyperbolicPair(encoders(), 3)

    def outside(model):
        shown, _ = safe(model, part)
        _, told = points(model, part)
        return float(method().entail(shown, told, model.curvature))

    assert outside(trained) < 0.5 * outside(before)


def test_redirection_is_to_the_geodesic_bound_for_many_points_at_once(trained):
    part, c = split().forget, trained.curvature.detach()
    safe_shown, safe_told = safe(trained, part)
    for bound, of in ((trained.image_bound, safe_shown), (trained.text_bound, safe_told)):
        assert torch.isclose(bound, h.from_root(of, c).quantile(0.95))
    strict = copy.deepcopy(trained)
    method(quantile=0.5).bound(strict, split(), TASK, SESSION)  # so that several points lie outside
    _, told = points(strict, part)
    _, moved = points(strict, part, redirect=True)
    outside = h.from_root(told, c) > strict.text_bound
    assert 1 < outside.sum() < len(told)
    assert torch.allclose(h.from_root(moved[outside], c), strict.text_bound.expand(int(outside.sum())))
    assert torch.equal(moved[~outside], told[~outside])
    norms = moved[outside].norm(dim=-1)  # what the published code makes equal to the bound
    assert not torch.isclose(norms, strict.text_bound, rtol=1e-3).any()


def test_curvature_and_scales_stay_in_their_ranges():
    model = HyperbolicPair(encoders(), 3)
    assert float(model.log_image.exp()) == pytest.approx(3**-0.5)
    for value, expected in ((9.0, 10.0), (-9.0, 0.1)):
        model.log_curvature.data.fill_(value)
        assert float(model.curvature) == pytest.approx(expected)
    model.log_curvature.data.zero_()
    found = []
    for value in (0.0, 2.0):
        model.log_image.data.fill_(value)
        found.append(model.embed_images(torch.ones(1, 4)))
    assert torch.equal(*found)


def test_the_original_stays_and_the_result_can_be_saved_and_read():
    model = encoders()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = method().unlearn(model, split(), TASK, SESSION)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    blank = method().blank(encoders(), split())
    blank.load_state_dict(result.state_dict())
    assert torch.equal(blank.image_bound, result.image_bound)
    assert not torch.equal(result.pair.text.weight, before["text.weight"])


def test_it_runs_on_a_pair_of_transformers():
    pytest.importorskip("transformers")
    from expunge.training.clip_models import ClipPairSpec

    model = ClipPairSpec(vocabulary=16, context=4, image_size=8, width=8, heads=2, layers=1)()
    draws = torch.Generator().manual_seed(0)
    images, ids = torch.rand(4, 3, 8, 8, generator=draws), torch.randint(0, 15, (4, 4), generator=draws)
    ids[:, -1] = 15
    columns = {
        "inputs": images,
        "input_ids": ids,
        "safe.inputs": images.flip(0),
        "safe.input_ids": ids.flip(0),
    }
    parts = Split.from_ids(ArrayData(columns), range(3))
    result = method(batch_size=3).unlearn(model, parts, TASK, SESSION)
    assert result(images, ids).shape == (4, 4)
    assert float(result.text_bound) > 0


def test_bad_input_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        method().check(split(), Classification(2))
    plain = Split.from_ids(ArrayData({"inputs": torch.zeros(3, 4), "input_ids": torch.zeros(3, 1)}), [0])
    with pytest.raises(Unsupported, match="Give a column 'safe.inputs'"):
        method().check(plain, TASK)
    with pytest.raises(Unsupported, match="Give a ClipPair"):
        method().unlearn(nn.Linear(4, 3), split(), TASK, SESSION)
    for field in ({"entailment": -1.0}, {"constant": 0.0}, {"quantile": 1.5}):
        with pytest.raises(ConfigError):
            method(**field)
