"""`explain`: take one prediction apart into inputs, biases, constants and what rules lost."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from termwise.core.capture import arguments, capture
from termwise.core.program import Program, info
from termwise.core.samples import SampleAxis

from .explanation import Explanation
from .propagate import Result, propagate
from .rules import Rules

__all__ = ["explain"]

Target = int | tuple[int, ...] | Tensor | Callable[[Any], Tensor] | None


def explain(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    target: Target = None,
    rules: Rules = "default",
    names: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
) -> Explanation:
    """Say what in the input, and what in the model, made an output: whole = inputs + biases + constants + losses.

    One forward and one backward pass with the local derivatives of relevance propagation. Nothing of the model is
    changed, hooked or patched; any module that `termwise.capture` can record will do.

    Args:
        model: a module in eval mode, or a function of tensors.
        *inputs: its positional arguments, batch first. A single mapping (a tokenizer's output) is passed as keywords.
        kwargs: its keyword arguments.
        target: what is explained, one scalar per sample. None: the largest entry of the output's last axis (of a
            sequence of outputs, at the last position that `attention_mask` allows). An int, or a tensor of shape
            (batch,): that class. A tuple: that entry of each sample's output, as ``(-1, 42)`` for token 42 at the last
            position. A callable: from the model's output to a tensor of shape (batch,).
        rules: a rule set by name ("default", "zero", "epsilon", "attnlrp", "cp-lrp", "gamma", "z+"), or a mapping from
            operator, module class or module-path glob to a rule; see `termwise.predictions.rules`.
        names: the tokens, for pictures: one list per sample, or one list for one sample.
        classes: names of the classes.

    Returns:
        An `Explanation`. `whole` has shape (batch,); token ids get one relevance per token.

    Raises:
        ValueError: for a model in training mode, a bad target, NaN or infinity in input or weights, no input that can
            be explained, samples that influence each other, an operator without a rule.
        CaptureError: when the model cannot be recorded.

    Cost: about one input-gradient pass, after the model was recorded once. Memory: that of the gradient pass.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> why = tw.explain(model, torch.randn(2, 4), target=1).check()
        >>> sorted(why.parts)
        ['bias:0', 'bias:2', 'input:input']
    """
    model, args, keywords = arguments(model, inputs, kwargs)
    _finite_inputs(args, keywords)
    pick = target if callable(target) else None
    program = capture(model, *args, kwargs=keywords, select=_Scored(pick) if pick else None)
    tensors = program.tensors(*args, kwargs=keywords)
    batch = tensors[0].shape[0] if tensors and tensors[0].ndim else 1
    if not any(info(n).active for n in program.graph.nodes if "info" in n.meta):
        raise ValueError(
            f"{type(model).__name__} has no input to explain: none is floating, and no integer input is looked up in an "
            "embedding. Explain a part of the model whose input is continuous"
        )
    _one_sample_each(program, batch)
    chosen = _Target(None if pick else target, batch, keywords.get("attention_mask"), per_sample=pick is not None)
    result = propagate(program, rules).run(tensors, chosen)
    _finite_result(result, program)
    for name in result.unreached:
        warnings.warn(f"the output does not depend on {name!r}: its relevance is exactly 0", UserWarning, stacklevel=2)
    return Explanation(
        whole=result.whole,
        parts=_batched(result.parts, batch),
        target=chosen.index,
        rules=rules if isinstance(rules, str) else "custom",
        names=_names(names, batch),
        classes=None if classes is None else list(classes),
    )


class _Scored:
    """A user's target as part of the recorded model: its operations need rules like any other."""

    def __init__(self, pick: Callable[[Any], Tensor]) -> None:
        self.pick = pick

    def __call__(self, output: Any) -> Tensor:
        value = self.pick(output)
        if not isinstance(value, Tensor) or value.ndim != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"target must give one scalar per sample, shape (batch,); it gave {shape}")
        return value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Scored) and other.pick == self.pick

    def __hash__(self) -> int:
        return hash(self.pick)


class _Target:
    """From an output to one scalar per sample; remembers the class index it took."""

    def __init__(self, target: Any, batch: int, mask: Any, *, per_sample: bool) -> None:
        self.target, self.batch, self.mask, self.per_sample = target, batch, mask, per_sample
        self.index: Tensor | None = None

    def __call__(self, output: Tensor) -> Tensor:
        if output.ndim == 0 or output.shape[0] != self.batch:
            raise ValueError(
                f"the output has shape {tuple(output.shape)} for {self.batch} samples: there is no scalar per sample. "
                "Pass target=<function from the model's output to a tensor of shape (batch,)>"
            )
        if output.ndim == 1:
            if self.target is not None:
                raise ValueError(f"the output is one number per sample, shape {tuple(output.shape)}: leave target out")
            return output
        rows = torch.arange(self.batch, device=output.device)
        if isinstance(self.target, tuple):
            return self._entry(output)
        if output.ndim == 3:  # a sequence of outputs
            output = output[rows, self._last(output)]
        elif output.ndim > 3:
            raise ValueError(
                f"the output has shape {tuple(output.shape)}: say which entry, target=(i, j, ...) with {output.ndim - 1} "
                "indices, or a function from the output to a tensor of shape (batch,)"
            )
        self.index = self._classes(output)
        return output[rows, self.index]

    def _classes(self, output: Tensor) -> Tensor:
        n = output.shape[-1]
        if self.target is None:
            return output.detach().argmax(-1)
        index = torch.as_tensor(self.target, device=output.device)
        if index.is_floating_point() or index.dtype == torch.bool:
            raise TypeError(f"target must be an integer class index, got {self.target!r}")
        if index.ndim > 1 or (index.ndim == 1 and len(index) != self.batch):
            raise ValueError(f"target has shape {tuple(index.shape)} for {self.batch} samples: one index each, or one for all")
        if bool((index < -n).any() | (index >= n).any()):
            raise ValueError(f"target {self.target} is out of range: the output has {n} classes, 0 to {n - 1}")
        return (index % n).expand(self.batch)

    def _entry(self, output: Tensor) -> Tensor:
        if len(self.target) != output.ndim - 1:
            raise ValueError(
                f"target {self.target} has {len(self.target)} indices, each sample's output has {output.ndim - 1} axes"
            )
        for axis, (i, n) in enumerate(zip(self.target, output.shape[1:], strict=True), start=1):
            if not -n <= i < n:
                raise ValueError(f"target {self.target} is out of range: axis {axis} of the output has size {n}")
        self.index = torch.tensor(self.target).remainder(torch.tensor(output.shape[1:])).expand(self.batch, -1)
        entry: Tensor = output[(slice(None), *self.target)]
        return entry

    def _last(self, output: Tensor) -> Tensor:
        """The last position of each sample that its mask allows."""
        length = output.shape[1]
        if isinstance(self.mask, Tensor) and self.mask.shape == output.shape[:2]:
            positions = torch.arange(length, device=output.device)
            return (positions * (self.mask != 0)).argmax(-1)
        return torch.full((self.batch,), length - 1, device=output.device)


def _one_sample_each(program: Program, batch: int) -> None:
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


def _batched(parts: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
    for name, part in parts.items():
        if part.ndim == 0 or part.shape[0] != batch:
            raise ValueError(
                f"{name} has shape {tuple(part.shape)} for {batch} samples: every explained input needs the batch as its "
                "first axis (expand a shared one)"
            )
    return parts


def _finite_inputs(args: Any, keywords: Mapping[str, Any]) -> None:
    import torch.utils._pytree as pytree

    for path, leaf in pytree.tree_flatten_with_path((args, dict(keywords)))[0]:
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.isfinite().all():
            if (leaf.isneginf() | (leaf == 0)).all():  # an additive mask of attention
                continue
            bad = int((~leaf.isfinite()).sum())
            raise ValueError(
                f"input{pytree.keystr(path[1:])} has {bad} values that are NaN or infinite: nothing can be explained by them"
            )


def _finite_result(result: Result, program: Program) -> None:
    if result.whole.isfinite().all() and all(p.isfinite().all() for p in result.parts.values()):
        return
    if isinstance(program.model, nn.Module):
        for name, weight in program.model.named_parameters():
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


def _names(names: Sequence[Any] | None, batch: int) -> list[list[str]] | None:
    if names is None:
        return None
    rows = [list(names)] if names and isinstance(names[0], str) else [list(row) for row in names]
    if len(rows) != batch:
        raise ValueError(f"names has {len(rows)} lists of tokens for {batch} samples")
    return rows
