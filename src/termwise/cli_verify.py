"""`termwise papers`, `termwise verify` and `termwise cite`: the papers whose claims run, what came out, and whom to cite."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from termwise.cli_dataset import EngineOption, Options, WorkersOption, carried_out
from termwise.cli_map import CHECK, FOUND_WANTING, HOW, LOOK, OVER_DATASET, examples
from termwise.cli_subject import JsonOption
from termwise.cli_words import papers as paper_keys
from termwise.cli_words import rooms

__all__ = ["register"]

_COLOURS = {"holds": "green", "contradicted": "yellow", "failed": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    lines = "termwise verify dynamiclrp curing", "termwise verify --room weights --slow", "termwise verify --all --out claims/"
    app.command(rich_help_panel=CHECK, epilog=examples(*lines))(verify)
    app.command(rich_help_panel=LOOK, epilog=examples("termwise papers --room functions"))(papers)
    lines = "termwise cite why.safetensors", "termwise cite curing welore --bibtex"
    app.command(rich_help_panel=LOOK, epilog=examples(*lines))(cite)


def papers(
    room: Annotated[str | None, typer.Option(metavar="ROOM", autocompletion=rooms, help="Only the papers of this room.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the papers whose claims run, and what to call."""
    from termwise.core.claims import papers as rows

    chosen = [row for row in rows().values() if room in (None, row["room"])]
    if room is not None and not chosen:
        raise ValueError(f"no paper in a room {room!r}: rooms are {', '.join(sorted({r['room'] for r in rows().values()}))}")
    if as_json:
        typer.echo(json.dumps(chosen, indent=2, ensure_ascii=False))
        return
    table = _table("no", "key", "title", "room", "call")
    for row in chosen:
        table.add_row(str(row["number"]), row["key"], f"{row['title']} ({row['year']})", row["room"], "\n".join(row["api"]))
    _print(table)


def verify(
    ctx: typer.Context,
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="PAPER", autocompletion=paper_keys, help="Keys, as `termwise papers` lists them."),
    ] = None,
    room: Annotated[str | None, typer.Option(metavar="ROOM", autocompletion=rooms, help="Every claim of a room.")] = None,
    everything: Annotated[bool, typer.Option("--all", metavar="", help="Every claim, in parallel processes.")] = False,
    slow: Annotated[bool, typer.Option("--slow", metavar="", help="Also those that take minutes.", rich_help_panel=HOW)] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", metavar="", help="Show tracebacks of claims that raised.", rich_help_panel=HOW)
    ] = False,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=OVER_DATASET,
            help="Keep the results, for `termwise view`; an interrupted run goes on where it was.",
        ),
    ] = None,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
) -> None:
    """Measure what papers claim; published beside measured.

    Ends with 1 when a claim failed.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from termwise.core import claims

    chosen = [c for c in _chosen(keys or [], room, everything) if slow or not c.slow]
    if not chosen:
        raise ValueError("nothing to verify: these claims are all slow, add --slow")
    if out is not None:
        from termwise.verifying import ClaimRows, VerifyJob, measured

        options, settings = Options(None, engine, workers, 1, None), replace(ctx.obj, quiet=ctx.obj.quiet or as_json)
        kept = carried_out(VerifyJob(), ClaimRows(chosen), out, options, settings)
        _say(chosen, measured(kept), as_json, verbose or ctx.obj.verbose)
        return
    results = []
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn(),
        console=console, transient=True, disable=as_json or not (ctx.obj.progress and console.is_terminal),
    ) as progress:  # fmt: skip
        task = progress.add_task("measuring", total=len(chosen))
        for result in claims.verify(chosen, processes=(os.cpu_count() or 1) if everything else 1):
            results.append(result)
            progress.update(task, advance=1, description=result.name)
    _say(chosen, results, as_json, verbose or ctx.obj.verbose)


def _say(chosen: list[Any], results: list[Any], as_json: bool, verbose: bool) -> None:
    """Published beside measured, in the order of the claims; ends with 1 when one failed."""
    from rich.markup import escape

    order = {c.name: i for i, c in enumerate(chosen)}
    results.sort(key=lambda r: order[r.name])
    if as_json:
        typer.echo(json.dumps([r.json() for r in results], indent=2, ensure_ascii=False))
    else:
        table = _table("paper", "claim", "published", "measured", "outcome", "s")
        for r in results:
            outcome = f"[{_COLOURS[r.outcome]}]{r.outcome}[/]" + (" (exact)" if r.exact and r.outcome == "holds" else "")
            note = f"\n[dim]{escape(r.note)}[/]" if r.note else ""
            table.add_row(
                r.paper, escape(r.statement) + note, escape(r.published), escape(r.measured), outcome, f"{r.seconds:.1f}"
            )
        _print(table)
        for r in results if verbose else []:
            if r.details:
                typer.echo(f"\n{r.name}\n{r.details}", err=True)
    if any(r.outcome == "failed" for r in results):
        raise typer.Exit(FOUND_WANTING)


def cite(
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Key of a paper, function, rule set, method or saved result (why.safetensors)."),
    ] = None,
    bibtex: Annotated[bool, typer.Option("--bibtex", metavar="", help="BibTeX instead of a list.")] = False,
) -> None:
    """Name the papers of what was used, as a list or as BibTeX."""
    from termwise.core import Decomposition
    from termwise.core import cite as cited

    found = cited(*(Decomposition.load(name) if name.endswith(".safetensors") else name for name in keys or []))
    typer.echo(found.bibtex() if bibtex else str(found))


def _chosen(keys: list[str], room: str | None, everything: bool) -> list[Any]:
    from termwise.core import claims

    known = claims.papers()
    if not (keys or room or everything):
        raise ValueError("say what to verify: keys of papers, --room ROOM or --all")
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise ValueError(
                f"no paper {key!r}" + (f": did you mean {close[0]!r}?" if close else f": known are {', '.join(known)}")
            )
    found = claims.load_claims(None if everything or keys else room)
    return [c for c in found if everything or c.paper in keys or (room is not None and known[c.paper]["room"] == room)]


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for column in columns:
        wide = {"claim": 3, "title": 3, "measured": 3, "published": 2, "call": 2}.get(column)
        table.add_column(column, overflow="fold", justify="right" if column in ("no", "s") else "left", ratio=wide)
    return table


def _print(table: Any) -> None:
    from rich.console import Console

    Console().print(table)
