"""Run a job over a data set: batch by batch, in any order, each written once and never half.

Batch i holds rows [i * size, (i + 1) * size). A kill at any moment costs the batches in flight; the next run does what is
missing, and the table it ends with is the same to the byte, whatever was interrupted and however many workers there were:
a batch's numbers depend on its rows, the manifest, and the machine's arithmetic, and the table is written in their order.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .bar import Bar
from .cluster import Actors
from .dataset import Dataset
from .folder import FORMAT, Folder
from .job import Job
from .local import InProcess, Processes, cores
from .merging import errors_in, finish, join
from .parquet import arrow
from .results import Results
from .table import as_bytes, batch_table, schema
from .worker import Done, Executor, Lost, Task, versions

__all__ = ["ENGINES", "TooManyErrors", "run"]

log = logging.getLogger(__name__)


class TooManyErrors(RuntimeError):
    """More rows failed than were allowed; what is done is kept."""


def _local(workers: int | None, threads: int, batches: int) -> Executor:
    """As many processes as there are cores for their threads, and no more than batches; one is this process."""
    workers = min(max(1, cores() // threads) if workers is None else workers, batches)
    return InProcess(threads) if workers == 1 else Processes(workers, threads)


ENGINES: dict[str, Callable[[int | None, int, int], Executor]] = {"local": _local, "ray": Actors}
"""Name -> what makes an executor from (workers, threads of each, batches to do)."""


def run(
    job: Job,
    dataset: Dataset,
    out: str | Path,
    *,
    engine: str = "local",
    workers: int | None = None,
    threads: int = 1,
    batch_size: int = 16,
    max_errors: int | None = None,
    progress: bool = False,
) -> Results:
    """Answer every row of a data set, in a folder that can be interrupted, resumed and read at any time.

    Args:
        job: what to do.
        dataset: to what.
        out: folder of the results; one that a run with the same settings left is gone on with.
        engine: where to compute, a key of `ENGINES`.
        workers: how many; by default the physical cores divided by `threads`. The numbers do not depend on it.
        threads: of each worker. Numbers may depend on it in their last bits, so it is one of the settings.
        batch_size: rows that are computed together; one of the settings.
        max_errors: end when more rows than this have failed; None to go on whatever fails.
        progress: show a bar on the terminal.

    Returns:
        The results, complete.

    Raises:
        ValueError: for settings that make no sense, or other ones than the folder was made with (with the difference); for a
            folder in that of the data; for data that change meanwhile.
        TooManyErrors: when more than `max_errors` rows failed.
        ChildProcessError: when a worker died while it loaded the job.
        OSError: when results cannot be written.
        KeyboardInterrupt: after Ctrl-C; its message says what is kept.

    Memory: O(workers * batch): the data set and the results pass through.
    """
    if engine not in ENGINES:
        raise ValueError(f"there is no engine {engine!r}: choose from {', '.join(ENGINES)}")
    for name, value in {"workers": workers, "threads": threads, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if dataset.path.is_dir() and Path(out).resolve().is_relative_to(dataset.path.resolve()):
        raise ValueError(f"{out} lies in the data set {dataset.path}: choose a folder outside of it")
    arrow()
    folder = Folder(out)
    manifest = _manifest(job, dataset, batch_size, threads)
    with folder.locked():
        folder.refuse_other(manifest)
        count = -(-len(dataset) // batch_size)
        done = set(range(count) if folder.finished else folder.done())
        tasks = [Task(i, i * batch_size, min((i + 1) * batch_size, len(dataset))) for i in range(count) if i not in done]
        executor = ENGINES[engine](workers, threads, len(tasks)) if tasks else InProcess(threads)
        try:
            loaded = executor.start(job, dataset)
            folder.claim(manifest | {"loaded": loaded})
            if folder.finished:
                log.warning("%s is finished: there was nothing left to do", out)
            else:
                _Run(job, dataset, folder, executor, max_errors).do(
                    tasks, count, len(dataset), manifest["dataset"]["digest"], progress
                )
        finally:
            executor.stop()
        folder.tidy()
    return Results(folder.path)


class _Run:
    """What is on its way: tasks, how often they were lost, and the rows of batches that were lost twice."""

    def __init__(self, job: Job, dataset: Dataset, folder: Folder, executor: Executor, max_errors: int | None) -> None:
        self.dataset, self.folder, self.executor = dataset, folder, executor
        self.columns = schema(job.scalars, job.decomposes)
        self.most = max_errors
        self.deaths: Counter[int] = Counter()
        self.single: dict[int, list[Done]] = {}  # batch -> its rows, asked one by one
        self.size: dict[int, int] = {}  # batch -> number of rows

    def do(self, tasks: list[Task], count: int, rows: int, digest: str, progress: bool) -> None:
        """Every task, then the table."""
        begun, left = time.monotonic(), sum(t.stop - t.start for t in tasks)
        self.size = {t.number: t.stop - t.start for t in tasks}
        self.failed = sum(len(errors_in(self.folder.batch(number))) for number in self.folder.done())
        self.folder.note("started", rows_left=left, slots=self.executor.slots, **_machine())
        waiting, flying = deque(tasks), 0
        with Bar(rows, rows - left, shown=progress) as bar:
            try:
                self._enough()
                while waiting or flying:
                    while waiting and flying < self.executor.slots:
                        self.executor.submit(waiting.popleft())
                        flying += 1
                    for outcome in self.executor.collect():
                        flying -= 1
                        if isinstance(outcome, Lost):
                            waiting.extendleft(self._lost(outcome, bar))
                        else:
                            self._done(outcome, bar)
                self._unchanged(digest)
                merging = time.monotonic()
                finish(self.folder, count, self.columns)
            except KeyboardInterrupt:
                self.folder.note("interrupted", rows_done=bar.done)
                raise KeyboardInterrupt(
                    f"interrupted: {bar.done} of {rows} rows are done and kept in {self.folder.path}; the same command goes on"
                ) from None
        now = time.monotonic()
        self.folder.note(
            "finished", rows=left, seconds=round(now - begun, 3), merging=round(now - merging, 3), failed=self.failed
        )

    def _done(self, done: Done, bar: Bar) -> None:
        """Keep a batch that is whole."""
        number = done.task.number
        if number in self.single:
            self.single[number].append(done)
            if len(self.single[number]) < self.size[number]:
                return
            done = join(self.single.pop(number))
        if done.sums:  # first: the batch counts as done when its table is there
            self.folder.write(self.folder.batch(number, ".safetensors"), done.sums)
        self.folder.write(self.folder.batch(number), done.table)
        self.failed += len(errors_in(done.table))
        bar.advance(self.size[number], self.failed)
        self._enough()

    def _lost(self, lost: Lost, bar: Bar) -> list[Task]:
        """What to try next: the batch once more, then its rows one by one; the row that does it is an error."""
        task, rows = lost.task, range(lost.task.start, lost.task.stop)
        log.warning("rows %d to %d: %s", task.start, task.stop - 1, lost.reason)
        self.deaths[task.number] += 1
        if self.deaths[task.number] == 1:
            return [task]
        if len(rows) > 1:
            self.single[task.number] = []
            return [Task(task.number, i, i + 1) for i in reversed(rows)]  # they are put in front one after another
        failed = batch_table(self.columns, [(self.dataset.rows(task.start, task.stop)[0], RuntimeError(lost.reason))])
        self._done(Done(task, as_bytes(failed), b""), bar)
        return []

    def _unchanged(self, digest: str) -> None:
        if self.dataset.describe()["digest"] != digest:
            raise ValueError(
                f"{self.dataset.path} was changed while it was read, so {self.folder.path} may hold rows of both: keep the data "
                "as they are, and choose another folder"
            )

    def _enough(self) -> None:
        if self.most is not None and self.failed > self.most:
            raise TooManyErrors(
                f"{self.failed} rows failed, {self.most} were allowed; what is done is kept in {self.folder.path}. The reasons: "
                f"termwise.engine.Results({str(self.folder.path)!r}).errors. With a higher limit the same command goes on"
            )


def _manifest(job: Job, dataset: Dataset, batch_size: int, threads: int) -> dict[str, Any]:
    """Everything that decides the numbers, but for what `start` finds."""
    columns = {name: kind.__name__ for name, kind in job.scalars.items()}
    return {
        "format": FORMAT, "verb": job.verb, "settings": job.settings(), "dataset": dataset.describe(),
        "decomposes": job.decomposes, "columns": columns,
        "batch_size": batch_size, "threads": threads, "versions": versions(),
    }  # fmt: skip


def _machine() -> dict[str, Any]:
    """What may change the last bits without being a setting."""
    return {
        "python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip
