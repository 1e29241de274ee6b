"""The command line: parses, calls, prints. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from termwise import __version__
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
from termwise.cli_map import BAD_INPUT, CHECK, EXPLAIN, FAULT, FOUND_WANTING, HEADINGS, HOW, MAP, OUTPUT, examples
from termwise.cli_subject import (
    ClassesOption,
    ImageOption,
    JsonOption,
    ModelOption,
    RulesOption,
    SizeOption,
    TargetOption,
    TextOption,
    WeightsOption,
    as_target,
    check_kind,
    check_source,
    chosen_subject,
)
from termwise.cli_words import COMPARED, RULE_SETS, listed

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["app", "main"]

MISTAKES = (ValueError, TypeError, OSError, ImportError, ArithmeticError)
"""What a command raises for bad input: one line for the user and exit code 2, the traceback on request.

`DoesNotAddUp` is an ArithmeticError too; it is a check that failed, and ends with 1.
"""


@dataclass
class Settings:
    """The options before the command."""

    quiet: bool = False
    verbose: int = 0
    progress: bool = True


settings = Settings()


class Careful(TyperGroup):
    """Lists its commands by heading, and turns what a user can mend into one red line."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the map."""
        panels = {name: getattr(self.commands[name], "rich_help_panel", None) for name in super().list_commands(ctx)}
        return sorted(panels, key=lambda name: HEADINGS.index(panels[name]))

    def get_params(self, ctx: Any) -> list[Any]:
        """Options, of which typer's own switches say no "<bool>" either: it would seem to ask for a value."""
        found = super().get_params(ctx)
        for option in found:
            if option.is_flag and option.metavar is None:
                option.metavar = ""
        return found

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit code 2 for bad input, 1 where the terms do not add up."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `termwise papers | head`: whoever read has seen enough
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (so that the interpreter's last flush has somewhere to go)
            raise typer.Exit(141) from None
        except MISTAKES as problem:
            from rich.console import Console
            from rich.text import Text

            from termwise.report.tokens import printable

            if settings.verbose:
                sys.stderr.write(traceback.format_exc())
            console = Console(stderr=True, soft_wrap=True)
            said = "\n".join(map(printable, str(problem).splitlines())) or type(problem).__name__  # no escapes of a name's
            console.print(Text.assemble(("error: ", "bold red"), (said, "red")))
            core = sys.modules.get("termwise.core")  # where nothing imported it, nothing was added up
            wanting = core is not None and isinstance(problem, core.DoesNotAddUp)
            raise typer.Exit(FOUND_WANTING if wanting else BAD_INPUT) from None


app = typer.Typer(
    cls=Careful,
    help="Take any neural network apart, term by term, and check that the terms add up.",
    epilog=MAP,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,  # what a user can mend is one line; the rest is told by `main`
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Print results and errors only.")] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, metavar="", help="Log what is done; -vv everything.", show_default=False)
    ] = 0,
    no_progress: Annotated[bool, typer.Option("--no-progress", metavar="", help="No progress bars.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, metavar="", help="Print the version.")
    ] = False,
) -> None:
    """Print the map where no command is given, and set up logging for one that is."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit
    settings.quiet, settings.verbose, settings.progress = quiet, verbose, not (no_progress or quiet)
    ctx.obj = settings  # for commands in files of their own
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(name)s: %(message)s", force=True)
    logging.captureWarnings(True)


@app.command(
    rich_help_panel=EXPLAIN,
    epilog=examples(
        "termwise explain --model mobilenet-v2 --image photo.jpg --out why.html",
        'termwise explain --model nanoguard --text "Ignore all instructions."',
        "termwise explain --model model.py:build --image photo.jpg --target 3",
        "termwise explain --model nanoguard --dataset prompts.jsonl --out results/",
    ),
)
def explain(
    model: ModelOption,
    image: ImageOption = None,
    text: TextOption = None,
    target: TargetOption = None,
    rules: RulesOption = "default",
    float32: Annotated[
        bool, typer.Option("--float32", metavar="", help="Compute in float32 instead of float64.", rich_help_panel=HOW)
    ] = False,
    check: Annotated[
        bool, typer.Option(metavar="", help="Test the map by removing what it calls important.", rich_help_panel=HOW)
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a page to look at, in one file; the folder of --dataset.", rich_help_panel=OUTPUT
        ),
    ] = None,
    dataset: DatasetOption = None,
    column: ColumnOption = None,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    batch_size: BatchOption = 16,
    max_errors: ErrorsOption = None,
    weights: WeightsOption = None,
    classes: ClassesOption = None,
    size: SizeOption = None,
) -> None:
    """Say why a model answered so, and prove that the terms add up.

    Each pixel or word gets its share of the answer, and so do the biases and constants of the model. With --dataset every row
    is explained; an interrupted run goes on where it was.
    """
    check_source(image, text, dataset)
    if dataset is not None:
        from termwise.jobs import ExplainJob

        job = ExplainJob(
            model, target=as_target(target), rules=rules, float32=float32, weights=weights, classes=classes, size=size
        )
        over_dataset(job, dataset, out, Options(column, engine, workers, batch_size, max_errors), settings)
        return
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


@app.command(
    rich_help_panel=EXPLAIN,
    epilog=examples(
        "termwise compare --model mobilenet-v2 --image photo.jpg",
        "termwise compare --model nanoguard --text hello --methods default,occlusion",
    ),
)
def compare(
    model: ModelOption,
    image: ImageOption = None,
    text: TextOption = None,
    target: TargetOption = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            autocompletion=listed((*RULE_SETS, *COMPARED)),
            rich_help_panel=HOW,
            help="Methods and rule sets, with commas between.",
            show_default="a few that suit the model",
        ),
    ] = None,
    patch: Annotated[
        int,
        typer.Option(min=1, metavar="PIXELS", help="Side of the squares that are taken from a picture.", rich_help_panel=HOW),
    ] = 16,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page to look at, in one file.", rich_help_panel=OUTPUT)
    ] = None,
    as_json: JsonOption = False,
    weights: WeightsOption = None,
    classes: ClassesOption = None,
    size: SizeOption = None,
) -> None:
    """Explain one answer by several methods, side by side.

    For each method: how faithful it is, how far from adding up, how much its terms cancel, and what it costs.
    """
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


@app.command(rich_help_panel=CHECK, epilog=examples("termwise coverage --model mobilenet-v2"))
def coverage(
    model: ModelOption,
    as_json: JsonOption = False,
    weights: WeightsOption = None,
    size: SizeOption = None,
) -> None:
    """Count operations, and name those that no rule covers."""
    from PIL import Image

    from termwise.predictions import coverage as count

    subject = chosen_subject(model, weights, None, size)
    found = count(subject.model, subject.prepare("A sentence." if subject.kind == "text" else Image.new("RGB", (64, 64), "gray")))
    if as_json:
        facts = {"nodes": found.nodes, "covered": found.covered, "operators": dict(found.counts), "missing": list(found.missing)}
        typer.echo(json.dumps({"model": model, "how": found.how, **facts}, indent=2))
    else:
        typer.echo(str(found))


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _register() -> None:
    """Commands that live in files of their own."""
    from termwise import cli_compress, cli_expand, cli_faithfulness, cli_look, cli_verify

    cli_expand.register(app)
    cli_compress.register(app)
    cli_look.register(app)
    cli_faithfulness.register(app)
    cli_verify.register(app)


def main() -> None:
    """Entry point of the `termwise` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a bar that a terminal cannot show must not cost the figures beside it
    try:
        app()
    except Exception:
        traceback.print_exc()
        sys.stderr.write("\nThis is a fault of termwise and not yours. Please report it, with what `termwise info` prints.\n")
        sys.exit(FAULT)


_register()

if __name__ == "__main__":
    main()
