r"""A residual network as a sum over subsets of its branches, exact whatever the branches are.

    f = sum_S m_S,      m_S = sum_(T in S) (-1)^(|S| - |T|) f_T,      f_T: the network with the branches in T only

(Moebius inversion.) m_S is what the branches in S make together and no fewer of them make. For linear branches and head it is the
path through S, term by term the expansion in powers of the strength; for others that series may diverge, and this sum does not.

There are 2^n subsets. Above 16 branches the network is taken apart by branch instead: the mean over orders of switching them on
of what each then adds (the Shapley value of the branch, sum_(S with i) m_S / |S|), from sampled orders.

Source: Rota 1964 (Moebius inversion); Veit, Wilber & Belongie 2016 (residual networks as ensembles of paths); Shapley 1953.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from termwise.core.arguments import whole_number
from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Matrix, Picture
from termwise.core.series import series
from termwise.core.waterfall import sizes, waterfall

from .residual_blocks import Tower

__all__ = ["SubsetExpansion", "subset_expansion"]

MOST = 16
"""Branches up to which every subset is run."""

ROWS = 256
"""Networks that are run at once."""


@dataclass(frozen=True, repr=False, eq=False)
class SubsetExpansion(Decomposition):
    """A network by subsets of its branches.

    Parts `size_0` ... `size_n`: the terms m_S of all subsets of a size, S + (C(n, k),), in the order of `subsets(k)`. Where
    orders were sampled: `none`, the network without branches, and one part for each branch.

    Attributes:
        blocks: names of the branches, in order of execution.
        orders: how many orders were sampled; 0 where every subset was run.
        deviation: (*S, n), the standard error of each branch's part; zeros where every subset was run.
    """

    blocks: tuple[str, ...]
    orders: int
    deviation: Tensor

    def subsets(self, k: int) -> list[tuple[int, ...]]:
        """The subsets of a size, as numbers of branches from 0, in the order of the part's last axis."""
        return list(itertools.combinations(range(len(self.blocks)), k))

    def term(self, *branches: int) -> Tensor:
        """m_S of these branches (numbers from 0), shape S.

        Raises:
            ValueError: where orders were sampled, or there is no such subset.
        """
        if self.orders:
            raise ValueError(f"terms of subsets are known up to {MOST} branches; these {len(self.blocks)} were sampled by orders")
        subset = tuple(sorted(branches))
        if subset not in (subsets := self.subsets(len(subset))):
            raise ValueError(f"{branches} are no distinct branches out of 0 ... {len(self.blocks) - 1}")
        return self.parts[f"size_{len(subset)}"][..., subsets.index(subset)]

    def by_branch(self) -> dict[str, Tensor]:
        """The Shapley value of every branch, sum_(S with i) m_S / |S|; with the network without branches they make the whole."""
        if self.orders:
            return {name: self.parts[name] for name in self.blocks}
        shares = self.whole.new_zeros(*self.whole.shape, len(self.blocks))
        for k in range(1, len(self.blocks) + 1):
            members = torch.tensor(self.subsets(k), device=shares.device)
            belongs = shares.new_zeros(len(members), len(self.blocks)).scatter_(1, members, 1 / k)
            shares = shares + self.parts[f"size_{k}"] @ belongs
        return dict(zip(self.blocks, shares.unbind(-1), strict=True))

    def summary(self) -> str:
        """One line: how it was found, and what it adds up to."""
        n = len(self.blocks)
        how = f"{self.orders} sampled orders of {n} branches" if self.orders else f"{2**n} subsets of {n} branches"
        return f"{how}, adds up to {self.error():.1e} (cancellation {self.cancellation():.3g}x)"

    def pictures(self, sample: int = 0) -> list[Picture]:
        """What every branch adds; what branches make alone, in pairs, in threes, ...; and every pair.

        Raises:
            ValueError: when there is no such sample.
        """
        none = self.parts["none"] if self.orders else self.parts["size_0"][..., 0]
        shares = Decomposition(self.whole, {"no branch": none, **self.by_branch()})
        if self.whole[0].numel() == 1 and not self.whole.is_complex():
            one = Decomposition(self.whole.flatten(), {n: p.flatten() for n, p in shares.parts.items()})
            drawn: Picture = waterfall(one, sample)
        else:
            drawn = sizes(shares, sample)
        how = "The mean over all orders of switching the branches on of what each then adds (its Shapley value)."
        if self.orders:
            off = float(self.deviation[sample].abs().max())
            return [replace(drawn, title="By branch", note=f"{how} From {self.orders} sampled orders: off by about {off:.2g}.")]
        note = "What so many branches make together and no fewer of them make. Large terms that cancel say little one by one."
        by_size = series(self, sample, title="By number of branches", x="branches together", note=note)
        return [replace(drawn, title="By branch", note=how), by_size, *self._pairs(sample)]

    def _pairs(self, sample: int) -> list[Picture]:
        """What two branches make together and neither makes alone; on the diagonal what each makes alone."""
        n = len(self.blocks)
        if n < 2:
            return []
        shown = self.whole.new_zeros(n, n, *self.whole.shape[1:])
        for k in (1, 2):
            for subset, term in zip(self.subsets(k), self.parts[f"size_{k}"][sample].unbind(-1), strict=True):
                shown[subset[0], subset[-1]] = shown[subset[-1], subset[0]] = term.detach()
        flat = shown.flatten(2) if shown.ndim > 2 else shown.unsqueeze(2)
        one = flat.shape[2] == 1 and not flat.is_complex()
        values = flat[..., 0] if one else flat.abs().norm(dim=2)
        note = "Off the diagonal: what two branches make together and neither makes alone. On it: each by itself."
        kind = "term" if one else "Euclidean norm of the term"
        return [Matrix("Pairs of branches", values.tolist(), self.blocks, self.blocks, value=kind, note=note)]


def subset_expansion(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    orders: int = 32,
    seed: int = 0,
    kwargs: Mapping[str, Any] | None = None,
    select: Callable[[Any], Tensor] | None = None,
) -> SubsetExpansion:
    """Write a residual network as a sum over subsets of its branches, exact even where a series in their strength diverges.

        f = sum_S m_S,      m_S = sum_(T in S) (-1)^(|S| - |T|) f_T

    Args:
        model: in eval mode, as `capture` takes it.
        *inputs: its inputs.
        orders: above 16 branches, how many random orders of switching them on are sampled, 2 or more.
        seed: of these orders.
        kwargs: keyword arguments of the model.
        select: picks the tensor to take apart out of what the model returns, where it has no logits.

    Returns:
        A `SubsetExpansion`: parts `size_0` ... `size_n`, or `none` and one per branch where orders were sampled; they add up to
        the network's output.

    Raises:
        ValueError: as `residual_expansion` does, and for fewer than two orders.

    Cost: 2^n forward passes, 256 at once, and memory for 2^n outputs; above 16 branches orders * n forward passes.

    Example:
        >>> w, x = torch.randn(3, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
        >>> model = lambda x: (y := x + torch.tanh(x @ w)) + torch.sin(y @ w)  # two branches
        >>> d = tw.functions.subset_expansion(model, x).check()
        >>> torch.allclose(d.term() + d.term(0), x + torch.tanh(x @ w))  # without the second branch
        True

    Source: Veit, Wilber & Belongie 2016; Moebius inversion.
    """
    orders = whole_number("orders", orders, 2)
    tower = Tower(model, inputs, kwargs, select)
    n, whole = len(tower.blocks), tower.whole()
    if n > MOST:
        return _sampled(tower, whole, orders, seed)
    terms = _moebius(_values(tower, _bits(n)), n)
    index = {k: [sum(1 << i for i in s) for s in itertools.combinations(range(n), k)] for k in range(n + 1)}
    parts = {f"size_{k}": terms[rows].movedim(0, -1).contiguous() for k, rows in index.items()}
    return SubsetExpansion(whole, parts, tuple(tower.names), 0, whole.new_zeros(*whole.shape, n))


def _bits(n: int) -> Tensor:
    """(2^n, n): bit i of every number."""
    return (torch.arange(2**n).unsqueeze(1) >> torch.arange(n)) & 1


def _values(tower: Tower, masks: Tensor) -> Tensor:
    """F_T for every row of branches that are on."""
    switches = masks.to(tower.switches())
    return torch.cat([tower.at(rows) for rows in switches.split(ROWS)])


def _moebius(values: Tensor, n: int) -> Tensor:
    """m_S from f_T, both by the number whose bits are the subset: one difference per branch, n 2^n subtractions in all."""
    terms = values.clone()
    for i in range(n):
        pairs = terms.view(2 ** (n - 1 - i), 2, 2**i, *values.shape[1:])
        pairs[:, 1] -= pairs[:, 0]
    return terms


def _sampled(tower: Tower, whole: Tensor, orders: int, seed: int) -> SubsetExpansion:
    n = len(tower.blocks)
    generator = torch.Generator().manual_seed(seed)
    added = []
    for _ in range(orders):
        order = torch.randperm(n, generator=generator)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(n))
        values = _values(tower, place < torch.arange(n + 1).unsqueeze(1))  # row k: the first k of the order
        added.append((values[1:] - values[:-1])[place])
    gains = torch.stack(added)
    parts = {"none": tower.at(tower.switches(0.0)), **dict(zip(tower.names, gains.mean(0), strict=True))}
    return SubsetExpansion(whole, parts, tuple(tower.names), orders, (gains.std(0) / orders**0.5).movedim(0, -1))
