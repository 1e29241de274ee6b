r"""Quasi-Newton methods that carry a small network to the rounding of float64.

    p = -H g,    w <- w + a p,    H <- (I - s y^T / s^T y) H (I - y s^T / s^T y) + s s^T / s^T y

with s the step, y the change of the gradient, and a a step length that satisfies the strong Wolfe conditions. "bfgs" keeps H,
which is P x P for P parameters; "lbfgs" makes it anew from the last 100 pairs (torch's). Neither stops at a tolerance: where the
error is 1e-9 the gradient is small too.

Measured (`MultiStage`, 400 points, 3 stages of 481 parameters, 600 iterations): RMS 1.6e-7 by scipy's L-BFGS-B, 1.9e-7 by torch's
L-BFGS, 1e-14 to 1e-13 with the full matrix.

Source: Nocedal & Wright 2006, Numerical Optimization, algorithms 3.5, 3.6 (step length) and 6.1 (BFGS), eq. 6.20 (first H).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["LARGEST", "OPTIMIZERS", "minimise"]

OPTIMIZERS = ("bfgs", "lbfgs")
LARGEST = 6000
"""Parameters of a network that "bfgs" still takes: H has 288 MB."""

DECREASE, CURVATURE = (
    1e-4,
    0.5,
)  # of the strong Wolfe conditions; 0.5 looks longer for a step than the usual 0.9, and goes further
TRIALS = 25  # step lengths per iteration
CHUNK = 50  # iterations of L-BFGS between two reports


def minimise(
    loss: Callable[[], Tensor],
    parameters: Sequence[nn.Parameter],
    iterations: int,
    optimizer: str = "bfgs",
    report: Callable[[int], None] = lambda done: None,
) -> int:
    """Move parameters to where a function of them is small; how many iterations that took.

    Args:
        loss: of the parameters as they are, a number.
        parameters: float64, of one device.
        iterations: at most; fewer where no step makes the loss smaller.
        optimizer: "bfgs" or "lbfgs".
        report: told how many iterations were done since the last report.

    Raises:
        ValueError: for another optimizer, too many parameters for "bfgs", a loss that is not finite to begin with.
    """
    count = sum(p.numel() for p in parameters)
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
    if optimizer == "bfgs" and count > LARGEST:
        raise ValueError(f"'bfgs' keeps a matrix of {count} x {count}: make hidden smaller, or pass optimizer='lbfgs'")
    if not math.isfinite(start := float(loss().detach())):
        raise ValueError(f"the loss is {start} before the first step: a value of the equation or of the data is not finite")
    return (_bfgs if optimizer == "bfgs" else _lbfgs)(loss, parameters, iterations, report)


def _lbfgs(loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], iterations: int, report: Callable[[int], None]) -> int:
    """Torch's L-BFGS without tolerances."""
    steps = torch.optim.LBFGS(
        parameters, max_iter=CHUNK, max_eval=TRIALS * CHUNK, history_size=100, tolerance_grad=0.0, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> float:
        steps.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    done = 0
    while done < iterations:
        steps.param_groups[0]["max_iter"] = min(CHUNK, iterations - done)
        steps.step(closure)
        new: int = steps.state[parameters[0]]["n_iter"] - done
        done += new
        report(new)
        if new < steps.param_groups[0]["max_iter"]:  # the line search found nothing
            break
    steps.zero_grad()
    return done


def _bfgs(loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], iterations: int, report: Callable[[int], None]) -> int:
    """BFGS with the matrix itself; a step that cannot be found starts it over once."""

    def at(w: Tensor) -> tuple[float, Tensor]:
        nn.utils.vector_to_parameters(w, parameters)
        value = loss()
        gradient = torch.autograd.grad(value, parameters)
        return float(value.detach()), torch.cat([g.reshape(-1) for g in gradient])

    w = nn.utils.parameters_to_vector(parameters).detach()
    value, g = at(w)
    h, fresh, done = torch.eye(len(w), dtype=w.dtype, device=w.device), True, 0
    while done < iterations:
        p = -(h @ g)
        slope = float(g @ p)
        found = _step(at, w, p, value, slope, 1 / (1 + float(g.norm())) if fresh else 1.0) if slope < 0 else None
        if found is None:
            if fresh:
                break
            h, fresh = torch.eye(len(w), dtype=w.dtype, device=w.device), True
            continue
        a, value, new = found
        s, y = a * p, new - g
        w, g, sy = w + s, new, float(s @ y)
        if sy > 0:
            if fresh:
                h *= sy / float(y @ y)
            hy = h @ y
            h.addr_(s, s, alpha=(1 + float(y @ hy) / sy) / sy).addr_(hy, s, alpha=-1 / sy).addr_(s, hy, alpha=-1 / sy)
            fresh = False
        done += 1
        report(1)
    nn.utils.vector_to_parameters(w, parameters)
    return done


Point = tuple[float, float, float]  # step length, value, slope


def _step(
    at: Callable[[Tensor], tuple[float, Tensor]], w: Tensor, p: Tensor, value: float, slope: float, first: float
) -> tuple[float, float, Tensor] | None:
    """A length a of step along p with a lower value and a flatter slope: a, the value, the gradient there.

    The best that was seen where `TRIALS` lengths are not enough; None where none of them was lower.
    """
    low: Point = (0.0, value, slope)
    high: Point | None = None
    best: tuple[float, float, Tensor] | None = None
    a = first
    for _ in range(TRIALS):
        there, g = at(w + a * p)
        here: Point = (a, there, float(g @ p))
        if not there <= value + DECREASE * a * slope or there >= low[1]:  # not >: NaN is too far too
            high = here
        else:
            best = a, there, g
            if abs(here[2]) <= -CURVATURE * slope:
                break
            if here[2] > 0:
                high = here
            else:
                low = here
        if high is not None and high[0] - low[0] < 1e-9 * high[0]:  # what is left to choose from is rounding
            break
        a = 4 * a if high is None else _between(low, high)
    return best


def _between(low: Point, high: Point) -> float:
    """The minimum of the cubic through two points with their slopes, at least a tenth of the way from either."""
    (a, fa, da), (b, fb, db) = low, high
    width, cubic = b - a, (a + b) / 2
    if math.isfinite(fb) and math.isfinite(db):
        d = da + db - 3 * (fb - fa) / width
        root = math.sqrt(max(d * d - da * db, 0.0))
        if below := db - da + 2 * root:
            cubic = b - width * (db + root - d) / below
    return min(max(cubic, a + 0.1 * width), b - 0.1 * width)
