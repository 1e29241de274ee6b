"""A small typed calculus with functions as values, and differentiation as a map of its programs."""

from .backward import Gradient, gradient, reverse, reverse_type
from .binding import alpha_equal, free, substitute
from .blocks import multi_indices
from .checking import typecheck
from .embedding import Symbol, apply, case, differentiable, each, embed, fold, if_positive, left, right
from .evaluation import Left, Numbers, Right, evaluate, meaning
from .forward import Reading, coefficient, derivative_type, differentiate, expansion, lift, translate
from .operations import OPERATIONS, Operation
from .programs import higher_order, random_program, random_term
from .terms import (
    App,
    Case,
    Cons,
    Const,
    Fold,
    Inl,
    Inr,
    Lam,
    Nil,
    Op,
    Positive,
    Proj,
    Term,
    Tuple,
    Var,
    let,
)
from .types import Arrow, ListT, Prod, Real, Sum, Type, first_order, map_real, reals

__all__ = [
    "OPERATIONS", "App", "Arrow", "Case", "Cons", "Const", "Fold", "Gradient", "Inl", "Inr", "Lam", "Left", "ListT", "Nil",
    "Numbers", "Op", "Operation", "Positive", "Prod", "Proj", "Reading", "Real", "Right", "Sum", "Symbol", "Term", "Tuple",
    "Type", "Var", "alpha_equal", "apply", "case", "coefficient", "derivative_type", "differentiable", "differentiate",
    "each", "embed", "evaluate", "expansion", "first_order", "fold", "free", "gradient", "higher_order", "if_positive",
    "left", "let", "lift", "map_real", "meaning", "multi_indices", "random_program", "random_term", "reals", "reverse",
    "reverse_type", "right", "substitute", "translate", "typecheck",
]  # fmt: skip
