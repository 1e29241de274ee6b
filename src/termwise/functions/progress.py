"""A bar over the steps of a training, on a terminal alone and gone when done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(total: int, *, show: bool) -> Iterator[Callable[[int, str], None]]:
    """Call what it gives with how many steps were made, and what to say.

    Args:
        total: steps to make.
        show: whether to; on what is no terminal it never does.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task("", total=total)
        yield lambda steps, text: bar.update(task, advance=steps, description=text)
