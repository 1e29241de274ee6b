"""What the papers of this room claim, measured: one file per paper."""

from . import (  # each registers its claims
    dc_is_all_you_need,
    higher_order_ad,
    multistage,
    nonlinear_advantage,
    residual_depth,
    shallow_again,
    taft,
)

__all__ = [
    "dc_is_all_you_need",
    "higher_order_ad",
    "multistage",
    "nonlinear_advantage",
    "residual_depth",
    "shallow_again",
    "taft",
]
