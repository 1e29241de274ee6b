"""Which recorded operations bend values element by element: the one table for slopes, path lengths and the DC.

Source: the operators of torch, by the names that `op_name` gives.
"""

from __future__ import annotations

__all__ = ["ACTIVATIONS", "CELLS", "ELEMENTWISE"]

ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "threshold", "hardtanh", "clamp", "clamp_min", "clamp_max", "abs", "gelu", "silu",
    "mish", "elu", "celu", "selu", "softplus", "softsign", "hardswish", "hardsigmoid", "sigmoid", "log_sigmoid", "tanh", "sin",
    "cos", "hardshrink", "softshrink",
    "pointwise",  # written out by hand
}  # fmt: skip
"""Functions of one number that networks are rectified with."""

ELEMENTWISE = ACTIVATIONS | {
    "exp", "expm1", "log", "log1p", "pow", "square", "sqrt", "rsqrt", "reciprocal", "erf", "atan", "sinh", "cosh",
}  # fmt: skip
"""These, and functions of one number that norms and losses are written with."""

CELLS = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
"""Recurrent layers, whose activations lie within one operation."""
