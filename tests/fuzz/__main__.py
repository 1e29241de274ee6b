"""`make fuzz`: random programs through everything, for a while."""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz.suite import Summary, fuzz

OPERATORS, REFUSED = 60, 0.03
"""Distinct operators that 500 programs reach at least; the share of programs with a refusal, at most."""


def main() -> int:
    """Run, print failures as they come, then what was run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--programs", type=int, default=2000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the first one")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--minutes", type=float, default=60, help="after which no more are begun")
    asked = parser.parse_args()
    summary, began = Summary(), time.monotonic()
    for outcome in fuzz(range(asked.seed, asked.seed + asked.programs), asked.workers, asked.minutes):
        summary.add(outcome)
        for text in outcome.failures.values():
            print(text, end="\n\n", flush=True)
        if summary.programs % 100 == 0:
            print(f"{summary.programs} programs, {time.monotonic() - began:.0f} s, {len(summary.failures)} failures", flush=True)
    print(summary, f"{time.monotonic() - began:.0f} s, {asked.workers} workers", sep="\n")
    wrong = [f"{len(summary.failures)} failures"] if summary.failures else []
    if summary.programs < asked.programs:
        wrong.append(f"{summary.programs} of {asked.programs} programs in {asked.minutes:g} minutes")
    if summary.programs >= 500 and len(summary.ops) < OPERATORS:
        wrong.append(f"{len(summary.ops)} operators are fewer than {OPERATORS}")
    if summary.programs >= 500:
        wrong += [
            f"{what} was judged in {n} programs, fewer than {floor:.0f}" for what, n, _, floor in summary.judged() if n < floor
        ]
    if summary.refusing > max(3, REFUSED * summary.programs):
        wrong.append(f"{summary.refusing} programs with a refusal are more than {REFUSED:.0%}")
    print(*(wrong or ["all is well"]), sep="; ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
