"""``expunge evaluate``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.arguments import Forget, Source

if TYPE_CHECKING:
    from expunge.evaluation.evaluate import Candidate
    from expunge.experiment import Experiment

EXAMPLE = (
    "expunge evaluate my_experiment.yaml --original trained.safetensors --unlearned forgotten.safetensors "
    "--forget ids.txt"
)


def command(
    experiment: Source,
    original: Annotated[Path, typer.Option(metavar="WEIGHTS", help="The model before unlearning.")],
    unlearned: Annotated[list[Path], typer.Option(metavar="WEIGHTS", help="After it; repeat for more.")],
    forget: Forget,
    retrained: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="WEIGHTS", help="Trained without the ids; repeat for more.", show_default="trained"
        ),
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("runs/evaluation"),
) -> None:
    """Judges unlearned models against the original and against retrained ones.

    Without --retrained the models to compare with are trained by the recipe of the experiment file. Writes
    report.html, table.csv and result.json.
    """
    from expunge import api
    from expunge.cli.inputs import load, narrowed, writable
    from expunge.cli.output import show
    from expunge.cli.progress import Progress
    from expunge.data.split import read_ids
    from expunge.evaluation.evaluate import Candidate
    from expunge.runner import save
    from expunge.searches.given import Given

    ids = read_ids(forget)
    writable(directory / "result.json")
    setup = narrowed(experiment, original, Given(path=forget))
    split = setup.split(ids)
    candidates = [Candidate("original", "original", load(setup, original))]
    judged = list(_judged(setup, unlearned))
    references = [load(setup, path) for path in retrained or ()]
    with Progress() as progress:
        session = setup.session((progress,))
        candidates += api.references(references or setup.recipe, split, session, setup.retrained)
        report = api.compare(setup.name, [*candidates, *judged], split, setup.task, session, setup.metrics)
    save(report, directory)
    show(report, directory)


def _judged(setup: Experiment, paths: Sequence[Path]) -> Iterator[Candidate]:
    from expunge.cli.inputs import load
    from expunge.evaluation.evaluate import Candidate

    seen: dict[str, int] = {}
    for path in paths:
        name = f"unlearned {path.stem}" if path.stem.startswith(("original", "retrained")) else path.stem
        seen[name] = seen.get(name, 0) + 1
        yield Candidate(name if seen[name] == 1 else f"{name} {seen[name]}", "unlearned", load(setup, path))
