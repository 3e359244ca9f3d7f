"""Whether a linear map finds the answer in the hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.data.text import TextData
from expunge.errors import ConfigError, DataError
from expunge.evaluation import language
from expunge.evaluation.attacks import hidden
from expunge.evaluation.attacks.budget import Attack, Tried, crossed, halves
from expunge.evaluation.attacks.inserted import embedding
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics
from expunge.evaluation.statistics import Floats
from expunge.training import features


@dataclass(frozen=True, eq=False)
class Asked:
    """Hidden states before the token that tells right from wrong, and the tokens that could stand there.

    Args:
        states: after each block, ``(layers, N, D)``.
        tokens: the right one first and then the wrong ones, a list for each example.
    """

    states: Floats
    tokens: Sequence[Sequence[int]]


@metrics.register("layer_probe")
@dataclass(frozen=True, kw_only=True)
class LayerProbe(Attack):
    """How often a linear probe that was trained on retained subjects picks a forgotten subject's true answer.

    Each question has a right answer and wrong ones that begin alike; ``h`` is the hidden state of the last
    token before they part (of the prompt, where they differ from the first token on). Ridge regression maps
    ``h`` of the retained examples to the embedding of the token that follows there, ``W = argmin ‖ZW − E‖² +
    λ‖W‖²``, ``Z`` standardised. For a forgotten question the probe picks, among the tokens with which the
    right and the wrong answers go on, the one whose embedding is nearest to ``zᵀW`` in direction. The value
    is how often that is the right one, at the best layer, chosen for each half of every subject's facts by
    the other half; ``details["curve"]`` has every layer, ``details["chance"]`` what guessing gives.

    Interval: over questions, or over data subjects.

    Ideal: the retrained models' value, about ``chance``.

    Args:
        against: ``perturbed``: the paraphrased answer (the answer itself where there is none) is told from
            the wrong ones; ``alternate``: the answer itself, as it was trained on, from that other one.
        penalty: ``λ``.
        limit: at most so many retained examples, a seeded choice.

    Differs: no minimum description length and no control task: the retrained models are the control.
    Cost: one forward pass over the forget set and ``limit`` retained examples, and a linear system a layer.
    References: Alain and Bengio, arXiv:1610.01644; Patil et al., arXiv:2309.17410; Lynch et al., Eight
        Methods to Evaluate Robust Unlearning in LLMs, 2024, arXiv:2402.16835.
    """

    against: hidden.Wrong = "perturbed"
    penalty: float = 1.0
    limit: int = 1000
    x_label = "layer"
    y_label = "right choices"

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise ConfigError(f"must be above 0, got {self.penalty}.", "penalty")
        if self.limit < 2:
            raise ConfigError(f"must be at least 2, got {self.limit}.", "limit")

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "layer probe", "forget", f"{self.against}-crossed"

    def tried(self, evidence: Evidence) -> Tried:
        known, asked = (self._asked(evidence, *self._rows(evidence, part)) for part in ("retain", "forget"))
        model = evidence.session.engine.placed(evidence.subject.model)
        table = embedding(model, evidence.task).weight.detach().double().cpu()
        targets = table[torch.tensor([tokens[0] for tokens in known.tokens])]
        centre = targets.mean(0)
        rows = []
        for fitted, states in zip(known.states, asked.states, strict=True):
            said = ridge(fitted, (targets - centre).numpy(), states, self.penalty)
            rows.append([
                _right(guess, table[torch.tensor(tokens)] - centre)
                for guess, tokens in zip(torch.from_numpy(said), asked.tokens, strict=True)
            ])  # fmt: skip
        return Tried(tuple(float(i + 1) for i in range(len(rows))), np.array(rows))

    def chosen(self, evidence: Evidence, found: Tried) -> Floats:
        return crossed(found.success, halves(evidence))

    def details(self, evidence: Evidence, found: Tried) -> dict[str, Any]:
        tokens = _tokens(language.text(evidence, "forget"), "forget", self.against)
        return {"chance": float(np.mean([1 / len(among) for among in tokens]))}

    def _rows(self, evidence: Evidence, part: str) -> tuple[TextData, str]:
        """The examples of a part that are used; of retained ones those of subjects not to be forgotten."""
        data = language.text(evidence, part)
        if part == "forget":
            return data, part
        mine, theirs = evidence.clusters("forget"), evidence.clusters("retain")
        if mine is not None and theirs is not None:
            kept = data.ids[~torch.isin(theirs, mine)]
            if len(kept) == 0:
                raise DataError("every retained example is about a subject to be forgotten. Retain others.")
            data = data.subset(kept)
        return data.subset(data.ids[features.sampled(len(data), self.limit)]), part

    def _asked(self, evidence: Evidence, data: TextData, part: str) -> Asked:
        right, _, starts, _ = hidden.parting(data, part, self.against)
        task, engine = evidence.task, evidence.session.engine
        rows: list[list[Tensor]] = []
        place = 0
        with engine.frozen(engine.placed(evidence.subject.model)) as model:
            for batch in hidden.batches(evidence, data, right):
                count = len(batch["ids"])
                columns = torch.from_numpy(starts[place : place + count]) - 1
                _, found = hidden.states(model, batch, task, engine)
                rows.append([states[torch.arange(count), columns].double().cpu() for states in found])
                place += count
        states = np.stack([torch.cat(layer).numpy() for layer in zip(*rows, strict=True)])
        return Asked(states, _tokens(data, part, self.against))


def _tokens(data: TextData, part: str, against: hidden.Wrong) -> list[list[int]]:
    """The tokens with which the answers go on where they part: the right one, then the others, each once.

    Raises:
        DataError: no other token than the right one.
    """
    right, wrong, starts, _ = hidden.parting(data, part, against)
    columns = {name: data.column(f"{name}.input_ids" if name else "input_ids") for name in (right, *wrong)}
    found = []
    for i, start in enumerate(starts.tolist()):
        tokens = [int(columns[name][i, min(start, columns[name].shape[1] - 1)]) for name in (right, *wrong)]
        found.append(list(dict.fromkeys(tokens)))
        if len(found[-1]) < 2:
            raise DataError(f"{part} example {int(data.ids[i])} has no wrong answer beside the right one.")
    return found


def ridge(known: Floats, targets: Floats, asked: Floats, penalty: float) -> Floats:
    """What the regression of ``targets`` ``(N, E)`` on ``known`` ``(N, D)`` says of ``asked`` ``(M, D)``."""
    centre, scale = known.mean(0), known.std(0) + 1e-8
    z = (known - centre) / scale
    if len(z) > z.shape[1]:
        weights = np.linalg.solve(z.T @ z + penalty * np.eye(z.shape[1]), z.T @ targets)
    else:
        weights = z.T @ np.linalg.solve(z @ z.T + penalty * np.eye(len(z)), targets)
    return np.asarray((asked - centre) / scale @ weights)


def _right(guess: Tensor, among: Tensor) -> float:
    """Whether the first vector is nearest to the guess in direction; shared where several are.

    A guess of length 0 has no direction, and neither has one that is rounding beside the vectors.
    """
    lengths = among.norm(dim=1).clamp(min=1e-12)
    near = among @ guess / lengths  # the cosine times the length of the guess
    best = near >= near.max() - 1e-9 * lengths.max()
    return float(best[0]) / float(best.sum())
