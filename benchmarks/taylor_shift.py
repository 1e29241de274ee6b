"""TaylorShift beside torch's attention and linear attention: seconds of the processor and bytes, interleaved.

    python benchmarks/taylor_shift.py [--quick]

Random heads, float32, batch 1, one head, forward passes, one thread. Peers: `scaled_dot_product_attention`; linear attention with
elu + 1 in place of the softmax. The direct form ends at 4,096 tokens. Writes docs/data/taylor_shift.json: a row for each dimension
and length, and where the efficient form overtakes the others, interpolated between lengths, beside the analytic figures.
"""

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from termwise.layers import crossover, taylor_shift_attention
from termwise.testing.cost import peak

OUT = Path(__file__).parent.parent / "docs" / "data" / "taylor_shift.json"
DIMENSIONS = (8, 16, 32, 64)
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)


def linear_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Katharopoulos et al. 2020: elu + 1 of query and key."""
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return q @ (k.mT @ v) / (q @ k.sum(-2, keepdim=True).mT)


def subjects(d: int, length: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Name -> call."""
    q, k, v = torch.randn(3, 1, 1, length, d)
    calls = {
        "efficient": lambda: taylor_shift_attention(q, k, v, implementation="efficient"),
        "direct": lambda: taylor_shift_attention(q, k, v, implementation="direct"),
        "sdpa": lambda: F.scaled_dot_product_attention(q, k, v),
        "linear": lambda: linear_attention(q, k, v),
    }
    if length > 4096:
        del calls["direct"]
    return calls


def seconds(calls: dict[str, Callable[[], torch.Tensor]], rounds: int) -> dict[str, float]:
    """Of the processor for each call, the least of the rounds, in turn; short calls repeated within a round."""
    best = dict.fromkeys(calls, math.inf)
    for at in range(rounds + 1):
        for name, call in calls.items():
            started, runs = time.process_time(), 0
            while runs == 0 or (time.process_time() - started < 0.005):
                call()
                runs += 1
            if at:  # the first round warms up
                best[name] = min(best[name], (time.process_time() - started) / runs)
    return best


def overtakes(rows: list[dict], peer: str, kind: str) -> float | None:
    """The length at which the efficient form becomes less than a peer for good, interpolated in logarithms; None where it does not."""
    points = [(r["length"], math.log(r[kind]["efficient"] / r[kind][peer])) for r in rows if peer in r[kind]]
    if points[-1][1] >= 0:
        return None
    for (a, above), (b, below) in reversed([*itertools.pairwise(points)]):
        if above >= 0:
            return round(a * (b / a) ** (above / (above - below)))
    return points[0][0]  # less already at the shortest


def main() -> None:
    """Print the rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, short sequences, and nothing is written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    rows, crossovers = [], []
    with torch.no_grad():
        for d in DIMENSIONS:
            for length in LENGTHS[: 4 if quick else None]:
                calls = subjects(d, length)
                took = seconds(calls, 1 if quick else 3)
                held = {name: peak(call) for name, call in calls.items()}
                rows.append({"d": d, "length": length, "seconds": took, "bytes": held})
                print(d, length, {n: f"{1e3 * s:.2f} ms" for n, s in took.items()}, held, flush=True)
            own, n = [r for r in rows if r["d"] == d], crossover(d)
            measured = {kind: {peer: overtakes(own, peer, kind) for peer in ("direct", "sdpa")} for kind in ("seconds", "bytes")}
            crossovers.append({"d": d, "analytic time": n.time, "analytic memory": n.memory, **measured})
            print(crossovers[-1], flush=True)
    if not quick:
        environment = {"python": sys.version.split()[0], "torch": torch.__version__, "cores": os.cpu_count(), "threads": 1}
        OUT.write_text(json.dumps({"environment": environment, "rows": rows, "crossovers": crossovers}, indent=1) + "\n")


if __name__ == "__main__":
    main()
