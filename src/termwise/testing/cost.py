"""What something costs: seconds side by side, and the most bytes it holds at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["interleaved", "peak"]


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each, the minimum over rounds in which all run in turn: a busy machine delays all of them alike."""
    best = dict.fromkeys(functions, math.inf)
    for f in functions.values():
        f()
    for _ in range(rounds):
        for name, f in functions.items():
            started = time.perf_counter()
            f()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def peak(function: Callable[[], Any]) -> int:
    """Most bytes allocated above the start, from the allocator's events."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    now = high = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            high = max(high, now)
    return high
