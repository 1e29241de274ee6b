"""Termwise's own rows. Each returns (relevance of the input, all parts, whole), so that its sum is the one it claims."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import termwise as tw
from termwise.predictions import contrast, over_depth
from termwise.predictions.rules import EpsilonGammaBox
from termwise.predictions.rules.splitting import gamma

from .subjects import Subject

Row = Callable[[Tensor, int], tuple[Tensor, Tensor, float] | Tensor]


def methods(subject: Subject, cache: Path) -> dict[str, Row]:
    """By kind of network."""

    def read(why: tw.Explanation) -> tuple[Tensor, Tensor, float]:
        (relevance,) = why.inputs.values()
        return relevance, torch.cat([p.flatten() for p in why.parts.values()]), why.whole.item()

    def explain(rules, against=None):  # type: ignore[no-untyped-def]
        def run(x: Tensor, target: int) -> tuple[Tensor, Tensor, float]:
            start = contrast(target, against) if against else target
            return read(tw.explain(model, x, target=start, rules=rules))

        return run

    model = subject.model if subject.kind == "image" else subject.ask
    if subject.name in ("mobilenet-v2", "efficientnet-lite0"):
        return {
            "over depth": lambda x, t: read(over_depth(model, x, target=t)),
            "over depth, four copies": lambda x, t: read(over_depth(model, x, target=t, shift=8)),
            "default": explain("default"),
            "zero": explain("zero"),
            **{composite: explain(composite) for composite in ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1")},
            "EpsilonGammaBox": explain(EpsilonGammaBox(*subject.box)),
        }
    return _transformer(subject, model, read, explain)


def _transformer(subject: Subject, model, read, explain) -> dict[str, Row]:  # type: ignore[no-untyped-def]
    """With attention: a number per token, or per patch of a picture."""
    options = {"patch": subject.perturb["patch"]} if subject.kind == "image" else {}

    def shapley(x: Tensor, target: int) -> tuple[Tensor, Tensor, float]:
        if subject.keep is not None:
            options["keep"] = subject.keep(x)
        return read(tw.predictions.shapley(model, x, target=target, **options))

    def spread(tokens: Tensor, x: Tensor) -> Tensor:
        """Over the pixels of each patch, where tokens are patches."""
        if subject.kind == "text":
            return tokens
        side = x.shape[-1] // subject.perturb["patch"]
        return functional.interpolate(tokens.reshape(1, 1, side, side), x.shape[2:]) / subject.perturb["patch"] ** 2

    def decompx(x: Tensor, target: int) -> tuple[Tensor, Tensor, float]:
        relevance, parts, whole = read(tw.decompx(model, x, target=target, max_memory="4GB"))
        return spread(relevance, x), parts, whole

    on_pictures = {"gamma in linear layers": explain({"linear": gamma(0.25)})} if subject.kind == "image" else {}
    return {
        "shapley": shapley,
        **on_pictures,
        "attnlrp": explain("attnlrp"),
        "cp-lrp": explain("cp-lrp"),
        "attnlrp, against the rest": explain("attnlrp", "probabilities"),
        "decompx": decompx,
        "chefer": lambda x, t: spread(tw.chefer(model, x, target=t).token_relevance, x),  # an index: claims no sum
    }
