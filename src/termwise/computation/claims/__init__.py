"""What the papers of this room claim, measured: one file per paper."""

from . import etsc  # each registers its claims

__all__ = ["etsc"]
