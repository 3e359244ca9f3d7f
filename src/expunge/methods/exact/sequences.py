"""The orders in which slices are trained, so that one of them is likely to begin with slices that last."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

Prefix = tuple[int, ...]
"""Slices in the order in which they are trained."""


def cyclic(slices: int, budget: int) -> tuple[Prefix, ...]:
    """``budget`` orders for slices that are equally likely to be deleted from.

    The rotations of ``0, 1, …`` come first, so that every slice begins an order before one does twice; a
    budget beyond that is shared out evenly over them, and each spends its share on the rotations of what
    follows its first slice, and so on.
    """
    return tuple(_rotations(tuple(range(slices)), budget))


def _rotations(items: Prefix, budget: int) -> list[Prefix]:
    if len(items) < 2:
        return [items]
    found = []
    for i in range(min(len(items), budget)):
        share = budget // len(items) + (i < budget % len(items))
        turned = items[-i:] + items[:-i] if i else items
        found += [(turned[0], *rest) for rest in _rotations(turned[1:], share)]
    return found


def matched(probabilities: Sequence[float], budget: int, power: float = 100.0) -> tuple[Prefix, ...]:
    """``budget`` orders for slices of known probabilities of a deletion: iterative bipartite matching.

    One order begins with each slice. Then, in turn, every order is given one more slice and every slice
    to one order, by the matching of the largest total ``score``. Of the ``L`` orders those of the highest
    score are kept.
    """
    from scipy.optimize import linear_sum_assignment

    orders: list[Prefix] = [(first,) for first in range(len(probabilities))]
    for _ in orders[1:]:
        gains = np.array(
            [
                [
                    -np.inf if new in order else score((*order, new), probabilities, power)
                    for new in range(len(orders))
                ]
                for order in orders
            ]
        )
        _, chosen = linear_sum_assignment(gains, maximize=True)
        orders = [(*order, int(new)) for order, new in zip(orders, chosen, strict=True)]
    best = sorted(range(len(orders)), key=lambda i: -score(orders[i], probabilities, power))[:budget]
    return tuple(orders[i] for i in sorted(best))


def score(order: Prefix, probabilities: Sequence[float], power: float = 100.0) -> float:
    """``Σ_k k (1 − Σ_{j ≤ k} p_{π(j)})^t``: the expected length that survives ``t`` deletions, or like it."""
    left = 1.0 - np.cumsum([probabilities[item] for item in order])
    return float((np.arange(1, len(order) + 1) * left**power).sum())


def prefixes(orders: Sequence[Prefix]) -> tuple[Prefix, ...]:
    """Every beginning of the orders, each once, shorter ones first."""
    found = {order[: k + 1]: None for order in orders for k in range(len(order))}
    return tuple(sorted(found, key=len))


def intact(stages: Sequence[Prefix], lost: Collection[int]) -> list[Prefix]:
    """The stages that were trained on none of the lost slices."""
    return [stage for stage in stages if not set(stage) & set(lost)]
