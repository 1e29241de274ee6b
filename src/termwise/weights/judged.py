"""What counts of a model's output: which tensors of it, without padding, one row per sample.

    y = (y_1 / s_1, ..., y_k / s_k),      s_i^2 = mean over samples of |y_i|^2      so that     |f~ - f|^2 / |f|^2

is the mean of the relative changes of k tensors. `logits` count alone, where a model names some; one tensor is taken as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from .batches import call, evaluating
from .calibration import kept_tokens

__all__ = ["Judged", "refuse_undefined"]


@dataclass(frozen=True, eq=False)
class Judged:
    """How the output of a model is read.

    Attributes:
        scales: by path in the output, what a tensor is divided by; 1 where it is the only one.
        left: why other tensors do not count.
        shape: of what counts, for the batch that was looked at.
        rows: how many entries of its first axis are of one sample: 1 as a rule, 0 where samples lie along another axis or depend
            on each other.
    """

    scales: dict[str, float]
    left: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    rows: int = 1

    @classmethod
    def of(cls, model: nn.Module, batch: Any) -> Judged:
        """As it is for one batch: what it puts out is looked at, and half of it once more.

        Raises:
            TypeError: when there is no tensor of floating point in the output.
            ValueError: when there is NaN or infinity in it.
        """
        with evaluating(model), torch.no_grad():
            result = call(model, batch)
            tensors = dict(_tensors(result))
            if "logits" in tensors:
                counted, left = {"logits": tensors["logits"]}, {}
            else:
                counted, left = _alike(tensors)
            if not counted:
                found = type(result).__name__
                raise TypeError(
                    f"the model returns {found}, in which there is no tensor of floating point: wrap it to return one"
                )
            for y in counted.values():
                refuse_undefined(_unpadded(y, _kept(batch)))
            single = len(counted) == 1
            scales = {name: 1.0 if single else _size(y) for name, y in counted.items()}
            first = cls(scales, left)
            y = first._read(result, batch)
            return dataclasses.replace(first, shape=tuple(y.shape), rows=first._rows(model, batch, y))

    @property
    def kind(self) -> str:
        """In words: what counts, and what does not."""
        names = ", ".join(name or "the output" for name in self.scales)
        text = names if len(self.scales) == 1 else f"{names}, each relative to its own size"
        return text + "".join(f"; not {name} ({why})" for name, why in self.left.items())

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """What counts of the output for a batch, shape (samples, ...). Padding (`attention_mask`) is 0 in it."""
        return self._read(call(model, batch), batch)

    def positions(self, y: Tensor, batch: Any) -> int:
        """How many positions of such an output have logits of their own."""
        keep = _kept(batch)
        return int(keep.sum()) if keep is not None and y.shape[:2] == keep.shape else y.numel() // y.shape[-1]

    def _read(self, result: Any, batch: Any) -> Tensor:
        tensors = dict(_tensors(result))
        if missing := [name for name in self.scales if name not in tensors]:
            raise ValueError(f"the output has no {missing[0]!r} for this batch, which it had for the first one")
        keep = _kept(batch)
        read = [_unpadded(tensors[name], keep) for name in self.scales]
        if len(read) == 1:
            return read[0] if read[0].ndim else read[0][None]
        return torch.cat([y.flatten(1) / s for y, s in zip(read, self.scales.values(), strict=True)], 1)

    @property
    def by_sample(self) -> bool:
        """Whether the first axis of the output is that of samples, which do not depend on each other."""
        return self.rows == 1

    def _rows(self, model: nn.Module, batch: Any, y: Tensor) -> int:
        """As the attribute: whether the second half of a batch gives the second half of the output."""
        count = next((len(leaf) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim), 0)
        if not count or len(y) % count:
            return 0
        rows = len(y) // count
        if count == 1:
            return rows
        half = pytree.tree_map(
            lambda leaf: leaf[count // 2 :] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == count else leaf, batch
        )
        try:
            found = self(model, half)
        except ValueError:
            return 0
        wanted = y[count // 2 * rows :]
        if found.shape != wanted.shape:
            return 0
        close = 1e-3 if torch.finfo(y.dtype).bits > 16 else 5e-2  # of other orders of summation
        return rows if float((found - wanted).double().norm()) <= close * float(wanted.double().norm()) else 0


def refuse_undefined(y: Tensor) -> None:
    """An output with NaN or infinity, from which nothing is far or near."""
    if not y.isfinite().all():
        raise ValueError(
            f"the model gives NaN or infinity for a batch of data (an output of shape {tuple(y.shape)}): mend it, or leave out "
            "the samples that it has no answer to. Logits that do not count are better large and negative than -inf"
        )


def _tensors(result: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of floating point in tuples, mappings and dataclasses, by path."""
    if isinstance(result, Tensor):
        if result.is_floating_point():
            yield path, result
        return
    inner: Any = ()
    if isinstance(result, Mapping):
        inner = result.items()
    elif isinstance(result, tuple | list):
        inner = zip(getattr(result, "_fields", range(len(result))), result, strict=True)
    elif dataclasses.is_dataclass(result):
        inner = ((f.name, getattr(result, f.name)) for f in dataclasses.fields(result))
    elif isinstance(logits := getattr(result, "logits", None), Tensor):
        inner = [("logits", logits)]
    for key, value in inner:
        yield from _tensors(value, f"{path}.{key}" if path else str(key))


def _alike(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Those that have the samples of the first along their first axis, and why not the others."""
    counted: dict[str, Tensor] = {}
    left: dict[str, str] = {}
    if len(tensors) == 1:
        return dict(tensors), left
    for name, y in tensors.items():
        samples = len(next(iter(counted.values()))) if counted else None
        if not y.ndim:
            left[name] = "one number for all samples"
        elif samples is not None and len(y) != samples:
            left[name] = f"shape {tuple(y.shape)}, and there are {samples} samples"
        else:
            counted[name] = y
    return counted, left


def _size(y: Tensor) -> float:
    return float(y.double().square().sum().div(max(len(y), 1)).sqrt()) or 1.0


def _kept(batch: Any) -> Tensor | None:
    """Where the output is not of padding; of an encoder and a decoder all of it counts, as the mask is that of what is read."""
    return None if isinstance(batch, Mapping) and "decoder_input_ids" in batch else kept_tokens(batch)


def _unpadded(y: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None or y.shape[:2] != keep.shape:
        return y
    return y.masked_fill(~keep.to(y.device).reshape(*keep.shape, *[1] * (y.ndim - 2)), 0.0)
