r"""Taylor blocks in the calculus: a real and its partial derivatives up to some order, as a tuple of reals.

    block(a) = (a_alpha)_(|alpha| <= R),      a_alpha = (1/alpha!) d^alpha a / dt^alpha,      alpha of k variables

There are C(R + k, k) of them, by degree and then by the first variables; at R = 1 they are the value and its k tangents. How
they travel through an operation is a recurrence, the one of series in one variable with the Euler operator sum_i t_i d/dt_i in
place of t d/dt, so that |alpha| takes the place of k. A recurrence is written here as a term: every coefficient a `let`.

Source: papers.toml "higher-order-ad" (blocks of derivatives; ours are divided by alpha!, so that no binomials occur);
Griewank & Walther ch. 13 (recurrences).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

from .terms import Const, Op, Proj, Term, Tuple, Var, let
from .types import Prod, Real, reals

__all__ = ["Block", "Recurrences", "block_type", "multi_indices"]

Index = tuple[int, ...]
Block = dict[Index, Term]


@functools.cache
def multi_indices(directions: int, order: int) -> tuple[Index, ...]:
    """All alpha of so many variables with |alpha| <= order, in the order in which a block holds them.

    Raises:
        ValueError: for no direction, or a negative order.

    Example:
        >>> tw.functions.higher_order.multi_indices(2, 2)
        ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
    """
    if directions < 1 or order < 0:
        raise ValueError(f"blocks have 1 direction or more and an order of 0 or more, got {directions} and {order}")
    every = itertools.product(range(order + 1), repeat=directions)
    return tuple(sorted((a for a in every if sum(a) <= order), key=lambda a: (sum(a), [-i for i in a])))


def block_type(directions: int, order: int) -> Prod:
    """D(real)."""
    return reals(len(multi_indices(directions, order)))


class Recurrences:
    """Coefficients being written, one `let` after the other.

    Attributes:
        indices: of a block.
    """

    def __init__(self, directions: int, order: int) -> None:
        """For blocks of so many directions and this order."""
        self.indices = multi_indices(directions, order)
        self._lets: list[tuple[str, Term]] = []

    # -- writing ------------------------------------------------------------------------------------------------------

    def block(self, whole: Term) -> Block:
        """The coefficients of a term of the type of a block."""
        return {alpha: Proj(whole, i) for i, alpha in enumerate(self.indices)}

    def keep(self, term: Term) -> Term:
        """A name for it, where it is worth one."""
        if isinstance(term, (Var, Const)):
            return term
        name = f"c{len(self._lets)}"
        self._lets.append((name, term))
        return Var(name)

    def closed(self, block: Block) -> Term:
        """The block as a tuple, below everything that was kept."""
        body: Term = Tuple(tuple(block[alpha] for alpha in self.indices))
        for name, term in reversed(self._lets):
            body = let(name, Real(), term, body)
        return body

    # -- the recurrences ----------------------------------------------------------------------------------------------

    def product(self, a: Block, b: Block) -> Block:
        """c_alpha = sum_(beta <= alpha) a_beta b_(alpha - beta)."""
        return {alpha: self.keep(self._convolved(a, b, alpha)) for alpha in self.indices}

    def reciprocal(self, a: Block) -> Block:
        """c_alpha = -(1/a_0) sum_(0 < beta <= alpha) a_beta c_(alpha - beta)."""
        c: Block = {}
        for alpha in self.indices:
            if not any(alpha):
                c[alpha] = self.keep(Op("reciprocal", (a[alpha],)))
                least = self.keep(Op("neg", (c[alpha],)))
                continue
            terms = [times(a[beta], c[_minus(alpha, beta)]) for beta in _below(alpha) if any(beta)]
            c[alpha] = self.keep(times(least, total(terms)))
        return c

    def sqrt(self, a: Block) -> Block:
        """c_alpha = (a_alpha - sum_(0 < beta < alpha) c_beta c_(alpha - beta)) / (2 c_0)."""
        c: Block = {}
        for alpha in self.indices:
            if not any(alpha):
                c[alpha] = self.keep(Op("sqrt", (a[alpha],)))
                half = self.keep(times(Const(0.5), Op("reciprocal", (c[alpha],))))
                continue
            terms = [times(c[beta], c[_minus(alpha, beta)]) for beta in _below(alpha) if any(beta) and beta != alpha]
            rest = Op("sub", (a[alpha], total(terms))) if terms else a[alpha]
            c[alpha] = self.keep(times(half, rest))
        return c

    def integral(self, a: Block, value: str, slope: Callable[[Block, Index], Term]) -> Block:
        """f(a) with f' = g known along a: c_alpha = (1/|alpha|) sum_(0 < beta <= alpha) |beta| a_beta g_(alpha - beta).

        Args:
            a: the argument.
            value: the operation f itself, for c_0.
            slope: g_gamma, from the coefficients of f up to the degree of gamma.
        """
        zero = self.indices[0]
        c: Block = {zero: self.keep(Op(value, (a[zero],)))}
        g: Block = {}
        for alpha in self.indices[1:]:
            terms = []
            for beta in _below(alpha):
                if any(beta):
                    gamma = _minus(alpha, beta)
                    if gamma not in g:
                        g[gamma] = self.keep(slope(c, gamma))
                    terms.append(scaled(sum(beta), times(a[beta], g[gamma])))
            c[alpha] = self.keep(scaled(1 / sum(alpha), total(terms)))
        return c

    def sin_cos(self, a: Block) -> tuple[Block, Block]:
        """Both together: each is the slope of the other."""
        zero = self.indices[0]
        s: Block = {zero: self.keep(Op("sin", (a[zero],)))}
        c: Block = {zero: self.keep(Op("cos", (a[zero],)))}
        for alpha in self.indices[1:]:
            for of, by, sign in ((s, c, 1), (c, s, -1)):
                terms = [scaled(sum(b), times(a[b], by[_minus(alpha, b)])) for b in _below(alpha) if any(b)]
                of[alpha] = self.keep(scaled(sign / sum(alpha), total(terms)))
        return s, c

    def squared(self, c: Block, gamma: Index) -> Term:
        """(c c)_gamma."""
        return self._convolved(c, c, gamma)

    def _convolved(self, a: Block, b: Block, alpha: Index) -> Term:
        return total([times(a[beta], b[_minus(alpha, beta)]) for beta in _below(alpha)])


def times(a: Term, b: Term) -> Term:
    """A b."""
    return Op("mul", (a, b))


def scaled(factor: float, a: Term) -> Term:
    """A number of a's."""
    return a if factor == 1 else Op("neg", (a,)) if factor == -1 else times(Const(factor), a)


def total(terms: list[Term]) -> Term:
    """Their sum; there is one at least."""
    return functools.reduce(lambda a, b: Op("add", (a, b)), terms)


def _below(alpha: Index) -> Iterator[Index]:
    return itertools.product(*(range(i + 1) for i in alpha))


def _minus(alpha: Index, beta: Index) -> Index:
    return tuple(i - j for i, j in zip(alpha, beta, strict=True))
