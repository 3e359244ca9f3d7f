"""``expunge sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = 'expunge sample --pipeline my-pipeline --pipeline erased "a star in mosaic style" --out grid.png'


def command(
    pipeline: Annotated[
        list[str],
        typer.Option(metavar="FOLDER", help="A pipeline of diffusers; repeat to compare."),
    ],
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="Each in quotes.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts (.txt, one a line) besides those.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "--out", help="Where the picture goes: .png, .jpg or .webp.")
    ] = Path("grid.png"),
    seeds: Annotated[int, typer.Option(min=1, help="Images of each prompt, with the seeds 0, 1, …")] = 4,
    steps: Annotated[int, typer.Option(help="Of the sampler.")] = 50,
    guidance: Annotated[float, typer.Option(help="Above 0; 1 is none.")] = 7.5,
    device: Annotated[str | None, typer.Option("--engine.device", help="auto, cpu, cuda, …")] = None,
    dtype: Annotated[str | None, typer.Option("--engine.dtype", help="float32 or bfloat16.")] = None,
) -> None:
    """Draws the same prompts with several pipelines from the same noise, in one picture.

    A FOLDER is what save_pretrained of a pipeline or `expunge unlearn --pipeline` wrote. Each pipeline has a
    row and each seed a column. A guarded pipeline draws under its guard; no safety checker is asked. Images
    are drawn by DDIM, as the metrics draw them, whatever scheduler the folder brings.

    Images without the concept do not show that it is gone: other prompts, other seeds or a few steps of
    training often bring it back.
    """
    from expunge import config, pipelines
    from expunge.cli.inputs import writable
    from expunge.cli.progress import Progress
    from expunge.data.prompted import read_prompts
    from expunge.report.grid import check_suffix, grid, write_grid
    from expunge.training.engine import Engine

    check_suffix(output)
    writable(output)
    engine = {key: value for key, value in (("dtype", dtype), ("device", device)) if value}
    prompts = [*(prompt or ()), *(read_prompts(file) if file is not None else ())]
    folders = list(dict.fromkeys(pipeline))
    with Progress() as progress:
        drawn = pipelines.sample(
            folders,
            prompts,
            seeds=range(seeds),
            drawing=pipelines.Drawing(steps=steps, guidance=guidance),
            engine=config.parse(Engine, engine, "engine"),
            callbacks=(progress,),
        )
    write_grid(grid(drawn, prompts, range(seeds)), output)
    count = len(folders) * len(prompts) * seeds
    print(
        f"{count:,} images of {len(prompts):,} prompts by {len(folders)} pipelines, {steps} steps, "
        f"guidance {guidance:g}."
    )
    print(f"Picture: {output}")
