"""Methods for classifiers and regressors, and searches, beside the code of their authors.

Everybody starts from the same weights and reads the same data; batches, drawn labels and other draws of our
run are given to theirs, unless a row says otherwise. None of the authors' code is here: their functions are
read out of checkouts when this runs. Where a difference is intended, a row names it and must show it; all
others must be rounding, or the bench stops.

    python bench/authors_classifiers.py --checkouts DIR [--only NAME …] [--output FILE]

``DIR`` holds the repositories as ``DIR/<owner>/<name>``, at the commits that the rows name; a second commit
of one as ``DIR/<owner>/<name>@<commit>``. ``--only`` runs some of the parts and writes no file.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from authors_classifiers_setup import Row

from expunge.provenance import hardware, versions

ABOUT = (
    "The authors' code and ours on the same data and from the same weights, on a CPU. relative: the norm of "
    "the difference over the norm of what the method changes, for other measures the difference over the "
    "value; null where it has no sense. A run with our batches replays the batches and drawn labels of ours "
    "in theirs."
)

PARTS = (
    "saliency",
    "pruning",
    "distillation",
    "layers",
    "edits",
    "classes",
    "teachers",
    "regression",
    "guards",
    "adapters",
    "optimisers",
    "searches",
    "slices",
)
"""Files of this folder, each with ``rows(checkouts)``."""

NOT_COMPARED = {
    "The authors' code could not be had.": ("ugradsl", "ugradsl_plus", "datamodel_match", "oracle_match"),
    "No code of the authors was found.": ("concept_poison",),
    "It is not in the authors' repository.": ("lfssd",),
    "No code of the authors was compared.": ("sisa",),
}


def written(row: Row) -> dict[str, Any]:
    """A row as it is published.

    Raises:
        SystemExit: it differs and is not meant to, or the other way round.
    """
    rounding = row.within is not None and row.difference <= row.within
    if rounding == (row.within is None) or (row.within is None and row.difference == 0):
        meant = "a difference" if row.within is None else f"at most {row.within}"
        raise SystemExit(f"{row.method}, {row.run}: {row.measure} is {row.difference}, meant: {meant}.")
    return {
        "method": row.method,
        "repository": row.source[0],
        "commit": row.source[1],
        "run": row.run,
        "measure": row.measure,
        "difference": row.difference,
        "relative": row.relative,
        "intended": row.within is None,
        "explanation": row.explanation,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkouts", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--output", type=Path, default=Path("docs/results/authors-code.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for part in arguments.only or PARTS:
        for row in import_module(f"authors_classifiers_{part}").rows(arguments.checkouts):
            rows.append(written(row))
            relative = "" if row.relative is None else f" ({row.relative:.2g} of what is changed)"
            print(f"{row.method}: {row.measure} {row.difference:.3g}{relative}; {row.run}", flush=True)
    if arguments.only:
        return
    found = {
        "about": ABOUT,
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
        "rows": rows,
        "not_compared": [{"methods": names, "reason": why} for why, names in NOT_COMPARED.items()],
    }
    arguments.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
