"""The subject of this room's claims: digits drawn by a trained diffusion transformer, in full and with steps left out."""

from __future__ import annotations

from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor

from termwise.testing.trained_dit import CLASSES, digits_dit, sample

from ..accelerated import Accelerated
from ..report import Report
from ..schedule import Method
from ..solver import tuned_solver

__all__ = ["IMAGES", "SEEDS", "drawn", "error", "model", "run", "sampled", "scheduler"]

SEEDS = range(100, 103)
"""Of the noise. Nothing was chosen on these."""
IMAGES = 10


@cache
def model() -> Any:
    """The transformer, float32."""
    return digits_dit()


def scheduler(kind: str = "ddim") -> Any:
    """DDIM without clipping, which would be no differential equation, or DPM-Solver++(2M) even in log-snr ("2m")."""
    from diffusers import DDIMScheduler

    ddim = DDIMScheduler(clip_sample=False)
    return ddim if kind == "ddim" else tuned_solver(ddim)


def run(method: Method, seed: int, *, kind: str = "ddim", steps: int = 50) -> tuple[Tensor, Report]:
    """Pictures (10, 1, 8, 8) and what was computed."""
    solver = scheduler(kind)
    solver.set_timesteps(steps)
    with Accelerated(model(), method, scheduler=solver) as fast:
        pictures = sampled(model(), solver, seed, steps)
    return pictures, fast.report


@cache
def drawn(seed: int, kind: str = "ddim", steps: int = 50) -> Tensor:
    """Pictures with every step computed."""
    return sampled(model(), scheduler(kind), seed, steps)


def sampled(denoiser: Any, solver: Any, seed: int, steps: int) -> Tensor:
    """Pictures drawn from the noise of a seed."""
    labels = torch.arange(IMAGES) % CLASSES
    return sample(denoiser, solver, steps, labels=labels, generator=torch.Generator().manual_seed(seed))


def error(pictures: Tensor, truth: Tensor) -> float:
    """Relative L2, the median of the pictures."""
    return median(((pictures - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).tolist())
