"""What a layer of low rank takes, beside what it stores: two factors, and pivots, at the shapes of SmolLM2 and MiniLM.

    python benchmarks/low_rank_speed.py [--quick]

One thread. For rows of 1 (writing text), 16 and 512 (reading it), as many copies of a layer run one after another as hold 64 MiB of
dense weights: within a model a layer's weights are not in the cache when its turn comes either. Variants take turns, and medians
are compared. Worth is what is hoped for from fewer numbers, and how much of it there is:

    worth = (time dense / time small) * (numbers small / numbers dense),     1 when time goes as numbers do

With it what explains it: seconds per call of a layer with one input and one output (`call`, all of it overhead); each factor
alone; factors whose ranks are multiples of 16, as vectors are; operations per second. Writes docs/data/low_rank_speed.json.
"""

import argparse
import json
import math
import platform
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from termwise.weights.low_rank_linear import LowRankLinear, Pivoted

OUT = Path(__file__).parent.parent / "docs" / "data" / "low_rank_speed.json"
SHAPES = {
    "SmolLM2 query": (576, 576), "SmolLM2 key": (192, 576), "SmolLM2 gate": (1536, 576), "SmolLM2 down": (576, 1536),
    "MiniLM query": (384, 384), "MiniLM up": (1536, 384), "MiniLM down": (384, 1536),
}  # fmt: skip
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
ROWS = (1, 16, 512)
COLD = 2**24
"""Numbers of dense weights that take turns: 64 MiB."""


def ranks(m: int, n: int, share: float) -> tuple[int, int]:
    """Of two factors, r (m + n), and of pivots, r (m + n - r), the largest within a share of m n."""
    size, both = share * m * n, m + n
    return int(size / both), int((both - math.sqrt(both**2 - 4 * size)) / 2)


def variants(m: int, n: int, share: float) -> dict[str, list[nn.Module]]:
    """The layer as it is, and what takes its place, in as many copies as the cache does not hold."""
    pair, pivots = ranks(m, n, share)
    aligned = max(16, pair // 16 * 16)
    rest = torch.randperm(m)

    def two(rank: int) -> list[nn.Module]:
        return [nn.Linear(n, rank, bias=False), nn.Linear(rank, m, bias=False)]

    makers = {
        "dense": lambda: nn.Linear(n, m, bias=False),
        "two layers": lambda: nn.Sequential(*two(pair)),
        "LowRankLinear": lambda: LowRankLinear(*two(pair)),
        "two layers, rank of 16": lambda: nn.Sequential(*two(aligned)),
        "first factor": lambda: two(pair)[0],
        "second factor": lambda: two(pair)[1],
        "Pivoted": lambda: Pivoted(nn.Linear(n, pivots, bias=False), nn.Linear(pivots, m - pivots, bias=False), rest),
    }
    return {name: [maker() for _ in range(-(-COLD // (m * n)))] for name, maker in makers.items()}


def times(made: dict[str, list[nn.Module]], rows: int, rounds: int) -> dict[str, float]:
    """Median seconds per layer, in turn."""
    inputs = {name: torch.randn(rows, next(copies[0].parameters()).shape[1]) for name, copies in made.items()}
    taken: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(rounds + 1):
        for name, copies in made.items():
            x = inputs[name]
            start = time.perf_counter()
            for layer in copies:
                layer(x)
            if turn:
                taken[name].append((time.perf_counter() - start) / len(copies))
    return {name: median(found) for name, found in taken.items()}


def measure(m: int, n: int, share: float, rows: int, rounds: int) -> dict:
    made = variants(m, n, share)
    if rows > 100:  # the layer's work is larger than its weights, and needs no company
        made = {name: copies[:2] for name, copies in made.items()}
    found = times(made, rows, rounds)
    sizes = {name: sum(p.numel() for p in copies[0].parameters()) for name, copies in made.items()}
    small = {
        name: {
            "share": sizes[name] / sizes["dense"],
            "speed_up": found["dense"] / found[name],
            "worth": found["dense"] / found[name] * sizes[name] / sizes["dense"],
            "gigaflops": 2e-9 * rows * sizes[name] / found[name],
        }
        for name in made
        if name != "dense"
    }
    dense = {"seconds": found["dense"], "gigaflops": 2e-9 * rows * sizes["dense"] / found["dense"]}
    return {"rows": rows, "share": share, "ranks": ranks(m, n, share), "dense": dense, **small}


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two shapes, few rounds, and nothing is written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = []
    with torch.inference_mode():
        call = {rows: times({"one": [nn.Linear(1, 1, bias=False)] * 2000}, rows, 9)["one"] for rows in ROWS}
        for name, (m, n) in list(SHAPES.items())[: 2 if quick else None]:
            for share in SHARES:
                for rows in ROWS:
                    row = {"layer": name, "shape": [m, n], **measure(m, n, share, rows, 3 if quick else 15)}
                    found.append(row)
                    print(
                        f"{name:14s} {share:.1f} rows {rows:3d} dense {row['dense']['seconds'] * 1e6:7.1f} us "
                        + ", ".join(
                            f"{key} {row[key]['worth']:.2f}" for key in row if isinstance(row[key], dict) and key != "dense"
                        ),
                        flush=True,
                    )
    if not quick:
        machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine(), "threads": 1}
        OUT.write_text(json.dumps({"environment": machine, "call": call, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
