"""What the commands that run over a data set share: their options, the run, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from termwise.cli_map import FOUND_WANTING, OVER_DATASET

if TYPE_CHECKING:
    from termwise.engine import Results

__all__ = [
    "BatchOption", "ColumnOption", "DatasetOption", "EngineOption", "ErrorsOption", "Options", "WorkersOption",
    "carried_out", "over_dataset",
]  # fmt: skip

DatasetOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DATA",
        help="Every row of a .parquet, .jsonl, .csv or .txt file, or every picture of a folder; needs --out, a folder.",
        rich_help_panel=OVER_DATASET,
    ),
]
ColumnOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Its column of texts or pictures.", show_default="the likely one", rich_help_panel=OVER_DATASET
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Where to compute: local, or ray (a cluster, by RAY_ADDRESS).", rich_help_panel=OVER_DATASET
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Processes of one thread each; the numbers do not depend on it.", show_default="one per core",
        rich_help_panel=OVER_DATASET,
    ),
]  # fmt: skip
BatchOption = Annotated[int, typer.Option(min=1, metavar="N", help="Rows computed together.", rich_help_panel=OVER_DATASET)]
ErrorsOption = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", help="Stop when more rows than this have failed.", show_default="never",
        rich_help_panel=OVER_DATASET,
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The options above, but for the data set."""

    column: str | None
    engine: str
    workers: int | None
    batch_size: int
    max_errors: int | None


def over_dataset(job: Any, dataset: Path, out: Path | None, options: Options, settings: Any) -> Results:
    """Run a job over a data set and say how it went. Exit code 1 for too many errors or no result, 130 for an interrupt."""
    from termwise.engine import Dataset

    if out is None:
        raise ValueError("--dataset needs --out, the folder of the results")
    data = Dataset.open(dataset, options.column)
    job.takes = data.kind
    if not settings.quiet:
        held = f"column {data.column!r}" if data.column else "pictures" if data.kind == "image" else "lines"
        typer.echo(f"{dataset}: {len(data)} rows, {held} ({data.kind})", err=True)
    return carried_out(job, data, out, options, settings)


def carried_out(job: Any, data: Any, out: Path, options: Options, settings: Any) -> Results:
    """The same for rows that are there already."""
    from termwise.engine import TooManyErrors, run

    try:
        results = run(
            job, data, out, engine=options.engine, workers=options.workers, batch_size=options.batch_size,
            max_errors=options.max_errors, progress=settings.progress,
        )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        typer.echo(str(interrupt) or f"interrupted: what was done is kept in {out}; the same command goes on", err=True)
        raise typer.Exit(130) from None
    except TooManyErrors as problem:
        typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(FOUND_WANTING) from None
    if not settings.quiet:
        failed = f"; {len(results.errors)} failed, with the reasons in {out / 'errors.parquet'}" if len(results.errors) else ""
        typer.echo(f"{len(results)} rows in {out}{failed}")
    if not len(results):
        reason = results.errors["reason"][0].as_py()
        typer.echo(f"error: no row has a result. The first: {reason}", err=True)
        raise typer.Exit(FOUND_WANTING)
    return results
