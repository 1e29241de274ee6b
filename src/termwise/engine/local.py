"""This machine: the process itself, or processes beside it that hold the model and are fed through pipes.

Every worker computes with the same number of threads, one when nothing is said: sums inside an operation are then added in
the same order whatever the number of workers, and several processes of one thread waste no time waiting for each other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from .allocator import give_back, keep_freed
from .dataset import Dataset
from .job import Job
from .worker import Done, Lost, Task, answer

__all__ = ["THREADS", "InProcess", "Processes", "cores", "plain"]

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Read by the libraries when they are first imported."""

MISTAKES = (ValueError, TypeError, ImportError, ArithmeticError, OSError)
"""Kinds of errors that keep their kind on the way from a worker."""


def cores() -> int:
    """Physical cores this process may use: of its CPUs, two on one core count once, and a container's quota is kept."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # no Linux
        return os.cpu_count() or 1
    found = {_core(cpu) for cpu in cpus}
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(len(found), int(quota) // int(period)))
    return len(found)


def _core(cpu: int) -> tuple[str, str]:
    place = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        return (place / "physical_package_id").read_text(), (place / "core_id").read_text()
    except OSError:
        return "", str(cpu)


class InProcess:
    """One worker, which is this process."""

    slots = 1

    def __init__(self, threads: int = 1) -> None:
        self._threads, self._before = threads, torch.get_num_threads()
        self._tasks: deque[Task] = deque()

    def start(self, job: Job, dataset: Dataset) -> dict[str, Any]:
        """Load the job here."""
        keep_freed()
        torch.set_num_threads(self._threads)
        self._job, self._dataset = job, dataset
        return job.start()

    def submit(self, task: Task) -> None:
        """Keep it."""
        self._tasks.append(task)

    def collect(self) -> Sequence[Done | Lost]:
        """Do the next."""
        return [answer(self._job, self._dataset, self._tasks.popleft())]

    def stop(self) -> None:
        """Give the threads back, and the memory."""
        torch.set_num_threads(self._before)
        give_back()


class Processes:
    """Several workers, each a process. One that dies costs the task it was at; another takes its place.

    Args:
        workers: how many.
        threads: of each.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        self.slots = 2 * workers  # one at work, one waiting in the pipe
        self._workers, self._threads = workers, threads
        self._facts: dict[str, Any] | None = None
        self._all: list[_Worker] = []

    def start(self, job: Job, dataset: Dataset) -> dict[str, Any]:
        """Start every worker and wait for the first that is ready."""
        self._job, self._dataset = job, dataset
        for _ in range(self._workers):
            self._all.append(self._new())
        while self._facts is None:
            self._received()
        return self._facts

    def submit(self, task: Task) -> None:
        """Send it to the worker with least to do."""
        min(self._all, key=lambda w: len(w.tasks)).send(task)

    def collect(self) -> Sequence[Done | Lost]:
        """Wait for news."""
        while not (found := self._received()):
            pass
        return found

    def stop(self) -> None:
        """End every worker."""
        for worker in self._all:
            worker.process.kill()
        for worker in self._all:
            worker.process.join()
            worker.connection.close()
        self._all = []

    def _new(self) -> _Worker:
        here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")  # a forked torch may hang in its threads
        process = context.Process(target=_serve, args=(there, self._job, self._dataset, self._threads), daemon=True)
        with _threads_said(self._threads):
            process.start()
        there.close()  # so that its death is heard here
        return _Worker(process, here)

    def _received(self) -> list[Done | Lost]:
        """What workers say now."""
        found: list[Done | Lost] = []
        for connection in wait([worker.connection for worker in self._all]):
            worker = next(w for w in self._all if w.connection is connection)
            try:
                what, value = worker.connection.recv()
            except (EOFError, OSError):
                found += self._buried(worker)
                continue
            if what == "failed":
                raise value
            if what == "done":
                worker.tasks.popleft()
                found.append(value)
            elif self._facts is not None and value != self._facts:
                raise ValueError(f"two workers loaded different models: {self._facts} and {value}; was a file changed meanwhile?")
            else:
                worker.ready, self._facts = True, value
        return found

    def _buried(self, worker: _Worker) -> list[Done | Lost]:
        """Put another in the place of a worker that died; what it had not begun goes on there."""
        worker.process.join()
        worker.connection.close()
        self._all.remove(worker)
        code = worker.process.exitcode
        reason = f"its worker died, exit code {code}" + (": probably out of memory" if code == -signal.SIGKILL else "")
        if not worker.ready:
            raise ChildProcessError(
                f"a worker died while it loaded the model, exit code {code}. Out of memory? Try fewer --workers. In a script of "
                'your own, call this under `if __name__ == "__main__":`'
            )
        self._all.append(self._new())
        lost = [Lost(worker.tasks.popleft(), reason)] if worker.tasks else []
        for task in worker.tasks:
            self._all[-1].send(task)
        return [*lost]


class _Worker:
    """A process, its pipe, and the tasks it was sent, oldest first."""

    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self.process, self.connection = process, connection
        self.tasks: deque[Task] = deque()
        self.ready = False

    def send(self, task: Task) -> None:
        """Hand it in; a worker that is dead is heard of when it is asked for results."""
        self.tasks.append(task)
        with contextlib.suppress(OSError):
            self.connection.send(task)


@contextlib.contextmanager
def _threads_said(threads: int) -> Iterator[None]:
    """In the environment, for a process that starts here."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, job: Job, dataset: Dataset, threads: int) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process of a terminal: the first one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(
        ImportError
    ):  # torch draws bars with it: a lock between processes would outlive a worker that is killed
        import tqdm

        tqdm.tqdm.set_lock(threading.RLock())
    keep_freed()
    torch.set_num_threads(threads)
    try:
        connection.send(("ready", job.start()))
        while True:
            try:
                task = connection.recv()
            except EOFError:
                return
            connection.send(("done", answer(job, dataset, task)))
    except Exception as problem:
        with contextlib.suppress(OSError):
            connection.send(("failed", plain(problem)))


def _end_with_parent() -> None:
    """A parent that is killed leaves nobody computing behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def plain(problem: Exception) -> Exception:
    """The same as an error that any process can read."""
    kind = next((k for k in MISTAKES if isinstance(problem, k)), RuntimeError)
    return kind(str(problem) or type(problem).__name__)
