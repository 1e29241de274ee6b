"""Weights: low-rank and tensor forms of a model's matrices, and one allocator of a budget among them."""

from .afm import afm_embedding, afm_linear
from .alds import alds
from .allocation import Allocation, allocate
from .calibration import CalibrationStats, LayerStats
from .compress import compress
from .compressed import Compressed
from .cp import CPDecomposition, cp
from .ctr import compress_ctr
from .cur import CURDecomposition, break_even, cur, deim, qdeim
from .curing import angular_distance, curing, heal
from .epc import epc, stable_cp
from .factorization import Factorization
from .grouped import group_errors, grouped
from .joint_pruning import Masks, distortion_curves, joint_distortion, prune
from .ladder import Curve, Ladder
from .layers import Layer, find_layers
from .lord import choose, domain_report, layer_types, lord, type_sweep
from .low_rank_linear import GroupedLinear, LowRankEmbedding, LowRankLinear, Pivoted
from .merge_table import merge_table
from .methods import METHODS, Method
from .projection import Projection, project
from .rom import rom
from .saved import load_compressed, rebuild
from .sensitivity import sensitivity
from .tensor_layers import decompose_conv
from .tucker import tucker2
from .welore import (
    GradientRank,
    LowRankSplit,
    fine_tune,
    gradient_rank,
    low_rank_split,
    lrc_parameters,
    normalised_spectrum,
    welore,
)

__all__ = [
    "METHODS", "Allocation", "CPDecomposition", "CURDecomposition", "CalibrationStats", "Compressed", "Curve", "Factorization",
    "GradientRank", "GroupedLinear", "Ladder", "Layer", "LayerStats", "LowRankEmbedding", "LowRankLinear", "LowRankSplit",
    "Masks", "Method", "Pivoted", "Projection", "afm_embedding", "afm_linear", "alds", "allocate", "angular_distance",
    "break_even", "choose", "compress", "compress_ctr", "cp", "cur", "curing", "decompose_conv", "deim", "distortion_curves",
    "domain_report", "epc", "find_layers", "fine_tune", "gradient_rank", "group_errors", "grouped", "heal", "joint_distortion",
    "layer_types", "load_compressed", "lord", "low_rank_split", "lrc_parameters", "merge_table", "normalised_spectrum",
    "project", "prune", "qdeim", "rebuild", "rom", "sensitivity", "stable_cp", "tucker2", "type_sweep", "welore",
]  # fmt: skip
