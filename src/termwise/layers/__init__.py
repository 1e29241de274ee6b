"""Layers: modules to train with, each with the terms it is made of."""

from .convert_attention import convert
from .metric_network import EnergyCurvature
from .pldr import PLDRCache, PLDRConfig, PLDRForCausalLM
from .pldr_freeze import freeze_g
from .pldr_invariance import Invariance, invariance
from .power_law_attention import LayerCache, PowerLawAttention
from .taylor_shift import Crossover, crossover, taylor_shift_attention
from .taylor_shift_expansion import TaylorShiftExpansion, taylor_shift_expansion
from .taylor_shift_module import TaylorShiftAttention

__all__ = [
    "Crossover", "EnergyCurvature", "Invariance", "LayerCache", "PLDRCache", "PLDRConfig", "PLDRForCausalLM", "PowerLawAttention",
    "TaylorShiftAttention", "TaylorShiftExpansion", "convert", "crossover", "freeze_g", "invariance", "taylor_shift_attention",
    "taylor_shift_expansion",
]  # fmt: skip
