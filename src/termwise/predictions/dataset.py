"""The mean explanation of a data set: what inputs and biases do on average, one batch at a time.

    mean whole = sum over parts of (mean part),      each mean taken over samples

A mean of decompositions is a decomposition: whole, parts and remainder are averaged alike.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .explain import explain
from .explanation import Explanation

__all__ = ["MeanExplanation", "explain_dataset"]


@dataclass(frozen=True, eq=False, repr=False)
class MeanExplanation(Explanation):
    """The mean over samples, as an explanation of one sample: `whole` has shape (1,), or (1, targets).

    Attributes:
        count: how many samples it is the mean of.
    """

    count: int = 1

    def summary(self) -> str:
        """One honest line."""
        return f"mean of {self.count} samples: {super().summary()}"


def explain_dataset(
    model: nn.Module | Callable[..., Any],
    batches: Iterable[Any],
    *,
    progress: bool = False,
    after: MeanExplanation | None = None,
    **options: Any,
) -> MeanExplanation:
    """Explain every sample of a data set and give the mean.

    Parts are averaged entry by entry: pixels, positions, biases. A part whose shape differs between batches (texts of
    several lengths) is averaged as a whole, its sum per sample; `feature_mask` or padding to one length keeps more.

    An interrupt (Ctrl-C) loses nothing: the mean of what was done is returned with a warning that says how many batches
    that were, and ``after=`` goes on from there.

    Args:
        model: as in `explain`.
        batches: each a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments; a DataLoader, or a
            generator that leaves labels out, ``(x for x, _ in loader)``.
        progress: show a progress bar.
        after: the mean of other samples, which these are added to.
        **options: as in `explain`: target, rules, at, through, feature_mask, max_memory, classes.

    Returns:
        A `MeanExplanation`, in the precision of the model. `target` is the class where it was the same for every sample.

    Raises:
        ValueError: when there is no sample, or targets or inputs of another number than before; else as `explain`.

    Cost: that of explaining every sample. Memory: O(one batch + two means); sums are kept in float64.

    Example:
        >>> model = torch.nn.Linear(4, 2).double().eval()
        >>> x = torch.randn(10, 4, dtype=torch.float64)
        >>> mean = explain_dataset(model, x.split(3), target=1).check()
        >>> bool(torch.allclose(mean.inputs["input"], x.mean(0) * model.weight[1])), mean.count
        (True, 10)
    """
    from rich.progress import track

    can = isinstance(batches, Iterable) or hasattr(batches, "__getitem__")  # all that many a data set has
    if not can or (isinstance(batches, Tensor) and not batches.ndim):
        raise TypeError(f"batches must be an iterable of batches (a list, a DataLoader), got {type(batches).__name__}")
    if unknown := options.keys() - inspect.signature(explain).parameters.keys():
        raise TypeError(f"unknown option {min(unknown)!r}: options are those of termwise.explain")
    mean = _Running() if after is None else _Running.of(after)
    done = 0
    try:
        for batch in track(batches, "Explaining", disable=not progress):
            if isinstance(batch, (tuple, list)):
                why = explain(model, *batch, **options)
            else:
                why = explain(model, batch, **options)
            mean = mean.with_samples(why)  # the old one is whole until the new one is
            done += 1
    except KeyboardInterrupt:
        if not mean.count:
            raise
        warnings.warn(
            f"interrupted after {done} batches: this is the mean of {mean.count} samples. To go on, call with the batches that "
            "are left and after=<what was returned>",
            UserWarning,
            stacklevel=2,
        )
    return mean.result()


@dataclass(frozen=True)
class _Running:
    """Sums over samples, without their axis; what a part cannot keep when shapes differ is its shape."""

    count: int = 0
    whole: Tensor | None = None
    parts: Mapping[str, Tensor] | None = None
    layers: Mapping[str, Tensor] | None = None
    target: Tensor | None = None
    last: Explanation | None = None  # one sample, for what is no number: rules, classes

    @classmethod
    def of(cls, mean: MeanExplanation) -> _Running:
        """Go on from a mean."""
        n = mean.count
        parts, layers = ({name: v[0].double() * n for name, v in values.items()} for values in (mean.parts, mean.layers))
        return cls(n, mean.whole[0].double() * n, parts, layers, None if mean.target is None else mean.target[0], mean)

    def with_samples(self, why: Explanation) -> _Running:
        """With the samples of one more explanation."""
        whole = why.whole.double().sum(0)
        sums, layers = ({name: v.double().sum(0) for name, v in values.items()} for values in (why.parts, why.layers))
        target = _common(why.target)
        if self.whole is not None and self.parts is not None and self.layers is not None:
            if self.whole.shape != whole.shape:
                raise ValueError(f"the mean so far is of {tuple(self.whole.shape)} targets, this batch has {tuple(whole.shape)}")
            whole = whole + self.whole
            parts = {n: _sum(self.parts.get(n), sums.get(n), whole.ndim) for n in {**self.parts, **sums}}
            layers = {n: _sum(self.layers.get(n), layers.get(n), whole.ndim) for n in {**self.layers, **layers}}
            same = target is not None and self.target is not None and torch.equal(target, self.target)
            return _Running(self.count + len(why), whole, parts, layers, target if same else None, why[:1])
        return _Running(len(why), whole, sums, layers, target, why[:1])

    def result(self) -> MeanExplanation:
        """The mean."""
        if self.last is None or self.whole is None or self.parts is None or self.layers is None:
            raise ValueError("there is no batch in the data: nothing was explained")
        dtype, n = self.last.whole.dtype, self.count
        return MeanExplanation(
            whole=(self.whole / n).to(dtype).unsqueeze(0),
            parts={name: (part / n).to(dtype).unsqueeze(0) for name, part in self.parts.items()},
            target=None if self.target is None else self.target.unsqueeze(0),
            rules=self.last.rules,
            classes=self.last.classes,
            asked=self.last.asked,
            picture=self.last.picture,
            layers={name: (value / n).to(dtype).unsqueeze(0) for name, value in self.layers.items()},
            channels=self.last.channels,
            count=n,
        )


def _sum(a: Tensor | None, b: Tensor | None, lead: int) -> Tensor:
    """Two sums together; where their shapes differ, of what they add up to."""
    if a is None or b is None:
        found = b if a is None else a
        assert found is not None
        return found
    if a.shape != b.shape:
        a, b = (t.flatten(lead).sum(-1) if t.ndim > lead else t for t in (a, b))
    return a + b


def _common(target: Tensor | None) -> Tensor | None:
    """The target that all samples share."""
    return target[0] if target is not None and len(target) and bool((target == target[0]).all()) else None
