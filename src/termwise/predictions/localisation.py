"""Localisation: does a map name the evidence whose place is known?

    mass inside     Σ_{i in M} R_i^+ / Σ_i R_i^+                a random map scores the share of M
    pointing game   1 where the largest R_i lies in M; among several largest, the share of them that does

Evidence is known where it was planted (`planted`), where people marked it (rationales, token F1), or where the model itself
says where its answer stands (question answering). It is known for people and not for the model: a model may rightly
look elsewhere, and then a faithful map loses here.
Source: Zhang et al. 2018 (pointing game), arXiv 1608.00507; DeYoung et al. 2020, arXiv 1911.03429 (token F1); spans:
papers.toml "dynamiclrp", section on SQuAD.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from termwise.core.arguments import seeded, whole_number

from .metric import Metric

__all__ = ["mass_inside", "planted", "pointing_game", "span_identification", "token_f1", "top_token_in_answer"]


def mass_inside(relevance: Float[Tensor, "batch ..."], mask: Bool[Tensor, "*places"]) -> Metric:
    """The share of the positive relevance that lies inside the mask; 0 where nothing is positive.

    Args:
        relevance: (batch, ...); images (batch, channels, height, width) are summed over channels where the mask has none.
        mask: True (or 1) where the evidence is, (batch, ...) or one for all samples. A sample without any counts as 0, and a
            warning says so.

    Raises:
        TypeError: a mask with other numbers than 0 and 1.
        ValueError: shapes that do not match, relevance that is NaN or +inf (-inf is never the largest), a mask without evidence.

    Example:
        >>> mass_inside(torch.tensor([[3.0, 1.0, -5.0]]), torch.tensor([True, False, False])).mean
        0.75
    """
    values, inside = _evidence(relevance, mask)
    positive = values.clamp(min=0)
    whole = positive.sum(1)
    share = (positive * inside).sum(1) / torch.where(whole == 0, torch.ones_like(whole), whole)
    return Metric("mass inside", share)


def pointing_game(relevance: Float[Tensor, "batch ..."], mask: Bool[Tensor, "*places"]) -> Metric:
    """Whether the largest relevance lies inside the mask; arguments and errors as `mass_inside`."""
    values, inside = _evidence(relevance, mask)
    largest = values == values.amax(1, keepdim=True)
    return Metric("pointing game", (largest & inside).sum(1).to(values) / largest.sum(1))


def planted(
    images: Float[Tensor, "batch channels height width"],
    evidence: Float[Tensor, "channels h w"],
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "batch channels height width"], Bool[Tensor, "batch height width"]]:
    """Put a piece of evidence at a random place of every image.

    Args:
        images: backgrounds.
        evidence: what is put over them.
        generator: of the places; seeded with 0 when not given.

    Returns:
        The images with the evidence in them, and where it is.

    Raises:
        ValueError: evidence larger than the images, or with other channels.
    """
    batch, channels, height, width = images.shape
    if evidence.ndim != 3 or evidence.shape[0] != channels or evidence.shape[1] > height or evidence.shape[2] > width:
        raise ValueError(f"evidence {tuple(evidence.shape)} does not fit into images of {tuple(images.shape[1:])}")
    generator = seeded(generator)
    found, mask = images.detach().clone(), torch.zeros(batch, height, width, dtype=torch.bool, device=images.device)
    tops = torch.randint(height - evidence.shape[1] + 1, (batch,), generator=generator).tolist()
    lefts = torch.randint(width - evidence.shape[2] + 1, (batch,), generator=generator).tolist()
    for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        place = slice(top, top + evidence.shape[1]), slice(left, left + evidence.shape[2])
        found[(i, slice(None), *place)] = evidence.to(found)
        mask[(i, *place)] = True
    return found, mask


def token_f1(
    relevance: Float[Tensor, "batch tokens"],
    rationale: Bool[Tensor, "batch tokens"],
    k: int,
    *,
    generator: torch.Generator | None = None,
) -> Metric:
    """F1 of the k most relevant tokens against the tokens that people marked; ties in random order.

    Args:
        relevance: one number per token.
        rationale: True for marked tokens; at least one in each sample.
        k: how many tokens to take, 10, 20, ..., 80 for ERASER's movie reviews; all of them where there are fewer.
        generator: of the order among ties; seeded with 0 when not given.

    Raises:
        ValueError: shapes that do not match, k below 1, a sample without a marked token.
    """
    values, marked = _flat(relevance, rationale)
    if not bool(marked.any(1).all()):
        raise ValueError("mask is False everywhere in a sample: every one needs a marked token")
    k = whole_number("k", k)
    generator = seeded(generator)
    shuffled = torch.rand(values.shape, generator=generator, dtype=torch.float64).argsort(1).to(values.device)
    order = shuffled.gather(1, values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))[:, :k]
    hits = marked.gather(1, order).sum(1)
    return Metric(f"token F1 at {k}", (2 * hits / (order.shape[1] + marked.sum(1))).to(values))


def span_identification(
    relevance: Float[Tensor, "batch tokens"],
    span: Int[Tensor, "batch 2"],
    context: Bool[Tensor, "batch tokens"] | None = None,
) -> dict[str, Metric]:
    """Whether the most relevant tokens of a question-answering model are those of its answer.

    Args:
        relevance: of the start and end logits together, one number per token.
        span: first and last token of the predicted answer, both included.
        context: the tokens that an answer can come from; all when not given.

    Returns:
        "top-1": the best token of the context lies in the answer; "top-2 strict": share of the two ends that are among
        the two best tokens of all (of a one-token answer both ends are that token); "top-2 span": share of the two best
        tokens that lies in the answer; "IoU": of the stretch between the two best tokens and the answer.

    Raises:
        ValueError: a span that ends before it starts, or outside the text.
    """
    batch, length = relevance.shape
    if tuple(span.shape) != (batch, 2) or bool((span[:, 0] > span[:, 1]).any() | (span < 0).any() | (span >= length).any()):
        raise ValueError(f"span must be (batch, 2), first and last token within 0..{length - 1}; skip samples without an answer")
    start, end = span[:, :1], span[:, 1:]
    allowed = relevance if context is None else relevance.masked_fill(~context, -torch.inf)
    best = allowed.argmax(1, keepdim=True)
    two = relevance.topk(min(2, length), 1).indices
    inside = (two >= start) & (two <= end)
    ends = (two[:, :, None] == span[:, None, :]).any(1)
    low, high = two.amin(1, keepdim=True), two.amax(1, keepdim=True)
    common = (torch.minimum(high, end) - torch.maximum(low, start) + 1).clamp(min=0)
    union = (high - low + 1) + (end - start + 1) - common

    def metric(name: str, values: Tensor) -> Metric:
        return Metric(name, values.to(relevance.dtype))

    return {
        "top-1": metric("top-1", ((best >= start) & (best <= end))[:, 0]),
        "top-2 strict": metric("top-2 strict", ends.double().mean(1)),
        "top-2 span": metric("top-2 span", inside.double().mean(1)),
        "IoU": metric("IoU", (common / union)[:, 0]),
    }


def top_token_in_answer(
    relevance: Float[Tensor, "batch tokens"], tokens: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]
) -> Metric:
    """Whether the text of the most relevant token is part of one of the right answers: lenient, "a" is part of most.

    Args:
        relevance: one number per token.
        tokens: the decoded tokens of each sample.
        answers: the right answers of each sample.
    """
    if not len(relevance) == len(tokens) == len(answers):
        raise ValueError(f"there are {len(relevance)} samples, {len(tokens)} lists of tokens and {len(answers)} of answers")
    best = relevance.argmax(1).tolist()
    hits = [
        any(text[i].strip().lower() in answer.lower() for answer in right) if text[i].strip() else False
        for i, text, right in zip(best, tokens, answers, strict=True)
    ]
    return Metric("top-1 in the answer's text", torch.tensor(hits, dtype=relevance.dtype))


def _flat(relevance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (batch, positions)."""
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise TypeError(f"mask must be boolean, True where the evidence is, or 0 and 1; got other numbers of {mask.dtype}")
    values = relevance.detach()
    if bool((values.isnan() | values.isposinf()).any()):  # -inf is how padding is kept out
        raise ValueError("relevance has values that are NaN or infinite: nothing can be said of where it lies")
    if values.ndim == 4 and mask.ndim in (2, 3):
        values = values.sum(1)
    inside = mask.bool().to(values.device)
    inside = inside[None] if inside.ndim == values.ndim - 1 else inside
    if inside.shape[1:] != values.shape[1:] or len(inside) not in (1, len(values)):
        raise ValueError(f"mask has shape {tuple(mask.shape)} for a relevance of {tuple(relevance.shape)}")
    return values.flatten(1), inside.expand(len(values), *inside.shape[1:]).flatten(1)


def _evidence(relevance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (batch, positions), with evidence to find."""
    values, inside = _flat(relevance, mask)
    without = (~inside.any(1)).nonzero().flatten().tolist()
    if len(without) == len(values):
        raise ValueError("mask is False everywhere: there is no place to find")
    if without:
        warnings.warn(f"mask is False everywhere in {len(without)} samples, which count as 0: {without[:5]}", stacklevel=3)
    return values, inside
