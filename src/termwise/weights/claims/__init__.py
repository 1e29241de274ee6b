"""What the papers of this room claim, measured: one file per paper."""

from . import afm, curing, welore  # each registers its claims

__all__ = ["afm", "curing", "welore"]
