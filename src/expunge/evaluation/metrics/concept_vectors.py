"""Whether the value vectors that held a concept are still what they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.split import Split
from expunge.data.text import TextData
from expunge.errors import ConfigError, MissingEvidence, Unsupported
from expunge.evaluation import language, statistics
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score, Unit
from expunge.evaluation.statistics import Floats
from expunge.training.blocks import value_matrices
from expunge.training.value_vectors import concept_vectors

Vector = tuple[int, int]
"""A block and a unit of its feed-forward layer."""

SHOWN = 10
"""Tokens of a vector's projection that are shown."""


@metrics.register("concept_vectors")
@dataclass(frozen=True, kw_only=True)
class ConceptVectors(Metric):
    """Whether the value vectors in which the original held the concept are still what they were.

    A value vector ``v`` is what one unit of a feed-forward layer adds to the residual stream; ``E v``, with
    ``E`` the output embedding, scores every token by it. Over the vectors ``v`` of the original and ``u`` of
    the model judged, the mean of

    - ``cosine``: ``v·u / (‖v‖ ‖u‖)``;
    - ``distance``: ``‖v − u‖ / ‖v‖``;
    - ``overlap``: of the ``tokens`` tokens with the largest ``E v`` and with the largest ``E u``, how many
      are in both over how many are in either (Jaccard).

    ``details["control"]`` is the same for as many other vectors, drawn by the seed: a change that is no
    larger at the concept's own vectors says nothing of the concept. ``details["vectors"]`` lists them with
    their tokens before and after. A vector that stayed shows that nothing was erased there; one that changed
    does not show that the knowledge is gone, which lies in many places: random noise lowers the cosine too.
    Interval: over the vectors, two or more.

    Args:
        vectors: the pairs of block and unit, counted from 0, that hold the concept. Where none are given the
            ``count`` vectors of the original with the largest ``F_f / (F_r + mean F_r)``, ``F`` the squared
            gradients of the loss on forget and retain data, as in ``needle``.
        count: how many are searched for.
        read: which of the three.
        tokens: of ``overlap``.

    Ideal: the retrained model's value, where it starts from the weights that the original started from;
        models from other random weights have a cosine of about 0 whatever they know.
    Cost: one search on the original for all models: a forward and backward pass over forget and retain data.
    Differs: the published vectors were annotated by hand for two models; the search is ours. The published
        behavioural half, BLEU and ROUGE against the original's answers, is not here: ``rouge`` and
        ``leakage`` compare with the truth.
    References: Hong et al., Intrinsic Test of Unlearning Using Parametric Knowledge Traces, EMNLP 2025,
        arXiv:2406.11614.
    """

    vectors: tuple[Vector, ...] = ()
    count: int = 10
    read: Literal["cosine", "distance", "overlap"] = "cosine"
    tokens: int = 200
    unit = "index"

    def __post_init__(self) -> None:
        for name in ("count", "tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        if len(set(self.vectors)) < len(self.vectors):
            raise ConfigError("names a value vector twice.", "vectors")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        which = f"{len(self.vectors)}-given" if self.vectors else f"{self.count}-found"
        cut = f"-{self.tokens}-tokens" if self.read == "overlap" and self.tokens != 200 else ""
        return "concept vectors", "", f"{self.read}-{which}{cut}"

    def counts(self) -> Unit:
        return "index" if self.read != "overlap" else "fraction"

    def measure(self, evidence: Evidence) -> Score:
        language.tokens(evidence, "forget")
        before, after = _matrices(evidence.original.model), _matrices(evidence.subject.model)
        if [tuple(one.shape) for one in before] != [tuple(one.shape) for one in after]:
            raise Unsupported(
                f"the feed-forward layers of '{evidence.subject.name}' have other sizes than the original's: "
                "there are no vectors to compare. Give a model of the same architecture."
            )
        chosen = self._chosen(evidence, before)
        values = self._values(evidence, before, after, chosen)
        others = _others(before, chosen)
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(values.mean()),
            interval=statistics.mean(values) if len(values) > 1 else None,
            n=len(values),
            target="retrained",
            unit=self.counts(),
            details={
                "control": float(self._values(evidence, before, after, others).mean()) if others else None,
                "vectors": self._shown(evidence, before, after, chosen, values),
            },
        )

    def _chosen(self, evidence: Evidence, matrices: Sequence[Tensor]) -> list[Vector]:
        for block, unit in self.vectors:
            if not 0 <= block < len(matrices) or not 0 <= unit < len(matrices[block]):
                raise Unsupported(
                    f"there is no value vector ({block}, {unit}): the model has {len(matrices)} blocks of "
                    f"{len(matrices[0])} units. Give others in vectors."
                )
        return list(self.vectors) or self._found(evidence)

    def _found(self, evidence: Evidence) -> list[Vector]:
        """The vectors of the original, searched for once for all models."""
        kept, key = evidence.original.kept, ("concept_vectors", self.count)
        if key not in kept:
            if "retain" not in evidence.parts:
                raise MissingEvidence(
                    "there is no retain data to tell a concept from. Give the split retain=…."
                )
            engine, task, model = evidence.session.engine, evidence.task, evidence.original.model
            split = Split(evidence.parts["forget"], evidence.parts["retain"])
            matrices, copy = value_matrices(model), engine.copy(model).eval()
            copy.requires_grad_(True)
            size = task.batch_size(split.forget)
            chosen = concept_vectors(
                copy, matrices, split, task, evidence.session, count=self.count, batch_size=min(size, 32)
            )
            blocks = {name: block for block, (name, _) in enumerate(matrices)}
            kept[key] = tuple(
                float(value)
                for name, (_, units) in chosen.items()
                for unit in units
                for value in (blocks[name], unit)
            )
        flat = [int(value) for value in kept[key]]
        return list(zip(flat[::2], flat[1::2], strict=True))

    def _values(
        self, evidence: Evidence, before: Sequence[Tensor], after: Sequence[Tensor], vectors: Sequence[Vector]
    ) -> Floats:
        found = []
        for block, unit in vectors:
            old, new = before[block][unit], after[block][unit]
            if self.read == "overlap":
                first, second = (
                    set(_tokens(owner.model, v, self.tokens).tolist())
                    for owner, v in ((evidence.original, old), (evidence.subject, new))
                )
                found.append(len(first & second) / len(first | second))
            elif self.read == "distance":
                found.append(float((old - new).norm() / old.norm()))
            else:
                found.append(float(torch.nn.functional.cosine_similarity(old, new, dim=0)))
        return np.array(found, np.float64)

    def _shown(
        self,
        evidence: Evidence,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        vectors: Sequence[Vector],
        values: Floats,
    ) -> list[dict[str, Any]]:
        data = evidence.parts["forget"]
        rows = []
        for (block, unit), value in zip(vectors, values.tolist(), strict=True):
            row: dict[str, Any] = {"block": block, "unit": unit, "value": value}
            if isinstance(data, TextData):
                for name, owner, all_of in (
                    ("before", evidence.original, before),
                    ("after", evidence.subject, after),
                ):
                    best = _tokens(owner.model, all_of[block][unit], SHOWN)
                    row[name] = [data.tokenizer.decode([token]).strip() for token in best.tolist()]
            rows.append(row)
        return rows


def _matrices(model: nn.Module) -> list[Tensor]:
    """The value vectors of each block as rows, ``(units, width)``."""
    weights = dict(model.named_parameters())
    found = [(weights[name].detach().double().cpu(), dim) for name, dim in value_matrices(model)]
    return [weight.T if dim == 1 else weight for weight, dim in found]


def _others(matrices: Sequence[Tensor], chosen: Sequence[Vector]) -> list[Vector]:
    """As many vectors that were not chosen, of the same blocks where there are enough; the same for all."""
    blocks = {block for block, _ in chosen}
    free = [
        (block, unit) for block in sorted(blocks) for unit in range(len(matrices[block]))
        if (block, unit) not in set(chosen)
    ]  # fmt: skip
    draws = np.random.default_rng(seeding.derive(0, "concept_vectors"))
    return [free[i] for i in draws.permutation(len(free))[: len(chosen)]]


def _tokens(model: nn.Module, vector: Tensor, count: int) -> Tensor:
    """The tokens that a vector speaks for most, ``(count,)``.

    Raises:
        Unsupported: the model has no output embedding of the vector's width.
    """
    owner: Any = model
    head = owner.get_output_embeddings() if hasattr(owner, "get_output_embeddings") else None
    if head is None:
        head = getattr(model, "head", None)
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[1] != len(vector):
        raise Unsupported("the model has no output embedding to read vectors by. Use read=cosine.")
    scores = weight.detach().double().cpu() @ vector
    return scores.topk(min(count, len(scores))).indices
