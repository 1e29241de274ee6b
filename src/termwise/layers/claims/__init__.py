"""What the papers of this room claim, measured: one file per paper."""

from . import taylor_shift  # registers its claims

__all__ = ["taylor_shift"]
