"""How much noise there is at a time of a sampler, and how far an error made there reaches.

x_t = alpha_t x_0 + sigma_t noise,     log-snr lambda_t = log(alpha_t / sigma_t)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["NoiseLevels", "noise_levels"]

EDGE = 1e-6  # where the signal or the noise vanishes, its logarithm is taken here


@dataclass(frozen=True)
class NoiseLevels:
    """alpha and sigma of a time, and what is predicted: "epsilon", "sample", "v_prediction" or "flow_prediction"."""

    log_snr: Callable[[float], float]
    prediction: str

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """alpha, sigma: of unit variance together, or of unit sum for a flow."""
        snr = self.log_snr(t)
        if self.prediction == "flow_prediction":
            sigma = 1 / (1 + math.exp(snr))
            return 1 - sigma, sigma
        return math.sqrt(1 / (1 + math.exp(-2 * snr))), math.sqrt(1 / (1 + math.exp(2 * snr)))

    def reach(self, t: float, following: float | None) -> float:
        r"""What a unit of error in the prediction at `t` adds to the picture, relative to its norm, in the step to `following`.

        For $x/\alpha$ and $\bar\sigma = \sigma/\alpha$ the sampler's equation is $d(x/\alpha) = \varepsilon\,d\bar\sigma$,
        so that an error $\delta\varepsilon$ moves $x$ by $\alpha\,|\Delta\bar\sigma|\,|\delta\varepsilon|$.
        A flow has $dx = v\,d\sigma$.

        Args:
            t: time of the step.
            following: of the next one, None for the end, where no noise is left.
        """
        alpha, sigma = self.alpha_sigma(t)
        after_alpha, after = self.alpha_sigma(following) if following is not None else (1.0, 0.0)
        if self.prediction == "flow_prediction":
            return abs(sigma - after)
        unit = {"epsilon": 1.0, "v_prediction": alpha, "sample": alpha / sigma}[self.prediction]
        return unit * alpha * abs(sigma / alpha - after / after_alpha)


def noise_levels(scheduler: Any) -> NoiseLevels | None:
    """Of a scheduler of diffusers, None where it has none that are known here.

    Args:
        scheduler: with `alphas_cumprod`, or one of a flow, whose time over `num_train_timesteps` is the share of noise.
    """
    config = getattr(scheduler, "config", {})
    if config.get("timestep_type") == "continuous":  # its times are logarithms of noise, and no index
        return None
    prediction = config.get("prediction_type", "epsilon")
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None or config.get("use_flow_sigmas") or prediction == "flow_prediction":
        steps = config.get("num_train_timesteps")
        flow = prediction == "flow_prediction" or config.get("use_flow_sigmas") or "FlowMatch" in type(scheduler).__name__
        if not flow or steps is None:
            return None
        return NoiseLevels(lambda t: _logit(1 - t / steps), "flow_prediction")
    a = torch.as_tensor(table, dtype=torch.float64).clamp(EDGE, 1 - EDGE)
    ladder = (0.5 * torch.log(a / (1 - a))).tolist()

    def log_snr(t: float) -> float:  # linear between whole times
        t = min(max(t, 0.0), len(ladder) - 1.0)
        below = min(int(t), len(ladder) - 2)
        return ladder[below] + (t - below) * (ladder[below + 1] - ladder[below])

    return NoiseLevels(log_snr, prediction)


def _logit(share: float) -> float:
    share = min(max(share, EDGE), 1 - EDGE)
    return math.log(share / (1 - share))
