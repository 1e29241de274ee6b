"""A token of a long convolution: by recurrence, by the dot product with a ring buffer, by recomputing an FFT; interleaved.

    python benchmarks/toeplitz_ssm.py [--quick] [--threads 1]

Kernels of n taps and 64 channels, sums of slow oscillations, float32, one sequence; microseconds per token at position 4 n, the least
of several rounds. The recurrence is exact (n numbers of state per channel, double precision) or compressed to 1e-3 of the kernel's l1
norm; "ends" feeds back what leaves the window. The dot product keeps the last n inputs twice, so that the window is one slice.
FFT is the whole sequence of 4 n tokens again, for its last output, as a Toeplitz network without cache does. Whole sequences: `scan`
against torch's FFT and scipy's `oaconvolve`, microseconds per token over 4 n tokens. Writes docs/data/toeplitz_ssm.json.
"""

import argparse
import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import scipy
import torch
from scipy.signal import oaconvolve

import termwise as tw

OUT = Path(__file__).parent.parent / "docs" / "data" / "toeplitz_ssm.json"
CHANNELS = 64


def kernel(n: int) -> torch.Tensor:
    """Ten damped oscillations for each channel, whose time scales go with n."""
    g, j = torch.Generator().manual_seed(0), torch.arange(n, dtype=torch.float64)[:, None, None] / n
    damping, turn, size = (torch.rand(CHANNELS, 10, generator=g, dtype=torch.float64) for _ in range(3))
    return ((-j * (2 + 30 * damping)).exp() * (40 * turn * j).cos() * size).sum(-1).float()


class Ring:
    """The last n inputs, written twice: the window is one slice, and the product one reduction."""

    def __init__(self, taps: torch.Tensor) -> None:
        self.taps, self.n, self.position = taps.flip(0).contiguous(), len(taps), 0
        self.past = torch.zeros(2 * self.n, taps.shape[1])

    def step(self, x: torch.Tensor) -> torch.Tensor:
        slot = self.position % self.n
        self.past[slot] = self.past[slot + self.n] = x
        self.position += 1
        return (self.past[slot + 1 : slot + 1 + self.n] * self.taps).sum(0)  # several times as fast as einsum


def recomputed(taps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """All outputs by one FFT."""
    size = 1 << (len(x) + len(taps) - 1).bit_length()
    product = torch.fft.rfft(x, size, dim=0) * torch.fft.rfft(taps, size, dim=0)
    return torch.fft.irfft(product, size, dim=0)[: len(x)]


def per_token(n: int, rounds: int) -> dict:
    """Microseconds per token, and memory."""
    taps, x = kernel(n), torch.randn(4 * n + 200, CHANNELS, generator=torch.Generator().manual_seed(1))
    models = {
        "exact": tw.toeplitz_to_ssm(taps, beyond=math.inf),
        "exact, ends": tw.toeplitz_to_ssm(taps, beyond="exact"),
        "compressed": tw.toeplitz_to_ssm(taps, error=1e-3, beyond=math.inf),
        "compressed, ends": tw.toeplitz_to_ssm(taps, error=1e-3, beyond="exact"),
    }
    states = {name: replace(m.step(x[0])[1], position=4 * n) for name, m in models.items()}  # zeros take as long
    ring, best = Ring(taps), {}
    ring.position = 4 * n
    turns = 200 // rounds
    for r in range(rounds):
        chosen = x[4 * n + r * turns : 4 * n + (r + 1) * turns]
        for name, model in models.items():
            started = time.perf_counter()
            for token in chosen:
                _, states[name] = model.step(token, states[name])
            best[name] = min(best.get(name, math.inf), (time.perf_counter() - started) / turns)
        started = time.perf_counter()
        for token in chosen:
            ring.step(token)
        best["ring buffer"] = min(best.get("ring buffer", math.inf), (time.perf_counter() - started) / turns)
        started = time.perf_counter()
        recomputed(taps, x[: 4 * n])
        best["FFT"] = min(best.get("FFT", math.inf), time.perf_counter() - started)
    row = {"n": n, "order": models["compressed"].order, "modes": len(models["compressed"].poles)}
    memory = {name: s.modes.numel() * 16 + (0 if s.past is None else s.past.numel() * 4) for name, s in states.items()}
    memory["ring buffer"] = ring.past.numel() * 4
    return {**row, "microseconds": {k: v * 1e6 for k, v in best.items()}, "bytes": memory}


def off(found: torch.Tensor, truth: torch.Tensor) -> float:
    return ((found.double() - truth).abs().max() / truth.abs().max()).item()


def whole(n: int, rounds: int) -> dict:
    """Microseconds per token of a sequence of 4 n, at once."""
    taps, x = kernel(n), torch.randn(4 * n, CHANNELS, generator=torch.Generator().manual_seed(1))
    exact, few = tw.toeplitz_to_ssm(taps, beyond="exact"), tw.toeplitz_to_ssm(taps, error=1e-3, beyond="exact")
    runs = {
        "exact, ends": lambda: exact.scan(x)[0],
        "compressed, ends": lambda: few.scan(x)[0],
        "FFT": lambda: recomputed(taps, x),
        "oaconvolve": lambda: torch.from_numpy(oaconvolve(x.numpy(), taps.numpy(), axes=0)[: len(x)]),
    }
    truth, best, errors = recomputed(taps.double(), x.double()), {}, {}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            y = run()
            best[name] = min(best.get(name, math.inf), (time.perf_counter() - started) / len(x) * 1e6)
            errors[name] = off(y, truth)
    return {"n": n, "microseconds": best, "off": errors}


def main() -> None:
    """Print the rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small kernels, and nothing is written")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sizes, rounds = ((64, 256), 2) if given.quick else ((64, 512, 2048), 10)
    tokens, sequences = [], []
    for n in sizes:
        tokens.append(per_token(n, rounds))
        print(json.dumps(tokens[-1]), flush=True)
    for n in sizes[:2]:
        sequences.append(whole(n, 2))
        print(json.dumps(sequences[-1]), flush=True)
    if not given.quick:
        environment = {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "scipy": scipy.__version__,
            "cores": os.cpu_count(),
            "threads": given.threads,
        }
        OUT.write_text(json.dumps({"environment": environment, "tokens": tokens, "sequences": sequences}, indent=1) + "\n")


if __name__ == "__main__":
    main()
