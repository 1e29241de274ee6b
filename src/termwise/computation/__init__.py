"""Computation: what need not be computed again, and by how much the result changes if it is not."""

from .ab_cache import ABCache, adams_bashforth_reuse_weights, adams_bashforth_weights
from .accelerate import accelerate
from .accelerated import Accelerated
from .adaptive import Adaptive
from .confidence_gate import ConfidenceGate
from .depth_decay import DepthDecay, DepthReport, SkippedLayers, skip_layers
from .depth_draft import Drafted, draft_decode
from .depth_terms import DepthTerms, depth_terms, one_pass
from .depth_tuning import TunedDepth, tune_depth
from .diagonal_ssm import DiagonalSSM, State
from .forecast import Forecast, forecast, forecast_terms
from .noise import NoiseLevels, noise_levels
from .plan import Plan, plan
from .recurrent_model import Recurrent, convolution_taps, to_recurrent
from .report import Report, Step
from .schedule import Method
from .solver import tuned_solver
from .taylorseer import TaylorSeer
from .tnn import TNN, ToeplitzMixer
from .toeplitz_ssm import toeplitz_to_ssm

__all__ = [
    "TNN",
    "ABCache",
    "Accelerated",
    "Adaptive",
    "ConfidenceGate",
    "DepthDecay",
    "DepthReport",
    "DepthTerms",
    "DiagonalSSM",
    "Drafted",
    "Forecast",
    "Method",
    "NoiseLevels",
    "Plan",
    "Recurrent",
    "Report",
    "SkippedLayers",
    "State",
    "Step",
    "TaylorSeer",
    "ToeplitzMixer",
    "TunedDepth",
    "accelerate",
    "adams_bashforth_reuse_weights",
    "adams_bashforth_weights",
    "convolution_taps",
    "depth_terms",
    "draft_decode",
    "forecast",
    "forecast_terms",
    "noise_levels",
    "one_pass",
    "plan",
    "skip_layers",
    "to_recurrent",
    "toeplitz_to_ssm",
    "tune_depth",
    "tuned_solver",
]  # fmt: skip
