"""What the papers of this room claim, measured: one file per paper, two where networks are trained."""

from . import pldr, taylor_shift, taylor_shift_training  # each registers its claims

__all__ = ["pldr", "taylor_shift", "taylor_shift_training"]
