"""CG-Taylor: run the first block, and trust the forecast of the last one if that of the first was right.

    r = mean |h1^ - h1| / mean |h1|,     forecast the last block's output if r < threshold, else compute everything

One feature is forecast instead of two per block, and the cost of a skipped step is one block. What the gate does not know is how
far an error at this step reaches; `Adaptive` does. Guan et al. 2025 (arXiv 2508.02240).
"""

from __future__ import annotations

from dataclasses import dataclass

from .schedule import Method, Now

__all__ = ["ConfidenceGate"]


@dataclass(frozen=True, kw_only=True)
class ConfidenceGate(Method):
    """Forecast the last block's output while the first block's is forecast well.

    Args:
        threshold: of r, the largest of a batch, so that no sample is judged by its neighbours' mean; 0 computes every step,
            infinity every (max_skip + 1)-th.
        probe_order: of the first block's forecast.
        max_skip: forecasts in a row.
        order, form, damping, variable, first_steps, last_steps: see `Method`. The paper's own for DiT: `threshold=0.008,
            probe_order=3, form="published", first_steps=2`.

    Source: Guan et al. 2025, section 3.
    """

    threshold: float = 0.05
    probe_order: int = 1
    max_skip: int = 8
    sites: str | tuple[str, ...] = "last_block"
    first_steps: int = 3
    last_steps: int = 1

    probes = True

    def __post_init__(self) -> None:
        """Refuse thresholds that compare with nothing."""
        super().__post_init__()
        if not self.threshold >= 0:
            raise ValueError(f"ConfidenceGate: threshold is at least 0, got {self.threshold}")
        if self.max_skip < 1 or self.probe_order < 0:
            raise ValueError(
                f"ConfidenceGate: max_skip is at least 1 and probe_order 0, got {self.max_skip} and {self.probe_order}"
            )
        if self.sites != "last_block":
            raise ValueError("ConfidenceGate forecasts the last block: leave sites as it is")

    def rule(self, now: Now) -> bool:
        """Not below the threshold; also where the error is no number."""
        return now.since >= self.max_skip or not (now.probe is not None and now.probe < self.threshold)
