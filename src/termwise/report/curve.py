"""A deletion curve against random orders: is the map right about the model, and not only tidy in its books?

Knows the shape of a curve and not how it was measured: anything with the fields of `Curve` can be drawn.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from termwise.core.pictures import Line, Lines

__all__ = ["Curve", "half_gone", "picture", "verdict"]


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


def picture(curve: Curve, sample: int = 0) -> Lines:
    """One sample's curve beside the mean of random orders and its band of one deviation."""
    scores, random = curve.scores[sample].double(), curve.random_scores[sample].double()
    mean = random.mean(0)
    spread = random.std(0) if len(random) > 1 else mean * 0
    low, high = mean - spread, mean + spread
    if curve.score == "probability":
        low, high = low.clamp(0, 1), high.clamp(0, 1)
    x = (100 * curve.fractions).tolist()
    first = "least relevant first" if curve.order == "ascending" else "most relevant first"
    chance = Line("random order, ± one deviation", x, mean.tolist(), low.tolist(), high.tolist(), role="chance")
    return Lines(
        "Is the map right?",
        [Line(first, x, scores.tolist()), chance],
        x=f"share of the {curve.what} {'shown' if curve.order == 'inserted' else 'replaced'}, %",
        y="probability of the explained class" if curve.score == "probability" else "score",
        note=verdict(curve, sample),
    )


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
