"""Faithfulness: does removing what an explanation calls important change the answer more than removing anything else?

Features (patches of pixels, tokens, plain numbers) are ranked by relevance and replaced step by step:

    y_k = score(x with its first n_k features replaced),     x axis: the fraction replaced f_k = n_k / n

"descending" replaces the most relevant first (MoRF), "ascending" the least relevant first (LeRF). With the trapezoid rule
AUC = sum_k (f_{k+1} - f_k) (y_k + y_{k+1}) / 2, and

    ABPC = AUC(LeRF) - AUC(MoRF),    in [-1, 1] for probabilities; 0 on average for random orders; higher is better.

The areas are the metrics of `perturbation_curves`, which measures both orders and no random ones; one engine runs both.

A relevance that adds up may still be wrong about the model; this is the test that can tell. The same curve for random
orders, with its spread, is measured beside it. Removing is no neutral act: the replaced input is one the model never
saw, so compare curves of one baseline only. Small grey squares scattered over a picture break most image networks
wherever they lie; larger patches that turn blurred ask what the test means to ask.

Cost: (random_orders + 1) * steps forward passes per sample, in batches; memory: one batch.
Source: Samek et al. 2017, arXiv 1509.06321 (perturbation curves, MoRF and LeRF); ABPC, also called SRG: Bluecher et al.
2024, arXiv 2401.06654.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from termwise.core.arguments import seeded
from termwise.core.pictures import Picture, Pictured

from .groups import Groups
from .metric import Metric
from .perturbation import Features
from .perturbation_curves import along, between, deleted, inserted
from .scoring import Inquiry
from .targets import Target

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["DeletionCurve", "abpc", "deletion", "insertion"]


@dataclass(frozen=True, eq=False)
class DeletionCurve(Pictured):
    """What the model says while its input is replaced, most relevant features first, and in random orders.

    Attributes:
        fractions: of the features that were replaced (of order "inserted": shown), from 0, shape (points,).
        scores: of the explained class along the order, (batch, points).
        random_scores: the same for random orders, (batch, orders, points).
        score: "probability", "logit" or "accuracy".
        order: "descending" (MoRF), "ascending" (LeRF), or "inserted" (most relevant inserted first).
        features: number of features ranked in each sample (the most, where samples differ).
        what: name of a feature in the plural, as "8x8 patches" or "tokens".
    """

    fractions: Float[Tensor, " points"]
    scores: Float[Tensor, "batch points"]
    random_scores: Float[Tensor, "batch orders points"]
    score: str
    order: str
    features: int
    what: str

    @property
    def area(self) -> Metric:
        """Area under `scores` (AUC): deletion along MoRF, insertion along LeRF and where features are shown."""
        return (deleted if self.order == "descending" else inserted)(self.scores, self.fractions)

    @property
    def random_areas(self) -> Float[Tensor, "batch orders"]:
        """Area of every random order."""
        return torch.trapezoid(self.random_scores, self.fractions)

    @property
    def random_area(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Mean and standard deviation of the random orders' areas; the deviation is 0 for a single order."""
        return _mean_spread(self.random_areas)

    def drop(self, fraction: float = 0.1) -> Float[Tensor, " batch"]:
        """How much score the replacement of that fraction costs (interpolated between the measured points).

        Of order "inserted" it is negative: what showing that fraction brings.
        """
        return self.scores[..., 0] - _interpolate(self.fractions, self.scores, fraction)

    def random_drop(self, fraction: float = 0.1) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The same for random orders: mean and standard deviation over them."""
        return _mean_spread(self.random_scores[..., 0] - _interpolate(self.fractions, self.random_scores, fraction))

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The curve of one sample beside random orders, and what it says in words."""
        from termwise.report.curve import picture

        return [picture(self, sample)]


def abpc(least_first: DeletionCurve, most_first: DeletionCurve) -> Metric:
    """Area between perturbation curves, AUC(LeRF) - AUC(MoRF): that of `perturbation_curves`, from two curves.

    Args:
        least_first: the curve of order "ascending".
        most_first: the curve of order "descending", of the same inputs and fractions.

    Raises:
        ValueError: when the orders are not these, or the curves have different points.
    """
    if not (isinstance(least_first, DeletionCurve) and isinstance(most_first, DeletionCurve)):
        raise TypeError(f"abpc takes two curves of deletion, got {least_first!r} and {most_first!r}")
    if (least_first.order, most_first.order) != ("ascending", "descending"):
        raise ValueError(
            f"abpc takes an 'ascending' and a 'descending' curve, in this order; got {least_first.order!r} and "
            f"{most_first.order!r}"
        )
    if not torch.equal(least_first.fractions, most_first.fractions) or least_first.score != most_first.score:
        raise ValueError("the two curves have different fractions or scores: measure both with the same steps and score")
    return between(least_first.scores, most_first.scores, least_first.fractions)


def deletion(
    model: nn.Module | Callable[..., Any],
    inputs: Tensor | Mapping[str, Tensor],
    relevance: Tensor,
    target: Target = None,
    *,
    baseline: Tensor | float | int | str,
    score: str | None = None,
    steps: int = 20,
    fractions: Sequence[float] | None = None,
    order: str = "descending",
    patch: int = 8,
    feature_mask: Tensor | Groups | None = None,
    keep: Tensor | None = None,
    name: str | None = None,
    random_orders: int = 10,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> DeletionCurve:
    """Replace an input's features in the order of their relevance, and watch the score of the explained class.

    Args:
        model: in eval mode, as `termwise.explain` takes it.
        inputs: as of `perturbation_curves`, like `relevance` and `target`.
        relevance: what orders the features.
        target: what is scored.
        baseline: what replaces a feature: "zeros", "mean" (of each channel), "blur"; a number, a tensor that broadcasts
            to one sample or has the inputs' shape (`sampled`), the id of a mask token; or "remove", which takes tokens out
            of the sequence.
        score: "probability", "logit" or "accuracy". None: probability where there are classes, logit otherwise.
        steps: number of equal steps from nothing to everything replaced.
        fractions: instead of `steps`, the fractions to measure at; 0 is always measured.
        order: "descending" replaces the most relevant features first.
        patch: side of the square of pixels that counts as one feature of an image; its relevance is the sum over it.
        feature_mask: instead of patches or single tokens, the number of the group that each position belongs to, for
            all samples or for each; -1 where nothing is ever replaced.
        keep: features never replaced (special tokens), True, of shape (tokens,) or (batch, tokens).
        name: of a mapping's inputs, the one that is replaced; the first of the shape of `relevance` when not given.
        random_orders: how many random orders to measure beside it.
        generator: of the random orders and of the order among ties; seeded with 0 when not given.
        batch_size: inputs per forward pass.
        progress: called with (done, all) passes.

    Raises:
        ValueError: for shapes that do not match, a target out of range, a baseline or fractions that make no sense, a
            model in training mode.

    Example:
        >>> model = torch.nn.Linear(3, 2, dtype=torch.float64).eval()
        >>> x = torch.randn(1, 3, dtype=torch.float64)
        >>> curve = deletion(model, x, x * model.weight[1], 1, baseline=0.0, steps=3)
        >>> torch.allclose(curve.scores[0, -1], model.bias.softmax(0)[1])
        True
    """
    if order not in ("descending", "ascending"):
        raise ValueError(f"order must be 'descending' (most relevant first) or 'ascending', got {order!r}")
    features = Features(
        inputs, baseline=baseline, patch=patch, keep=keep, name=name, feature_mask=feature_mask, relevance=relevance
    )
    return _measured(
        model, features, relevance, target, order, score, steps, fractions, random_orders, generator, batch_size, progress
    )


def insertion(
    model: nn.Module | Callable[..., Any],
    inputs: Tensor | Mapping[str, Tensor],
    relevance: Tensor,
    target: Target = None,
    *,
    baseline: Tensor | float | int | str = "blur",
    score: str | None = None,
    steps: int = 20,
    fractions: Sequence[float] | None = None,
    patch: int = 8,
    feature_mask: Tensor | Groups | None = None,
    keep: Tensor | None = None,
    name: str | None = None,
    random_orders: int = 10,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> DeletionCurve:
    """Begin with a blurred picture and insert the most relevant features first (RISE); a large area is good.

    Arguments and errors are those of `deletion`. At each point the model sees what "ascending" deletion leaves when the
    other share is gone, so the area is that of LeRF; what is new is the way to read it, and the random orders beside it.

    Returns:
        A `DeletionCurve` of order "inserted": `fractions` are what is there, from 0.

    Example:
        >>> model = torch.nn.Linear(3, 2, dtype=torch.float64).eval()
        >>> x = torch.randn(1, 3, dtype=torch.float64)
        >>> curve = insertion(model, x, x * model.weight[1], 1, baseline=0.0, steps=3)
        >>> torch.allclose(curve.scores[0, -1], model(x).softmax(1)[0, 1])
        True
    """
    features = Features(
        inputs, baseline=baseline, patch=patch, keep=keep, name=name, feature_mask=feature_mask, relevance=relevance
    )
    return _measured(
        model, features, relevance, target, "inserted", score, steps, fractions, random_orders, generator, batch_size, progress
    )


def _measured(
    model: Any, features: Features, relevance: Tensor, target: Target, order: str, score: str | None, steps: int,
    fractions: Any, random_orders: int, generator: torch.Generator | None, batch_size: int, progress: Any,
) -> DeletionCurve:  # fmt: skip
    if random_orders < 1:
        raise ValueError(f"random_orders must be at least 1, got {random_orders}")
    generator = seeded(generator)
    found, numbers = features.numbers(steps, fractions)
    ranks = [features.ranks(features.scores(relevance), descending=order != "ascending", generator=generator)]
    ranks += [features.random_ranks(generator) for _ in range(random_orders)]
    inquiry = Inquiry(model, features, target, batch_size=batch_size, progress=progress)
    score = score or ("logit" if inquiry.whole.probability is None else "probability")
    scores = along(inquiry, ranks, numbers, score, shown=order == "inserted")
    return DeletionCurve(found.to(scores), scores[:, 0], scores[:, 1:], score, order, features.n, features.what)


def _interpolate(x: Tensor, y: Tensor, at: float) -> Tensor:
    """The values at `at` along the last axis, linear between points."""
    if not 0 <= at <= x[-1]:
        raise ValueError(f"the fraction must lie in 0..{float(x[-1]):g}, got {at}")
    right = int((x < at).sum().clamp(1, len(x) - 1))
    weight = (at - x[right - 1]) / (x[right] - x[right - 1])
    return torch.lerp(y[..., right - 1], y[..., right], weight.to(y))


def _mean_spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the last axis."""
    spread = values.std(-1) if values.shape[-1] > 1 else torch.zeros_like(values[..., 0])
    return values.mean(-1), spread
