"""One batch from rows to bytes: what every worker does, whichever engine sends it its tasks."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol

import torch

from .dataset import Dataset
from .job import Answers, Job, Row, RowResult, total
from .table import as_bytes, batch_table, schema

__all__ = ["Done", "Executor", "Lost", "Task", "answer", "versions"]


@dataclass(frozen=True)
class Task:
    """Rows start, ..., stop - 1 of batch `number`: all of its rows, or one where a bad one is looked for."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Done:
    """A task's rows as a parquet file, and its sums as a safetensors file (empty where there are none)."""

    task: Task
    table: bytes
    sums: bytes


@dataclass(frozen=True)
class Lost:
    """A task whose worker died, or that ran into something that will pass."""

    task: Task
    reason: str


class Executor(Protocol):
    """Where tasks are done: this process, processes beside it, other machines."""

    @property
    def slots(self) -> int:
        """How many tasks to hand in at a time so that no worker waits; it may grow."""

    def start(self, job: Job, dataset: Dataset) -> dict[str, object]:
        """Start the job where it will run; returns what `job.start()` says there."""

    def submit(self, task: Task) -> None:
        """Hand in a task."""

    def collect(self) -> Sequence[Done | Lost]:
        """Wait until at least one task is done or lost."""

    def stop(self) -> None:
        """End everything at once; tasks in flight are dropped."""


NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What allocators say in an error of a kind that says nothing."""

PASSING = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
"""Errors of reading that are the machine's or the network's."""


def versions() -> dict[str, str]:
    """Of what the numbers and the bytes of a table come from."""
    return {name: metadata.version(name) for name in ("termwise", "torch", "numpy", "pyarrow")}


def answer(job: Job, dataset: Dataset, task: Task) -> Done | Lost:
    """Read the rows of a task, ask the job, and write the answers down. What will pass is no row's fault: the task is lost."""
    from safetensors.torch import save

    rows = dataset.rows(task.start, task.stop)
    good = [row for row in rows if row.problem is None]
    try:
        answers = _asked(job, good) if good else Answers([])
        for one in answers.rows:
            if isinstance(one, Exception) and _passes(one):
                raise one
    except Exception as problem:
        if not _passes(problem):
            raise
        return Lost(task, f"{type(problem).__name__}: {problem}")
    found: dict[int, RowResult | Exception] = {row.index: a for row, a in zip(good, answers.rows, strict=True)}
    unread = {row.index: ValueError(row.problem) for row in rows if row.problem is not None}
    table = batch_table(schema(job.scalars, job.decomposes), [(row, (unread | found)[row.index]) for row in rows])
    sums = {name: torch.as_tensor(value).contiguous() for name, value in answers.sums.items()}
    return Done(task, as_bytes(table), save(sums) if sums else b"")


def _asked(job: Job, rows: Sequence[Row]) -> Answers:
    """The answers of a batch; of every row by itself where the batch raises, so that only bad rows are lost."""
    try:
        answers = job.run(rows)
    except Exception as problem:
        if _passes(problem):
            raise
        if len(rows) == 1:
            return Answers([problem])
        each = [_asked(job, [row]) for row in rows]
        return Answers([a for one in each for a in one.rows], total(one.sums for one in each))
    if len(answers.rows) != len(rows):
        raise TypeError(f"{type(job).__name__}.run gave {len(answers.rows)} answers to {len(rows)} rows")
    return answers


def _passes(problem: BaseException) -> bool:
    """Whether it tells of the machine at this moment and not of a row: no memory, a disk or network that does not answer."""
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(problem, RuntimeError) and any(words in str(problem) for words in NO_MEMORY):
        return True
    if isinstance(problem, OSError) and problem.errno in PASSING:
        return True
    return problem.__cause__ is not None and _passes(problem.__cause__)
