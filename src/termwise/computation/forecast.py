"""A forecast of a feature is a polynomial through the values that were computed, one term for each order.

    F^(u) = sum_i term_i(u),      term_i(u) = sum_j T_ij F(u_j)           anchors u_0 (newest), u_1, ... at any spacing

The weights T are numbers; all methods of this room differ in them, in what is forecast, and in when it is computed anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from termwise.core import Decomposition
from termwise.core.pictures import Line, Lines, Picture, Pictured

__all__ = ["FORMS", "Forecast", "forecast", "forecast_terms"]

FORMS = ("newton", "published", "hermite", "least_squares")
HERMITE_SCALE = 0.5  # of Feng et al. 2025


def forecast_terms(nodes: Sequence[float], at: float, form: str = "newton") -> np.ndarray:
    r"""Weights of every order's term on the values at `nodes`: a row for each order, T of shape (orders, k) for k nodes.

    - ``"newton"``: $F[u_0, \dots, u_i] \prod_{k<i}(u - u_k)$, exact for polynomials of degree below k on any spacing.
    - ``"published"``: $\Delta^i x^i / i!$ with $x = u - u_0$ and
      $\Delta^{i}(u_0) = (\Delta^{i-1}(u_0) - \Delta^{i-1}(u_1)) / (u_0 - u_1)$, as TaylorSeer and everything built on it has it:
      no divided difference, and from order 2 on biased by $O(d^2)$.
    - ``"hermite"``: the same differences with $\sigma^i H_i(\sigma x)$ in place of $x^i$, $\sigma = 1/2$; not homogeneous:
      measure u in steps.
    - ``"least_squares"``: row i is what the best polynomial of degree i adds to that of degree i - 1, up to degree
      k // 2: more nodes than coefficients damp noise.

    Args:
        nodes: where values are known, newest first.
        at: where to forecast.
        form: one of the above.

    Raises:
        ValueError: for equal nodes, or a form that does not exist.

    Example:
        >>> forecast_terms([2.0, 1.0, 0.0], 3.0).sum(0).tolist()  # through three values, one step ahead
        [3.0, -3.0, 1.0]

    Source: Liu et al. 2025, eq. 3 to 6 (published); Feng et al. 2025 (Hermite); Newton's formula.
    """
    u = np.asarray(nodes, dtype=np.float64)
    k, x = len(u), at - u[0]
    if len(set(u.tolist())) < k or not np.isfinite([*u, at]).all():
        raise ValueError(f"a forecast needs finite nodes that differ, got {u.tolist()} for {at}: a time grid must not repeat")
    terms = np.zeros((k, k))
    if form == "newton":
        reach = 1.0
        for i in range(k):
            for j in range(i + 1):
                terms[i, j] = reach / np.prod([u[j] - u[n] for n in range(i + 1) if n != j])
            reach *= at - u[i]
    elif form in ("published", "hermite"):
        differences = np.eye(k)  # row a: the difference of the present order at anchor a
        for i in range(k):
            terms[i] = differences[0] * (x**i if form == "published" else _hermite(i, x)) / math.factorial(i)
            differences = (differences[:-1] - differences[1:]) / (u[:-1] - u[1:])[: k - 1 - i, None]
    elif form == "least_squares":
        scale = np.abs(u - u[0]).max() or 1.0
        before = np.zeros(k)
        terms = terms[: k // 2 + 1]
        for i in range(len(terms)):
            powers = np.vander((u - u[0]) / scale, i + 1, increasing=True)
            fit = np.vander([x / scale], i + 1, increasing=True) @ np.linalg.pinv(powers)
            terms[i], before = fit[0] - before, fit[0]
    else:
        raise ValueError(f"no form {form!r} of a forecast: choose one of {', '.join(FORMS)}")
    return terms


def _hermite(i: int, x: float) -> float:
    coefficients = np.zeros(i + 1)
    coefficients[i] = 1.0
    return float(HERMITE_SCALE**i * np.polynomial.hermite.hermval(HERMITE_SCALE * x, coefficients))


@dataclass(frozen=True, eq=False)
class Forecast(Pictured):
    """What is known of a feature before it is computed: terms by order, and the size of the last one.

    Attributes:
        parts: "order 0", "order 1", ...: the terms, shape of the feature.
        nodes: where it was computed, newest first.
        at: where it is forecast.
        weights: (k,), of the computed values in the sum.
    """

    parts: dict[str, Tensor]
    nodes: list[float]
    at: float
    weights: list[float]

    @property
    def value(self) -> Tensor:
        """The sum of the terms."""
        return sum(self.parts.values(), torch.zeros(()))

    @property
    def estimate(self) -> float:
        """Norm of the highest term over that of the forecast, over all samples: an estimate of the error of one order less."""
        *_, last = self.parts.values()
        return (last.norm() / self.value.norm()).item()

    @property
    def gain(self) -> float:
        """How much noise in the computed values is amplified at most, the sum of |weights| (Lebesgue's constant)."""
        return sum(map(abs, self.weights))

    def measured(self, truth: Tensor) -> Decomposition:
        """With what came out when it was computed: whole = truth, remainder = the error of the forecast."""
        return Decomposition(truth, self.parts)

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The sizes of the terms, and the weights of the computed values. What is left is known once the truth is: `measured`."""
        sizes = [float(part.detach().double().norm()) for part in self.parts.values()]
        terms = Line("size of the term", list(range(len(sizes))), sizes)
        weights = Line("weight", self.nodes, self.weights, stems=True)
        note = f"The last is {self.estimate:.2g} of the forecast: an estimate of what an order less leaves over."
        gain = f"Noise in the computed values is amplified {self.gain:.3g} times at most."
        return [
            Lines("Terms by order", [terms], x="order", y="Euclidean norm", log_y=True, note=note),
            Lines("Weights of the computed values", [weights], x="where it was computed", y="weight", note=gain),
        ]


def forecast(
    features: Sequence[Tensor], nodes: Sequence[float], at: float, *, form: str = "newton", damping: float = 1.0
) -> Forecast:
    """Forecast a feature from its values at earlier times.

    Args:
        features: values, newest first, all of one shape; one more than the order of the forecast.
        nodes: their times (or step indices, or half log-signal-to-noise ratios), newest first, none twice.
        at: the time to forecast.
        form: of the terms, see `forecast_terms`.
        damping: in [0, 1], multiplies the terms of order 2 and above.

    Raises:
        ValueError: when numbers or shapes do not fit, or a form does not exist.

    Example:
        >>> t = torch.tensor(3.0)
        >>> forecast([t**2, (t - 1) ** 2, (t - 3) ** 2], [3.0, 2.0, 0.0], 5.0).measured(torch.tensor(25.0)).check().error()
        0.0

    Source: Liu et al. 2025 (arXiv 2503.06923).
    """
    if len(features) != len(nodes) or not features:
        raise ValueError(f"{len(features)} features at {len(nodes)} nodes: give one value for each node, and at least one")
    if len({f.shape for f in features}) > 1:
        raise ValueError(f"features differ in shape: {[tuple(f.shape) for f in features]}")
    terms = damped(forecast_terms(nodes, at, form), damping)
    stack = torch.stack(list(features))
    made = torch.tensordot(torch.as_tensor(terms, dtype=stack.dtype, device=stack.device), stack, 1)
    return Forecast(
        {f"order {i}": part for i, part in enumerate(made)}, [float(u) for u in nodes], float(at), terms.sum(0).tolist()
    )


def damped(terms: np.ndarray, damping: float) -> np.ndarray:
    """Terms of order 2 and above, smaller."""
    if not 0 <= damping <= 1:
        raise ValueError(f"damping is a number from 0 (no terms above order 1) to 1, got {damping}")
    return terms * np.where(np.arange(len(terms)) < 2, 1.0, damping)[:, None]
