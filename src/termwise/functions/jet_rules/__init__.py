r"""How each operation takes a series: one function per rule, over any algebra of rows (`Taylor`, `Collapsed`).

A value that moves is a `Jet`, whose `rows` are its coefficients; what does not move stays a tensor. A rule is called as
``rule(at, *args, **kwargs)``: `at.series` is the algebra, `at.op` the operator itself, `at.where` its name and place.

    @jet_rule("square")
    def square(at, x):
        return Jet(at.series.square(x.rows))

Linear operations act row by row; a constant summand touches the first row only. What has a kink takes the branch that the value
at t = 0 is on, and says where the branch ends (`at.kink`).

Source: Griewank & Walther ch. 13; the recurrences of softmax and norms from the ones of exp, 1/x and x^r.
"""

from . import linear, norms, piecewise, products, recurrent, smooth
from .table import JET_RULES, Jet, jet_rule, moves

__all__ = ["JET_RULES", "Jet", "jet_rule", "linear", "moves", "norms", "piecewise", "products", "recurrent", "smooth"]
