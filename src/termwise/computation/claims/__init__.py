"""What the papers of this room claim, measured: one file per paper."""

from . import depth_decay, etsc  # each registers its claims

__all__ = ["depth_decay", "etsc"]
