"""What a method of acceleration is: an order, a form, a place, and a rule for when to compute.

`TaylorSeer`, `ConfidenceGate`, `ABCache` and `Adaptive` are this with a rule each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from termwise.core.arguments import integer, plain_integers

from .forecast import FORMS

__all__ = ["Method", "Now", "every", "whole"]

SITES = ("output", "last_block", "modules")
VARIABLES = ("step", "timestep", "log_snr")


@dataclass(frozen=True)
class Now:
    """What is known at a step before it is decided whether to compute it.

    Attributes:
        index: of the step, from 0.
        left: steps that are left, this one among them; None where the end of the run is not known.
        since: forecasts made since the model was last computed.
        computed: evaluations so far.
        nodes: where it was computed, newest first, in the method's variable.
        ahead: this step and those that follow in the same variable, as far as they are known.
        error: error(nodes, k): the estimated relative change of the final output made by forecasting the k-th step from this one
            from values at `nodes`.
        segment: the same, summed over the forecasts made since the model was last computed.
        spent: and over all of the run.
        probe: relative error of the forecast of the first block's output, for a method that probes.
    """

    index: int
    left: int | None
    since: int
    computed: int
    nodes: list[float]
    ahead: list[float]
    error: Callable[[Sequence[float], int], float]
    segment: float
    spent: float
    probe: float | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """Where, in what order and when features are forecast.

    Args:
        order: of the forecast; order + 1 values are kept of each feature.
        form: of its terms, see `forecast_terms`.
        damping: in [0, 1], of the terms of order 2 and above.
        variable: in which features are polynomials: "step" (its index), "timestep", or "log_snr" (half the log signal-to-noise
            ratio, of a scheduler that has one).
        sites: "output" (of the model), "last_block" (all blocks are skipped; embeddings and head are not), "modules" (attention
            and feed-forward layers of every block), or patterns of module names ("blocks.*.attn").
        first_steps: computed, at the beginning.
        last_steps: computed, at the end.

    Raises:
        ValueError: for a value out of range.
    """

    order: int = 1
    form: str = "newton"
    damping: float = 1.0
    variable: str = "step"
    sites: str | tuple[str, ...] = "output"
    first_steps: int = 1
    last_steps: int = 0

    probes = False
    """Whether the first block is always run and compared with its forecast."""

    chooses_order = False
    """Whether each forecast takes the order whose errors are least, up to `order`."""

    feeds_back = False
    """Whether forecasts become values that later ones are made of."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        plain_integers(self)
        name = type(self).__name__
        if integer(self.order) is None or not 0 <= self.order <= 8:
            raise ValueError(f"{name}: order is a whole number from 0 (reuse) to 8, got {self.order}")
        if self.form not in FORMS:
            raise ValueError(f"{name}: no form {self.form!r}: choose one of {', '.join(FORMS)}")
        if not 0 <= self.damping <= 1:
            raise ValueError(f"{name}: damping is a number from 0 to 1, got {self.damping}")
        if self.variable not in VARIABLES:
            raise ValueError(f"{name}: no variable {self.variable!r}: choose one of {', '.join(VARIABLES)}")
        if isinstance(self.sites, str) and self.sites not in SITES:
            raise ValueError(
                f"{name}: no sites {self.sites!r}: choose one of {', '.join(SITES)}, or a tuple of patterns of module names"
            )
        if self.first_steps < 1 or self.last_steps < 0:
            raise ValueError(
                f"{name}: at least the first step is computed; got first_steps={self.first_steps}, last_steps={self.last_steps}"
            )

    def at_an_end(self, now: Now) -> bool:
        """Whether this step is computed in any case."""
        return now.index < self.first_steps or (now.left is not None and now.left <= self.last_steps)

    def begin(self) -> Callable[[Now], bool]:
        """The rule of one run, which may remember."""
        return self.rule

    def rule(self, now: Now) -> bool:
        """Whether to compute a step between the ends."""
        raise NotImplementedError


def every(interval: int, index: int, first: int) -> bool:
    """Whether a step is computed that is one of the first, or an `interval`-th after the last of these.

    Example:
        >>> [sum(every(n, i, 2) for i in range(50)) for n in (3, 4, 5, 6)]
        [18, 14, 11, 10]
    """
    return index < first or (index - first + 1) % interval == 0


def whole(name: str, value: int) -> int:
    """A positive whole number, as Python's; anything else is refused."""
    found = integer(value)
    if found is None or found < 1:
        raise ValueError(f"{name} is a whole number, at least 1, got {value}")
    return found
