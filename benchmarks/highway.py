"""Highway backpropagation beside autograd: wall time, interleaved, the least of several rounds.

    python benchmarks/highway.py [--quick] [--threads 2]

Subjects, random weights, float32, in eval mode: residual MLPs (pre-norm blocks z + V relu(W norm z)) of 64 small and 16 wide blocks,
a pre-norm transformer (6 layers of width 128, 4 x 64 tokens; 12 branches), a GRU cell over 200 steps.
Times: a training step (forward, loss, backward) and its backward pass alone, by autograd and with K = 0, 1, 2, 4 iterations of
`HighwayBackward` (the GRU: `HighwayRecurrent`). Depth: sequential backward passes over a layer. The machine has as many
cores as the output says: layers run side by side only as far as one batched product does. Writes docs/data/highway.json.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from termwise.optimizers import HighwayBackward, HighwayRecurrent, highway_gradients, highway_recurrent

OUT = Path(__file__).parent.parent / "docs" / "data" / "highway.json"
ITERATIONS = (0, 1, 2, 4)
GRU = "GRU of 64 units, 200 steps, batch 8"


def squares(out: torch.Tensor, _: None = None) -> torch.Tensor:
    """A loss."""
    return out.square().mean()


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z + self.down(F.relu(self.up(self.norm(z))))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm, self.qkv, self.out = (
            heads,
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(z)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return z + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def subjects() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Name -> model in eval mode, its input."""
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(64, 32), *(Block(32) for _ in range(64)), nn.LayerNorm(32), nn.Linear(32, 10))
    wide = nn.Sequential(nn.Linear(64, 256), *(Block(256) for _ in range(16)), nn.LayerNorm(256), nn.Linear(256, 10))
    layers = [layer for _ in range(6) for layer in (Attention(128, 4), Block(128))]
    transformer = nn.Sequential(nn.Linear(32, 128), *layers, nn.LayerNorm(128), nn.Linear(128, 10))
    return {
        "64 blocks of width 32, batch 16": (small.eval(), torch.randn(16, 64)),
        "16 blocks of width 256, batch 256": (wide.eval(), torch.randn(256, 64)),
        "transformer, 12 branches of width 128, 4 x 64": (transformer.eval(), torch.randn(4, 64, 32)),
    }


class Unrolled(nn.Module):
    """A cell step by step, from zeros."""

    def __init__(self, cell: nn.GRUCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = [x.new_zeros(x.shape[1], self.cell.hidden_size)]
        for row in x:
            states.append(self.cell(row, states[-1]))
        return torch.stack(states[1:])


def step(answer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[float, float]:
    """Seconds of a training step, and of its backward pass."""
    started = time.perf_counter()
    loss = squares(answer(x))
    middle = time.perf_counter()
    loss.backward()
    ended = time.perf_counter()
    return ended - started, ended - middle


def main() -> None:
    """Print the ratios and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds, and nothing is written")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    cell = nn.GRUCell(16, 64)
    for name, (model, x) in {**subjects(), GRU: (Unrolled(cell), torch.randn(200, 8, 16))}.items():
        if name == GRU:
            answers = {"autograd": model, **{f"K = {k}": HighwayRecurrent(cell, k) for k in ITERATIONS}}
            found = highway_recurrent(cell, squares, (x, None), max(ITERATIONS))
        else:
            answers = {"autograd": model, **{f"K = {k}": HighwayBackward(model, k) for k in ITERATIONS}}
            found = highway_gradients(model, squares, (x, None), max(ITERATIONS))
        best = {key: [math.inf, math.inf] for key in answers}
        for _ in range(3 if given.quick else 25):
            for key, answer in answers.items():
                best[key] = [min(a, b) for a, b in zip(best[key], step(answer, x), strict=True)]
        total, back = best["autograd"]
        for k in ITERATIONS:
            rows.append({
                "subject": name, "K": k, "autograd step ms": total * 1e3, "autograd backward ms": back * 1e3,
                "step": best[f"K = {k}"][0] / total, "backward": best[f"K = {k}"][1] / back,
                "rounds": k + 1, "layers": found.layers, "cosine": found.cosines()[k],
            })  # fmt: skip
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    if not given.quick:
        environment = {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "threads": given.threads,
        }
        OUT.write_text(json.dumps({"environment": environment, "highway": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
