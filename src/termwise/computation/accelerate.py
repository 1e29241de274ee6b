"""Make a model, pipeline or function that is called again and again along a time grid faster: the verb of this room."""

from __future__ import annotations

from typing import Any

from termwise.core.arguments import integer

from .ab_cache import ABCache
from .accelerated import Accelerated
from .adaptive import Adaptive
from .confidence_gate import ConfidenceGate
from .depth_decay import DepthDecay, SkippedLayers, skip_layers
from .noise import noise_levels
from .schedule import Method
from .solver import can_be_tuned, tuned_solver
from .taylorseer import TaylorSeer

__all__ = ["accelerate"]

NAMED = {"taylorseer": TaylorSeer(), "cg-taylor": ConfidenceGate(), "ab-cache": ABCache(), "reuse": ABCache(order=0)}


def accelerate(
    target: Any,
    method: str | Method | DepthDecay = "auto",
    *,
    tolerance: float | None = None,
    budget: int | None = None,
    scheduler: Any = None,
    time: str | None = None,
) -> Accelerated | SkippedLayers:
    """Compute a model that is called along a time grid at some of the times, and forecast it at the others.

    With a `DepthDecay` it is a language model that generates with fewer layers: see `skip_layers`.

    Args:
        target: a pipeline of diffusers, the model inside of one (DiT, PixArt, SD3, Flux, UNet, ...), any module, or a function.
        method: "auto", "taylorseer", "cg-taylor", "ab-cache", "reuse", or an object such as
            `TaylorSeer(interval=4, order=1)`, or a `DepthDecay` for a causal language model of transformers.
        tolerance: for "auto", which is then `Adaptive`: relative L2 change of the final output, an estimate and no bound.
        budget: for "auto": steps to compute. A pipeline of a diffusion (without clipping) is then run with `tuned_solver` on
            2 budget - 2 steps, of which every second is computed: its own scheduler with as many steps would be further from
            the truth. Anything else is run on its own grid, `Adaptive`.
        scheduler: that makes the times, of diffusers; or the times themselves. A pipeline's own by default.
        time: name of the argument that is the time, where it is none of timestep, t, time, sigma.

    Returns:
        What is called in place of the target, or entered as a context in which the model is accelerated whoever calls it.

    Raises:
        ValueError: for a method that does not exist, or a fixed one with a tolerance or budget.
        TypeError: for a target that is nothing of the above.

    Cost: a forecast reads order + 1 copies of each feature; memory as much.

    Example:
        >>> def velocity(x, t):
        ...     return torch.cos(t) * torch.ones_like(x)
        >>> fast = tw.accelerate(velocity, tw.computation.ABCache(interval=2, order=3))
        >>> x = torch.zeros(1, 1)
        >>> for t in torch.arange(0, 1, 0.02):
        ...     x = x + 0.02 * fast(x, t)
        >>> fast.report.evaluations, len(fast.report.steps)
        (26, 50)
    """
    if isinstance(method, DepthDecay):
        if any(option is not None for option in (tolerance, budget, scheduler, time)):
            raise ValueError("DepthDecay has a schedule of its own: it takes no tolerance, budget, scheduler or time")
        return skip_layers(target, method)
    if method == "auto":
        method, solver = _automatic(target, tolerance, budget, scheduler)
        if solver is not None:
            assert budget is not None
            return Accelerated(target, method, time=time, solver=solver, steps=2 * budget - 2)
    elif tolerance is not None or budget is not None:
        name = method if isinstance(method, str) else type(method).__name__
        raise ValueError(f'{name} has a schedule of its own: tolerance and budget go with method="auto"')
    if isinstance(method, str):
        if method not in NAMED:
            raise ValueError(
                f"no method {method!r}: choose one of auto, {', '.join(NAMED)}, or give an object such as TaylorSeer(interval=4)"
            )
        method = NAMED[method]
    if not isinstance(method, Method):
        raise TypeError(f"a method is a name or an object such as TaylorSeer(interval=4), got {type(method).__name__}")
    return Accelerated(target, method, scheduler=scheduler, time=time)


def _automatic(target: Any, tolerance: float | None, budget: int | None, scheduler: Any) -> tuple[Method, Any]:
    """What wins in benchmarks/accelerated.py: every second step of the tuned solver, or adaptive on the user's own."""
    own = getattr(target, "scheduler", None)
    if budget is not None and tolerance is None and scheduler is None and can_be_tuned(own):
        if integer(budget) is None or budget < 2:
            raise ValueError(f"budget is a whole number of evaluations, at least 2, got {budget}")
        order = 2 if budget >= 10 else 1  # chosen on noise of its own; the published form is Newton's, damped
        method = TaylorSeer(interval=2, order=order, form="published", variable="log_snr", sites="output", first_steps=2)
        return method, tuned_solver(own)
    levels = noise_levels(scheduler if scheduler is not None else own)
    tolerance = 0.05 if tolerance is None and budget is None else tolerance
    return Adaptive(tolerance=tolerance, budget=budget, variable="step" if levels is None else "log_snr"), None
