"""What the papers of this room claim, measured: one file per paper."""

from . import ab_cache, adaptive, cg_taylor, depth_decay, etsc, taylorseer  # each registers its claims

__all__ = ["ab_cache", "adaptive", "cg_taylor", "depth_decay", "etsc", "taylorseer"]
