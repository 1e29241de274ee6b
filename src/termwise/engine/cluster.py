"""Ray: actors that hold the model, on this machine or on many, each with one task at work and one waiting.

They are sent the tasks of local processes and answer with the same bytes; the first process alone writes. RAY_ADDRESS names a
cluster; without it one is started here for as long as the run takes, which listens on loopback only, unless Ray was imported
before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import platform
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .allocator import keep_freed
from .dataset import Dataset
from .job import Job
from .local import THREADS, cores, plain
from .worker import Done, Lost, Task, answer, versions

__all__ = ["Actors"]

log = logging.getLogger(__name__)


class Actors:
    """Several workers, each an actor. One that dies costs the task it was at; another takes its place.

    Args:
        workers: how many; as many as the cluster has CPUs for when not given.
        threads: of each, which are the CPUs that it asks for.
        batches: that there are, and no more workers than these.
    """

    def __init__(self, workers: int | None, threads: int, batches: int) -> None:
        self._workers, self._threads, self._batches = workers, threads, batches
        self._ours = False
        self._facts: dict[str, Any] | None = None
        self._all: list[_Actor] = []

    @property
    def slots(self) -> int:
        """Two for each worker that is ready: on a cluster with no room for all, the others wait and hold nothing."""
        return 2 * max(1, sum(actor.ready for actor in self._all))

    def start(self, job: Job, dataset: Dataset) -> dict[str, Any]:
        """Start every worker and wait for the first that is ready.

        Raises:
            ImportError: without Ray.
            ConnectionError: when there is no cluster at RAY_ADDRESS, or none could be started.
            ChildProcessError: when a worker died before it was ready.
        """
        self._connect()
        self._given = self._ray.put(self._ray.cloudpickle.dumps((job, dataset)))
        workers = self._workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)) // self._threads)
        self._all = [self._new() for _ in range(min(workers, self._batches))]
        while self._facts is None:
            self._received()
        return self._facts

    def submit(self, task: Task) -> None:
        """Send it to the worker with least to do."""
        ready = [actor for actor in self._all if actor.ready]
        min(ready or self._all, key=lambda actor: len(actor.pending)).send(task)

    def collect(self) -> Sequence[Done | Lost]:
        """Wait for news."""
        while not (found := self._received()):
            pass
        return found

    def stop(self) -> None:
        """End every worker, and the cluster where it was started here."""
        for actor in self._all:
            self._ray.kill(actor.handle)
        self._all = []
        if self._ours:
            self._ray.shutdown()

    def _connect(self) -> None:
        """To the cluster that this process is connected to, to that of RAY_ADDRESS, or to one of its own."""
        address = os.environ.get("RAY_ADDRESS")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not address and "ray" not in sys.modules:  # it is read at import: no machine but this one, so nothing but loopback
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        self._ray = ray = _ray()
        if ray.is_initialized():
            return
        self._ours = True
        cpus = (self._workers or max(1, cores() // self._threads)) * self._threads
        where = {"address": address} if address else {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as problem:  # of many kinds, some of them Exception itself
            raise ConnectionError(f"Ray at {where['address']} cannot be reached or started: {problem}") from problem

    def _new(self) -> _Actor:
        said = dict.fromkeys(THREADS, str(self._threads))
        made = self._ray.remote(_Worker).options(num_cpus=self._threads, max_restarts=0, runtime_env={"env_vars": said})
        handle = made.remote()
        return _Actor(handle, handle.start.remote(self._given, self._threads, str(Path.cwd()), sys.path, versions()))

    def _received(self) -> list[Done | Lost]:
        """What one worker says next: they answer in order, so only the first that each was asked is waited for."""
        first = {actor.pending[0][0]: actor for actor in self._all if actor.pending}
        (reference, *_), _ = self._ray.wait(list(first))
        actor = first[reference]
        _, task = actor.pending.popleft()
        try:
            value = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as problem:
            raise plain(problem.cause) from None
        except self._ray.exceptions.RayError as problem:
            return self._buried(actor, task, problem)
        if task is not None:
            return [value]
        if self._facts is not None and value != self._facts:
            raise ValueError(f"two workers loaded different models: {self._facts} and {value}; is a file another one on a node?")
        actor.ready, self._facts = True, value
        return []

    def _buried(self, actor: _Actor, task: Task | None, problem: Exception) -> list[Done | Lost]:
        """Put another in the place of a worker that died; what it had not begun goes on elsewhere."""
        self._all.remove(actor)
        self._ray.kill(actor.handle)  # where only its answer was lost
        if task is None:
            raise ChildProcessError(
                f"a worker died while it loaded the model. Out of memory? Try fewer --workers. Ray: {problem}"
            )
        log.info("%s", problem)
        self._all.append(self._new())
        for _, waiting in actor.pending:
            if waiting is not None:
                self.submit(waiting)
        return [Lost(task, f"its worker died (Ray: {type(problem).__name__}), of memory as a rule")]


class _Actor:
    """A worker as it is seen from here, and what it was asked, oldest first; the first question is to start."""

    def __init__(self, handle: Any, started: Any) -> None:
        self.handle, self.ready = handle, False
        self.pending: deque[tuple[Any, Task | None]] = deque([(started, None)])

    def send(self, task: Task) -> None:
        """Hand it in; a worker that is dead is heard of when it is asked for results."""
        self.pending.append((self.handle.answer.remote(task), task))


class _Worker:
    """The life of a worker, in a process of Ray's."""

    _job: Job
    _dataset: Dataset

    def start(self, given: bytes, threads: int, folder: str, modules: list[str], expected: dict[str, str]) -> dict[str, Any]:
        """Load the job, where relative paths and imports mean what they mean to the one who asks."""
        with contextlib.suppress(OSError):
            os.chdir(folder)
        sys.path += [path for path in modules if path not in sys.path]
        if (own := versions()) != expected:
            raise ValueError(f"{platform.node()} has {own}, this process {expected}: numbers may differ, install the same")
        self._job, self._dataset = pickle.loads(given)
        if not self._dataset.path.exists():
            where = self._dataset.path.absolute()
            raise FileNotFoundError(f"{where} is not on {platform.node()}: data must be under the same path on every node")
        keep_freed()
        torch.set_num_threads(threads)
        return self._job.start()

    def answer(self, task: Task) -> Done | Lost:
        """One batch."""
        return answer(self._job, self._dataset, task)


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise ImportError('engine "ray" needs Ray: pip install "termwise[ray]"') from None
    return ray
