"""What an accelerated run computed, what it forecast, and by how much it was wrong where the truth is known."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from termwise.core.pictures import Line, Lines, Picture, Pictured

if TYPE_CHECKING:
    import pandas

__all__ = ["Report", "Step"]


@dataclass
class Step:
    """One step of the sampler.

    Attributes:
        index: from 0.
        time: as the model was told it.
        computed: whether it was, or was forecast.
        blocks: share of the model's blocks that were run.
        nodes: where the values behind the forecast were computed, in the method's variable, newest first.
        weights: of those in the forecast.
        gain: sum of |weights|.
        estimate: relative change of the final output that a forecast here makes, estimated; None where it was not asked for.
        error: where the step was computed: |forecast - truth| / |truth| of what is forecast, mean over samples (and sites).
        probe: the same of the first block, for a gate.
        note: what else happened.
    """

    index: int
    time: float
    computed: bool = True
    blocks: float = 1.0
    nodes: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    gain: float | None = None
    estimate: float | None = None
    error: float | None = None
    probe: float | None = None
    note: str = ""


@dataclass
class Report(Pictured):
    """Of one run, step by step.

    Attributes:
        steps: in order.
        memory: bytes that the kept values took.
        tolerance: that was asked for, if any.
    """

    steps: list[Step] = field(default_factory=list)
    memory: int = 0
    tolerance: float | None = None

    @property
    def evaluations(self) -> int:
        """Steps that were computed."""
        return sum(step.computed for step in self.steps)

    @property
    def cost(self) -> float:
        """Evaluations, and of forecast steps the share of blocks that were run."""
        return sum(step.blocks for step in self.steps)

    @property
    def speedup(self) -> float:
        """Steps over cost: how much faster, if everything but the model were free."""
        return len(self.steps) / self.cost if self.steps else 1.0

    @property
    def estimate(self) -> float | None:
        """Estimated relative change of the final output, summed over the forecasts; None if no step has one. No bound."""
        known = [step.estimate for step in self.steps if not step.computed and step.estimate is not None]
        forecasts = len(self.steps) - self.evaluations
        return math.fsum(known) if len(known) == forecasts else None

    def summary(self) -> str:
        """One line."""
        estimate = "" if self.estimate is None else f", output changed by about {self.estimate:.2g} (estimate)"
        return (
            f"{self.evaluations} of {len(self.steps)} steps computed, {self.speedup:.2f}x fewer{estimate}, "
            f"{self._kept()} of kept values"
        )

    def _kept(self) -> str:
        return f"{self.memory / 2**20:.1f} MiB" if self.memory >= 2**20 else f"{self.memory / 2**10:.1f} KiB"

    def __str__(self) -> str:
        """The line, and a table of the steps."""
        rows = ["step      time  computed     gain  estimate     error"]
        for s in self.steps:
            cells = ["" if v is None else f"{v:.3g}" for v in (s.gain, s.estimate, s.error)]
            rows.append(
                f"{s.index:4d} {s.time:9.4g}  {'yes' if s.computed else '-':>8} "
                + " ".join(f"{c:>9}" for c in cells)
                + f"  {s.note}"
            )
        return "\n".join([self.summary(), *rows])

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The error along the run, measured where computed and estimated where forecast; and what was computed."""
        text = self.summary()
        note = f"{text[:1].upper()}{text[1:]}."
        measured = [(s.index, s.error) for s in self.steps if s.computed and s.error]
        estimated = [(s.index, s.estimate) for s in self.steps if not s.computed and s.estimate]
        lines = [
            Line(name, [i for i, _ in rows], [v for _, v in rows], role=role, markers=True)
            for name, rows, role in (
                ("of the forecast, measured where computed", measured, "remainder"),
                ("of the output, estimated where forecast", estimated, "term"),
            )
            if rows
        ]
        if self.tolerance is not None and self.steps:
            ends = [self.steps[0].index, self.steps[-1].index]
            lines.append(Line("tolerated of the output, all forecasts together", ends, [self.tolerance] * 2, role="chance"))
        blocks = Line("blocks run", [s.index for s in self.steps], [s.blocks for s in self.steps], stems=True)
        work = Lines("What was computed", [blocks], x="step", y="share of the model's blocks", note="" if lines else note)
        found: list[Picture] = [work]
        if lines:
            found.insert(0, Lines("Error along the run", lines, x="step", y="relative error", log_y=True, note=note))
        return found

    def to_frame(self) -> pandas.DataFrame:
        """One row per step."""
        import pandas

        return pandas.DataFrame([asdict(step) for step in self.steps])
