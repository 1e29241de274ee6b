"""Weights: low-rank and tensor forms of a model's matrices, and one allocator of a budget among them."""

from .allocation import Allocation, allocate
from .calibration import CalibrationStats, LayerStats
from .compress import compress
from .compressed import Compressed
from .cur import CURDecomposition, break_even, cur, deim, qdeim
from .curing import angular_distance, curing, heal
from .factorization import Factorization
from .ladder import Curve, Ladder
from .layers import Layer, find_layers
from .low_rank_linear import LowRankLinear, Pivoted
from .methods import METHODS, Method
from .projection import Projection, project
from .saved import load_compressed, rebuild
from .sensitivity import sensitivity

__all__ = [
    "METHODS", "Allocation", "CURDecomposition", "CalibrationStats", "Compressed", "Curve", "Factorization", "Ladder", "Layer",
    "LayerStats", "LowRankLinear", "Method", "Pivoted", "Projection", "allocate", "angular_distance",
    "break_even", "compress", "cur", "curing", "deim", "find_layers", "heal", "load_compressed", "project", "qdeim", "rebuild",
    "sensitivity",
]  # fmt: skip
