"""What the documentation shows of a suite's run, without what is per example.

    expunge run people-mini --directory runs/people-mini
    python bench/suite_results.py runs/people-mini --output docs/results/people-mini.json
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any


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
        }
        if "curve" in score["details"]:
            curves[id_] = {
                key: score["details"][key] for key in ("curve", "retrained_curve", "x_label", "y_label")
            }
    return {"role": row["role"], "error": row["error"], "scores": scores, "curves": curves}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="the directory of a finished run")
    parser.add_argument("--output", type=Path, required=True)
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
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
