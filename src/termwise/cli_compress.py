"""`termwise compress`: a smaller model within a budget, written as a folder, with the account of what it cost."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from termwise.cli_dataset import (
    BatchOption,
    ColumnOption,
    EngineOption,
    ErrorsOption,
    Options,
    WorkersOption,
    over_dataset,
)
from termwise.cli_map import HOW, OVER_DATASET, TAKE_APART, examples
from termwise.cli_subject import JsonOption, ModelOption, SizeOption, WeightsOption, chosen_subject
from termwise.cli_words import COMPRESSED, UNITS, any_of

if TYPE_CHECKING:
    from termwise.weights import Compressed

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    lines = (
        "termwise compress --model mobilenet-v2 --data photos --out small --budget .7",
        "termwise compress --model smollm2-135m --data prose.txt --out small",
        "termwise compress --model mobilenet-v2 --dataset photos --out small",
    )
    app.command(rich_help_panel=TAKE_APART, epilog=examples(*lines))(compress)


def compress(
    ctx: typer.Context,
    model: ModelOption,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write the smaller model.")],
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A folder of pictures, or a file of text: one a line, prose for a language model."),
    ] = None,
    budget: Annotated[
        float, typer.Option(metavar="SHARE", help="What to keep; for --unit error the largest change of the output.")
    ] = 0.9,
    unit: Annotated[
        str,
        typer.Option(metavar="UNIT", autocompletion=any_of(UNITS), help="Of the budget: params, flops, bytes, latency, error."),
    ] = "params",
    method: Annotated[
        str,
        typer.Option(metavar="NAME", autocompletion=any_of(COMPRESSED), help="auto, or that of a paper.", rich_help_panel=HOW),
    ] = "auto",
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave these layers alone; may be given again.", rich_help_panel=HOW),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=4, metavar="N", help="Pictures, texts, or windows of a text, at most.", rich_help_panel=HOW)
    ] = 32,
    window: Annotated[
        int,
        typer.Option(
            min=8, metavar="TOKENS", help="In a window of a language model's text; a row is cut there.", rich_help_panel=HOW
        ),
    ] = 512,
    as_json: JsonOption = False,
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            rich_help_panel=OVER_DATASET,
            help="Gather what layers read over all rows of it, in OUT.statistics; what errors do to the output is then looked "
            "at on --samples rows, drawn with seed 0.",
        ),
    ] = None,
    column: ColumnOption = None,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    batch_size: BatchOption = 1024,
    max_errors: ErrorsOption = None,
    weights: WeightsOption = None,
    size: SizeOption = None,
) -> None:
    """Make a model smaller, and say by how much its output changed.

    An interrupted run goes on where it was when the same command is given again.
    """
    from termwise.weights import compress as smaller

    if (data is None) == (dataset is None):
        raise ValueError("give --data, or --dataset for statistics of many rows")
    if data is not None and not data.exists():
        raise ValueError(f"--data {data} does not exist")
    if out.exists() and not (out / "recipe.json").is_file():
        raise ValueError(f"--out {out} exists and holds something else than a compressed model: choose another folder")
    ready = None
    if data is not None:
        net, batches = _batches(chosen_subject(model, weights, None, size), data, samples, window)
    else:
        from termwise.engine import Dataset
        from termwise.gathering import StatisticsJob, sample, statistics

        assert dataset is not None
        job = StatisticsJob(model, keep=keep or (), weights=weights, size=size, window=window)
        folder = out.with_name(out.name + ".statistics")
        options, settings = (
            Options(column, engine, workers, batch_size, max_errors),
            replace(ctx.obj, quiet=ctx.obj.quiet or as_json),
        )
        ready = statistics(over_dataset(job, dataset, folder, options, settings))
        net, batches = sample(job, Dataset.open(dataset, column), samples, folder)
    work = out.with_name(out.name + ".work")
    try:
        found = smaller(
            net, budget, data=batches, unit=unit, method=method, keep=keep or (), work=work, statistics=ready,
            progress=ctx.obj.progress and not ctx.obj.quiet and not as_json,
        )  # fmt: skip
        found.save(out)
    except BaseException:
        if done := len(list(work.glob("*.safetensors"))):
            typer.echo(f"{done} finished layers are kept in {work}: the same command goes on there; else delete it", err=True)
        elif work.exists():
            shutil.rmtree(work)
        raise
    shutil.rmtree(work)
    _print(found, out, as_json)


def _batches(subject: Any, data: Path, samples: int, window: int) -> tuple[Any, list[Any]]:
    """The model proper, and what it is called with."""
    if subject.kind == "image":
        from termwise.engine.dataset import PICTURES

        paths = sorted(p for p in data.rglob("*") if p.suffix.lower() in PICTURES) if data.is_dir() else [data]
        if not paths:
            raise ValueError(f"--data {data} has no pictures ({', '.join(PICTURES)})")
        return subject.model, [subject.prepare(path) for path in paths[:samples]]
    if data.is_dir():
        raise ValueError(f"{subject.name} takes text: give --data a text file, not the folder {data}")
    text = data.read_text("utf-8")
    language = getattr(subject.model, "language_model", None)
    if language is None:
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"--data {data} is empty")
        return subject.model, [subject.prepare(line, truncate=True) for line in lines[:samples]]
    import torch

    ids = torch.tensor(subject.preparation.tokenizer.encode(text))
    windows = [w[None] for w in ids.split(window) if len(w) == window][:samples]
    if len(windows) < 4:
        raise ValueError(f"--data {data} has {len(ids)} tokens, no four windows of {window}: give more, or a smaller --window")
    language.config.use_cache = False
    return language, [{"input_ids": w} for w in windows]


def _print(found: Compressed, out: Path, as_json: bool) -> None:
    if as_json:
        names = ("method", "unit", "budget", "kept", "predicted", "measured", "selected", "gap", "metric", "before", "after")
        facts = {name: None if (v := getattr(found, name)) != v else v for name in names}  # NaN is no JSON
        typer.echo(json.dumps(facts | {"out": str(out), "layers": [asdict(row) for row in found.layers]}, indent=2))
        return
    typer.echo(found.report())
    typer.echo(f"written to {out}; read it with termwise.load_compressed({str(out)!r}, model)")
