"""What the papers of this room claim, measured: one file per paper."""

from . import dc_is_all_you_need, higher_order_ad, residual_depth, shallow_again, taft  # each registers its claims

__all__ = ["dc_is_all_you_need", "higher_order_ad", "residual_depth", "shallow_again", "taft"]
