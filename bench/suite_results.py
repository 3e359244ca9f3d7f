"""What the documentation shows of a suite's run, without what is per example.

    expunge run people-mini --directory runs/people-mini
    python bench/suite_results.py runs/people-mini --output docs/results/people-mini.json

With ``--pictures`` one picture for each forget set of what the models draw, beside the output.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image

from expunge.report.style import figure


def number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 5)


def outline(row: dict[str, Any]) -> dict[str, Any]:
    """A row's values with their intervals and verdicts, and the curves of its attacks."""
    scores, curves = {}, {}
    for score in row["scores"]:
        id_ = ".".join(part for part in (score["name"], score["part"], score["variant"]) if part)
        verdict = row["verdicts"].get(id_)
        scores[id_] = {
            "value": number(score["value"]),
            "interval": [number(end) for end in score["interval"] or ()],
            "verdict": verdict["kind"] if verdict else None,
            "n": score["n"],
        }
        if "curve" in score["details"]:
            curves[id_] = {
                key: score["details"][key] for key in ("curve", "retrained_curve", "x_label", "y_label")
            }
    return {"role": row["role"], "error": row["error"], "scores": scores, "curves": curves}


def pictures(table: dict[str, Any], path: Path) -> None:
    """A line for each model and a column for each prompt, the first seed of each."""
    rows = {
        row["name"]: {one["prompt"]: one["png"] for one in reversed(row["gallery"])} for row in table["rows"]
    }
    rows = {name: drawn for name, drawn in rows.items() if drawn}
    prompts = list(reversed(next(iter(rows.values()))))
    drawn = figure(0.75 * len(prompts) + 1.5, 0.75 * len(rows) + 0.9)
    panels = drawn.subplots(len(rows), len(prompts), squeeze=False)
    for line, (name, found) in zip(panels, rows.items(), strict=True):
        for axes, prompt in zip(line, prompts, strict=True):
            axes.imshow(Image.open(io.BytesIO(base64.b64decode(found[prompt]))), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
    for axes, prompt in zip(panels[0], prompts, strict=True):
        axes.set_title("\n".join(textwrap.wrap(prompt, 14)), fontsize=6)
    drawn.savefig(path, dpi=90, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="the directory of a finished run")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", action="store_true", help="also what the models draw")
    options = parser.parse_args()
    result = json.loads((options.run / "result.json").read_text(encoding="utf-8"))
    origin = result["provenance"]
    found = {
        "suite": result["name"],
        "provenance": {key: origin[key] for key in ("config", "seed", "versions", "hardware", "seconds")},
        "tables": {
            table["name"]: {
                "size": table["size"],
                "anchors": {
                    anchor["id"]: {
                        key: number(anchor[key]) for key in ("retrained", "noise", "original", "headroom")
                    }
                    for anchor in table["anchors"]
                },
                "rows": {row["name"]: outline(row) for row in table["rows"]},
            }
            for table in result["tables"]
        },
    }
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for table in result["tables"] if options.pictures else ():
        pictures(table, options.output.with_name(f"{options.output.stem}-{table['name']}.png"))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
