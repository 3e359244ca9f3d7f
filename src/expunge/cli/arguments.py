"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT", help="A YAML file, or the name of a packaged suite (see: expunge list suites)."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Values to change, for example train.epochs=5."),
]
Fields = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Its fields, for example epochs=10 batch_size=64."),
]
Weights = Annotated[Path, typer.Option(metavar="WEIGHTS", help="The trained model: a .safetensors file.")]
Forget = Annotated[
    Path,
    typer.Option(
        metavar="IDS",
        help="What to forget: a .txt file with one id a line, .npy, .json or a search's index file.",
    ),
]
