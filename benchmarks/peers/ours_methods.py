"""Termwise's own rows. Each returns (relevance of the input, all parts, whole), so that its sum is the one it claims."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import termwise as tw
from termwise.predictions import contrast, over_depth

from .subjects import Subject


def methods(subject: Subject, cache: Path) -> dict[str, Callable[[Tensor, int], tuple[Tensor, Tensor, float]]]:
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
        }
    options = {"patch": subject.perturb["patch"]} if subject.kind == "image" else {}

    def shapley(x: Tensor, target: int) -> tuple[Tensor, Tensor, float]:
        if subject.kind == "text":
            options["keep"] = torch.arange(x.shape[1]) == 0
        return read(tw.predictions.shapley(model, x, target=target, **options))

    sets = {s: explain(s) for s in ("attnlrp", "cp-lrp")}
    return {"shapley": shapley, **sets, "attnlrp, against the rest": explain("attnlrp", "probabilities")}
