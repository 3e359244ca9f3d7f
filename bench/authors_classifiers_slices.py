"""S3T's orders of slices beside the code of its authors."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from authors_classifiers_setup import Row, borrowed

from expunge.methods.exact.sequences import cyclic, intact, matched, prefixes

S3T = ("brcsomnath/S3T", "3ecb73b")
SHARDS, SLICES, RUNS = 5, 6, 200
"""Of the deletions."""


def rows(checkouts: Path) -> list[Row]:
    from scipy.optimize import linear_sum_assignment

    folder = checkouts / S3T[0] / "src"
    names = ("get_score", "bms_selection", "get_cyclic", "get_rotations", "rotate_right")
    orders = borrowed(
        folder / "sequence_selection.py", *names, np=np, linear_sum_assignment=linear_sum_assignment
    )
    later = ("delete", "check_s3t_completion", "get_budgeted_models", "s3t", "budgeted_s3t", "get_cyclic")
    known = {"random": random, "get_rotations": orders.get_rotations}
    deletions = borrowed(folder / "deletion.py", *later, **known)
    return [by_probability(orders), by_budget(orders), until_used_up(deletions)]


def _row(run: str, measure: str, count: int, of: int, within: float | None, explanation: str) -> Row:
    return Row(
        method="s3t",
        source=S3T,
        run=run,
        measure=f"{measure}, of {of}",
        difference=count,
        relative=count / of,
        within=within,
        explanation=explanation,
    )


def by_probability(theirs: Any) -> Row:
    draws, others, count = np.random.default_rng(0), 0, 0
    for slices, _ in itertools.product(range(2, 8), range(50)):
        probabilities = draws.dirichlet(np.ones(slices)).tolist()
        found = [tuple(order) for order in theirs.bms_selection(probabilities)]
        others += found != list(matched(probabilities, slices))
        count += 1
    run = f"bms_selection (orders of slices by probability of deletion), {count} random probabilities of 2 to"
    return _row(f"{run} 7 slices", "runs with other orders", others, count, 0.0, "The same orders.")


def by_budget(theirs: Any) -> Row:
    other: dict[int, list[int]] = {}
    shares, count, even = [], 0, True
    for slices in range(2, 6):
        for budget in range(1, math.factorial(slices) + 1):
            count += 1
            found = {tuple(order) for order in theirs.get_cyclic(slices, budget)}
            ours = set(cyclic(slices, budget))
            if found != ours:
                other.setdefault(slices, []).append(budget)
                shares.append(len(found & ours) / budget)
                even &= all(_beginning(found, first) == _beginning(ours, first) for first in range(slices))
    if set(other) - {5} or not even:
        raise SystemExit(f"Orders differ otherwise than is said: {other}, as many begin with each: {even}.")
    budgets = other[5]
    return _row(
        "get_cyclic (orders for equal probabilities), every budget for 2 to 5 slices",
        "budgets with other orders",
        len(budgets),
        count,
        None,
        f"For 5 slices and budgets of {budgets[0]} to {budgets[-1]} between {100 * min(shares):.0f} and "
        f"{100 * max(shares):.0f} % of the orders are the same, and as many begin with each slice; all other "
        "budgets give the same orders.",
    )


def _beginning(orders: set[tuple[int, ...]], first: int) -> int:
    return sum(order[0] == first for order in orders)


def until_used_up(theirs: Any) -> Row:
    others, budgets = 0, (1, 2, 3, 6)
    for budget, seed in itertools.product(budgets, range(RUNS)):
        random.seed(seed)
        found = theirs.budgeted_s3t(SHARDS, SLICES, budget)
        random.seed(seed)
        others += found != _used_up(budget)
    return _row(
        f"deletions until a system of {SHARDS} shards and {SLICES} slices is used up, budgets 1, 2, 3 and 6, "
        f"{RUNS} runs each",
        "runs with another number",
        others,
        RUNS * len(budgets),
        0.0,
        "The same number in every run; none of their training code was run.",
    )


def _used_up(budget: int) -> int:
    """How many deletions from random slices leave no shard with a stage that is intact."""
    stages, count = prefixes(cyclic(SLICES, budget)), 0
    lost: list[set[int]] = [set() for _ in range(SHARDS)]
    while any(intact(stages, gone) for gone in lost):
        shard, slice_ = divmod(random.randint(0, SHARDS * SLICES - 1), SLICES)
        lost[shard].add(slice_)
        count += 1
    return count
