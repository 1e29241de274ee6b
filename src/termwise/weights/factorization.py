"""A weight as a product of factors: a decomposition whose terms are multiplied out only when they are looked at.

low_rank   W = sum_i left_i right_i                       factors left (m, r), right (r, n)
grouped    W = [left_1 right_1 | left_2 right_2 | ...]    factors left (k, m, r), right (k, r, n / k)
cur        W = sum_j column_j (U R)_j                     factors C (m, r), U (r, r), R (r, n)
cp         W[o, i, s] = sum_i c[o] b[i] a[s]              factors a (s, r), b (c, r), c (f, r)
tucker     W[o, i, s] = sum_pq out[o, p] core[p, q, s] in[i, q]
masked     W[o, i] = values[o, i] where kept, else 0     factors values (m, n), kept (m, n) of ones and zeros
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Picture

__all__ = ["Factorization"]

Factors = Mapping[str, Tensor]


def _grouped(f: Factors) -> dict[str, Callable[[], Tensor]]:
    k, m, _ = f["left"].shape
    width = f["right"].shape[2]

    def block(i: int) -> Tensor:
        whole = f["left"].new_zeros(m, k * width)
        whole[:, i * width : (i + 1) * width] = f["left"][i] @ f["right"][i]
        return whole

    return {f"group{i}": lambda i=i: block(i) for i in range(k)}  # type: ignore[misc]


TERMS: dict[str, Callable[[Factors], dict[str, Callable[[], Tensor]]]] = {
    "low_rank": lambda f: {"rank_one": lambda: f["left"][:, None, :] * f["right"].T[None]},
    "grouped": _grouped,
    "cur": lambda f: {"columns": lambda: f["C"][:, None, :] * (f["U"] @ f["R"]).T[None]},
    "cp": lambda f: {"rank_one": lambda: torch.einsum("or,ir,sr->oisr", f["c"], f["b"], f["a"])},
    "tucker": lambda f: {"core": lambda: torch.einsum("op,pqs,iq->oisp", f["out"], f["core"], f["in"])},
    "masked": lambda f: {"kept": lambda: f["values"]},
}
"""By form: the parts, with the axis of terms last, each a call that multiplies it out."""

TOTALS: dict[str, Callable[[Factors], Tensor]] = {
    "low_rank": lambda f: f["left"] @ f["right"],
    "grouped": lambda f: torch.cat(list(f["left"] @ f["right"]), 1),
    "cur": lambda f: f["C"] @ (f["U"] @ f["R"]),
    "cp": lambda f: torch.einsum("or,ir,sr->ois", f["c"], f["b"], f["a"]),
    "tucker": lambda f: torch.einsum("op,pqs,iq->ois", f["out"], f["core"], f["in"]),
    "masked": lambda f: f["values"],
}
"""By form: all terms together, without making them one by one."""


class _Terms(Mapping[str, Tensor]):
    """Parts that are made when asked for."""

    def __init__(self, make: dict[str, Callable[[], Tensor]], shape: torch.Size) -> None:
        self.make, self.shape = make, shape

    def __getitem__(self, name: str) -> Tensor:
        part = self.make[name]()
        return part.reshape(*self.shape, *part.shape[3:]) if part.ndim > 2 and len(self.shape) == 4 else part

    def __iter__(self) -> Iterator[str]:
        return iter(self.make)

    def __len__(self) -> int:
        return len(self.make)


@dataclass(frozen=True, eq=False, repr=False)
class Factorization(Decomposition):
    """A weight, the factors that stand for it, and what they leave over.

    `total()` multiplies the factors; `parts` makes the terms one by one when they are asked for, O(m n r). `remainder` is
    W - W', the error in the weight; `outputs(x)` has the error that matters, in what the layer puts out.

    Args:
        whole: W, of shape (m, n), or (f, c, kh, kw) for the tensor forms.
        parts: left out: they are made from the factors.
        form: "low_rank", "grouped", "cur", "cp", "tucker" or "masked".
        factors: by name, as the form wants them.

    Raises:
        ValueError: for an unknown form, or factors whose product has another shape than the weight.

    Example:
        >>> w = torch.randn(5, 7, dtype=torch.float64)
        >>> u, s, v = torch.linalg.svd(w, full_matrices=False)
        >>> f = Factorization(w, factors={"left": u[:, :2] * s[:2], "right": v[:2]})
        >>> f.parts["rank_one"].shape, bool((f.remainder.square().sum() - s[2:].square().sum()).abs() < 1e-12)
        (torch.Size([5, 7, 2]), True)
    """

    parts: Mapping[str, Tensor] = field(default_factory=dict)
    form: str = "low_rank"
    factors: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.form not in TERMS:
            raise ValueError(f"a factorization is one of {', '.join(TERMS)}, got {self.form!r}")
        if TOTALS[self.form](self.factors).numel() != self.whole.numel():
            shapes = {name: tuple(factor.shape) for name, factor in self.factors.items()}
            made = tuple(TOTALS[self.form](self.factors).shape)
            raise ValueError(f"factors {shapes} make {made}, and the weight is {tuple(self.whole.shape)}")
        object.__setattr__(self, "parts", _Terms(TERMS[self.form](self.factors), self.whole.shape))

    def total(self) -> Tensor:
        """W', the factors multiplied."""
        return TOTALS[self.form](self.factors).reshape(self.whole.shape)

    def contribution(self, name: str) -> Tensor:
        """A part summed to the shape of the weight; where it is the only one, without making its terms."""
        return self.total() if len(self.parts) == 1 else super().contribution(name)

    @property
    def rank(self) -> int:
        """How many terms each part has; of "masked" how many weights are kept."""
        f = self.factors
        if self.form == "masked":
            return int(f["kept"].sum())
        sizes = {"low_rank": "left", "grouped": "left", "cur": "U", "cp": "a", "tucker": "core"}
        return f[sizes[self.form]].shape[0 if self.form == "tucker" else -1]

    def error(self) -> float:
        """|W - W'| / |W|, Frobenius norms over the whole matrix."""
        return (self.remainder.norm() / self.whole.norm().clamp_min(torch.finfo(self.whole.dtype).tiny)).item()

    def outputs(self, rows: Tensor) -> Decomposition:
        """What the layer puts out for rows of inputs, taken apart alike.

        Args:
            rows: shape (N, n).

        Returns:
            A Decomposition of Y = X W^T, shape (N, m), one part for each part of the weight; its `error()` is the worst row's.
        """
        flat = self.whole.flatten(1)
        parts = {name: rows @ self.contribution(name).flatten(1).T for name in self.parts}
        return Decomposition(rows @ flat.T, parts)

    def summary(self) -> str:
        """One line: the form, the rank, and how far the product is from the weight."""
        if self.form == "masked":
            return f"{self.rank} of {self.whole.numel()} weights kept, adds up to {self.error():.1e} of the weight"
        return f"{self.form} of rank {self.rank}, adds up to {self.error():.1e} of the weight"

    @property
    def by_sample(self) -> bool:
        """False: a weight is one thing to look at."""
        return False

    def pictures(self, sample: int = 0) -> list[Picture]:
        """Sizes of the terms and what they leave over, the matrix that so many of them make, and where the remainder is.

        Cost: O(m n r) and a copy of the weight; terms are not made.
        """
        from .factorization_pictures import pictures

        return pictures(self)

    def save(self, path):  # type: ignore[no-untyped-def,override]
        """As `Decomposition.save`; the factors are written, and not the terms they make."""
        from dataclasses import replace

        bare = replace(self)
        object.__setattr__(bare, "parts", {})
        return Decomposition.save(bare, path)
