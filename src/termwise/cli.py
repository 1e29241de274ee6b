"""The command line: parses, calls, prints. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import io
import json
import logging
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from termwise import __version__
from termwise.cli_subject import ModelOption, SizeOption, as_target, check_kind, check_source, chosen_subject

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["app", "main"]

MISTAKES = (ValueError, TypeError, OSError, ImportError, ArithmeticError)
"""What a command raises for bad input: one line for the user and exit code 2, the traceback on request."""


@dataclass
class Settings:
    """The options before the command."""

    quiet: bool = False
    verbose: int = 0
    progress: bool = True


settings = Settings()


class Careful(TyperGroup):
    """Turns what a user can mend into one red line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit code 2 for bad input."""
        try:
            return super().invoke(ctx)
        except MISTAKES as problem:
            from rich.console import Console
            from rich.text import Text

            if settings.verbose:
                sys.stderr.write(traceback.format_exc())
            console = Console(stderr=True, soft_wrap=True)
            console.print(Text.assemble(("error: ", "bold red"), (str(problem) or type(problem).__name__, "red")))
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Careful,
    help="Take any neural network apart, term by term, and check that the terms add up.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log what is done; -vv everything.")] = 0,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bars.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Set up logging."""
    settings.quiet, settings.verbose, settings.progress = quiet, verbose, not (no_progress or quiet)
    ctx.obj = settings  # for commands in files of their own
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(name)s: %(message)s", force=True)
    logging.captureWarnings(True)


@app.command()
def explain(
    model: ModelOption,
    image: Annotated[Path | None, typer.Option(help="A picture.")] = None,
    text: Annotated[str | None, typer.Option(help="A text.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Class to explain, by number or name; the model's answer by default.")
    ] = None,
    rules: Annotated[
        str, typer.Option(help="Rule set: default, zero, attnlrp, gamma, EpsilonPlus, ... (README lists all).")
    ] = "default",
    out: Annotated[Path | None, typer.Option(help="Write a self-contained page here (why.html).")] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors file for a model of your own; every key must match.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Names of your model's classes, one per line.")] = None,
    size: SizeOption = None,
    float32: Annotated[bool, typer.Option("--float32", help="Compute in float32; float64 by default.")] = False,
    check: Annotated[bool, typer.Option(help="Test the map by removing what it calls important.")] = True,
) -> None:
    """Say why a model answered so: pixels or words, biases, constants, and the proof that they add up."""
    check_source(image, text)
    if out is not None:
        from termwise.report.output import check_writable

        check_writable(out)
    import torch

    from termwise.demo import print_section, steps
    from termwise.report import page, write
    from termwise.showcase import examine

    subject = chosen_subject(model, weights, classes, size)
    check_kind(subject, model, image)
    subject.model.to(torch.float32 if float32 else torch.float64)  # whatever precision the weights came in
    chosen: Any = rules
    if rules == "EpsilonGammaBox":  # the one set that has to know the range of the input
        from termwise.predictions.rules import EpsilonGammaBox

        if subject.kind != "image":
            raise ValueError("EpsilonGammaBox is for pictures: its first layer takes the range of pixels")
        chosen = EpsilonGammaBox(*subject.preparation.box)
    console = _console()
    about = text if image is None else image.name
    with steps(_console(stderr=True), 1, settings.progress) as step:
        section = examine(
            subject, text if image is None else image, target=as_target(target), rules=chosen,
            about=about or "", random_orders=8 if check else 0, progress=step(subject.name),
        )  # fmt: skip
    print_section(section, console)
    if out is not None:
        write(out, page([section], title=section.heading))
        if not settings.quiet:
            console.print(f"written: {out}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def compare(
    model: ModelOption,
    image: Annotated[Path | None, typer.Option(help="A picture.")] = None,
    text: Annotated[str | None, typer.Option(help="A text.")] = None,
    methods: Annotated[str | None, typer.Option(help="Names of methods and rule sets, with commas between.")] = None,
    target: Annotated[str | None, typer.Option(help="Class to explain, by number or name.")] = None,
    patch: Annotated[int, typer.Option(min=1, help="Side of the squares that are taken from a picture, in pixels.")] = 16,
    out: Annotated[Path | None, typer.Option(help="Write a self-contained page here (compare.html).")] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors file for a model of your own.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Names of your model's classes, one per line.")] = None,
    size: SizeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects instead of a table.")] = False,
) -> None:
    """Explain one answer by several methods: faithfulness, closing error, cancellation and time, side by side."""
    check_source(image, text)
    if out is not None:
        from termwise.report.output import check_writable

        check_writable(out)
    from termwise.demo import steps
    from termwise.showcase import side_by_side

    subject = chosen_subject(model, weights, classes, size)
    check_kind(subject, model, image)
    chosen = None if methods is None else [m.strip() for m in methods.split(",") if m.strip()]
    with steps(_console(stderr=True), 1, settings.progress) as step:
        source = text if image is None else image
        found = side_by_side(subject, source, chosen, target=as_target(target), patch=patch, progress=step(subject.name))
    if as_json:
        typer.echo(json.dumps([{k: None if v != v else v for k, v in row.items()} for row in found.table()], indent=2))
    else:
        found.show()
    if out is not None:
        from termwise.report import write

        about = text if image is None else image.name
        write(out, found.html(title="Methods compared", lead=f"{subject.name}: {about}"))
        if not (settings.quiet or as_json):
            _console().print(f"written: {out}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def coverage(
    model: ModelOption,
    weights: Annotated[Path | None, typer.Option(help="safetensors file for a model of your own.")] = None,
    size: SizeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count a model's operations, and those that no rule covers."""
    from PIL import Image

    from termwise.predictions import coverage as count

    subject = chosen_subject(model, weights, None, size)
    found = count(subject.model, subject.prepare("A sentence." if subject.kind == "text" else Image.new("RGB", (64, 64), "gray")))
    if as_json:
        facts = {"nodes": found.nodes, "covered": found.covered, "operators": dict(found.counts), "missing": list(found.missing)}
        typer.echo(json.dumps({"model": model, "how": found.how, **facts}, indent=2))
    else:
        typer.echo(str(found))


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models that come with names: what they take, their licence and size, and whether they are here."""
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
    from rich.table import Table

    table = Table(box=None, header_style="dim", padding=(0, 1))
    for column in ("name", "takes", "licence", "size", "here", "what it is"):
        table.add_column(
            column, justify="right" if column == "size" else "left", no_wrap=column in ("name", "size"), overflow="fold"
        )
    for row in rows:
        here = "[green]yes[/]" if row["present"] else "[dim]when used[/]"
        table.add_row(row["name"], row["kind"], row["licence"], f"{row['bytes'] / 1e6:.0f} MB", here, row["about"])
    _console().print(table)


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Versions and machine, for a bug report."""
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


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder for the page and its pictures.")] = Path("demo")) -> None:
    """Explain real photographs and a real sentence with real networks; write a page to look at."""
    from termwise.demo import run

    run(out, progress=settings.progress, console=_console())


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _cpu() -> str:
    """The processor's name, where the system tells it."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _register() -> None:
    """Commands that live in files of their own."""
    from termwise import cli_compress, cli_expand, cli_verify

    cli_compress.register(app)
    cli_expand.register(app)
    cli_verify.register(app)


def main() -> None:
    """Entry point of the `termwise` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a bar that a terminal cannot show must not cost the figures beside it
    app()


_register()

if __name__ == "__main__":
    main()
