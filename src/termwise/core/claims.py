"""Papers are executable: a claim is a function that measures, and says whether what was published holds here.

    @claim("dynamiclrp", statement="every node has a rule", published="99.92 % of nodes", exact=True)
    def coverage() -> tuple[str, bool]:
        return f"{covered} of {nodes}", covered == nodes

Three outcomes: it **holds**; it is **contradicted**, on record with a reason, and keeps being so; it **failed** (it raised,
or came out other than on record). Only a failed one makes `termwise verify` end with 1.
"""

from __future__ import annotations

import importlib
import time
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from multiprocessing import get_context
from typing import Any

__all__ = ["CLAIMS", "Claim", "Result", "claim", "load_claims", "papers", "run", "verify"]

Measure = Callable[[], tuple[str, bool]]


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper that could be false, and the function that measures it."""

    paper: str
    statement: str
    published: str
    measure: Measure
    exact: bool = False
    slow: bool = False
    note: str = ""
    contradicted: str = ""

    @property
    def name(self) -> str:
        """`paper.function`, unique."""
        return f"{self.paper}.{self.measure.__name__}"


@dataclass(frozen=True)
class Result:
    """What came out of a claim. `outcome` is "holds", "contradicted" or "failed"."""

    name: str
    paper: str
    statement: str
    published: str
    measured: str
    outcome: str
    exact: bool
    seconds: float
    note: str
    details: str = ""

    def json(self) -> dict[str, Any]:
        """The fields of `termwise verify --json`."""
        return {k: v for k, v in asdict(self).items() if k not in ("name", "details")}


CLAIMS: dict[str, Claim] = {}
"""Every claim of the rooms loaded so far, by name."""


def claim(
    paper: str, *, statement: str, published: str, exact: bool = False, slow: bool = False, note: str = "", contradicted: str = ""
) -> Callable[[Measure], Measure]:
    """Register a function as a claim of a paper.

    Args:
        paper: its key in `papers.toml`.
        statement: the sentence that is measured.
        published: what the paper says, in its words and numbers.
        exact: an identity; it can only hold or fail.
        slow: needs more than a minute or large weights.
        note: what differs here (scale, data).
        contradicted: the reason on record, with figures, where our measurement says otherwise than the paper. The
            function then returns whether the *paper's* statement holds, and must keep returning False.

    Raises:
        ValueError: for a name taken already, an unknown paper, or an exact claim marked as contradicted.
    """
    if paper not in papers():
        raise ValueError(f"no paper {paper!r} in core/papers.toml: known are {', '.join(papers())}")
    if exact and contradicted:
        raise ValueError(f"an exact claim of {paper!r} cannot be contradicted: either it is wrong or our code is")

    def register(measure: Measure) -> Measure:
        new = Claim(paper, statement, published, measure, exact, slow, note, contradicted)
        if new.name in CLAIMS:
            raise ValueError(f"there is a claim {new.name} already: give the function another name")
        CLAIMS[new.name] = new
        return measure

    return register


@cache
def papers() -> dict[str, dict[str, Any]]:
    """The rows of `papers.toml` by key, in order of their number."""
    text = resources.files("termwise.core").joinpath("papers.toml").read_text("utf-8")
    rows = sorted(tomllib.loads(text)["paper"], key=lambda row: row["number"])
    return {row["key"]: row for row in rows}


def load_claims(room: str | None = None) -> list[Claim]:
    """Import `claims.py` of a room (of every room with a paper when not given) and return its claims."""
    rooms = {row["room"] for row in papers().values()}
    if room is not None and room not in rooms:
        raise ValueError(f"no room {room!r} with claims: known are {', '.join(sorted(rooms))}")
    chosen = {room} if room else rooms
    for name in sorted(chosen):
        importlib.import_module(f"termwise.{name}.claims")
    return [c for c in CLAIMS.values() if papers()[c.paper]["room"] in chosen]


def run(found: Claim) -> Result:
    """Measure one claim. An exception is a failure, with its traceback in `details`."""
    started, details = time.perf_counter(), ""
    try:
        measured, holds = found.measure()
        if found.contradicted:
            outcome = "failed" if holds else "contradicted"
            measured += " (on record as contradicted, but it holds now)" if holds else ""
        else:
            outcome = "holds" if holds else "failed"
    except Exception as problem:
        measured, outcome, details = f"{type(problem).__name__}: {problem}", "failed", traceback.format_exc()
    seconds = time.perf_counter() - started
    note = "; ".join(n for n in (found.note, found.contradicted) if n)
    return Result(
        found.name, found.paper, found.statement, found.published, measured, outcome, found.exact, seconds, note, details
    )


def verify(claims: Iterable[Claim], *, processes: int = 1) -> Iterator[Result]:
    """Run claims and yield each result as it comes.

    Args:
        claims: which.
        processes: with more than one, each claim runs in a process of its own, on one thread.
    """
    chosen = list(claims)
    if processes <= 1 or len(chosen) <= 1:
        yield from map(run, chosen)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        for future in as_completed([pool.submit(_run_by_name, papers()[c.paper]["room"], c.name) for c in chosen]):
            yield future.result()


def _run_by_name(room: str, name: str) -> Result:
    load_claims(room)
    return run(CLAIMS[name])


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
