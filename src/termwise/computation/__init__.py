"""Computation: what need not be computed again, and by how much the result changes if it is not."""

from .ab_cache import ABCache, adams_bashforth_reuse_weights, adams_bashforth_weights
from .accelerate import accelerate
from .accelerated import Accelerated
from .adaptive import Adaptive
from .confidence_gate import ConfidenceGate
from .forecast import Forecast, forecast, forecast_terms
from .noise import NoiseLevels, noise_levels
from .plan import Plan, plan
from .report import Report, Step
from .schedule import Method
from .solver import tuned_solver
from .taylorseer import TaylorSeer

__all__ = [
    "ABCache", "Accelerated", "Adaptive", "ConfidenceGate", "Forecast", "Method", "NoiseLevels", "Plan", "Report", "Step",
    "TaylorSeer", "accelerate", "adams_bashforth_reuse_weights", "adams_bashforth_weights", "forecast", "forecast_terms",
    "noise_levels", "plan", "tuned_solver",
]  # fmt: skip
