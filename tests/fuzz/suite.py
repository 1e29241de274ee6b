"""Run programs by seed, tell what failed, and make it small."""

from __future__ import annotations

import re
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice

import torch
from tests.fuzz.checks import CHECKS, FLOORS, Subject, depth
from tests.fuzz.programs import Program, random_program, shrunk

__all__ = ["Outcome", "Summary", "fuzz", "judge", "smallest"]

PATIENCE = 300
"""Programs tried while one is made small."""


@dataclass
class Outcome:
    """Of one seed.

    Attributes:
        seed: of the program.
        ops: distinct operators of its recording.
        depth: operations on the longest way through it.
        traced: whether export refused it.
        refused: what the library refuses by name, one for each refusal.
        failures: name of a check -> the program, made small, and the error.
        seconds: by check.
        verdicts: check, what it could have judged, why it was not judged, or "".
    """

    seed: int
    ops: set[str] = field(default_factory=set)
    depth: int = 0
    traced: bool = False
    fixed: bool = False
    refused: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    verdicts: list[tuple[str, str, str]] = field(default_factory=list)


def judge(seed: int, *, shrink: bool = True) -> Outcome:
    """Every check of the program of a seed. An error outside the checks is a failure of this program."""
    torch.set_num_threads(1)
    outcome = Outcome(seed)
    try:
        _judge(random_program(seed), outcome, shrink)
    except Exception:
        outcome.failures["outside the checks"] = f"seed {seed}: outside the checks\n{traceback.format_exc()}"
    return outcome


def _judge(program: Program, outcome: Outcome, shrink: bool) -> None:
    subject = Subject(program)
    for name in CHECKS:
        began = time.perf_counter()
        if (problem := failed(subject, name)) is not None:
            outcome.failures[name] = report(program, problem, name)
            if shrink:
                outcome.failures[name] = report(*smallest(program, name, problem), name)
        outcome.seconds[name] = time.perf_counter() - began
    if "recording" not in outcome.failures:
        outcome.ops, outcome.depth = subject.ops, depth(subject)
        outcome.traced, outcome.fixed = (
            subject.recorded.how != "export",
            not all(0 in a for a in subject.recorded.dynamic.values()),
        )
    outcome.refused, outcome.verdicts = subject.refused, subject.verdicts


def failed(subject: Subject, name: str) -> Exception | None:
    """The error of a check, or None. What it judged goes to the verdicts of the subject."""
    try:
        subject.verdicts += [(name, *verdict) for verdict in CHECKS[name](subject)]
    except Exception as problem:
        return problem
    return None


def smallest(program: Program, name: str, problem: Exception) -> tuple[Program, Exception]:
    """A smaller program that fails the same check in the same way: no smaller one of it does."""
    left = PATIENCE
    while left:
        for smaller in shrunk(program):
            left -= 1
            try:
                found = failed(Subject(smaller), name)
            except Exception:  # it is no program any more
                found = None
            if found is not None and _kind(found) == _kind(problem) and len(smaller.lines) < len(program.lines):
                program, problem = smaller, found
                break
            if not left:
                break
        else:
            break
    return program, problem


def _kind(problem: Exception) -> str:
    """What it says before the first number."""
    return f"{type(problem).__name__} {re.split('[0-9]', str(problem))[0]}"


def report(program: Program, problem: Exception, name: str) -> str:
    """The program as code, and the error with the place in our code that it comes from."""
    at = traceback.extract_tb(problem.__traceback__)[-1]
    text = f"seed {program.seed}: {name}: {type(problem).__name__}: {problem}"
    return f"{text}\n  ({at.filename.rpartition('/')[2]}:{at.lineno})\n{program}"


@dataclass
class Summary:
    """Of many outcomes."""

    programs: int = 0
    ops: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    refusing: int = 0
    depths: list[int] = field(default_factory=list)
    traced: int = 0
    fixed: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    verdicts: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.programs += 1
        self.ops.update(outcome.ops)
        self.refused.update(set(outcome.refused))
        self.refusing += bool(outcome.refused)
        self.depths.append(outcome.depth)
        self.traced += outcome.traced
        self.fixed += outcome.fixed
        self.seconds.update(outcome.seconds)
        self.failures += outcome.failures.values()
        self.verdicts.update(set(outcome.verdicts))

    def judged(self) -> Iterator[tuple[str, int, Counter[str], float]]:
        """What a check judges, in how many programs, why not in others, and the number of programs that is its floor."""
        for name in CHECKS:
            skips = Counter({why: n for (check, what, why), n in self.verdicts.items() if check == name and not what and why})
            parts = dict.fromkeys(what for check, what, _ in sorted(self.verdicts) if check == name and what)
            floor = FLOORS[name] * self.programs
            if not parts:
                yield name, self.verdicts[name, "", ""], skips, floor
            for part in parts:
                own = Counter(
                    {why: n for (check, what, why), n in self.verdicts.items() if (check, what) == (name, part) and why}
                )
                yield f"{name}: {part}", self.verdicts[name, part, ""], skips + own, floor

    def __str__(self) -> str:
        depths = sorted(self.depths)
        lines = [
            f"{self.programs} programs, {len(self.ops)} distinct ATen operators, depth {depths[0]} to {depths[-1]} (median {depths[len(depths) // 2]})",
            f"{self.traced} traced because export refused, {self.fixed} of fixed batch size",
            f"{self.refusing} with a refusal by name:" + "".join(f"\n    {n} x {text}" for text, n in self.refused.most_common()),
            "seconds: " + ", ".join(f"{name} {s:.0f}" for name, s in self.seconds.most_common()),
            "judged:",
            *(
                f"    {n:5} {what}" + "".join(f"; {m} x {why}" for why, m in skips.most_common())
                for what, n, skips, _ in self.judged()
            ),
            f"{len(self.failures)} failures",
        ]
        return "\n".join(lines)


def fuzz(seeds: range, workers: int, minutes: float) -> Iterator[Outcome]:
    """Outcomes as they come in; none is begun after so many minutes."""
    end = time.monotonic() + 60 * minutes
    with ProcessPoolExecutor(workers) as pool:
        waiting = iter(seeds)
        running = {pool.submit(judge, seed) for seed in islice(waiting, 2 * workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            if time.monotonic() < end:
                running |= {pool.submit(judge, seed) for seed in islice(waiting, len(done))}
            yield from (future.result() for future in done)
