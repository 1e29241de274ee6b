"""What the papers of this room claim, measured: one file per paper."""

from . import chefer, decompx, dynamiclrp  # each registers its claims

__all__ = ["chefer", "decompx", "dynamiclrp"]
