"""Layers: modules to train with, each with the terms it is made of."""

from .convert_attention import convert
from .taylor_shift import Crossover, crossover, taylor_shift_attention
from .taylor_shift_expansion import TaylorShiftExpansion, taylor_shift_expansion
from .taylor_shift_module import TaylorShiftAttention

__all__ = [
    "Crossover", "TaylorShiftAttention", "TaylorShiftExpansion", "convert", "crossover", "taylor_shift_attention",
    "taylor_shift_expansion",
]  # fmt: skip
