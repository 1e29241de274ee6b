"""What the papers of this room claim, measured: one file per paper."""

from . import (
    dc_is_all_you_need,
    higher_order_ad,
    multistage,
    nonlinear_advantage,
    residual_depth,
    second_order,
    shallow_again,
    taft,
)  # each registers its claims

__all__ = [
    "dc_is_all_you_need",
    "higher_order_ad",
    "multistage",
    "nonlinear_advantage",
    "residual_depth",
    "second_order",
    "shallow_again",
    "taft",
]
