"""A deletion curve against random orders: is the map right about the model, and not only tidy in its books?

Knows the shape of a curve and not how it was measured: anything with the fields of `Curve` can be drawn.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .colour import WARM

__all__ = ["Curve", "Lines", "figure", "half_gone", "lines", "verdict"]


class Curve(Protocol):
    """Scores while more and more of an input is replaced: `termwise.predictions.DeletionCurve` is one."""

    @property
    def fractions(self) -> Tensor: ...
    @property
    def scores(self) -> Tensor: ...
    @property
    def random_scores(self) -> Tensor: ...
    @property
    def probabilities(self) -> Tensor | None: ...
    @property
    def what(self) -> str: ...
    @property
    def area(self) -> Tensor: ...
    @property
    def random_area(self) -> tuple[Tensor, Tensor]: ...
    def drop(self, fraction: float = 0.1) -> Tensor: ...
    def random_drop(self, fraction: float = 0.1) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Lines:
    """One sample's curve as lists: fractions, scores, mean of random orders and its band of one deviation."""

    x: list[float]
    y: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    bottom: float
    top: float
    percent: bool


def lines(curve: Curve, sample: int = 0) -> Lines:
    """What to draw of one sample."""
    scores, random = curve.scores[sample].double(), curve.random_scores[sample].double()
    mean = random.mean(0)
    spread = random.std(0) if len(random) > 1 else mean * 0
    low, high = mean - spread, mean + spread
    percent = curve.probabilities is not None
    if percent:
        low, high = low.clamp(0, 1), high.clamp(0, 1)
    every = [*scores.tolist(), *low.tolist(), *high.tolist()]
    bottom, top = (0.0, 1.0) if percent else (min(every), max(every))
    return Lines(
        curve.fractions.tolist(), scores.tolist(), mean.tolist(), low.tolist(), high.tolist(),
        bottom, top if top > bottom else bottom + 1, percent,
    )  # fmt: skip


def verdict(curve: Curve, sample: int = 0, fraction: float = 0.1) -> str:
    """In words: what the most relevant tenth is worth beside a random tenth, when half is gone, and the areas."""
    fraction = min(fraction, float(curve.fractions[-1]))
    drop, (random, _) = float(curve.drop(fraction)[sample]), curve.random_drop(fraction)
    area, (mean, spread) = float(curve.area[sample]), curve.random_area
    if curve.probabilities is None:
        start = float(curve.scores[sample, 0])
        costs, chance = f"{drop:.3g} of {start:.3g}", f"{float(random[sample]):.3g}"
    else:
        start = 100 * float(curve.scores[sample, 0])
        costs = f"{round(100 * drop)} of {round(start)} points of probability"
        chance = str(round(100 * float(random[sample])))
    gone, random_gone = half_gone(curve, sample)
    return (
        f"Removing the most relevant {100 * fraction:.0f} % of the {curve.what} costs the model {costs}; "
        f"a random {100 * fraction:.0f} % costs {chance}. "
        f"Half of the score is gone {_when(gone)}, in random order {_when(random_gone)}. Area under the curve {area:.2f}, "
        f"random orders {float(mean[sample]):.2f} ± {float(spread[sample]):.2f}."
    )


def half_gone(curve: Curve, sample: int = 0) -> tuple[float | None, float | None]:
    """The first measured fraction at which the score is at most half of what it was, and the same for the mean of random orders.

    None where that never happens.
    """

    def first(values: Tensor) -> float | None:
        found = (values <= values[0] / 2).nonzero()
        return float(curve.fractions[found[0, 0]]) if len(found) and values[0] > 0 else None

    return first(curve.scores[sample]), first(curve.random_scores[sample].mean(0))


def _when(fraction: float | None) -> str:
    return "never" if fraction is None else f"after {100 * fraction:.0f} %"


def figure(curve: Curve, title: str = "", sample: int = 0) -> bytes:
    """The curve as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = lines(curve, sample)
    fig = Figure(figsize=(6.4, 3.8), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(fig)
    axis = fig.subplots()
    axis.fill_between(drawn.x, drawn.low, drawn.high, color="#8a8f98", alpha=0.22, linewidth=0)
    axis.plot(drawn.x, drawn.mean, color="#8a8f98", linewidth=1.6, label="random order, ± one deviation")
    axis.plot(drawn.x, drawn.y, color=[c / 255 for c in WARM], linewidth=2.4, label="most relevant first")
    axis.set_xlabel(f"share of the {curve.what} replaced".replace("$", r"\$"), fontsize=9, color="#5b6470")
    axis.set_ylabel("probability of the explained class" if drawn.percent else "score", fontsize=9, color="#5b6470")
    axis.set_ylim(drawn.bottom, drawn.top + 0.02 * (drawn.top - drawn.bottom))
    axis.set_xlim(0, drawn.x[-1])
    axis.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
    for name, side in axis.spines.items():
        side.set_visible(name in ("left", "bottom"))
        side.set_color("#c3c9d1")
    axis.tick_params(color="#c3c9d1", labelcolor="#5b6470", labelsize=8.5)
    axis.legend(frameon=False, fontsize=8.5, labelcolor="#3a424d")
    axis.set_title(title.replace("$", r"\$"), fontsize=12, fontweight="bold", color="#1b1f24", loc="left")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
