"""What there is to be seen of a factorized weight: its terms, what each number of them leaves over, and the matrices.

    rest_k  =  |W - sum_(i <= k) left_i right_i|       by taking terms off one after the other; of a large weight some rows

Every form but "masked" is a row of blocks [L_1 R_1 | L_2 R_2 | ...], of which most have one. No term is multiplied out alone:
sizes are products of norms, and the picture of a product L R is the blocks' means of L times those of R.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from termwise.core.mosaic import averaged, mosaic
from termwise.core.pictures import Line, Lines, Picture, Steps

if TYPE_CHECKING:
    from .factorization import Factorization

__all__ = ["chosen", "pictures"]

RANKS, LARGE, BEST = 24, 2**21, 2**17
"""Numbers of terms that are looked at; weights of which some rows stand for all; and those whose singular values are cheap."""

FIELDS, POSITIONS = 32, 8
"""Of the matrices of a slider."""

NOTES = {
    "low_rank": "Terms in their own order.",
    "grouped": "Terms in their own order, those of all groups together.",
    "cur": "Columns in the order of choice, each with its row of U R; U is that of all columns together.",
    "cp": "The largest first. They are not orthogonal: what some leave may be more than the weight.",
    "tucker": "Slices of the core, by output factor.",
}


def pictures(weight: Factorization) -> list[Picture]:
    """Sizes of the terms and what they leave over, the matrix that so many of them make, and where the remainder is."""
    whole = weight.whole.detach().flatten(1)
    whole = whole if whole.dtype == torch.float64 else whole.float()
    if weight.form == "masked":
        return _masked(weight, whole)
    left, right = (f.to(whole.dtype) for f in _blocks(weight.form, weight.factors))
    sizes = (left.norm(dim=1) * right.norm(dim=2)).square().sum(0).sqrt()
    if weight.form == "cp":
        order = sizes.argsort(descending=True)
        sizes, left, right = sizes[order], left[:, :, order], right[:, order]
    ranks, step = _ranks(len(sizes), RANKS), -(-whole.numel() // LARGE)
    groups, rest, rows = len(left), whole[::step].clone(), left[:, ::step]
    view = rest.unflatten(1, (groups, -1)).transpose(0, 1)  # (groups, m, n / groups), of the same numbers
    over = [float(rest.norm())]
    for a, b in zip([0, *ranks], ranks, strict=False):
        view -= rows[:, :, a:b] @ right[:, a:b]
        over.append(float(rest.norm()))
    places = _ranks(len(sizes), 512)
    lines = [
        Line("size of the term", places, [float(sizes[i - 1]) for i in places]),
        Line("left over by so many terms", [0, *ranks], over, role="remainder"),
    ]
    if whole.numel() <= BEST and weight.form in ("low_rank", "cur"):
        tail = torch.linalg.svdvals(whole.double()).square().flip(0).cumsum(0).flip(0).sqrt()
        at = [k for k in [0, *ranks] if k < len(tail)]
        lines.append(Line("least that a matrix of that rank leaves", at, tail[at].tolist(), role="chance"))
    error = over[-1] / (over[0] or 1.0)
    note = f"{NOTES[weight.form]} All {len(sizes)} together leave {error:.2g} of the weight."
    some = f" Of one row in {step}." if step > 1 else ""
    lines = [replace(one, y=[v * step**0.5 for v in one.y]) if one.role == "remainder" else one for one in lines]
    off = f"Where the factors miss the weight.{some}"
    return [
        Lines("Terms of the weight", lines, x="term", y="Euclidean norm", log_y=True, note=note + some),
        _matrices(whole, left, right, ranks, over),
        mosaic("The remainder", rest, squares=True, value="size of what is left", x="input", y="output", note=off),
    ]


def chosen(title: str, weight: Tensor, places: Tensor, dim: int) -> Lines:
    """The norms of all rows or columns of a matrix, and those that were chosen."""
    norms = weight.detach().double().norm(dim=1 - dim).tolist()
    step = -(-len(norms) // 512)
    what = ("row", "column")[dim]
    name = f"every {what}" if step == 1 else f"one {what} of {step}"
    every = Line(name, list(range(0, len(norms), step)), norms[::step], stems=True)
    at = sorted(places.tolist())
    picked = Line("chosen", at, [norms[i] for i in at], markers=True)
    return Lines(title, [every, picked], x=what, y="Euclidean norm", note=f"{len(at)} of {len(norms)} are kept as they are.")


def _blocks(form: str, f: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Left (k, m, r) and right (k, r, n / k) factors of the flattened weight."""
    if form == "grouped":
        return f["left"].detach(), f["right"].detach()
    left, right = {
        "low_rank": lambda: (f["left"], f["right"]),
        "cur": lambda: (f["C"], f["U"] @ f["R"]),
        "cp": lambda: (f["c"], torch.einsum("ir,sr->ris", f["b"], f["a"]).flatten(1)),
        "tucker": lambda: (f["out"], torch.einsum("pqs,iq->pis", f["core"], f["in"]).flatten(1)),
    }[form]()
    return left.detach().unsqueeze(0), right.detach().unsqueeze(0)


def _ranks(rank: int, most: int) -> list[int]:
    """From 1 to the rank, all of them or so many, denser at the beginning."""
    if rank <= most:
        return list(range(1, rank + 1))
    return sorted({round(rank ** (i / (most - 1))) for i in range(most)})


def _matrices(whole: Tensor, left: Tensor, right: Tensor, ranks: list[int], over: list[float]) -> Steps:
    """The weight, and the matrix that each number of terms makes, in the same colours."""
    fields = averaged(averaged(whole, 0, FIELDS), 1, FIELDS)
    top = float(fields.abs().max())
    shown = [ranks[i] for i in sorted({round(j * (len(ranks) - 1) / max(POSITIONS - 1, 1)) for j in range(POSITIONS)})]
    note = "The weight as it is."
    first = mosaic("", whole, most=FIELDS, top=top, value="weight", x="input", y="output", note=note)
    found: list[Picture] = [first]
    rows = averaged(left, 1, FIELDS)
    for k in shown:
        if len(left) == 1:  # means of the factors: the product itself is not made
            product = rows[0, :, :k] @ averaged(right[0, :k], 1, FIELDS)
        else:
            product = averaged(torch.cat(list(rows[:, :, :k] @ right[:, :k].double()), 1), 1, FIELDS)
        error = over[1 + ranks.index(k)] / (over[0] or 1.0)
        found.append(replace(first, values=product.tolist(), note=f"{k} terms leave {error:.2g} of the weight."))
    return Steps("The weight, and what so many terms make of it", "terms", ["weight", *map(str, shown)], found)


def _masked(weight: Factorization, whole: Tensor) -> list[Picture]:
    """Where weights are kept, and where what was set to zero was large."""
    kept = weight.factors["kept"].detach()
    share = float(kept.double().mean())
    note = f"{share:.1%} of the weights are kept; what was set to zero is {weight.error():.2g} of the weight."
    rest = whole - weight.total().detach().flatten(1).to(whole)
    off = "What was set to zero."
    return [
        mosaic("Kept weights", kept.double(), value="share kept", x="input", y="output", top=1.0, signed=False, note=note),
        mosaic("The remainder", rest, squares=True, value="size of what is left", x="input", y="output", note=off),
    ]
