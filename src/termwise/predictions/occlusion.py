"""Occlusion: what the output loses when one feature is replaced.

    R_i = f(x) - f(x with feature i replaced),      f(x) = f(all replaced) + Σ_i R_i + interactions

Exact where f is a sum over features; the remainder is what features do only together, and features that stand in for each
other make it negative. A feature is a patch of pixels, a token, a number, or a group of one's own; its effect is shared
evenly by its positions, so that the part has the input's shape.

Cost: features + 2 forward passes per sample, in batches; memory: one batch.
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
        batch_size: rows of a pass.
        names: the tokens, for pictures.
        classes: names of the classes.

    Returns:
        An `Explanation`: the part of the input, and ``"constant:baseline"``, which is f with all features replaced (not
        there where tokens are removed: nothing would be left to ask about).

    Raises:
        ValueError: as `explain` and `perturbation_curves`; several positional inputs.

    Example:
        >>> f = torch.nn.Linear(3, 2, dtype=torch.float64).eval()       # a sum over its features
        >>> list(occlusion(f, torch.randn(4, 3, dtype=torch.float64), target=0).check().parts)
        ['input:input', 'constant:baseline']
    """
    asked = Replacing(Differentiated(model, inputs, kwargs, target), baseline, patch, feature_mask, keep)
    f, features, removing = asked.f, asked.features, asked.features.fill is None
    n = features.n
    rows = torch.arange(features.batch * (n + (not removing)))  # one feature each, then all of them
    samples, which = rows % features.batch, rows // features.batch

    def replaced(chosen: Tensor) -> Tensor:
        return (which[chosen, None] == torch.arange(n)) | (which[chosen, None] == n)

    found = asked.answers(samples, replaced, batch_size).view(-1, features.batch)
    constants = {} if removing else {"baseline": found[n]}
    return f.explanation([asked.shared((f.whole - found[:n]).T)], "occlusion", constants=constants, names=names, classes=classes)


class Replacing:
    """One call, asked with features of its input replaced."""

    def __init__(self, f: Differentiated, baseline: Any, patch: int, mask: Tensor | Groups | None, keep: Tensor | None) -> None:
        """Arguments as of `occlusion`."""
        if len(f.leaves) != 1:
            several = ", ".join(leaf.name for leaf in f.leaves)
            raise ValueError(f"features of one input are replaced, this call has {len(f.leaves)}: {several}")
        (leaf,), named = f.leaves, f.call.keywords
        if len(f.call.args) + bool(named) != 1:
            raise ValueError("give one tensor, or keyword inputs only: pass the others by name")
        given: Any = f.call.args[0] if f.call.args else {k: v for k, v in named.items() if isinstance(v, Tensor)}
        self.f, self.fixed = f, {k: v for k, v in named.items() if not isinstance(v, Tensor)}
        baseline = baseline if baseline is not None else "remove" if leaf.look_up is not None else 0.0
        name = leaf.name if named else None
        self.features = Features(given, baseline=baseline, patch=patch, feature_mask=mask, keep=keep, name=name)

    def answers(self, samples: Tensor, replaced: Callable[[Tensor], Tensor], size: int) -> Tensor:
        """The explained scalar of each row, (rows,); arguments as of `Features.batches`."""
        f = self.f
        found = f.whole.new_zeros(len(samples))
        for some, batch in self.features.batches(samples, replaced, size):
            with torch.no_grad():
                output = f.call.model(**batch, **self.fixed) if isinstance(batch, Mapping) else f.call.model(batch)
                found[some.to(found.device)] = f.of_output(output, samples[some]).to(found)
        return found

    def shared(self, effects: Tensor) -> Tensor:
        """Effects (batch, n) of the features, each shared evenly by its positions: of the input's shape."""
        features = self.features
        effects = effects.cpu() * features.present
        sizes = torch.zeros(features.batch, features.n + 1)
        sizes = sizes.scatter_add(1, features.cells + 1, torch.ones(features.cells.shape)).to(effects)
        even = torch.cat([effects.new_zeros(features.batch, 1), effects], 1) / sizes.clamp(min=1)
        spread = even.gather(1, features.cells + 1).to(self.f.whole.device).view(features.batch, *features.positions)
        return (spread / features.x.shape[1])[:, None].expand_as(features.x) if features.image else spread
