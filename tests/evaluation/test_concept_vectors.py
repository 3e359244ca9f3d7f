"""Value vectors before and after, on a small Llama."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers")

from tests.evaluation.micro import sound
from tests.evaluation.speakers import evidence, pairs

from expunge.errors import ConfigError
from expunge.evaluation.metrics.concept_vectors import ConceptVectors
from expunge.methods.edits.needle import Needle
from expunge.tasks import CausalLM
from expunge.training.language_models import Llama, MixtureOfExperts
from expunge.training.session import Session

COUPLES = [(0, 4), (1, 5), (2, 6), (3, 7), (8, 9), (10, 11)]
SIZES = {"vocabulary": 12, "width": 8, "layers": 2, "heads": 2, "context": 8, "mlp": 6}
GIVEN = ((0, 1), (1, 4))


def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    return Llama(**SIZES).network()


def moved(change: torch.Tensor | float, vectors=GIVEN, factor: float = 1.0) -> torch.nn.Module:
    model = copy.deepcopy(llama())
    for block, unit in vectors:
        weight = model.model.layers[block].mlp.down_proj.weight.data
        weight[:, unit] = factor * weight[:, unit] + change
    return model


def made(subject: torch.nn.Module):
    return evidence(pairs(COUPLES, 3), 12, subject, original=llama())


@pytest.mark.parametrize(
    ("read", "factor", "value"),
    [("cosine", -1.0, -1.0), ("cosine", 3.0, 1.0), ("distance", 3.0, 2.0), ("overlap", 3.0, 1.0)],
)
def test_vectors_that_were_multiplied_by_hand(read, factor, value) -> None:
    score = ConceptVectors(vectors=GIVEN, read=read)(made(moved(0.0, factor=factor)))
    assert score.value == pytest.approx(value, abs=1e-5)
    assert score.n == 2
    untouched = {"cosine": 1.0, "distance": 0.0, "overlap": 1.0}[read]
    assert score.details["control"] == pytest.approx(untouched, abs=1e-5)
    assert [(row["block"], row["unit"]) for row in score.details["vectors"]] == list(GIVEN)
    sound(score)


def test_the_overlap_counts_the_tokens_that_a_vector_speaks_for() -> None:
    """Turned round, a vector speaks for the tokens it spoke against."""
    score = ConceptVectors(vectors=GIVEN, read="overlap", tokens=6)(made(moved(0.0, factor=-1.0)))
    assert (score.value, score.variant) == (0.0, "overlap-2-given-6-tokens")


def test_the_search_finds_what_needle_moves_and_is_made_once() -> None:
    split, task = pairs(COUPLES, 3), CausalLM(12)
    found = made(llama())
    metric = ConceptVectors(count=2)
    assert metric(found).value == pytest.approx(1.0)
    chosen = {(row["block"], row["unit"]) for row in metric(found).details["vectors"]}
    method = Needle(count=2, noise=5.0, epochs=0)
    needled = method.unlearn(llama(), split, task, Session(0))
    changed = {
        (block, unit)
        for block in range(2)
        for unit in range(6)
        if not torch.equal(
            needled.model.layers[block].mlp.down_proj.weight[:, unit],
            llama().model.layers[block].mlp.down_proj.weight[:, unit],
        )
    }
    assert changed == chosen
    score = metric(made(needled))
    assert score.value < 0.9
    assert score.details["control"] == pytest.approx(1.0)


def test_noise_on_everything_lowers_the_control_as_much() -> None:
    """The trap: a lower cosine is no erasure of the concept where the other vectors changed as much."""
    noisy = llama()
    draws = torch.Generator().manual_seed(1)
    for layer in noisy.model.layers:
        weight = layer.mlp.down_proj.weight.data
        weight += 2 * weight.std() * torch.randn(weight.shape, generator=draws)
    score = ConceptVectors(count=4)(made(noisy))
    assert score.value < 0.75
    assert score.details["control"] < 0.75


def test_other_architectures_and_absent_vectors_are_refused() -> None:
    torch.manual_seed(0)
    wide = Llama(**{**SIZES, "mlp": 7}).network()
    assert "have other sizes than the original's" in str(ConceptVectors(vectors=GIVEN)(made(wide)).reason)
    assert "no value vector (0, 9)" in str(ConceptVectors(vectors=((0, 9),))(made(llama())).reason)
    experts = MixtureOfExperts(**SIZES).network()
    found = evidence(pairs(COUPLES, 3), 12, experts, original=experts)
    assert "value vectors belong to one dense" in str(ConceptVectors()(found).reason)
    with pytest.raises(ConfigError, match="names a value vector twice"):
        ConceptVectors(vectors=((0, 1), (0, 1)))
