"""UCE: the closed form against brute force, what it keeps, and which tokens stand for which."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.canvases import micro
from tests.methods.told import CLASSES, split, told
from torch import nn

from expunge.data import Split
from expunge.data.captions import tokenise
from expunge.errors import ConfigError, Unsupported
from expunge.methods.edits.uce import UCE, Texts
from expunge.methods.scopes.modules import Modules
from expunge.tasks import Classification
from expunge.training.cross_attention import cross_attention
from expunge.training.session import Session

SESSION = Session(seed=0)


def canvas_split():
    data = micro().data
    return Split.from_ids(data, data.ids[data.column("style") == 1])


def run(**fields):
    return UCE(**fields).unlearn(micro().model, canvas_split(), micro().task, SESSION)


def texts(**fields):
    kept = sorted({*canvas_split().retain.captions, ""})
    return UCE(**fields).texts(micro().model, canvas_split(), kept, SESSION)


def matrices(model):
    return [
        getattr(layer, end).weight.detach() for _, layer in cross_attention(model) for end in ("to_k", "to_v")
    ]


def by_brute_force(weight, said, values, erase, preserve, ridge):
    """The least squares problem itself, one row for each token and each column of the matrix."""
    rows = [
        erase**0.5 * said.concept,
        preserve**0.5 * said.kept,
        ridge**0.5 * torch.eye(weight.shape[1]).double(),
    ]
    wanted = [erase**0.5 * values, preserve**0.5 * said.kept @ weight.T, ridge**0.5 * weight.T]
    return torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)).solution.T


@pytest.mark.parametrize("technique", ["replace", "tensor"])
def test_every_matrix_is_the_least_squares_solution(technique):
    fields = {"technique": technique, "erase": 0.7, "preserve": 0.2, "ridge": 0.3}
    said, method = texts(**fields), UCE(**fields)
    edited = matrices(run(**fields))
    assert len(edited) == len(matrices(micro().model)) > 0
    for old, new in zip(matrices(micro().model), edited, strict=True):
        old = old.double()
        best = by_brute_force(old, said, method.values(old, said), 0.7, 0.2, 0.3)
        assert (new.double() - best).abs().max() < 1e-6
        assert (new.double() - old).abs().max() > 1e-4


def test_concept_tokens_read_as_the_anchors_and_preserved_outputs_stay(monkeypatch):
    """Where preserved tokens are orthogonal to the concept's: ``W' c = (e W a + λ W c) / (e + λ)``,
    ``W' k = W k``."""
    made, basis = micro(), torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    said = Texts(basis[:2].double(), basis[5:7].double(), basis[5:].double())
    monkeypatch.setattr(UCE, "texts", lambda *_: said)
    for old, new in zip(matrices(made.model), matrices(run(erase=2.0, ridge=0.5)), strict=True):
        old, new = old.double(), new.double()
        wanted = (2.0 * said.anchor @ old.T + 0.5 * said.concept @ old.T) / 2.5
        assert torch.allclose(said.concept @ new.T, wanted, atol=1e-6)
        assert torch.allclose(said.kept @ new.T, said.kept @ old.T, atol=1e-6)


def test_more_erasure_brings_the_concept_nearer_and_more_preservation_keeps_more():
    def away(fields, rows, wanted):
        new = matrices(run(**fields))
        return [
            float((rows @ n.double().T - wanted @ o.double().T).norm())
            for o, n in zip(matrices(micro().model), new, strict=True)
        ]

    said = texts()
    weak, strong = (away({"erase": e}, said.concept, said.anchor) for e in (0.01, 10.0))
    assert all(after < before for before, after in zip(weak, strong, strict=True))
    loose, tight = (away({"preserve": p}, said.kept, said.kept) for p in (0.0, 100.0))
    assert all(after < before for before, after in zip(loose, tight, strict=True))


def test_tensor_values_have_nothing_of_the_concepts_own():
    said = texts()
    weight = matrices(micro().model)[0].double()
    values = UCE(technique="tensor").values(weight, said)
    own = said.concept @ weight.T
    assert (values * own).sum(1).abs().max() < 1e-10
    assert not torch.allclose(values, UCE().values(weight, said))


def states(caption):
    made = micro()
    with torch.no_grad():
        return made.model.encode_text(tokenise(made.data.tokenizer, [caption]))[0].double()


def test_tokens_are_aligned_at_the_concepts_last_word_through_end_and_padding():
    """``<s> a circle image in mosaic style </s> …``: the concept is token 5 of 16."""
    said = texts()
    captions = ["a circle image in mosaic style", "a square image in mosaic style"]
    wanted = torch.cat([states(c)[5:] for c in captions])
    assert said.concept.shape == (2 * 11, 16)
    assert torch.allclose(said.concept, wanted, atol=1e-6)
    anchors = torch.cat([states(c.replace("mosaic", "sketch"))[5:] for c in captions])
    assert torch.allclose(said.anchor, anchors, atol=1e-6)


def test_an_anchor_of_more_tokens_is_aligned_at_its_own_last_word():
    said = texts(anchor="neon sketch")
    found = states("a circle image in neon sketch style")
    assert torch.allclose(said.anchor[:10], found[6:], atol=1e-6)
    assert torch.allclose(said.concept[:10], states("a circle image in mosaic style")[5:15], atol=1e-6)


def test_an_empty_anchor_is_aligned_at_the_end_of_the_text():
    """``<s> </s> …``: mosaic and style stand before it, and turn into the first token."""
    said, empty = texts(anchor="empty"), states("")
    rows = [0, 0, 1, *range(2, 10)]
    assert torch.allclose(said.anchor[:11], empty[rows], atol=1e-6)


def test_retained_captions_count_once_each_with_all_tokens():
    said = texts()
    kept = ["", "a circle image in sketch style", "a square image in sketch style"]
    assert torch.allclose(said.kept, torch.cat([states(c) for c in kept]), atol=1e-6)


def test_only_keys_and_values_of_captions_change():
    before, after = micro().model.state_dict(), run().state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {n for n in before if ".attn2.to_k." in n or ".attn2.to_v." in n}


def test_the_number_of_matrices_is_checked():
    count = len(matrices(micro().model))
    run(matrices=count)
    with pytest.raises(Unsupported, match=f"has {count} matrices .* not {count + 2}. Set matrices"):
        run(matrices=count + 2)
    with pytest.raises(Unsupported, match="has 0 matrices"):
        run(scope=Modules(patterns=("unet.conv_out",)))


def test_sums_in_half_precision_would_be_wrong_where_ours_solve_the_equations():
    said, old = texts(), matrices(micro().model)[0].double()

    def off(concept, anchor, kept):
        whole = 0.1 * kept.T @ kept + 0.01 * torch.eye(16).to(kept) + concept.T @ concept
        right = old.to(kept) @ (0.1 * kept.T @ kept + 0.01 * torch.eye(16).to(kept))
        right = right + old.to(kept) @ anchor.T @ concept
        return torch.linalg.solve(whole.double(), right.double(), left=False)

    exact = off(*said)
    rounded = off(*(part.half() for part in said))
    ours = matrices(run(erase=1.0, preserve=0.1, ridge=0.01))[0].double()
    assert (ours - exact).abs().max() < 1e-6
    assert (rounded - exact).abs().max() > 1e-4


def test_bad_input_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        UCE().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="Use esd or sa for classes"):
        UCE().unlearn(told(), split(), CLASSES, SESSION)
    for field in ({"erase": 0.0}, {"ridge": 0.0}, {"preserve": -1.0}):
        with pytest.raises(ConfigError):
            UCE(**field)


def test_adapters_around_the_matrices_are_refused():
    made = micro()
    model = SESSION.engine.copy(made.model)
    _, layer = cross_attention(model)[0]
    layer.to_k = nn.Sequential(layer.to_k)
    with pytest.raises(Unsupported, match="is a Sequential, no linear layer. Give the model"):
        UCE().unlearn(model, canvas_split(), made.task, replace(SESSION))
