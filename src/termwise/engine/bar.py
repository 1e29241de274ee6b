"""The bar of a run: rows done, rows per second, time left, errors."""

from __future__ import annotations

from types import TracebackType
from typing import Self

__all__ = ["Bar"]


class Bar:
    """A progress bar on standard error. Rates are of this run alone, by a clock that nobody sets.

    Args:
        rows: of all.
        done: by earlier runs.
        shown: False counts and shows nothing.
    """

    def __init__(self, rows: int, done: int, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Rate(TextColumn):
            def render(self, task: object) -> Text:
                speed = getattr(task, "speed", None)
                return Text(f"{speed:.3g} rows/s" if speed else "", style="cyan")

        self.done = done
        self._progress = Progress(
            BarColumn(), MofNCompleteColumn(), Rate(""), TimeRemainingColumn(), TextColumn("{task.fields[errors]}"),
            console=Console(stderr=True), disable=not shown, speed_estimate_period=60.0,
        )  # fmt: skip
        self._task = self._progress.add_task("rows", total=rows, completed=done, errors="")

    def advance(self, rows: int, failed: int) -> None:
        """So many more; so many have failed in all."""
        self.done += rows
        self._progress.update(self._task, advance=rows, errors=f"[red]{failed} failed" if failed else "")

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.__exit__(kind, value, trace)
