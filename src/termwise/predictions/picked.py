"""A target function that only picks: `lambda out: out.logits[:, -1, 7]` asks for an entry, and needs no recording of its own.

Functions of the output are recorded with the model, for they may be anything. One that is made of moves alone (indexing,
views, the winner of a maximum) has no rule to follow: every entry it returns is an entry of the output, and relevance starts
there on the recording that is there already. Whether it does is seen by calling it once, on what the model itself returns,
and following autograd's graph back: one forward pass, where a recording costs dozens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from termwise.core.capture import explained

from .starts import Seen, Start

__all__ = ["Picked", "picked"]

_MOVES = re.compile(
    r"(Select|Slice|Index|IndexSelect|Gather|View|UnsafeView|ReshapeAlias|Transpose|Permute|T|Squeeze|Unsqueeze|Unbind|"
    r"Split|SplitWithSizes|Chunk|Alias|Clone|Max|Min|Topk|Sort)Backward\d+"
)
"""Nodes of autograd's graph behind which every entry is one entry of the operand."""


@dataclass(frozen=True, eq=False)
class Picked(Start):
    """One entry of each sample's output, by its place in the flattened output."""

    places: Tensor
    template = "{}"

    def of(self, output: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None]:
        """The entries."""
        return output.reshape(len(output), -1).gather(1, self.places.to(output.device)[:, None])[:, 0], None


@torch.inference_mode(False)  # in which nothing has a derivative
def picked(
    model: Callable[..., Any], args: tuple[Any, ...], keywords: Mapping[str, Any], pick: Callable[[Any], Any], own: set[int]
) -> Picked | None:
    """The entries that a function picks from this call's output; None where it does more than pick.

    Args:
        model: the model.
        args: its arguments.
        keywords: its keyword arguments.
        pick: from the model's output to a tensor of shape (batch,).
        own: ids of tensors that are not ours to mark: the inputs'.
    """
    try:
        with torch.no_grad():
            answer = model(*args, **keywords)
            output = explained(answer)
        if id(output) in own or output.requires_grad or not output.is_floating_point():
            return None
        output.requires_grad_()
        with torch.enable_grad():
            found = pick(answer)
        step = found.grad_fn
        while _MOVES.fullmatch(step.name()):
            ((step, _),) = [(a, i) for a, i in step.next_functions if a is not None]
        if getattr(step, "variable", None) is not output or found.shape != output.shape[:1]:
            return None
        (places,) = torch.autograd.grad(found.sum(), output)
    except Exception:  # whatever a user's function does that this is not made for: it is recorded, and says so itself
        return None
    places = places.reshape(len(output), -1)
    # one entry of the sample's own
    return Picked(places.argmax(1)) if bool((places.count_nonzero(1) == 1).all()) else None
