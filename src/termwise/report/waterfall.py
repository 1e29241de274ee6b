"""A waterfall: contributions one after the other from 0 to the whole, the largest by name and the rest together.

    0 -> + inputs -> + the k largest others -> + the rest -> (+ remainder) -> whole

Losses of rules are gathered by module. The remainder is a bar of its own only where it could be seen.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch

from termwise.core.decomposition import Decomposition

from .colour import COOL, NEUTRAL, WARM

__all__ = ["KINDS", "Bar", "bars", "figure"]

KINDS = {"input": "input", "at": "inner module", "bias": "bias", "constant": "constant", "rule": "lost by rules"}
"""First word of a part's name -> what a reader calls it."""


@dataclass(frozen=True)
class Bar:
    """One step: what it is, its kind, what it adds, and where it starts and ends."""

    label: str
    kind: str
    value: float
    start: float
    end: float


def bars(decomposition: Decomposition, k: int = 10, sample: int = 0) -> list[Bar]:
    """The steps of one sample, from 0 to the whole; the last one is the whole itself.

    Args:
        decomposition: with one number per sample as its whole.
        k: how many parts to show by name besides the inputs.
        sample: which sample.

    Raises:
        ValueError: when the whole is more than one number per sample, or there is no such sample.
    """
    whole, contributions = numbers(decomposition, sample)
    inputs: dict[tuple[str, str], float] = {}
    others: dict[tuple[str, str], float] = {}
    for name, value in contributions.items():
        kind, _, path = name.partition(":") if name.partition(":")[0] in KINDS else ("part", "", name)
        key = (path.rpartition("@")[2] if kind == "rule" else path, kind)
        group = inputs if kind in ("input", "at") else others
        group[key] = group.get(key, 0.0) + value
    ranked = sorted(others.items(), key=lambda item: -abs(item[1]))
    ranked = [item for item in ranked if item[1]]  # what is exactly nothing needs no bar
    shown = ranked if len(ranked) <= k + 1 else ranked[:k]  # "the rest" of one part would be that part
    rest = ranked[len(shown) :]
    steps = [(path or "(the model itself)", KINDS.get(kind, kind), value) for (path, kind), value in [*inputs.items(), *shown]]
    if rest:
        steps.append((f"{len(rest)} more", "the rest", sum(value for _, value in rest)))
    remainder = whole - sum(value for _, _, value in steps)
    if abs(remainder) > 1e-3 * max([abs(whole), *(abs(v) for *_, v in steps)]):
        steps.append(("remainder", "remainder", remainder))
    found, at = [], 0.0
    for label, kind, value in steps:
        found.append(Bar(label, kind, value, at, at + value))
        at += value
    return [*found, Bar("whole", "whole", whole, 0.0, whole)]


def numbers(decomposition: Decomposition, sample: int) -> tuple[float, dict[str, float]]:
    """The whole and the contributions of one sample as Python numbers.

    Raises:
        ValueError: when there is no single number per sample, or no such sample.
    """
    whole = decomposition.whole
    if whole.ndim > 1 or whole.is_complex():
        raise ValueError(f"a waterfall needs one real number per sample, the whole is {tuple(whole.shape)} {whole.dtype}")
    if whole.ndim and not -len(whole) <= sample < len(whole):
        raise ValueError(f"sample {sample} is out of range: there are {len(whole)}")
    parts = decomposition.contributions()

    def one(value: torch.Tensor) -> float:
        return float((value[sample] if value.ndim else value).detach())

    return one(whole), {name: one(value) for name, value in parts.items()}


def figure(decomposition: Decomposition, title: str = "", k: int = 10, sample: int = 0) -> bytes:
    """The waterfall as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = bars(decomposition, k, sample)
    fig = Figure(figsize=(8.6, 0.9 + 0.34 * len(steps)), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(fig)
    axis = fig.subplots()
    low, high = min(min(b.start, b.end) for b in steps), max(max(b.start, b.end) for b in steps)
    room = (high - low or 1.0) * 0.02
    for row, bar in enumerate(steps):
        colour = NEUTRAL if bar.kind == "whole" else WARM if bar.value > 0 else COOL
        axis.barh(row, bar.end - bar.start, left=bar.start, height=0.62, color=[c / 255 for c in colour])
        axis.text(max(bar.start, bar.end) + room, row, f"{bar.value:+.4g}", va="center", fontsize=8, color="#5b6470")
        if row + 1 < len(steps) and steps[row + 1].kind != "whole":
            axis.plot([bar.end, bar.end], [row + 0.31, row + 0.69], color="#c3c9d1", linewidth=0.8)
    labels = [b.label if b.kind in ("whole", "remainder") else f"{b.label}  ({b.kind})" for b in steps]
    axis.set_yticks(range(len(steps)), [label.replace("$", r"\$") for label in labels], fontsize=8.5)
    axis.invert_yaxis()
    axis.set_xlim(low - 2 * room, high + 9 * room)
    axis.axvline(0, color="#c3c9d1", linewidth=0.8, zorder=0)
    axis.tick_params(size=0, labelcolor="#3a424d")
    for side in axis.spines.values():
        side.set_visible(False)
    axis.set_title(title.replace("$", r"\$"), fontsize=12, fontweight="bold", color="#1b1f24", loc="left")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
