"""Perturbation curves: the score while features go, the most relevant first (MoRF) and the least relevant first (LeRF).

    y_k = score(x without its first n_k features),      f_k = n_k / n,      AUC = ∫ y df  (trapezoid),      k = 0 .. L

    AOPC               mean_k (y_0 - y_k) along MoRF, k = 0 counted                      high is good
    deletion           AUC(MoRF)                                                         low is good
    insertion          AUC(LeRF): inserting the most relevant first is LeRF backwards    high is good
    ABPC, SRG          AUC(LeRF) - AUC(MoRF), in [-1, 1] for probabilities               high is good; 0 for random maps
    comprehensiveness  y_0 f_L - AUC(MoRF)                                               high is good
    sufficiency        y_0 f_L - AUC(LeRF)                                               low is good

so that ABPC = comprehensiveness - sufficiency, exactly. Comprehensiveness and sufficiency of ERASER are another pair
(`comprehensiveness_eraser`). Where a paper has steps on its axis instead of fractions, divide by them: DynamicLRP counts four
patches a step, so its ABPC lies in [-4, 4].

Cost: 2 L + 1 forward passes per sample, in batches across samples; memory: one batch.
Source: Samek et al. 2017, arXiv 1509.06321 (MoRF, AOPC); Petsiuk et al. 2018, arXiv 1806.07421 (insertion, deletion); ABPC
as SRG: Bluecher et al. 2024, arXiv 2401.06654; with comprehensiveness and sufficiency: papers.toml "dynamiclrp".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from termwise.core.arguments import seeded
from termwise.core.pictures import Line, Lines, Picture, Pictured

from .groups import Groups
from .metric import Metric
from .perturbation import Features
from .scoring import Answers, Inquiry
from .targets import Target

__all__ = ["PerturbationCurves", "perturbation_curves", "pixel_flipping", "walk"]


@dataclass(frozen=True, eq=False)
class PerturbationCurves(Pictured):
    """Both curves of every sample, and what is read from them.

    Attributes:
        fractions: of the features that are gone, from 0, (points,).
        most_first: score along MoRF, (batch, points).
        least_first: score along LeRF, (batch, points).
        score: "probability", "logit" or "accuracy".
        what: name of a feature in the plural.
    """

    fractions: Float[Tensor, " points"]
    most_first: Float[Tensor, "batch points"]
    least_first: Float[Tensor, "batch points"]
    score: str
    what: str

    @property
    def deletion(self) -> Metric:
        """AUC(MoRF)."""
        return deleted(self.most_first, self.fractions)

    @property
    def insertion(self) -> Metric:
        """AUC(LeRF), which is that of inserting the most relevant features first into the fill-in."""
        return inserted(self.least_first, self.fractions)

    @property
    def abpc(self) -> Metric:
        """Area between the curves, LeRF - MoRF; also called SRG."""
        return between(self.least_first, self.most_first, self.fractions)

    @property
    def aopc(self) -> Metric:
        """Mean drop along MoRF over all points, the zeroth included."""
        return Metric("AOPC", (self.most_first[:, :1] - self.most_first).mean(1))

    @property
    def aopc_least_first(self) -> Metric:
        """The same along LeRF, where a small drop is good."""
        return Metric("AOPC (LeRF)", (self.least_first[:, :1] - self.least_first).mean(1), higher_is_better=False)

    @property
    def comprehensiveness(self) -> Metric:
        """Area that is lost along MoRF."""
        return Metric("comprehensiveness", self._whole() - self.deletion.values)

    @property
    def sufficiency(self) -> Metric:
        """Area that is lost along LeRF."""
        return Metric("sufficiency", self._whole() - self.insertion.values, higher_is_better=False)

    @property
    def positive(self) -> Metric:
        """Mean score along MoRF over the points but the zeroth; with nine tenths and accuracy, Chefer's positive test."""
        return Metric("positive perturbation", self.most_first[:, 1:].mean(1), higher_is_better=False)

    @property
    def negative(self) -> Metric:
        """The same along LeRF: Chefer's negative test."""
        return Metric("negative perturbation", self.least_first[:, 1:].mean(1))

    def figure(self, title: str = "") -> bytes:
        """Both curves, averaged over samples, and the area between them, as a PNG."""
        from termwise.report.figures import png

        return png(self.pictures(), title)

    def pictures(self, sample: int = 0) -> list[Picture]:
        """Both curves, averaged over samples; the area between them is ABPC."""
        x = (100 * self.fractions).tolist()
        below, above = (scores.double().mean(0).tolist() for scores in (self.most_first, self.least_first))
        most, least = Line("most relevant first", x, below), Line("least relevant first", x, above, below, above)
        y = f"{self.score} of the explained class, mean of {len(self.most_first)}"
        return [Lines("Perturbation curves", [most, least], x=f"share of the {self.what} replaced, %", y=y, note=repr(self.abpc))]

    def _whole(self) -> Tensor:
        return _area(self.most_first[:, :1].expand_as(self.most_first), self.fractions)


def deleted(scores: Tensor, fractions: Tensor) -> Metric:
    """AUC(MoRF) of scores (batch, points)."""
    return Metric("deletion", _area(scores, fractions), higher_is_better=False)


def inserted(scores: Tensor, fractions: Tensor) -> Metric:
    """AUC(LeRF), or of the curve along which features are shown, which is LeRF backwards."""
    return Metric("insertion", _area(scores, fractions))


def between(least_first: Tensor, most_first: Tensor, fractions: Tensor) -> Metric:
    """AUC(LeRF) - AUC(MoRF)."""
    return Metric("ABPC", _area(least_first, fractions) - _area(most_first, fractions))


def _area(scores: Tensor, fractions: Tensor) -> Tensor:
    return torch.trapezoid(scores, fractions.to(scores))


def perturbation_curves(
    model: nn.Module | Callable[..., Any],
    inputs: Tensor | Mapping[str, Tensor],
    relevance: Tensor,
    target: Target = None,
    *,
    baseline: Tensor | float | int | str,
    score: str = "probability",
    steps: int = 20,
    fractions: Sequence[float] | None = None,
    patch: int = 8,
    feature_mask: Tensor | Groups | None = None,
    keep: Tensor | None = None,
    name: str | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> PerturbationCurves:
    """Take features away in the order of their relevance, from either end, and watch the score of the explained class.

    Args:
        model: in eval mode, as `termwise.explain` takes it.
        inputs: images (batch, channels, height, width), token ids (batch, tokens), sequences (batch, tokens, features),
            numbers (batch, features); or a mapping of keyword inputs, one of which has the shape of `relevance`.
        relevance: one number per position, of the input's shape, or that without channels. What belongs to one feature
            (of a sequence: a token) is summed.
        target: as of `termwise.explain`, one of each sample. None: the class the model gives to the whole input, of a
            sequence of outputs at its last place. A place in a text that tokens are removed from needs what stands from
            there on kept.
        baseline: what stands in for what is gone: "zeros", "mean" (of each channel), "blur"; a number, a tensor that
            broadcasts to one sample or has the inputs' shape (`sampled`); the id of a mask token; "remove" takes tokens
            out of the sequence.
        score: "probability", "logit", or "accuracy" (1 while the class is still the answer). Of a single output, a
            function or a contrast there is a logit only.
        steps: number of equal steps from nothing to everything gone.
        fractions: instead of `steps`, the fractions to measure at; 0 is always measured.
        patch: side of the square of pixels that counts as one feature of an image.
        feature_mask: instead of patches or single tokens, the number of the group that each position belongs to, (height,
            width) or (tokens,), or one such mask per sample, or what `words` gives; -1 where nothing is ever taken.
        keep: features never taken (special tokens, padding), True, of shape (tokens,) or (batch, tokens).
        name: of a mapping's inputs, the one that is changed; the first of the shape of `relevance` when not given.
        generator: of the order among ties; seeded with 0 when not given.
        batch_size: inputs per forward pass.
        progress: called with (done, all) passes.

    Returns:
        `PerturbationCurves`: both curves of every sample; its metrics have intervals.

    Raises:
        ValueError: for shapes that do not match, NaN or infinity in the map, a target out of range, a fill-in or
            fractions that make no sense, a model in training mode.

    Example:
        >>> model = torch.nn.Linear(3, 2, dtype=torch.float64).eval()
        >>> x = torch.randn(5, 3, dtype=torch.float64)
        >>> curves = perturbation_curves(model, x, x * model.weight[1], 1, baseline="zeros", steps=3)
        >>> difference = curves.comprehensiveness.values - curves.sufficiency.values
        >>> torch.allclose(curves.abpc.values, difference)
        True
    """
    generator = seeded(generator)
    features = Features(
        inputs, baseline=baseline, patch=patch, keep=keep, name=name, feature_mask=feature_mask, relevance=relevance
    )
    found, numbers = features.numbers(steps, fractions)
    scores = features.scores(relevance)
    most = features.ranks(scores, descending=True, generator=generator)
    least = features.ranks(scores, descending=False, generator=generator)
    inquiry = Inquiry(model, features, target, batch_size=batch_size, progress=progress)
    curves = along(inquiry, [most, least], numbers, score)
    return PerturbationCurves(found.to(curves), curves[:, 0], curves[:, 1], score, features.what)


def pixel_flipping(
    model: nn.Module | Callable[..., Any],
    inputs: Tensor | Mapping[str, Tensor],
    relevance: Tensor,
    target: Target = None,
    *,
    fill_ins: Mapping[str, Any] | Sequence[str] = ("zeros", "mean", "blur"),
    patch: int = 1,
    **options: Any,
) -> dict[str, PerturbationCurves]:
    """Perturbation curves for several fill-ins: a ranking of methods that holds for one of them only says little.

    Args:
        model: as for `perturbation_curves`, like `inputs`, `relevance`, `target` and the options.
        inputs: what is perturbed.
        relevance: what orders it.
        target: what is scored.
        fill_ins: names of fill-ins, or a mapping from a name of your own to what `baseline` takes.
        patch: one pixel at a time, when not said otherwise.
        **options: of `perturbation_curves`.

    Returns:
        Name of the fill-in -> curves. The order among ties is the same in each.
    """
    if not fill_ins:
        raise ValueError("fill_ins is empty: name one, as 'zeros'")
    chosen = fill_ins if isinstance(fill_ins, Mapping) else {name: name for name in fill_ins}
    if "generator" in options:
        raise ValueError("the order among ties must be the same for every fill-in, so it is seeded here: leave generator out")
    return {
        name: perturbation_curves(model, inputs, relevance, target, baseline=value, patch=patch, **options)
        for name, value in chosen.items()
    }


def along(inquiry: Inquiry, ranks: Sequence[Tensor], numbers: Tensor, score: str, *, shown: bool = False) -> Tensor:
    """One score along several orders, (batch, orders, points); arguments as of `walk`, the ranks of each order (batch, n)."""
    inquiry.whole.of(score)  # complains before the work
    return walk(inquiry, torch.stack(list(ranks), 1), numbers, shown=shown).of(score)


def walk(inquiry: Inquiry, ranks: Tensor, numbers: Tensor, *, shown: bool = False) -> Answers:
    """Scores along several orders of every sample, each (batch, orders, points).

    Args:
        inquiry: the model, and what is asked of it.
        ranks: place of every feature in each order, (batch, orders, n).
        numbers: how many features are gone at each point, (batch, points), from 0.
        shown: read `numbers` as how many are there, all others gone (insertion).
    """
    batch, orders, _ = ranks.shape
    skipped = 0 if shown else 1  # the whole input has been asked about already
    points = numbers.shape[1] - skipped
    rows = torch.arange(batch * orders * points)
    samples, order, point = rows // (orders * points), rows // points % orders, rows % points + skipped

    def replaced(which: Tensor) -> Tensor:
        gone = ranks[samples[which], order[which]] < numbers[samples[which], point[which], None]
        return ~gone if shown else gone

    answers = inquiry.scores(samples, replaced)

    def shape(values: Tensor | None, whole: Tensor | None) -> Tensor | None:
        if values is None or whole is None:
            return None
        values = values.view(batch, orders, points)
        return values if shown else torch.cat([whole[:, None, None].expand(batch, orders, 1), values], 2)

    logit = shape(answers.logit, inquiry.whole.logit)
    assert logit is not None
    return Answers(logit, shape(answers.probability, inquiry.whole.probability), shape(answers.accuracy, inquiry.whole.accuracy))
