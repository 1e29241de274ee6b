"""Occlusion: what the output loses when one feature is replaced.

    R_i = f(x) - f(x with feature i replaced),      f(x) = f(all replaced) + Σ_i R_i + interactions

Exact where f is a sum over features; the remainder is what features do only together, and features that stand in for each
other make it negative. A feature is a patch of pixels, a token, a number, or a group of one's own; its effect is shared
evenly by its positions and channels, so that the part has the input's shape.

Cost: features + 3 forward passes per sample, in batches; memory: one batch.
Source: Zeiler & Fergus 2014, arXiv 1311.2901, section 4.2 (images); Li et al. 2016, arXiv 1612.08220 (erasure, texts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .explanation import Explanation
from .gradients import Differentiated
from .groups import Groups
from .perturbation import Features
from .scoring import Inquiry

__all__ = ["Replacing", "occlusion"]


def occlusion(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    target: Any = None,
    baseline: Any = None,
    patch: int = 16,
    feature_mask: Tensor | Groups | None = None,
    keep: Tensor | None = None,
    name: str | None = None,
    batch_size: int = 32,
    names: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
) -> Explanation:
    """Replace one feature after the other and book what that costs the explained scalar.

    Args:
        model: in eval mode, as `explain` takes it.
        *inputs: one tensor, batch first, or a mapping of keyword inputs.
        kwargs: its keyword arguments, instead.
        target: as of `explain`, one per sample.
        baseline: what stands in, as for `perturbation_curves`. None: zeros; for token ids "remove".
        patch: side of the square of pixels that counts as one feature of an image.
        feature_mask: instead, the number of the group of each position; -1 where nothing is replaced.
        keep: tokens or features never replaced, True.
        name: of several inputs, the one whose features are replaced; the first that can be explained when not given. The
            others stay as they are, and get no part.
        batch_size: rows of a pass.
        names: the tokens, for pictures.
        classes: names of the classes.

    Returns:
        An `Explanation`: the part of the input, and ``"constant:baseline"``, which is f with all features replaced (not
        there where tokens are removed: nothing would be left to ask about).

    Raises:
        ValueError: as `explain` and `perturbation_curves`; several positional inputs, an unknown name.

    Example:
        >>> f = torch.nn.Linear(3, 2, dtype=torch.float64).eval()       # a sum over its features
        >>> list(occlusion(f, torch.randn(4, 3, dtype=torch.float64), target=0).check().parts)
        ['input:input', 'constant:baseline']
    """
    asked = Replacing(
        model, inputs, kwargs, target, baseline=baseline, name=name, batch_size=batch_size,
        patch=patch, feature_mask=feature_mask, keep=keep,
    )  # fmt: skip
    f, features, removing = asked.f, asked.features, asked.features.fill is None
    n = features.n
    rows = torch.arange(features.batch * (n + (not removing)))  # one feature each, then all of them
    samples, which = rows % features.batch, rows // features.batch

    def replaced(chosen: Tensor) -> Tensor:
        return (which[chosen, None] == torch.arange(n)) | (which[chosen, None] == n)

    found = asked.answers(samples, replaced).view(-1, features.batch)
    constants = {} if removing else {"baseline": found[n]}
    return f.explanation([asked.shared((f.whole - found[:n]).T)], "occlusion", constants=constants, names=names, classes=classes)


class Replacing:
    """One call, asked with features of its input replaced."""

    def __init__(
        self, model: Any, inputs: tuple[Any, ...], kwargs: Any, target: Any, *, baseline: Any, name: str | None,
        batch_size: int, **options: Any,
    ) -> None:  # fmt: skip
        """Arguments as of `occlusion`."""
        self.f = f = Differentiated(model, inputs, kwargs, target)
        args, named = f.call.args, f.call.keywords
        if len(args) + bool(named) != 1:
            raise ValueError("give one tensor, or keyword inputs only: pass the others by name")
        known = [leaf.name for leaf in f.leaves]
        if name is not None and name not in known:
            raise ValueError(f"there is no input {name!r} to explain: there are {', '.join(known)}")
        name = next(k for k in named if k in known) if name is None and named else name
        f.leaves = [leaf for leaf in f.leaves if name in (None, leaf.name)][:1]  # the part of the answer; others stay as they are
        baseline = baseline if baseline is not None else "remove" if f.leaves[0].look_up is not None else 0.0
        self.features = Features(args[0] if args else named, baseline=baseline, name=name if named else None, **options)
        self.inquiry = Inquiry(f.call.model, self.features, target, batch_size=batch_size)

    def answers(self, samples: Tensor, replaced: Callable[[Tensor], Tensor]) -> Tensor:
        """The explained scalar of each row, (rows,); arguments as of `Features.batches`."""
        return self.inquiry.scores(samples, replaced).logit.to(self.f.whole)

    def shared(self, effects: Tensor) -> Tensor:
        """Effects (batch, n) of the features, each shared evenly by its positions: of the input's shape."""
        features = self.features
        effects = effects.cpu() * features.present
        sizes = torch.zeros(features.batch, features.n + 1)
        sizes = sizes.scatter_add(1, features.cells + 1, torch.ones(features.cells.shape)).to(effects)
        even = torch.cat([effects.new_zeros(features.batch, 1), effects], 1) / sizes.clamp(min=1)
        spread = even.gather(1, features.cells + 1).to(self.f.whole.device).view(features.batch, *features.positions)
        axis = features.channels
        return spread if axis is None else (spread / features.x.shape[axis]).unsqueeze(axis).expand_as(features.x)
