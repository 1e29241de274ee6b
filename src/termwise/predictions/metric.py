"""One metric measured on many samples: its value on each, its mean, and the bootstrap interval of that mean.

    interval = percentiles of  Σ_c n_c s_c / Σ_c n_c m_c,      (n_c) how often each cluster c was drawn

Clusters (crops of one photograph, sentences of one document) are drawn as a whole: s_c is the sum of a cluster's values and
m_c their number; without clusters every sample is its own. The difference of two metrics is taken sample by sample, so
that its interval is the paired one: whatever makes a sample hard for both methods drops out.

A data-set statistic that is no mean (mean IoU) is a function of means, and its interval is the percentiles of that
function. Cost: O(resamples * clusters), no loop.
Source: Efron & Tibshirani 1993, chapters 8 and 13 (percentile interval; pairs and clusters as the unit that is drawn).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from termwise.core.arguments import seeded
from termwise.core.pictures import Line, Lines, Picture, Pictured, Table

__all__ = ["Metric"]

POINTS = 200
"""Of more samples so many are drawn."""


@dataclass(frozen=True, eq=False)
class Metric(Pictured):
    """What a metric says of each sample.

    Attributes:
        name: of the metric.
        values: one number per sample; or (batch, k), from whose means `of_means` makes the metric.
        higher_is_better: which way is good; None where neither is.
        of_means: from (..., k) means over samples to (...), where the metric is no mean itself.

    Example:
        >>> ours, theirs = Metric("area", torch.tensor([0.3, 0.5, 0.9])), Metric("area", torch.tensor([0.2, 0.4, 0.8]))
        >>> low, high = (ours - theirs).interval()          # each sample 0.1 better, and that is certain
        >>> round(low, 6), round(high, 6)
        (0.1, 0.1)
    """

    name: str
    values: Float[Tensor, "batch ..."]
    higher_is_better: bool | None = True
    of_means: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Refuse what has no samples, or several numbers and nothing to make one of them."""
        if self.values.ndim not in (1, 2) or not len(self.values):
            raise ValueError(f"{self.name}: values must be one number per sample, got shape {tuple(self.values.shape)}")
        if (self.values.ndim == 2) != (self.of_means is not None):
            raise ValueError(f"{self.name}: values of shape {tuple(self.values.shape)} and of_means go together or not at all")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The metric over all samples."""
        return float(self._made(self.values.double().mean(0)))

    def interval(
        self,
        level: float = 0.95,
        *,
        clusters: Sequence[int] | Tensor | None = None,
        resamples: int = 2000,
        generator: torch.Generator | None = None,
    ) -> tuple[float, float]:
        """The percentile bootstrap interval of the mean.

        Args:
            level: of confidence.
            clusters: for each sample the number of the cluster it belongs to; clusters are what is drawn.
            resamples: how many times to draw.
            generator: of the drawing; seeded with 0 when not given.

        Returns:
            (low, high); NaN where there is a single sample or cluster, of which no spread can be known.

        Raises:
            ValueError: a level outside 0..1, no resamples, or clusters for another number of samples.
        """
        if not 0 < level < 1 or resamples < 1:
            raise ValueError(f"level must lie in 0..1 and resamples be at least 1, got {level} and {resamples}")
        groups = torch.arange(len(self)) if clusters is None else torch.as_tensor(clusters).cpu()
        if tuple(groups.shape) != (len(self),):
            raise ValueError(f"clusters has shape {tuple(groups.shape)} for {len(self)} samples: give each sample one number")
        _, groups = groups.unique(return_inverse=True)
        count = int(groups.max()) + 1
        if count == 1:
            return float("nan"), float("nan")
        values = self.values.detach().double().cpu().reshape(len(self), -1)
        sums = values.new_zeros(count, values.shape[1]).index_add(0, groups, values)
        sizes = values.new_zeros(count).index_add(0, groups, values.new_ones(len(self)))
        generator = seeded(generator)
        drawn = torch.randint(count, (resamples, count), generator=generator)
        times = values.new_zeros(resamples, count).scatter_add(1, drawn, values.new_ones(()).expand(resamples, count))
        means = (times @ sums) / (times @ sizes)[:, None]
        found = self._made(means if self.of_means else means[:, 0])
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=found.dtype)
        low, high = found.quantile(tails).tolist()
        return low, high

    def __sub__(self, other: Metric) -> Metric:
        """The paired difference, sample by sample.

        Raises:
            ValueError: for other samples, or metrics that are no means (their difference has no value per sample).
        """
        if self.of_means or other.of_means:
            raise ValueError(f"{self.name} is no mean over samples: compare its intervals, a paired difference does not exist")
        if len(self) != len(other):
            raise ValueError(f"a paired difference needs the same samples: there are {len(self)} and {len(other)}")
        name = self.name if self.name == other.name else f"{self.name} - {other.name}"
        return replace(self, name=f"difference in {name}", values=self.values - other.values)

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The values of all samples in order of size, and the mean with its interval."""
        low, high = self.interval()
        ends = ([low] * 2, [high] * 2) if low == low else ((), ())
        lines = [Line("mean" + (", 95 % interval" if low == low else ""), [0, 100], [self.mean] * 2, *ends, role="chance")]
        if self.of_means is None:
            at = torch.linspace(0, len(self) - 1, min(len(self), POINTS)).round().long()
            values = self.values.detach().double().cpu().sort().values[at]
            lines.insert(0, Line("each sample", (100 * (at + 0.5) / len(self)).tolist(), values.tolist()))
        good = {True: "High is good.", False: "Low is good.", None: ""}[self.higher_is_better]
        note = f"{self!r}. {good}".strip()
        return [Lines(self.name, lines, x="samples in order of size, %", y=self.name, note=note)]

    def _made(self, means: Tensor) -> Tensor:
        return means if self.of_means is None else self.of_means(means)

    def __repr__(self) -> str:
        """Name, mean, interval, number of samples."""
        low, high = self.interval()
        known = f" [{low:.4g}, {high:.4g}]" if low == low else ""
        return f"{self.name} {self.mean:.4g}{known} of {len(self)} sample{'s' if len(self) > 1 else ''}"


def table(title: str, metrics: Sequence[Metric]) -> Table:
    """Several metrics of the same samples, a row each."""
    rows = [[m.name, m.mean, *m.interval(), {True: "high", False: "low", None: ""}[m.higher_is_better]] for m in metrics]
    return Table(title, ["metric", "mean", "95 % from", "to", "good is"], rows)
