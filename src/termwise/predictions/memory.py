"""A limit on memory: what one sample takes is measured, and as many are explained at a time as fit.

    peak  <=  result of all samples and targets  +  n (graph of one sample's forward pass + its largest backward step)

Counted are the tensors that a pass makes: values kept for the way back, ratios under way, parts. Not the model, not its
inputs, not what a kernel uses inside. Starts add nothing but their result: they take their turns on one graph.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Meter", "as_bytes", "graph_size", "shown"]

UNITS = {"": 1, "B": 1, **{p + b: k**e for e, p in enumerate("KMGT", 1) for b, k in (("", 1000), ("B", 1000), ("IB", 1024))}}


def as_bytes(limit: int | str) -> int:
    """A number of bytes from what a user writes.

    Raises:
        ValueError: when it is no size.

    Example:
        >>> as_bytes("2 GB"), as_bytes("1.5KiB"), as_bytes(7)
        (2000000000, 1536, 7)
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([a-zA-Z]*)\s*", str(limit))
    factor = UNITS.get(found[2].upper(), 0) if found and not isinstance(limit, bool) else 0
    size = factor * float(found[1]) if found else 0.0
    if not size or (factor == 1 and size % 1):  # a fraction of a byte is a unit that was forgotten
        raise ValueError(f"max_memory is a whole number of bytes, or a size as '500MB', '2GB', '1.5GiB'; got {limit!r}")
    return int(size)


def shown(size: int) -> str:
    """Bytes for people, rounded up in the second digit, so that what is asked for suffices when it is given.

    Example:
        >>> shown(1_234_567), shown(999)
        ('1.3MB', '999B')
    """
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= factor:
            return f"{-(-size * 10 // factor) / 10:.1f}{unit}"
    return f"{size}B"


LAST = 32
"""Values of a forward pass that are kept while it is measured: a rule may take a small derivative on the way."""


class Meter(TorchDispatchMode):
    """Counts the bytes of tensors that were made under it and are alive; `peak` is the most there ever were."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        super().__init__()
        self.live = self.peak = 0
        self.made = 0
        self.known: dict[int, tuple[int, int, Any]] = {}  # storage -> its number, its bytes, the reference that tells its end

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run, and count what is new."""
        kwargs = kwargs or {}
        given = {t.untyped_storage()._cdata for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **kwargs)
        for t in pytree.tree_leaves(out):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.known:
                    self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.made += 1
        self.known[key] = self.made, size, weakref.ref(storage, lambda _: self._freed(key))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _freed(self, key: int) -> None:
        self.live -= self.known.pop(key)[1]


def graph_size(forward: Callable[[], object]) -> int:
    """Bytes that a forward pass would keep for its backward pass, found without keeping them.

    Args:
        forward: runs the pass and returns what must stay alive.
    """
    meter = Meter()
    saved: dict[int, int] = {}
    last: deque[Tensor] = deque(maxlen=LAST)

    def drop(value: Tensor) -> Any:
        if known := meter.known.get(value.untyped_storage()._cdata):
            saved[known[0]] = known[1]
        last.append(value)
        return weakref.ref(value)

    def fetch(dropped: Any) -> Tensor:
        value: Tensor | None = dropped()
        if value is None:
            raise MemoryError("a derivative was taken within the forward pass, of more than is kept here")
        return value

    # where too little was kept for a rule, what was counted so far is a lower bound
    with meter, torch.autograd.graph.saved_tensors_hooks(drop, fetch), contextlib.suppress(MemoryError):
        alive = forward()  # noqa: F841
    return sum({**saved, **{number: size for number, size, _ in meter.known.values()}}.values())


def pieces(start: int, stop: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover start to stop."""
    for i in range(start, stop, size):
        yield slice(i, min(i + size, stop))
