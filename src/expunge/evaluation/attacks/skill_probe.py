"""Whether a linear map still performs a forgotten skill from the hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from expunge import seeding
from expunge.data.text import IGNORED
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.evaluation import language
from expunge.evaluation.attacks import hidden
from expunge.evaluation.attacks.budget import Attack, Tried, crossed, halves
from expunge.evaluation.attacks.layer_probe import ridge
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.metric import metrics
from expunge.evaluation.statistics import Floats

Ints = NDArray[np.int64]
SHUFFLES = 20
"""Ways of shuffling the classes that the control is averaged over."""


@metrics.register("skill_probe")
@dataclass(frozen=True, kw_only=True)
class SkillProbe(Attack):
    """How often a linear probe on the hidden states gives the right answer to held-out items of a skill.

    The answers are classes, known by the first token of each (``yes`` and ``no``). Ridge regression maps the
    hidden state of the last prompt token, standardised, to the class, layer by layer; it is fitted on the
    items that were forgotten and asked about held-out ones. The value is how often its choice is right at the
    best layer, chosen for each half of the held-out items by the other half. ``details["curve"]`` has every
    layer, ``details["chance"]`` the share of the commonest class, and ``details["control"]`` the mean
    value of probes that were fitted on the same states with shuffled classes: what many layers and dimensions
    give by themselves.

    Interval: over examples, or over data subjects.

    Ideal: the retrained models' value; the control ``never_trained`` says what random weights give.

    Args:
        part: held-out items of the skill: ``test``, or a probe.
        known: items of the skill to fit on; by default those that were forgotten.
        penalty: of the ridge regression.

    Cost: one forward pass over both parts, and a linear system a layer.
    Differs: the settings of the published probes are not known to us; these are choices of ours.
    References: Zhang, Choshen and Andreas, Unforgettable Generalization in Language Models, COLM 2024,
        arXiv:2409.02228; Hewitt and Liang, Designing and Interpreting Probes with Control Tasks, EMNLP 2019.
    """

    part: str = "test"
    known: str = "forget"
    penalty: float = 1.0
    x_label = "layer"
    y_label = "right answers"

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise ConfigError(f"must be above 0, got {self.penalty}.", "penalty")
        if self.part == self.known:
            raise ConfigError(
                "a probe is asked about other items than it is fitted on. Name two parts.", "part"
            )

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "skill probe", self.part, f"{self.known}-crossed"

    def tried(self, evidence: Evidence) -> Tried:
        return self._fitted(evidence, [_classes(evidence, self.known)])[0]

    def chosen(self, evidence: Evidence, found: Tried) -> Floats:
        return crossed(found.success, halves(evidence, self.part))

    def units(self, evidence: Evidence) -> NDArray[np.int64] | None:
        clusters = evidence.clusters(self.part)
        return None if clusters is None else clusters.numpy()

    def details(self, evidence: Evidence, found: Tried) -> dict[str, Any]:
        asked, known = (_classes(evidence, part) for part in (self.part, self.known))
        draws = np.random.default_rng(seeding.derive(0, "skill_probe"))
        controls = self._fitted(evidence, [draws.permutation(known) for _ in range(SHUFFLES)])
        return {
            "chance": float(np.unique(asked, return_counts=True)[1].max() / len(asked)),
            "classes": len(np.unique(known)),
            "control": float(np.mean([self.chosen(evidence, control) for control in controls])),
        }

    def _fitted(self, evidence: Evidence, fits: Sequence[Ints]) -> list[Tried]:
        """Probes for each way of putting the known items into classes."""
        classes, asked = np.unique(fits[0]), _classes(evidence, self.part)
        if len(classes) < 2:
            raise DataError(
                f"the answers of the {self.known} data all begin alike: there is nothing to tell apart. "
                "Use answers whose first words differ, or layer_probe."
            )
        targets = np.concatenate([(known[:, None] == classes).astype(np.float64) for known in fits], 1)
        centre = targets.mean(0)
        rows = []
        parts = self._states(evidence, self.known), self._states(evidence, self.part)
        for fitted, states in zip(*parts, strict=True):
            said = ridge(fitted, targets - centre, states, self.penalty) + centre
            guesses = classes[said.reshape(len(asked), len(fits), -1).argmax(2)]
            rows.append((guesses == asked[:, None]).astype(np.float64))
        budgets = tuple(float(i + 1) for i in range(len(rows)))
        return [Tried(budgets, np.stack([row[:, i] for row in rows])) for i in range(len(fits))]

    def _states(self, evidence: Evidence, part: str) -> list[Floats]:
        """After each block the state of the last prompt token, ``(N, D)``."""
        data, engine, rows = language.tokens(evidence, part), evidence.session.engine, list[list[Floats]]()
        with engine.frozen(engine.placed(evidence.subject.model)) as model:
            for batch in hidden.batches(evidence, data):
                columns = (batch["labels"] != IGNORED).long().argmax(1) - 1
                _, found = hidden.states(model, batch, evidence.task, engine)
                places = torch.arange(len(columns), device=columns.device)
                rows.append([states[places, columns].double().cpu().numpy() for states in found])
        return [np.concatenate(layer) for layer in zip(*rows, strict=True)]


def _classes(evidence: Evidence, part: str) -> Ints:
    """The first token of each answer, ``(N,)``."""
    labels = language.tokens(evidence, part).column("labels")
    first = (labels != IGNORED).long().argmax(1)
    if bool((first == 0).any()):
        raise Unsupported(
            f"the {part} data holds documents, which ask nothing that a probe could answer. Give questions."
        )
    return np.asarray(labels[torch.arange(len(labels)), first].numpy(), np.int64)
