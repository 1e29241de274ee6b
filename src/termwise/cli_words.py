"""Words that a shell completes. They are written here once more, since their own tables import torch; a test compares the two.

Papers and their rooms are read from the table itself, which is data.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from importlib import resources

__all__ = ["COMPARED", "COMPRESSED", "MODELS", "RULE_SETS", "UNITS", "any_of", "listed", "papers", "rooms"]

MODELS = ("mobilenet-v2", "efficientnet-lite0", "nanoguard", "minilm", "minilm-sentiment", "smollm2-135m")
RULE_SETS = (
    "default", "zero", "cp-lrp", "attnlrp", "epsilon", "gamma", "z+", "alpha-beta", "gamma-vit", "mambalrp", "deep-taylor",
    "EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1", "EpsilonAlpha2Beta1Flat", "EpsilonGammaBox", "DeconvNet",
    "GuidedBackprop", "dynamiclrp",
)  # fmt: skip
COMPARED = (
    "gradient_x_input", "integrated_gradients", "smoothgrad", "gradcam", "occlusion", "decompx", "over_depth", "shapley",
    "chefer", "gradient_rollout", "attention_rollout", "raw_attention", "attention_gradcam", "partial_lrp",
)  # fmt: skip
COMPRESSED = (
    "auto", "alds", "aware", "afm", "asvd", "cp", "cur", "lord", "prune", "rom", "svd", "tucker", "welore", "welore-aware",
)  # fmt: skip
UNITS = ("params", "flops", "bytes", "latency", "error")

Complete = Callable[[str], list[str]]


def any_of(words: Iterable[str]) -> Complete:
    """Completes one of these.

    Example:
        >>> from termwise.cli_words import any_of
        >>> any_of(["gamma", "gamma-vit", "zero"])("ga")
        ['gamma', 'gamma-vit']
    """

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def listed(words: Iterable[str]) -> Complete:
    """Completes the last of several with commas between.

    Example:
        >>> from termwise.cli_words import listed
        >>> listed(["gradcam", "chefer"])("chefer,gr")
        ['chefer,gradcam']
    """

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + word for word in words if word.startswith(last)]

    return complete


def papers(incomplete: str) -> list[str]:
    """Keys of papers whose claims run."""
    return any_of(row["key"] for row in _papers())(incomplete)


def rooms(incomplete: str) -> list[str]:
    """Rooms that papers are kept in."""
    return any_of(sorted({row["room"] for row in _papers()}))(incomplete)


def _papers() -> list[dict[str, str]]:
    table = resources.files("termwise").joinpath("core", "papers.toml")
    return list(tomllib.loads(table.read_text("utf-8"))["paper"])
