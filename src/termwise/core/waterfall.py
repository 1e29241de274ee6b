"""Which terms of one number to show: the inputs, the largest others by name, the rest together, the remainder.

    0 -> + inputs -> + the k largest others -> + the rest -> (+ remainder) -> whole

Losses of rules are gathered by module. The remainder is a bar of its own only where it could be seen. Where the whole is
no single number, its terms are sizes side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .pictures import Bar, Bars, Waterfall

if TYPE_CHECKING:
    from .decomposition import Decomposition

__all__ = ["KINDS", "bars", "sizes", "waterfall"]

KINDS = {"input": "input", "at": "inner module", "bias": "bias", "constant": "constant", "rule": "lost by rules"}
"""First word of a part's name -> what a reader calls it."""


def waterfall(decomposition: Decomposition, sample: int = 0, k: int = 10) -> Waterfall:
    """The terms of one sample as a picture.

    Raises:
        ValueError: as `bars`.
    """
    return Waterfall("Where it comes from", bars(decomposition, k, sample))


def sizes(decomposition: Decomposition, sample: int = 0, k: int = 24) -> Bars:
    """Euclidean norms of the contributions of one sample, of the remainder and of the whole, in the order of the parts.

    Args:
        decomposition: any.
        sample: which sample.
        k: how many parts to show: the largest.

    Raises:
        ValueError: when there is no such sample.
    """
    check_sample(decomposition, sample)

    def size(value: torch.Tensor) -> float:
        return float((value[sample] if decomposition.by_sample else value).detach().abs().norm())

    norms = {name: size(value) for name, value in decomposition.contributions().items()}
    largest = set(sorted(norms, key=lambda name: -norms[name])[:k])
    shown = {name: value for name, value in norms.items() if name in largest}
    note = f"{len(norms) - len(shown)} smaller parts are not shown" if len(norms) > len(shown) else ""
    shown |= {"remainder": size(decomposition.remainder), "whole": size(decomposition.whole)}
    return Bars("Sizes of the parts", list(shown), {"size": list(shown.values())}, y="Euclidean norm", note=note)


def bars(decomposition: Decomposition, k: int = 10, sample: int = 0) -> list[Bar]:
    """The steps of one sample, from 0 to the whole; the last one is the whole itself.

    Args:
        decomposition: with one number per sample as its whole.
        k: how many parts to show by name besides the inputs.
        sample: which sample.

    Raises:
        ValueError: when the whole is more than one number per sample, or there is no such sample.
    """
    whole, contributions = numbers(decomposition, sample)
    inputs: dict[tuple[str, str], float] = {}
    others: dict[tuple[str, str], float] = {}
    for name, value in contributions.items():
        kind, _, path = name.partition(":") if name.partition(":")[0] in KINDS else ("part", "", name)
        key = (path.rpartition("@")[2] if kind == "rule" else path, kind)
        group = inputs if kind in ("input", "at") else others
        group[key] = group.get(key, 0.0) + value
    ranked = sorted(others.items(), key=lambda item: -abs(item[1]))
    ranked = [item for item in ranked if item[1]]  # what is exactly nothing needs no bar
    shown = ranked if len(ranked) <= k + 1 else ranked[:k]  # "the rest" of one part would be that part
    rest = ranked[len(shown) :]
    steps = [(path or "(the model itself)", KINDS.get(kind, kind), value) for (path, kind), value in [*inputs.items(), *shown]]
    if rest:
        steps.append((f"{len(rest)} more", "the rest", sum(value for _, value in rest)))
    remainder = whole - sum(value for _, _, value in steps)
    if abs(remainder) > 1e-3 * max([abs(whole), *(abs(v) for *_, v in steps)]):
        steps.append(("remainder", "remainder", remainder))
    found, at = [], 0.0
    for label, kind, value in steps:
        found.append(Bar(label, kind, value, at, at + value))
        at += value
    return [*found, Bar("whole", "whole", whole, 0.0, whole)]


def numbers(decomposition: Decomposition, sample: int) -> tuple[float, dict[str, float]]:
    """The whole and the contributions of one sample as Python numbers.

    Raises:
        ValueError: when there is no single number per sample, or no such sample.
    """
    whole = decomposition.whole
    if whole.ndim > 1 or whole.is_complex():
        raise ValueError(f"a waterfall needs one real number per sample, the whole is {tuple(whole.shape)} {whole.dtype}")
    check_sample(decomposition, sample)
    parts = decomposition.contributions()

    def one(value: torch.Tensor) -> float:
        return float((value[sample] if value.ndim else value).detach())

    return one(whole), {name: one(value) for name, value in parts.items()}


def check_sample(decomposition: Decomposition, sample: int) -> None:
    """Refuse a sample that is not there."""
    whole = decomposition.whole
    if decomposition.by_sample and not -len(whole) <= sample < len(whole):
        raise ValueError(f"sample {sample} is out of range: there are {len(whole)}")
