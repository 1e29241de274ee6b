"""The books of one relevance pass: what every leaf, constant and lossy operation owns of the output.

During the backward pass hooks write into the ledger as soon as a ratio c = R / y arrives, reduced at once to the shape
of what is booked: nothing the size of an activation is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from termwise.core.samples import SampleAxis, per_sample

__all__ = ["At", "Ledger", "Site"]

Rule = Callable[..., Any]


class Ledger:
    """One pass over `batch` samples. With `complete=False` only the inputs are booked."""

    def __init__(self, batch: int, *, complete: bool = True) -> None:
        """An empty ledger."""
        self.batch, self.complete = batch, complete
        self.leaves: list[tuple[str, Tensor, int]] = []  # name, leaf, number of its axes that the part keeps
        self.constants: list[tuple[Tensor, Callable[[Tensor], None]]] = []  # leaf, what to do with its ratio
        self._parts: dict[str, Tensor | None] = {}
        self._shapes: dict[str, Callable[[], Tensor]] = {}

    def leaf(self, name: str, value: Tensor, axes: int) -> Tensor:
        """Make a value a leaf of the pass; its part keeps the first `axes` axes."""
        leaf = value.detach().requires_grad_()
        self.leaves.append((name, leaf, axes))
        return leaf

    def watch(self, y: Tensor, hook: Callable[[Tensor], None]) -> None:
        """Call `hook` with the ratio that arrives at `y`."""
        if y.is_leaf:  # on the way to no input: autograd must be asked for it
            self.constants.append((y, hook))
        else:
            y.register_hook(hook)

    def expect(self, name: str, zeros: Callable[[], Tensor]) -> None:
        """Announce a part, so that it is there (as zeros) even if no relevance reaches it, in order of execution."""
        self._shapes.setdefault(name, zeros)

    def book(self, name: str, value: Tensor) -> None:
        """Add to a part. Where a name comes with another shape (one constant, two uses), a numbered part is opened."""
        base, n = name, 1
        while (known := self._parts.get(name)) is not None and known.shape != value.shape:
            n += 1
            name = f"{base}#{n}"
        self._parts[name] = value if known is None else known + value

    def parts(self) -> dict[str, Tensor]:
        """Every part booked or announced: as announced first, then the rest."""
        names = [*self._shapes, *(n for n in self._parts if n not in self._shapes)]
        return {n: self._parts[n] if n in self._parts else self._shapes[n]() for n in names}  # type: ignore[misc]


@dataclass(eq=False)
class Site:
    """A node under a rule: called in place of its operator.

    Attributes:
        rule: the rule, called as ``rule(at, *args, **kwargs)``.
        op: the operator itself.
        name: how the node is called in names of parts, "softmax@encoder.layer.0".
        path: module path.
        axis: where the samples lie in the node's value.
        axes: where they lie in each of its arguments, nested as the arguments are.
        measured: whether relevance in and out is weighed here, and the difference booked as lost.
        held: argument positions that the rule is to hold constant.
        gates: argument positions that hold a gate.
        origins: for each argument position the name of the constant there, as it is booked.
    """

    rule: Rule
    op: Callable[..., Any]
    name: str = "op@"
    path: str = ""
    axis: SampleAxis | None = None
    axes: tuple[Any, ...] = ()
    measured: bool = False
    held: tuple[int, ...] = ()
    gates: tuple[int, ...] = ()
    origins: tuple[str, ...] = ()
    memo: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, ledger: Ledger, *args: Any, **kwargs: Any) -> Any:
        """The node's value, with the rule's local derivative behind it."""
        at = At(self, ledger)
        if not (self.measured and ledger.complete):
            return at.settle(self.rule(at, *args, **kwargs))
        args = at.weigh_inputs(args)
        return at.weigh_output(at.settle(self.rule(at, *args, **kwargs)))


class At:
    """What a rule sees of its place in the graph."""

    __slots__ = ("ledger", "site")

    def __init__(self, site: Site, ledger: Ledger) -> None:
        """Bind a site to a running pass."""
        self.site, self.ledger = site, ledger

    @property
    def op(self) -> Callable[..., Any]:
        """The operator whose value the rule must return."""
        return self.site.op

    def adds(
        self, y: Tensor, constant: Tensor | float | None, name: str, channel: int | None = None, axis: SampleAxis | None = None
    ) -> None:
        """Say that `y` contains `constant` as a summand: its part is constant * c, summed where it was broadcast.

        Args:
            y: the value, whose ratio c will arrive.
            constant: broadcast against `y` from the right; or a vector along `channel`.
            name: of the part.
            channel: the axis of `y` along which a vector constant lies.
            axis: where the samples lie in `y`, when it is not the node's own value.
        """
        if constant is None or not self.ledger.complete or not y.requires_grad:
            return
        if not isinstance(constant, Tensor):
            if constant == 0:
                return
            constant = torch.tensor(constant, dtype=y.dtype, device=y.device)
        k = constant.detach()
        shape = k.shape
        if channel is not None:
            k = k.reshape(-1, *[1] * ((y.ndim - 1 - channel) if channel >= 0 else -1 - channel))
        ledger, axis, batch = self.ledger, axis or self.site.axis, self.ledger.batch
        wide = k.reshape((1,) * (y.ndim - k.ndim) + tuple(k.shape))
        # does the constant differ from sample to sample? then it is split as y is
        own = batch > 1 and axis is not None and wide.shape[axis.dim] == y.shape[axis.dim] > 1
        k = per_sample(wide, axis, batch) if own else wide.unsqueeze(0)
        if own:
            shape = _trim(k.shape[1:], len(shape))
        ledger.expect(name, lambda: torch.zeros(batch, *shape, dtype=_real(y.dtype), device=y.device))

        def hook(c: Tensor) -> None:
            ratio = per_sample(c, axis, batch)
            dims = [d for d in range(1, ratio.ndim) if k.shape[d] == 1 and ratio.shape[d] != 1]
            part = _times(k, ratio.sum(dims, keepdim=True) if dims else ratio)
            part = part.reshape(batch, *shape)
            ledger.book(name, part)
            if self.site.measured:
                self._lost(-part.reshape(batch, -1).sum(1))

        ledger.watch(y, hook)

    def constant_name(self, position: int) -> str:
        """The part that the constant at an argument position is booked under."""
        origins = self.site.origins
        known = origins[position] if 0 <= position < len(origins) else ""
        return known or f"constant:{self.site.path or self.site.name}"

    def settle(self, y: Any) -> Any:
        """A floating value that no derivative leads through (a step, a product of held values) is a constant leaf."""
        if isinstance(y, Tensor) and not y.requires_grad and (y.is_floating_point() or y.is_complex()):
            y = y.detach().requires_grad_()
            self.adds(y, y, self.constant_name(-1))
        return y

    # -- measuring ----------------------------------------------------------------------------------------------------

    def weigh_inputs(self, args: Any) -> Any:
        """The arguments, with the relevance that leaves through each of them booked as it goes."""

        def weigh(value: Any, axis: Any) -> Any:
            if isinstance(value, (tuple, list)):  # several arguments, or the several values of one
                axes = axis if isinstance(axis, (tuple, list)) else [axis] * len(value)
                return type(value)(map(weigh, value, axes))
            if not (isinstance(value, Tensor) and value.requires_grad):
                return value
            x, alias = value.detach(), value.view_as(value)
            alias.register_hook(lambda c: None if c is None else self._lost(-self._dot(x, c, axis)))
            return alias

        return weigh(args, self.site.axes or [None] * len(args))

    def weigh_output(self, y: Any) -> Any:
        """The value(s), with the relevance that arrives booked."""
        if isinstance(y, (tuple, list)):
            return type(y)(self.weigh_output(v) for v in y)
        if not (isinstance(y, Tensor) and y.requires_grad):
            return y
        alias, value = y.view_as(y), y.detach()
        alias.register_hook(lambda c: self._lost(self._dot(value, c, self.site.axis)))
        name, batch, dtype, device = f"rule:{self.site.name}", self.ledger.batch, _real(y.dtype), y.device
        self.ledger.expect(name, lambda: torch.zeros(batch, dtype=dtype, device=device))
        return alias

    def _dot(self, x: Tensor, c: Tensor, axis: SampleAxis | None) -> Tensor:
        def total(product: Tensor) -> Tensor:
            products = per_sample(product, axis, self.ledger.batch)
            others = list(range(1, products.ndim))
            return products.sum(others, dtype=torch.float64) if others else products.double()  # torch reads [] as all

        found = total(_times(x, c))
        if found.isnan().any():  # -inf * 0, a masked score: relevance 0
            found = total(_times(x, c).masked_fill(c == 0, 0))
        return found

    def _lost(self, amount: Tensor) -> None:
        self.ledger.book(f"rule:{self.site.name}", amount)


def _times(x: Tensor, c: Tensor) -> Tensor:
    """X * c; of complex numbers the real inner product, as autograd pairs them."""
    return (x.conj() * c).real if x.is_complex() or c.is_complex() else x * c


def _real(dtype: torch.dtype) -> torch.dtype:
    return torch.empty((), dtype=dtype).real.dtype if dtype.is_complex else dtype


def _trim(shape: torch.Size, ndim: int) -> tuple[int, ...]:
    """A shape without the leading ones it gained by broadcasting."""
    shape_ = list(shape)
    while len(shape_) > ndim and shape_[0] == 1:
        shape_ = shape_[1:]
    return tuple(shape_)
