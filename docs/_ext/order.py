"""The gallery room by room, from what one meets first; a page that is not named here comes last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["ByRoom"]

ROOMS = [
    "explain_image", "explain_own_model", "sixty_lines", "targets", "rules", "over_depth",
    "faithfulness", "compare", "baselines", "decompx", "chefer", "dynamiclrp",
    "shapley",
    "expand", "higher_order", "tangent", "compose", "residual_paths", "shallow",
    "linearize_channels", "spectrum", "multistage",
    "compress", "ranks", "curing", "alds", "joint_pruning", "stable_cp",
    "clicks",
    "accelerate", "depth_decay", "toeplitz_ssm",
    "taylor_shift", "pldr", "highway",
]  # fmt: skip


class ByRoom:
    """A sort key of sphinx-gallery."""

    def __init__(self, src_dir: Any) -> None:
        pass

    def __repr__(self) -> str:  # what sphinx compares between builds
        return "<ByRoom>"

    def __call__(self, filename: Any) -> tuple[int, str]:
        """Place, then name; tutorials have their number in it."""
        name = Path(filename).stem.removeprefix("plot_")
        return (ROOMS.index(name) if name in ROOMS else len(ROOMS), name)
