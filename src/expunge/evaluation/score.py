"""One number with its name, its interval and its direction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Target = Literal["high", "low", "retrained"]
Unit = Literal["fraction", "nats", "steps", "seconds", "ratio", "MiB", "units", "index"]
"""``units`` are those of the targets; an ``index`` is a pure number that is no fraction of a whole."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a metric found for one model.

    Args:
        name: the metric, ``"accuracy"``.
        part: the examples it speaks of, ``"forget"``; empty where there is none.
        variant: which definition, ``"svc-confidence"``; values of different variants are never
            compared.
        value: the number; ``nan`` if and only if ``reason`` says why it was not computed.
        interval: 95 % confidence interval, ``(low, high)``.
        n: the number of examples (or repetitions) that the interval rests on.
        target: the direction of success; ``"retrained"`` is as close as possible to retraining.
        unit: what the number counts; fractions are printed in percent.
        censored: whether the truth may be larger: the measurement stopped at ``value``.
        error: standard error, over examples, of the difference from the mean of the retrained models;
            paired and clustered by subject where the metric has a value for each example. The
            evaluation fills it in.
        df: degrees of freedom of that error: examples (or subjects) less one.
        perfect: what a perfect unlearner scores at this number of examples and models, where the
            definition is biased and that is not its nominal ideal.
        details: what a table or chart shows of the score beside its value; plain JSON. Known keys:
            ``roc`` (points ``[fpr, tpr]``), ``curve`` (points ``[x, y]`` with ``x_label`` and
            ``y_label``), ``layers`` (name to value), ``note`` (a sentence for the reader).
        metric: what the metric is registered as, ``"svc"``; empty where it is not. ``Metric.__call__``
            fills it in.
        per_example: the value of each example, ``(n,)``, where there is one. Not written to JSON.
    """

    name: str
    part: str = ""
    variant: str = ""
    value: float
    interval: tuple[float, float] | None = None
    n: int
    target: Target
    unit: Unit
    reason: str | None = None
    censored: bool = False
    error: float | None = None
    df: float | None = None
    perfect: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""
    per_example: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if math.isnan(self.value) != (self.reason is not None):
            raise ValueError(f"{self.id}: a score is nan if and only if it has a reason, got {self.value}.")

    @property
    def id(self) -> str:
        """Name, part and variant: ``accuracy.forget``, ``membership.forget.svc-confidence``."""
        return ".".join(part for part in (self.name, self.part, self.variant) if part)

    @property
    def title(self) -> str:
        """What a table calls it: ``forget accuracy``, ``forget membership (svc-confidence)``."""
        text = f"{self.part} {self.name}".strip()
        return f"{text} ({self.variant})" if self.variant else text

    @property
    def from_interval(self) -> tuple[float | None, float | None]:
        """Standard error and degrees of freedom as its interval has them: width / 3.92 and ``n − 1``."""
        if self.interval is None or self.n < 2:
            return None, None
        return (self.interval[1] - self.interval[0]) / 3.92, float(self.n - 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "part": self.part,
            "variant": self.variant,
            "value": None if self.reason else self.value,
            "interval": list(self.interval) if self.interval else None,
            "n": self.n,
            "target": self.target,
            "unit": self.unit,
            "reason": self.reason,
            "censored": self.censored,
            "error": self.error,
            "df": self.df,
            "perfect": self.perfect,
            "details": dict(self.details),
            "metric": self.metric,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Score:
        interval = value["interval"]
        return cls(
            **{
                **value,
                "value": math.nan if value["value"] is None else value["value"],
                "interval": (interval[0], interval[1]) if interval else None,
            }
        )
