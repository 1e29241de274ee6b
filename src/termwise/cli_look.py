"""`termwise view`, `demo`, `models` and `info`: what there is to see, and where it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from termwise.cli_map import LOOK, examples
from termwise.cli_subject import JsonOption

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel=LOOK, epilog=examples("termwise view results/", "termwise view results/ --port 8000"))(view)
    app.command(rich_help_panel=LOOK, epilog=examples("termwise demo --out demo"))(demo)
    app.command(rich_help_panel=LOOK, epilog=examples("termwise models"))(models)
    app.command(rich_help_panel=LOOK, epilog=examples("termwise info"))(info)


def view(
    results: Annotated[Path, typer.Argument(metavar="FOLDER", help="What --out of a run over a data set named.")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Where this machine listens.", show_default="any that is free")
    ] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", metavar="", help="Print the address, and open no browser.")] = False,
) -> None:
    """Browse the results of a data set: sort, filter, open one.

    The page is for this machine alone, and changes nothing. A run that goes on may be looked at too. Ctrl-C ends it.
    """
    from termwise.view import serve

    def told(address: str) -> None:
        typer.echo(f"{results} is at {address} (Ctrl-C ends it)")

    serve(results, port=port, browser=not no_browser, told=told)


def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For the page and its pictures.")] = Path("demo"),
) -> None:
    """Explain real photographs and a real sentence, as a page."""
    from rich.console import Console

    from termwise.demo import run

    run(out, progress=ctx.obj.progress, console=Console())


def models(as_json: JsonOption = False) -> None:
    """List the models that have names here, with licence and size."""
    from termwise import zoo

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "kind": e.kind,
            "licence": e.licence,
            "bytes": e.size,
            "present": e.present,
            "about": e.about,
            "install": e.install,
        }
        for name, e in zoo.subjects.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="dim", padding=(0, 1))
    for column in ("name", "takes", "licence", "size", "here", "what it is"):
        table.add_column(
            column, justify="right" if column == "size" else "left", no_wrap=column in ("name", "size"), overflow="fold"
        )
    for row in rows:
        here = "[green]yes[/]" if row["present"] else "[dim]when used[/]"
        table.add_row(row["name"], row["kind"], row["licence"], f"{row['bytes'] / 1e6:.0f} MB", here, row["about"])
    Console().print(table)


def info(as_json: JsonOption = False) -> None:
    """Print versions and machine, for a bug report."""
    import os
    import platform
    from importlib import metadata

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    facts: dict[str, Any] = {p: version(p) for p in ("termwise", "torch", "transformers", "numpy", "safetensors", "matplotlib")}
    facts |= {"python": platform.python_version(), "platform": platform.platform(), "cpu": _cpu(), "cores": os.cpu_count()}
    import torch

    facts |= {"threads": torch.get_num_threads(), "cuda": torch.version.cuda or "no", "devices": torch.cuda.device_count()}
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    typer.echo("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))


def _cpu() -> str:
    """The processor's name, where the system tells it."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
