"""`termwise faithfulness`: explain every row of a data set, and test every explanation by removing what it calls important."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from termwise.cli_dataset import (
    BatchOption,
    ColumnOption,
    DatasetOption,
    EngineOption,
    ErrorsOption,
    Options,
    WorkersOption,
    over_dataset,
)
from termwise.cli_map import CHECK, HOW, OUTPUT, examples
from termwise.cli_subject import (
    ClassesOption,
    ModelOption,
    RulesOption,
    SizeOption,
    TargetOption,
    WeightsOption,
    as_target,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    lines = ("termwise faithfulness --model nanoguard --dataset texts.csv --out results/",)
    app.command(rich_help_panel=CHECK, epilog=examples(*lines))(faithfulness)


def faithfulness(
    ctx: typer.Context,
    model: ModelOption,
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Results, row by row.", rich_help_panel=OUTPUT)],
    target: TargetOption = None,
    rules: RulesOption = "default",
    random_orders: Annotated[
        int, typer.Option(min=1, metavar="N", help="Random orders to compare each explanation with.", rich_help_panel=HOW)
    ] = 8,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of the random orders: row i has those of N + i.", rich_help_panel=HOW)
    ] = 0,
    float32: Annotated[
        bool, typer.Option("--float32", metavar="", help="Explain in float32 instead of float64.", rich_help_panel=HOW)
    ] = False,
    column: ColumnOption = None,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    batch_size: BatchOption = 16,
    max_errors: ErrorsOption = None,
    weights: WeightsOption = None,
    classes: ClassesOption = None,
    size: SizeOption = None,
) -> None:
    """Test explanations of a data set against chance.

    Every row is explained, and what the explanation calls important is removed step by step: the answer should fall faster than
    when features are removed at random. An interrupted run goes on where it was.
    """
    from termwise.jobs import FaithfulnessJob, means

    job = FaithfulnessJob(
        model, target=as_target(target), rules=rules, float32=float32, weights=weights, classes=classes, size=size,
        random_orders=random_orders, seed=seed,
    )  # fmt: skip
    assert dataset is not None  # it has no default
    results = over_dataset(job, dataset, out, Options(column, engine, workers, batch_size, max_errors), ctx.obj)
    for name, (mean, low, high) in means(results).items():
        typer.echo(f"{name:<12} {mean:+.4f}  [{low:+.4f}, {high:+.4f}]")
