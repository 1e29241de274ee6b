r"""TaylorSeer: compute every `interval`-th step, and forecast features by Taylor's series in between.

    F^(u_0 + x) = sum_{i <= order} Delta^i F(u_0) x^i / i!

The form that is published is a Taylor series with difference quotients in place of derivatives, taken over the distance of the
computed steps. It has the terms of order 0 and 1 right; with three values and more, Newton's formula has what it lacks.
Liu et al. 2025 (arXiv 2503.06923).
"""

from __future__ import annotations

from dataclasses import dataclass

from .schedule import Method, Now, every, whole

__all__ = ["TaylorSeer"]


@dataclass(frozen=True, kw_only=True)
class TaylorSeer(Method):
    """Compute the first steps and every `interval`-th from then on.

    Of 50 steps with `first_steps=2`, 2 + floor(48 / interval) are computed.

    Args:
        interval: of the computed steps; 1 computes all.
        order, form, damping, variable, sites, first_steps, last_steps: see `Method`. The paper's own: `order=4,
            form="published", sites="modules", first_steps=2`; from order 2 on, neither form is safe.

    Source: Liu et al. 2025, eq. 3 to 6.
    """

    interval: int = 4
    sites: str | tuple[str, ...] = "modules"
    first_steps: int = 3

    def __post_init__(self) -> None:
        """Refuse an interval that is none."""
        super().__post_init__()
        whole("interval", self.interval)

    def rule(self, now: Now) -> bool:
        """By its number."""
        return every(self.interval, now.index, self.first_steps)
