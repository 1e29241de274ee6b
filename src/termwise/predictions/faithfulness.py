"""Faithfulness: does removing what an explanation calls important change the answer more than removing anything else?

Features (patches of pixels, tokens, plain numbers) are ranked by relevance and replaced step by step:

    y_k = score(x with its first n_k features replaced),     x axis: the fraction replaced f_k = n_k / n

"descending" replaces the most relevant first (MoRF), "ascending" the least relevant first (LeRF). With the trapezoid rule
AUC = sum_k (f_{k+1} - f_k) (y_k + y_{k+1}) / 2, and

    ABPC = AUC(LeRF) - AUC(MoRF),    in [-1, 1] for probabilities; 0 on average for random orders; higher is better.

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

from .perturbation import Features, blurred

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["DeletionCurve", "abpc", "blurred", "deletion"]

Target = int | Tensor | Callable[[Any], Tensor] | None


@dataclass(frozen=True, eq=False)
class DeletionCurve:
    """What the model says while its input is replaced, most relevant features first, and in random orders.

    Attributes:
        fractions: of the features that were replaced, from 0, shape (points,).
        logits: score of the explained class along the order, (batch, points).
        random_logits: the same for random orders, (batch, orders, points).
        probabilities: softmax probability of that class, (batch, points); None where the score is no class.
        random_probabilities: the same for random orders; None where the score is no class.
        order: "descending" (MoRF) or "ascending" (LeRF).
        features: number of features ranked in each sample.
        what: name of a feature in the plural, as "8x8 patches" or "tokens".
    """

    fractions: Float[Tensor, " points"]
    logits: Float[Tensor, "batch points"]
    random_logits: Float[Tensor, "batch orders points"]
    probabilities: Float[Tensor, "batch points"] | None
    random_probabilities: Float[Tensor, "batch orders points"] | None
    order: str
    features: int
    what: str

    @property
    def scores(self) -> Float[Tensor, "batch points"]:
        """The probabilities where there are classes, the logits otherwise."""
        return self.logits if self.probabilities is None else self.probabilities

    @property
    def random_scores(self) -> Float[Tensor, "batch orders points"]:
        """As `scores`, for the random orders."""
        return self.random_logits if self.random_probabilities is None else self.random_probabilities

    @property
    def area(self) -> Float[Tensor, " batch"]:
        """Area under `scores` (AUC)."""
        return torch.trapezoid(self.scores, self.fractions)

    @property
    def random_areas(self) -> Float[Tensor, "batch orders"]:
        """Area of every random order."""
        return torch.trapezoid(self.random_scores, self.fractions)

    @property
    def random_area(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Mean and standard deviation of the random orders' areas; the deviation is 0 for a single order."""
        return _mean_spread(self.random_areas)

    def drop(self, fraction: float = 0.1) -> Float[Tensor, " batch"]:
        """How much score the replacement of that fraction costs (interpolated between the measured points)."""
        return self.scores[..., 0] - _interpolate(self.fractions, self.scores, fraction)

    def random_drop(self, fraction: float = 0.1) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The same for random orders: mean and standard deviation over them."""
        return _mean_spread(self.random_scores[..., 0] - _interpolate(self.fractions, self.random_scores, fraction))


def abpc(least_first: DeletionCurve, most_first: DeletionCurve) -> Float[Tensor, " batch"]:
    """Area between perturbation curves, AUC(LeRF) - AUC(MoRF), per sample.

    Args:
        least_first: the curve of order "ascending".
        most_first: the curve of order "descending", of the same inputs and fractions.

    Raises:
        ValueError: when the orders are not these, or the curves have different points.
    """
    if (least_first.order, most_first.order) != ("ascending", "descending"):
        raise ValueError(
            f"abpc takes an 'ascending' and a 'descending' curve, in this order; got {least_first.order!r} and "
            f"{most_first.order!r}"
        )
    if not torch.equal(least_first.fractions, most_first.fractions):
        raise ValueError("the two curves have different fractions: measure both with the same steps")
    return least_first.area - most_first.area


def deletion(
    model: nn.Module | Callable[..., Any],
    inputs: Tensor | Mapping[str, Tensor],
    relevance: Tensor,
    target: Target = None,
    *,
    baseline: Tensor | float | int | str,
    steps: int = 20,
    fractions: Sequence[float] | None = None,
    order: str = "descending",
    patch: int = 8,
    keep: Tensor | None = None,
    name: str | None = None,
    random_orders: int = 10,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> DeletionCurve:
    """Replace an input's features in the order of their relevance, and watch the score of the explained class.

    Args:
        model: in eval mode; gives logits (batch, classes), alone or as a `logits` field, or what a callable target takes.
        inputs: images (batch, channels, height, width), token ids (batch, tokens), numbers (batch, features); or a
            mapping of keyword inputs, one of which has the shape of `relevance`.
        relevance: one number per feature, of the input's shape; for images also (batch, height, width).
        target: class index, or one per sample (batch,); None: the class the model gives to the whole input. A callable:
            from the model's output to one score per sample.
        baseline: what replaces a feature: a number, a tensor that broadcasts to one sample (a channel mean) or has the
            inputs' shape (`blurred(inputs)`), the id of a mask token; or "remove", which takes tokens out of the sequence.
        steps: number of equal steps from nothing to everything replaced.
        fractions: instead of `steps`, the fractions to measure at; 0 is always measured.
        order: "descending" replaces the most relevant features first.
        patch: side of the square of pixels that counts as one feature of an image; its relevance is the sum over it.
        keep: features never replaced (special tokens), True, of shape (tokens,) or (features,).
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
        >>> torch.allclose(curve.logits[0, -1], model.bias[1])
        True
    """
    if isinstance(model, nn.Module) and model.training:
        raise ValueError(f"{type(model).__name__} is in training mode: call model.eval() first")
    if order not in ("descending", "ascending"):
        raise ValueError(f"order must be 'descending' (most relevant first) or 'ascending', got {order!r}")
    if random_orders < 1 or batch_size < 1:
        raise ValueError(f"random_orders and batch_size must be at least 1, got {random_orders} and {batch_size}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    feature = Features(inputs, relevance, baseline, patch, keep, name)
    counts = _counts(feature.n, steps, fractions)
    curves: list[tuple[Tensor, Tensor | None]] = []
    passes = feature.batch * (random_orders + 1) * (len(counts) - 1)
    for sample in range(feature.batch):
        scores = feature.scores(sample)
        orders = [_order(scores, order, generator)]
        orders += [torch.randperm(feature.n, generator=generator) for _ in range(random_orders)]
        ranks = torch.stack([o.argsort() for o in orders])
        if progress is not None:
            progress(sample * passes // feature.batch, passes)
        score = _Score(target, sample, feature.batch)
        curves.append(_curve(model, feature, sample, ranks, counts, score, batch_size, progress))
    logits = torch.stack([logit for logit, _ in curves])
    found = [p for _, p in curves if p is not None]
    probabilities = torch.stack(found) if len(found) == len(curves) else None
    return DeletionCurve(
        fractions=(counts / feature.n).to(logits),
        logits=logits[:, 0],
        random_logits=logits[:, 1:],
        probabilities=None if probabilities is None else probabilities[:, 0],
        random_probabilities=None if probabilities is None else probabilities[:, 1:],
        order=order,
        features=feature.n,
        what=feature.what,
    )


class _Score:
    """From the model's output to (logit, probability or None) of the explained class of one sample."""

    def __init__(self, target: Target, sample: int, batch: int) -> None:
        self.pick = target if callable(target) else None
        self.index: int | None = None
        if self.pick is None and target is not None:
            index = torch.as_tensor(target)
            if index.is_floating_point() or index.dtype == torch.bool:
                raise TypeError(f"target must be an integer class index, got {target!r}")
            if index.ndim > 1 or (index.ndim == 1 and len(index) != batch):
                raise ValueError(f"target has shape {tuple(index.shape)} for {batch} samples: one index each, or one for all")
            self.index = int(index[sample] if index.ndim else index)

    def __call__(self, output: Any) -> tuple[Tensor, Tensor | None]:
        if self.pick is not None:
            value = self.pick(output)
            if value.ndim != 1:
                raise ValueError(f"target must give one score per sample, shape (batch,); it gave {tuple(value.shape)}")
            return value, None
        logits = _logits(output)
        if logits.ndim != 2:
            raise ValueError(
                f"the output has shape {tuple(logits.shape)}, not (batch, classes): pass target=<function from the output "
                "to one score per sample>"
            )
        n = logits.shape[1]
        if self.index is None:
            self.index = int(logits[0].argmax())  # the first call has the whole input
        if not -n <= self.index < n:
            raise ValueError(f"target {self.index} is out of range: the output has {n} classes, 0 to {n - 1}")
        return logits[:, self.index], logits.softmax(1)[:, self.index] if n > 1 else None


def _curve(
    model: Any, feature: Features, sample: int, ranks: Tensor, counts: Tensor, score: _Score, batch_size: int, progress: Any
) -> tuple[Tensor, Tensor | None]:
    """Scores (orders, points) of one sample; the whole input is run once for all orders."""

    def run(given: Any) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            return score(model(**given) if isinstance(given, Mapping) else model(given))

    whole = next(feature.batches(sample, torch.zeros(1, feature.n, dtype=torch.bool), 1))[1]
    first, first_p = run(whole)
    orders, points = len(ranks), len(counts)
    replaced = (ranks[:, None] < counts[1:, None]).flatten(0, 1)  # (orders * (points - 1), n)
    logits = first.new_empty(len(replaced))
    probabilities = None if first_p is None else torch.empty_like(logits)
    done = 0
    for rows, given in feature.batches(sample, replaced, batch_size):
        logit, probability = run(given)
        logits[rows] = logit
        if probabilities is not None and probability is not None:
            probabilities[rows] = probability
        done += len(rows)
        if progress is not None:
            progress(sample * len(replaced) + done, feature.batch * len(replaced))

    def curve(start: Tensor, rest: Tensor) -> Tensor:
        return torch.cat([start.expand(orders, 1), rest.view(orders, points - 1)], 1)

    return curve(first, logits), None if probabilities is None or first_p is None else curve(first_p, probabilities)


def _counts(n: int, steps: int, fractions: Sequence[float] | None) -> Tensor:
    """How many features are replaced at each point, from 0, without repetition."""
    if fractions is None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        fractions = [k / steps for k in range(steps + 1)]
    if not fractions or not all(0 <= f <= 1 for f in fractions):
        raise ValueError(f"fractions must lie in 0..1, got {list(fractions)}")
    counts = sorted({0, *(round(f * n) for f in fractions)})
    if len(counts) == 1:
        raise ValueError(f"fractions {list(fractions)} of {n} features replace none: ask for at least {1 / n:.2g}")
    return torch.tensor(counts)


def _order(scores: Tensor, order: str, generator: torch.Generator) -> Tensor:
    """Feature indices in the order of replacement; ties in random order (ReLU maps are full of them)."""
    shuffled = torch.randperm(len(scores), generator=generator)
    return shuffled[scores[shuffled].argsort(descending=order == "descending", stable=True)]


def _logits(output: Any) -> Tensor:
    """The logits of an output: itself, its `logits`, or its first tensor."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        found = output[0]
    if not isinstance(found, Tensor):
        raise TypeError(
            f"found no logits in a {type(output).__name__}: pass target=<function from the output to one score per sample>"
        )
    return found


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
