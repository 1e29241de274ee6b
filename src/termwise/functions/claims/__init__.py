"""What the papers of this room claim, measured: one file per paper."""

from . import higher_order_ad, residual_depth, shallow_again, taft  # each registers its claims

__all__ = ["higher_order_ad", "residual_depth", "shallow_again", "taft"]
