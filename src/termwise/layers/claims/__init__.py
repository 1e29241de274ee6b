"""What the papers of this room claim, measured: one file per paper."""

from . import pldr, taylor_shift  # each registers its claims

__all__ = ["pldr", "taylor_shift"]
