"""A deletion curve against random orders: is the map right about the model, and not only tidy in its books?

Knows the shape of a curve and not how it was measured: anything with the fields of `Curve` can be drawn.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from .colour import COOL, NEUTRAL, WARM

__all__ = ["Curve", "Lines", "between", "figure", "half_gone", "lines", "steps", "verdict"]


class Area(Protocol):
    """One area per sample."""

    @property
    def values(self) -> Tensor: ...


class Curve(Protocol):
    """Scores while more and more of an input is replaced: `termwise.predictions.DeletionCurve` is one."""

    @property
    def fractions(self) -> Tensor: ...
    @property
    def scores(self) -> Tensor: ...
    @property
    def random_scores(self) -> Tensor: ...
    @property
    def score(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def order(self) -> str: ...
    @property
    def area(self) -> Area: ...
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
    percent = curve.score == "probability"
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
    area, (mean, spread) = float(curve.area.values[sample]), curve.random_area
    if curve.score != "probability":
        start = float(curve.scores[sample, 0])
        costs, chance = f"{drop:.3g} of {start:.3g}", f"{float(random[sample]):.3g}"
    else:
        start = 100 * float(curve.scores[sample, 0])
        costs = f"{round(100 * drop)} of {round(start)} points of probability"
        chance = str(round(100 * float(random[sample])))
    areas = f"Area under the curve {area:.2f}, random orders {float(mean[sample]):.2f} ± {float(spread[sample]):.2f}."
    share = f"{100 * fraction:.0f} %"
    if curve.order == "inserted":
        at, random_at = _at(curve.scores[sample], curve, fraction), _at(curve.random_scores[sample].mean(0), curve, fraction)
        shown = f"Showing the most relevant {share} of the {curve.what} gives a score of {at:.2f}"
        return f"{shown}, a random {share} {random_at:.2f}. {areas}"
    which = "most" if curve.order == "descending" else "least"
    gone, random_gone = half_gone(curve, sample)
    return (
        f"Removing the {which} relevant {share} of the {curve.what} costs the model {costs}; "
        f"a random {share} costs {chance}. "
        f"Half of the score is gone {_when(gone)}, in random order {_when(random_gone)}. {areas}"
    )


def half_gone(curve: Curve, sample: int = 0) -> tuple[float | None, float | None]:
    """The first measured fraction at which the score is at most half of what it was, and the same for the mean of random orders.

    None where that never happens.
    """

    def first(values: Tensor) -> float | None:
        found = (values <= values[0] / 2).nonzero()
        return float(curve.fractions[found[0, 0]]) if len(found) and values[0] > 0 else None

    return first(curve.scores[sample]), first(curve.random_scores[sample].mean(0))


def _at(values: Tensor, curve: Curve, fraction: float) -> float:
    """The score at the measured point nearest to that fraction."""
    return float(values[(curve.fractions - fraction).abs().argmin()])


def _when(fraction: float | None) -> str:
    return "never" if fraction is None else f"after {100 * fraction:.0f} %"


def figure(curve: Curve, title: str = "", sample: int = 0) -> bytes:
    """The curve as a PNG."""
    drawn = lines(curve, sample)
    fig, axis = _axes(title)
    axis.fill_between(drawn.x, drawn.low, drawn.high, color="#8a8f98", alpha=0.22, linewidth=0)
    axis.plot(drawn.x, drawn.mean, color="#8a8f98", linewidth=1.6, label="random order, ± one deviation")
    first = "least relevant first" if curve.order == "ascending" else "most relevant first"
    axis.plot(drawn.x, drawn.y, color=_rgb(WARM), linewidth=2.4, label=first)
    _shares(axis, drawn.x[-1], f"share of the {curve.what} {'shown' if curve.order == 'inserted' else 'replaced'}")
    axis.set_ylabel("probability of the explained class" if drawn.percent else "score", fontsize=9, color="#5b6470")
    axis.set_ylim(drawn.bottom, drawn.top + 0.02 * (drawn.top - drawn.bottom))
    return _png(fig, axis)


def between(fractions: Tensor, most_first: Tensor, least_first: Tensor, *, title: str, score: str, what: str) -> bytes:
    """Two curves averaged over samples and the area between them, as a PNG.

    Args:
        fractions: the x axis, (points,).
        most_first: scores of each sample along MoRF, (batch, points).
        least_first: along LeRF.
        title: set above.
        score: what the y axis is.
        what: name of a feature in the plural.
    """
    x = fractions.tolist()
    most, least = (curve.double().mean(0).tolist() for curve in (most_first, least_first))
    fig, axis = _axes(title)
    axis.fill_between(x, most, least, color=_rgb(NEUTRAL), alpha=0.18, linewidth=0)
    axis.plot(x, least, color=_rgb(COOL), linewidth=2.2, label="least relevant first")
    axis.plot(x, most, color=_rgb(WARM), linewidth=2.2, label="most relevant first")
    _shares(axis, x[-1], f"share of the {what} replaced")
    axis.set_ylabel(f"{score} of the explained class, mean of {len(most_first)}", fontsize=9, color="#5b6470")
    return _png(fig, axis)


def steps(names: list[str], values: Tensor, *, title: str, what: str) -> bytes:
    """One value per sample at each of several named steps: the mean and one deviation, as a PNG. `values` is (batch, steps)."""
    places, mean = list(range(len(names))), values.double().mean(0)
    spread = values.double().std(0) if len(values) > 1 else mean * 0
    fig, axis = _axes(title)
    axis.fill_between(places, (mean - spread).tolist(), (mean + spread).tolist(), color=_rgb(WARM), alpha=0.18, linewidth=0)
    axis.plot(places, mean.tolist(), color=_rgb(WARM), linewidth=2.2, marker="o", markersize=4)
    axis.axhline(0, color="#c3c9d1", linewidth=0.8)
    axis.set_xticks(places, [name.replace("$", r"\$") for name in names], rotation=60, ha="right")
    axis.set_ylabel(what, fontsize=9, color="#5b6470")
    return _png(fig, axis, legend=False)


def _axes(title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.4, 3.8), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(fig)
    axis = fig.subplots()
    axis.set_title(title.replace("$", r"\$"), fontsize=12, fontweight="bold", color="#1b1f24", loc="left")
    return fig, axis


def _shares(axis: Any, last: float, label: str) -> None:
    """An x axis of shares."""
    axis.set_xlabel(label.replace("$", r"\$"), fontsize=9, color="#5b6470")
    axis.set_xlim(0, last)
    axis.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")


def _png(fig: Any, axis: Any, *, legend: bool = True) -> bytes:
    for name, side in axis.spines.items():
        side.set_visible(name in ("left", "bottom"))
        side.set_color("#c3c9d1")
    axis.tick_params(color="#c3c9d1", labelcolor="#5b6470", labelsize=8.5)
    if legend:
        axis.legend(frameon=False, fontsize=8.5, labelcolor="#3a424d")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _rgb(colour: tuple[int, int, int]) -> list[float]:
    return [c / 255 for c in colour]
