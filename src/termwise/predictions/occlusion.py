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

__all__ = ["occlusion"]


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
    f = Differentiated(model, inputs, kwargs, target)
    if len(f.leaves) != 1:
        several = ", ".join(leaf.name for leaf in f.leaves)
        raise ValueError(f"occlusion changes one input, this call has {len(f.leaves)}: {several}")
    (leaf,), named = f.leaves, f.call.keywords
    if len(f.call.args) + bool(named) != 1:
        raise ValueError("occlusion takes one tensor, or keyword inputs only: pass the others by name")
    given: Any = f.call.args[0] if f.call.args else {k: v for k, v in named.items() if isinstance(v, Tensor)}
    fixed = {k: v for k, v in named.items() if not isinstance(v, Tensor)}
    ids = leaf.look_up is not None
    baseline = baseline if baseline is not None else "remove" if ids else 0.0
    features = Features(
        given, baseline=baseline, patch=patch, feature_mask=feature_mask, keep=keep, name=leaf.name if named else None
    )
    n, removing = features.n, features.fill is None
    rows = torch.arange(features.batch * (n + (not removing)))  # one feature each, then all of them
    samples, which = rows % features.batch, rows // features.batch
    found = f.whole.new_zeros(len(rows))

    def replaced(chosen: Tensor) -> Tensor:
        return (which[chosen, None] == torch.arange(n)) | (which[chosen, None] == n)

    for some, batch in features.batches(samples, replaced, batch_size):
        with torch.no_grad():
            output = f.call.model(**batch, **fixed) if isinstance(batch, Mapping) else f.call.model(batch)
            found[some.to(found.device)] = f.of_output(output, samples[some]).to(found)
    found = found.view(-1, features.batch)
    effects = (f.whole - found[:n]).T.cpu() * features.present
    cells = features.cells
    sizes = torch.zeros(features.batch, n + 1).scatter_add(1, cells + 1, torch.ones(cells.shape)).to(effects)
    shared = torch.cat([effects.new_zeros(features.batch, 1), effects], 1) / sizes.clamp(min=1)
    spread = shared.gather(1, cells + 1).to(f.whole.device).view(features.batch, *features.positions)
    constants = {} if removing else {"baseline": found[n]}
    if features.image:
        spread = (spread / features.x.shape[1])[:, None].expand_as(features.x)
    return f.explanation([spread], "occlusion", constants=constants, names=names, classes=classes)
