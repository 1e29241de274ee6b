"""What the papers of this room claim, measured: one file per paper."""

from . import highway  # registers its claims

__all__ = ["highway"]
