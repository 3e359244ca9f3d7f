"""Concept erasure beside the code of its authors, to rounding: losses, masks, edits and guards.

Everybody's value is taken of the same two micro denoisers (the original, and one moved away from it), of the
same latents, captions, noise and timesteps, which all come from one seed. None of the authors' code is here:
their functions are read out of checkouts and run beside the micro models when this runs. Where a difference
is intended, a row names it, and the row after it has that difference switched off.

    python bench/authors_generative.py --checkouts DIR [--output docs/results/authors-generative.json]

``DIR`` holds the repositories as ``DIR/<owner>/<name>``, at the commits that the rows name.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import authors_generative_captions
import authors_generative_esd
import authors_generative_memory
import authors_generative_retain
import authors_generative_spm
import authors_generative_uce
import torch
from authors_generative_setup import Row

from expunge.provenance import hardware, versions

ABOUT = (
    "Others' code and ours of the same micro denoisers, latents, captions and draws, on a CPU. theirs, ours: "
    "the values at a model moved away from the original; difference: between them; relative: over theirs; "
    "gradient: the norm of the difference of the gradients (of an edit: of the weights) over the norm of "
    "theirs. An intended row names a difference, and the row after it has that difference switched off."
)

PARTS = (
    authors_generative_esd,
    authors_generative_captions,
    authors_generative_uce,
    authors_generative_spm,
    authors_generative_retain,
    authors_generative_memory,
)


def written(row: Row) -> dict[str, Any]:
    """A row as it is published.

    Raises:
        SystemExit: it differs and is not meant to, or the other way round.
    """
    if row.close == row.intended:
        said = f"ours {row.ours}, theirs {row.theirs}, gradients {row.gradient} apart"
        raise SystemExit(f"{row.key}: {said}, and {'' if row.intended else 'not '}meant to differ.")
    difference = abs(row.ours - row.theirs)
    return {
        "key": row.key,
        "method": row.method,
        "repository": row.source[0],
        "commit": row.source[1],
        "run": row.run,
        "measure": row.measure,
        "theirs": row.theirs,
        "ours": row.ours,
        "difference": difference,
        "relative": difference / abs(row.theirs) if row.theirs else None,
        "gradient": row.gradient,
        "intended": row.intended,
        "explanation": row.explanation,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkouts", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("docs/results/authors-generative.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [written(row) for part in PARTS for row in part.rows(arguments.checkouts)]
    found = {
        "about": ABOUT,
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
