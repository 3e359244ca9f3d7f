"""ItD: the edit by hand, which features are the concept's, and whose prompts the detector comes from."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from tests.canvases import micro
from tests.methods.told import CLASSES, split, told

from expunge import saved
from expunge.data import Split
from expunge.data.captions import tokenise
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.guards import itd
from expunge.methods.guards.itd import ITD, deactivated, distances, layer_of, own_features
from expunge.tasks import Classification
from expunge.training.optim import AdamW
from expunge.training.session import Session
from expunge.training.sparse_autoencoder import SparseAutoencoder, fit_autoencoder, geometric_median

SESSION = Session(seed=0)
SMALL = {"features": 64, "active": 4, "top": 32, "epochs": 100, "optim": AdamW(lr=1e-2)}
MOSAICS = ["a circle image in mosaic style", "a square image in mosaic style", "an image in mosaic style"]
OTHERS = ["a circle image in sketch style", "a square image", "an image in sketch style", ""]


def canvas_split():
    data = micro().data
    return Split.from_ids(data, data.ids[data.column("style") == 1])


@cache
def guarded(margin=1.0):
    """A guard by hand: features are the coordinates, the concept's is the first, and ``τ`` is the median."""
    eye, zero = torch.eye(16), torch.zeros(16)
    weights = {"encode": eye, "decode": eye, "latent": zero, "centre": zero, "chosen": torch.tensor([0])}
    learned = {**weights, "threshold": margin * far().median()}
    return ITD(features=16, active=16).attach(SESSION.engine.copy(micro().model), learned)


def far():
    """``d`` of all captions under that guard, ``(7,)``."""
    made, autoencoder = micro(), SparseAutoencoder(torch.eye(16), torch.eye(16), *torch.zeros(2, 16), 16)
    path, _ = layer_of(made.model.text_encoder, None)
    x = itd.layer_states(made.model, path, tokenise(made.data.tokenizer, [*MOSAICS, *OTHERS]), SESSION)
    with torch.no_grad():
        return distances(deactivated(autoencoder, x, torch.tensor([0]), -6.0), x)


def states(model, captions):
    with torch.no_grad():
        return model.encode_text(tokenise(micro().data.tokenizer, captions))


def changed(model, captions):
    return (states(model, captions) != states(micro().model, captions)).flatten(1).any(1).tolist()


def basis(active=2):
    """Features are the coordinates of three dimensions."""
    return SparseAutoencoder(torch.eye(3), torch.eye(3), torch.zeros(3), torch.zeros(3), active)


def test_the_features_by_hand():
    """The two largest, those below 0 are 0."""
    found = basis().features(torch.tensor([[3.0, 1.0, 2.0], [-1.0, -3.0, 2.0]]))
    assert found.tolist() == [[3.0, 0.0, 2.0], [0.0, 0.0, 2.0]]


@pytest.mark.parametrize("factor", [0.0, -2.0])
def test_the_edit_and_its_distance_by_hand(factor):
    x = torch.tensor([[[9.0, 9.0, 9.0], [3.0, 1.0, 2.0], [0.0, 4.0, 5.0]]])
    edited = deactivated(basis(), x, torch.tensor([2]), factor)
    wanted = [[9.0, 9.0, 9.0], [3.0, 0.0, 2 * factor], [0.0, 4.0, 5 * factor]]
    assert edited[0].tolist() == wanted
    squares = 1.0 + (2 - 2 * factor) ** 2 + (5 - 5 * factor) ** 2
    assert torch.allclose(distances(edited, x), torch.tensor([squares / 6]))


def test_a_negative_factor_goes_against_the_feature_where_zero_only_removes_it():
    x = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]]])
    along = [deactivated(basis(), x, torch.tensor([2]), f)[0, 1, 2].item() for f in (0.0, -6.0)]
    assert along == [0.0, -12.0]


def test_the_first_token_of_every_caption_is_left_out_not_of_the_first_one_alone():
    x = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
    edited = deactivated(basis(), x, torch.tensor([0, 1, 2]), -1.0)
    assert torch.equal(edited[:, 0], x[:, 0])
    other = x.clone()
    other[:, 0] = 100.0
    assert torch.equal(
        distances(edited, x), distances(deactivated(basis(), other, torch.arange(3), -1.0), other)
    )
    assert own_features(
        basis(1), other[:1] * 0 + torch.tensor([1.0, 0, 0]), torch.zeros(1, 4, 3), 3
    ).tolist() == [0]
    first = torch.zeros(1, 4, 3)
    first[0, 0, 1] = 5.0
    assert own_features(basis(1), first, torch.zeros(1, 4, 3), 3).tolist() == []


def test_features_that_a_retained_caption_has_too_are_not_the_concepts():
    erase, remain = torch.zeros(1, 3, 3), torch.zeros(1, 3, 3)
    erase[0, 1], erase[0, 2] = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 2.0])
    remain[0, 2] = torch.tensor([0.5, 0.0, 0.0])
    assert own_features(basis(), erase, remain, top=3).tolist() == [1, 2]
    assert own_features(basis(), erase, remain, top=2).tolist() == [2]


def test_the_geometric_median_does_not_follow_an_outlier():
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 600.0]])
    assert geometric_median(rows).norm() < 0.3
    assert rows.mean(0).norm() > 99


def test_the_autoencoder_learns_and_its_decoder_has_rows_of_length_one_after_the_last_step():
    x = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(0))
    options = {"batch_size": 4, "optim": AdamW(lr=3e-2), "session": SESSION}
    start, end = (fit_autoencoder(x, 24, 3, epochs=n, **options) for n in (1, 40))

    def error(autoencoder):
        with torch.no_grad():
            return float((autoencoder(x) - x).square().mean())

    assert error(end) < 0.5 * error(start)
    assert torch.allclose(end.decode.norm(dim=1), torch.ones(24), atol=1e-6)
    assert end.features(x).count_nonzero(-1).max() <= 3


def test_captions_above_the_threshold_are_edited_and_others_pass_bit_for_bit():
    wanted = far() >= 0.999 * far().median()
    assert 0 < int(wanted.sum()) < 7
    assert changed(guarded(margin=0.999), [*MOSAICS, *OTHERS]) == wanted.tolist()


def test_rows_of_a_batch_are_judged_each_by_itself():
    captions = [*MOSAICS, *OTHERS]
    most, least = captions[int(far().argmax())], captions[int(far().argmin())]
    together = states(guarded(), [most, least])
    assert torch.allclose(together[0], states(guarded(), [most])[0], atol=1e-5)
    assert not torch.allclose(together[0], states(micro().model, [most])[0], atol=1e-3)
    assert torch.allclose(together[1], states(micro().model, [least])[0], atol=1e-6)


def test_the_threshold_also_looks_at_captions_that_nothing_was_learnt_from(monkeypatch):
    """The authors fit it to the prompts alone that the features were chosen from."""
    seen = {}
    kept, fit = itd.layer_states, itd.fit_autoencoder
    method = ITD(**SMALL)
    monkeypatch.setattr(
        itd, "fit_autoencoder", lambda x, *a, **k: seen.setdefault("fit", x) is None or fit(x, *a, **k)
    )
    learned = method.learn(micro().model, canvas_split(), micro().task, SESSION)
    prompts = method.prompts(canvas_split(), SESSION)
    assert set(prompts.erase) | set(prompts.held) == set(MOSAICS)
    assert len(prompts.held) == 1
    assert set(prompts.remain) >= {"", *OTHERS}
    encode, tokenizer = micro().model, micro().data.tokenizer
    path, _ = layer_of(encode.text_encoder, None)
    erase, held, remain = (kept(encode, path, tokenise(tokenizer, part), SESSION) for part in prompts)
    assert torch.equal(seen["fit"], torch.cat([erase, remain])[:, 1:])
    autoencoder = SparseAutoencoder(*(learned[n] for n in ("encode", "decode", "latent", "centre")), 4)
    with torch.no_grad():
        far, near = (
            distances(deactivated(autoencoder, x, learned["chosen"], -6.0), x) for x in (held, erase)
        )
    assert torch.allclose(learned["threshold"], 0.99 * torch.cat([far, near]).min())


def test_spared_captions_are_neither_learnt_from_nor_set_the_threshold():
    spared = ("a circle image in mosaic style", "a circle image in sketch style")
    prompts = ITD(**SMALL, spared=spared).prompts(canvas_split(), SESSION)
    everything = {*prompts.erase, *prompts.held, *prompts.remain}
    assert not everything & set(spared)
    assert len(everything) == len({c for p in ITD(**SMALL).prompts(canvas_split(), SESSION) for c in p}) - 2


def test_without_a_threshold_every_caption_is_edited():
    assert changed(guarded(margin=0.0), [*MOSAICS, *OTHERS]) == [True] * 7


def test_the_weights_are_the_originals_and_the_guard_goes_to_disk_and_back(tmp_path):
    made, result = micro(), ITD(**SMALL).unlearn(micro().model, canvas_split(), micro().task, SESSION)
    assert changed(result, MOSAICS) == [True] * 3
    assert all(torch.equal(v, result.state_dict()[n]) for n, v in made.model.state_dict().items())
    saved.save(result, tmp_path, made.data.tokenizer, made.task)
    loaded = saved.load(tmp_path)
    assert torch.allclose(states(loaded, MOSAICS), states(result, MOSAICS), atol=1e-5)


def test_the_layer_is_the_one_at_two_thirds_by_default():
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"vocab_size": 9, "hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1}
    encoder = CLIPTextModel(CLIPTextConfig(num_hidden_layers=12, **sizes))
    assert layer_of(encoder, None)[0].endswith("layers.8")
    assert layer_of(encoder, 3)[0].endswith("layers.3")
    with pytest.raises(Unsupported, match="has 12 layers, no layer 12. Choose 0..11"):
        layer_of(encoder, 12)


def test_bad_input_is_refused():
    with pytest.raises(Unsupported, match="Use a method for every task"):
        ITD().check(split(), Classification(2))
    with pytest.raises(Unsupported, match="Use esd or sa"):
        ITD().unlearn(told(), split(), CLASSES, SESSION)
    with pytest.raises(DataError, match="1 different caption names the concept 'mosaic', and two are needed"):
        ITD(spared=tuple(MOSAICS[:2])).prompts(canvas_split(), SESSION)
    with pytest.raises(DataError, match="no feature fires on the concept's captions alone"):
        ITD(**{**SMALL, "epochs": 1, "features": 1, "active": 1}).learn(
            micro().model, canvas_split(), micro().task, replace(SESSION)
        )
    bad = ({"active": 2000}, {"factor": 1.0}, {"held_out": 1.0}, {"margin": -1.0}, {"top": 0})
    for fields in bad:
        with pytest.raises(ConfigError):
            ITD(**fields)
