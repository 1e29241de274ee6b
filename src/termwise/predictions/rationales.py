"""Faithfulness of text explanations: take the top tokens away, or keep nothing but them.

    comprehensiveness (ERASER)  1/(|B|+1) Σ_{k in B} p(y|x) - p(y|x without its top k)           high is good
    sufficiency (ERASER)        1/(|B|+1) Σ_{k in B} p(y|x) - p(y|only the top k)                low is good

with B = 1, 5, 10, 20, 50 % and a term k = 0 that is 0 and counts. These are not the areas of the same names in
`perturbation_curves`. DecompX measures with [MASK] in place of the top K % of tokens, K = 10, 20, ..., 90:

    AOPC                        mean drop of p(y)                                                high is good
    accuracy                    how often the answer is still right                              low is good
    prediction performance      how often it is right with nothing but the top K % left          high is good

A share of the tokens is rounded up, so that at least one token goes. Special tokens are never touched (`keep`).
Cost: 2 |B| forward passes per sample, in batches.
Source: DeYoung et al. 2020, arXiv 1911.03429 (ERASER, equations 1-3); Modarressi et al. 2023, arXiv 2306.02873, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from termwise.core.arguments import seeded
from termwise.core.pictures import Picture, Pictured

from .metric import Metric, table
from .perturbation import Features
from .perturbation_curves import walk
from .rules.selection import nearest
from .scoring import Answers, Inquiry
from .targets import Target

OPTIONS = {"patch", "keep", "name", "feature_mask", "generator", "batch_size"}
"""What may be given besides, as of `deletion`."""

__all__ = ["ERASER", "TENTHS", "MaskedText", "comprehensiveness_eraser", "masked_text", "sufficiency_eraser"]

ERASER = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Shares of the tokens that ERASER averages over."""

TENTHS = tuple(k / 10 for k in range(1, 10))
"""Shares of the tokens that DecompX averages over."""


@dataclass(frozen=True, eq=False)
class MaskedText(Pictured):
    """DecompX's three numbers; see the module."""

    aopc: Metric
    accuracy: Metric
    prediction_performance: Metric

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The three numbers with their intervals."""
        return [table("Text with masks", [self.aopc, self.accuracy, self.prediction_performance])]


def comprehensiveness_eraser(
    model: nn.Module | Callable[..., Any],
    inputs: Tensor | Mapping[str, Tensor],
    relevance: Tensor,
    target: Target = None,
    *,
    baseline: Any = "remove",
    shares: Sequence[float] = ERASER,
    **options: Any,
) -> Metric:
    """How much probability the answer loses without its top tokens, averaged over ERASER's shares; high is good.

    Args:
        model: in eval mode.
        inputs: token ids, or a mapping with them.
        relevance: one number per token, (batch, tokens).
        target: class; the model's own answer when not given.
        baseline: "remove", the id of a mask token, or another fill-in.
        shares: of the tokens.
        **options: `keep`, `name`, `feature_mask` (words), `patch`, `batch_size`, `generator`, as in `perturbation_curves`.

    Raises:
        ValueError: as `perturbation_curves`.
    """
    inquiry, answers = _tops(model, inputs, relevance, target, baseline, shares, options, shown=False)
    return Metric("comprehensiveness (ERASER)", _averaged(inquiry, answers))


def sufficiency_eraser(
    model: nn.Module | Callable[..., Any],
    inputs: Tensor | Mapping[str, Tensor],
    relevance: Tensor,
    target: Target = None,
    *,
    baseline: Any = "remove",
    shares: Sequence[float] = ERASER,
    **options: Any,
) -> Metric:
    """How much probability is missing when nothing but the top tokens is left; low is good. Arguments as its sibling."""
    inquiry, answers = _tops(model, inputs, relevance, target, baseline, shares, options, shown=True)
    return Metric("sufficiency (ERASER)", _averaged(inquiry, answers), higher_is_better=False)


def masked_text(
    model: nn.Module | Callable[..., Any],
    inputs: Tensor | Mapping[str, Tensor],
    relevance: Tensor,
    labels: Target = None,
    *,
    mask_token: int,
    shares: Sequence[float] = TENTHS,
    **options: Any,
) -> MaskedText:
    """AOPC, accuracy and prediction performance under masking, as DecompX reports them.

    Args:
        model: in eval mode.
        inputs: token ids, or a mapping with them.
        relevance: one number per token, (batch, tokens).
        labels: the right classes, for the two accuracies; the model's own answers when not given. AOPC is always that of
            the model's own answer.
        mask_token: id of the token that stands in.
        shares: of the tokens.
        **options: as of `comprehensiveness_eraser`.

    Raises:
        ValueError: as `perturbation_curves`.
    """
    own, without = _tops(model, inputs, relevance, None, mask_token, shares, options, shown=False)
    labelled = without
    if labels is not None:
        labelled = _tops(model, inputs, relevance, labels, mask_token, shares, options, shown=False)[1]
    _, alone = _tops(model, inputs, relevance, labels, mask_token, shares, options, shown=True)
    drop = own.whole.of("probability")[:, None] - without.of("probability")[:, 0]
    return MaskedText(
        Metric("AOPC (masked text)", drop.mean(1)),
        Metric("accuracy (masked text)", labelled.of("accuracy")[:, 0].mean(1), higher_is_better=False),
        Metric("prediction performance", alone.of("accuracy")[:, 0].mean(1)),
    )


def _tops(
    model: Any, inputs: Any, relevance: Tensor, target: Target, baseline: Any, shares: Sequence[float],
    options: dict[str, Any], *, shown: bool,
) -> tuple[Inquiry, Answers]:  # fmt: skip
    """Answers (batch, 1, shares) without the top tokens, or with nothing but them."""
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"shares must lie in 0..1, got {list(shares)}")
    options = dict(options)
    generator = seeded(options.pop("generator", None))
    size = options.pop("batch_size", 32)
    if unknown := options.keys() - OPTIONS:
        raise TypeError(f"unknown option {min(unknown)!r}{nearest(min(unknown), sorted(OPTIONS))}")
    features = Features(inputs, baseline=baseline, relevance=relevance, **options)
    ranks = features.ranks(features.scores(relevance), descending=True, generator=generator)
    # less a hair: 0.1 * 30 is a little more than 3 in floating point
    numbers = (torch.tensor(shares, dtype=torch.float64) * features.counts[:, None] - 1e-9).ceil().long()
    inquiry = Inquiry(model, features, target, batch_size=size)
    if not shown:
        numbers = torch.cat([numbers.new_zeros(features.batch, 1), numbers], 1)
    answers = walk(inquiry, ranks[:, None], numbers, shown=shown)
    return inquiry, answers if shown else _but_first(answers)


def _but_first(answers: Answers) -> Answers:
    found = [None if a is None else a[..., 1:] for a in (answers.logit, answers.probability, answers.accuracy)]
    assert found[0] is not None
    return Answers(found[0], found[1], found[2])


def _averaged(inquiry: Inquiry, answers: Answers) -> Tensor:
    drop = inquiry.whole.of("probability")[:, None] - answers.of("probability")[:, 0]
    return drop.sum(1) / (drop.shape[1] + 1)
