"""The honest opponent of every cache, and its best companion: a tuned multistep solver.

DPM-Solver++ of order 2 on times that are even in log-signal-to-noise. At equal evaluations it is several times nearer to the
truth than DDIM, so that a cache on DDIM has to be compared with it, and a cache on top of it gains once more.
"""

from __future__ import annotations

from typing import Any

__all__ = ["tuned_solver"]


def tuned_solver(scheduler: Any) -> Any:
    """DPM-Solver++(2M) with times even in log-snr, of the same noise as another scheduler.

    Args:
        scheduler: of diffusers, deterministic or not, with `alphas_cumprod`.

    Returns:
        A `diffusers.DPMSolverMultistepScheduler`.

    Raises:
        ValueError: for a scheduler of a flow, or without noise levels.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2.
    """
    from diffusers import DPMSolverMultistepScheduler

    if getattr(scheduler, "alphas_cumprod", None) is None or scheduler.config.get("use_flow_sigmas"):
        raise ValueError(f"{type(scheduler).__name__} has no alphas_cumprod: the solver needs the noise levels of a diffusion")
    noise = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    kept = {name: value for name, value in scheduler.config.items() if name in noise}
    return DPMSolverMultistepScheduler(**kept, solver_order=2, algorithm_type="dpmsolver++", use_lu_lambdas=True)
