"""Where the channels of every recorded value lie: known where an operation tells, and followed through those that move axes.

Convolutions and batch norms tell (the axis before space), and linear layers, layer norms and embeddings (the last). Axes are
counted from the end, as they stay when samples or targets come in front: -1 of tokens (batch, tokens, width) and of maps
(batch, height, width, channels), -3 of maps (batch, channels, height, width), -2 of (batch, channels, length).

No axis is known where nothing tells, where values that come together disagree, or where channels were taken apart (heads).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, fx

from termwise.core.program import Program, info, op_name

__all__ = ["channel_axes", "channel_axis"]

LAST = (
    "linear",
    "addmm",
    "mm",
    "rms_norm",
    "embedding",
    "embedding_bag",
    "lstm",
    "gru",
    "rnn_tanh",
    "rnn_relu",
    "expert_product",
)
"""Channels are what these make, along the last axis."""

PRODUCTS = {"matmul": 1, "bmm": 1, "baddbmm": 2, "scaled_dot_product_attention": 2}
"""The argument whose last axis is the last axis of what comes out."""

PERMUTATIONS = ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "mT", "numpy_T", "permute_copy")

RESHAPES = (
    "view", "reshape", "_unsafe_view", "view_copy", "_reshape_copy", "flatten", "unflatten", "squeeze", "unsqueeze", "expand",
    "expand_as", "expand_copy", "broadcast_to",
)  # fmt: skip

MIXING = ("einsum", "tensordot", "cdist")
"""Axes come out of these in any order."""


def channel_axes(program: Program) -> dict[str, int]:
    """The channel axis of every value of which it is known, counted from the end, by name of the node.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(2)).eval()
        >>> list(channel_axes(tw.capture(model, torch.randn(1, 3, 8, 8))).values())
        [-3, -2]
    """
    if "channels" not in program.derived:
        known: dict[fx.Node, int] = {}
        for node in program.nodes:
            if info(node).active and (axis := _axis(node, known)) is not None:
                known[node] = axis
        program.derived["channels"] = {node.name: axis for node, axis in known.items()}
    found: dict[str, int] = program.derived["channels"]
    return found


def channel_axis(program: Program, name: str) -> int:
    """The axis of a node's value along which its units lie, counted from the front.

    Where it is not known, that of images (batch, channels, height, width), of other values the last.
    """
    ndim: int = next(n for n in program.nodes if n.name == name).meta["val"].ndim
    axis = channel_axes(program).get(name)
    return ndim + axis if axis is not None else 1 if ndim in (4, 5) else ndim - 1


def _axis(node: fx.Node, known: dict[fx.Node, int]) -> int | None:
    """That of one value, from those of the values it is made of."""
    op, shape = op_name(node), _shape(node)
    if shape is None or op in MIXING:
        return None
    if told := re.fullmatch(r"conv(?:_transpose)?(\d)d", op):
        return -1 - int(told[1])
    if op == "convolution" and (kernel := _shape(node.args[1])):
        return 1 - len(kernel)
    if "batch_norm" in op or op in ("instance_norm", "group_norm", "native_group_norm"):
        return 1 - len(shape)
    if op in LAST or (op in ("layer_norm", "native_layer_norm") and len(node.args[1]) == 1):  # type: ignore[arg-type]
        return -1
    if op in PRODUCTS:
        other = node.args[PRODUCTS[op]]
        constant = isinstance(other, fx.Node) and not info(other).active
        return -1 if constant or known.get(other) == -1 else None  # type: ignore[arg-type]
    before = {known.get(a): _shape(a) for a in node.all_input_nodes if a in known}
    if len(before) > 1:  # they disagree
        return None
    for axis, old in before.items():
        assert axis is not None
        assert old is not None
        return _moved(node, axis, old, shape)
    pool = re.search(r"pool(\d)d", op)
    return -1 - int(pool[1]) if pool else None


def _moved(node: fx.Node, axis: int, old: torch.Size, new: torch.Size) -> int | None:
    """Where an axis is behind an operation on one value, or on several that agree."""
    op, place = op_name(node), len(old) + axis
    if op in PERMUTATIONS:
        sizes = torch.empty(*range(1, len(old) + 1), device="meta")  # of every axis another size, by which it is found again
        return list(node.target(sizes, *node.args[1:], **node.kwargs).shape).index(place + 1) - len(old)  # type: ignore[operator]
    if op in RESHAPES:  # what stands before an axis, or from it on, is as it was: then the axis is
        if new[: place + 1] == old[: place + 1]:
            return place - len(new)
        return axis if new[len(new) + axis :] == old[place:] and len(new) >= -axis else None
    if op in ("select", "unbind"):
        gone = int(next(iter([*node.args[1:2], *node.kwargs.values()]), 0)) % len(old)  # type: ignore[arg-type]
        return None if gone == place else axis + (gone > place)
    return axis if len(new) == len(old) else None


def _shape(node: Any) -> torch.Size | None:
    """Of the value, or of the first of several."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    return value.shape if isinstance(value, Tensor) else None
