"""What the papers of this room claim, measured: one file per paper."""

from . import afm, alds, curing, joint_pruning, lord, rom, stable_cp, welore  # each registers its claims

__all__ = ["afm", "alds", "curing", "joint_pruning", "lord", "rom", "stable_cp", "welore"]
