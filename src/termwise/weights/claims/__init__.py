"""What the papers of this room claim, measured: one file per paper."""

from . import curing  # registers its claims

__all__ = ["curing"]
