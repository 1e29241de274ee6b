"""What cannot be explained, and the words in which that is said: before a pass, of inputs; after it, of what came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from termwise.core.program import Program
from termwise.core.samples import SampleAxis

from .propagate import Result

__all__ = ["batched", "finite_inputs", "finite_result", "one_sample_each"]


def finite_inputs(args: Any, keywords: Mapping[str, Any]) -> None:
    """Refuse a call without tensors, and tensors without values: on the meta device, sparse, empty, NaN or infinite."""
    leaves = pytree.tree_flatten_with_path((args, dict(keywords)))[0]
    if not any(isinstance(leaf, Tensor) for _, leaf in leaves):
        given = ", ".join(type(leaf).__name__ for _, leaf in leaves) or "nothing"
        raise TypeError(f"no tensor among the inputs, got {given}: pass tensors, as torch.as_tensor(...) or a tokenizer makes")
    for path, leaf in leaves:
        if not isinstance(leaf, Tensor):
            continue
        name = f"input{pytree.keystr(path[1:])}"
        if leaf.is_meta:
            raise ValueError(f"{name} is on the meta device, where tensors have no values: move it to where the model is")
        if leaf.layout != torch.strided:
            raise ValueError(f"{name} is sparse ({leaf.layout}): pass {name}.to_dense()")
        if leaf.numel() == 0:
            raise ValueError(f"{name} has shape {tuple(leaf.shape)}: it is empty, and there is nothing to explain")
        if leaf.is_floating_point() and not leaf.isfinite().all():
            if (leaf.isneginf() | (leaf == 0)).all():  # an additive mask of attention
                continue
            bad = int((~leaf.isfinite()).sum())
            raise ValueError(
                f"input{pytree.keystr(path[1:])} has {bad} values that are NaN or infinite: nothing can be explained by them"
            )


def one_sample_each(program: Program, batch: int) -> None:
    """Refuse a batch whose samples influence each other (contrastive models, statistics over the batch)."""
    output = program.output.meta.get("val")
    if batch < 2 or not isinstance(output, Tensor) or output.ndim == 0:
        return
    axis = program.axes.get(program.output.name)
    if axis is not None and axis != SampleAxis(0) and axis.dim != 0:
        raise ValueError(f"the output has its samples along axis {axis.dim}: give the model its batch first (batch_first=True)")
    if axis is None:
        raise ValueError(
            f"in {type(program.model).__name__} the samples of a batch influence each other's output (or it was recorded "
            f"for fixed sizes, {program.how}): explain one sample at a time"
        )


def batched(parts: dict[str, Tensor], batch: int) -> None:
    for name, part in parts.items():
        if batch == 1 and name.startswith("input:") and (part.ndim == 0 or part.shape[0] != 1):  # given without a batch axis
            parts[name] = part = part.unsqueeze(0)
        if part.ndim == 0 or part.shape[0] != batch:
            raise ValueError(
                f"{name} has shape {tuple(part.shape)} for {batch} samples: every explained input needs the batch as its "
                "first axis (expand a shared one)"
            )


def finite_result(result: Result, model: Any) -> None:
    if result.whole.isfinite().all() and all(p.isfinite().all() for p in result.parts.values()):
        return
    if isinstance(model, nn.Module):
        for name, weight in model.named_parameters():
            if not weight.isfinite().all():
                raise ValueError(f"the weight {name} has NaN or infinite values: nothing can be explained through it")
    if not result.whole.isfinite().all():
        raise ValueError(
            f"the explained output is {result.whole.tolist()}: nothing can be explained by an infinite or undefined one"
        )
    part = next(n for n, p in result.parts.items() if not p.isfinite().all())
    raise ValueError(
        f"the relevance of {part!r} is not finite: some ratio f(x)/x overflows there. Try float64, or rules='epsilon'"
    )
