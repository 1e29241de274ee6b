"""The books of one relevance pass: what every leaf, constant and lossy operation owns of the output.

During the backward pass hooks write into the ledger as soon as a ratio c = R / y arrives, reduced at once to the shape
of what is booked: nothing the size of an activation is kept.
"""

from __future__ import annotations

import cmath
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from termwise.core.samples import SampleAxis, per_sample

__all__ = ["At", "Ledger", "Site"]

Rule = Callable[..., Any]


@dataclass(eq=False)
class Leaf:
    """An explained value.

    Attributes:
        name: of its part.
        value: where the pass begins.
        axes: how many of its first axes the part keeps.
        places: where it lies in what was given (one flat index for each entry of the part), and the shape of that.
        given: relevance that came to it otherwise than as value * ratio.
    """

    name: str
    value: Tensor
    axes: int
    places: tuple[Tensor, torch.Size] | None = None
    given: Tensor | None = None

    def relevance(self, c: Tensor | None) -> Tensor:
        """Value * c, summed over the axes that the part does not keep."""
        part = _entries(self.value.detach(), c)
        return self.part(part if self.given is None else part + self.given)

    def part(self, relevance: Tensor) -> Tensor:
        """Relevance of every entry as the part has it: without the other axes, where it lies in what was given."""
        part = relevance.flatten(self.axes).sum(-1) if relevance.ndim > self.axes else relevance
        if self.places is not None:
            where, shape = self.places
            part = part.new_zeros(shape.numel()).index_add(0, where.flatten(), part.flatten()).reshape(shape)
        return part


@dataclass(eq=False)
class Uses:
    """How often a weighed value is used, and what relevance each use sent back to it."""

    value: Tensor
    count: int = 0
    sent: list[Tensor] = field(default_factory=list)


class Ledger:
    """One pass over `batch` samples. With `complete=False` only the inputs are booked."""

    def __init__(self, batch: int, *, complete: bool = True, dtype: torch.dtype = torch.float32, biases: str = "parts") -> None:
        """An empty ledger; nothing is booked in a narrower dtype than this one. `biases`: who gets what they own."""
        self.batch, self.complete, self.dtype, self.biases = batch, complete, dtype, biases
        self.inputs: dict[str, Tensor] = {}  # by placeholder
        self.leaves: list[Leaf] = []
        self.constants: list[tuple[Tensor, Callable[[Tensor], None]]] = []  # leaf, what to do with its ratio
        self._parts: dict[str, Tensor | None] = {}
        self._shapes: dict[str, Callable[[], Tensor]] = {}
        self._uses: dict[int, Uses] = {}

    def leaf(self, name: str, value: Tensor, axes: int, places: tuple[Tensor, torch.Size] | None = None) -> Tensor:
        """Make a value a leaf of the pass; its part keeps the first `axes` axes."""
        leaf = value.detach().requires_grad_()
        self.leaves.append(Leaf(name, leaf, axes, places))
        return leaf

    def uses(self, value: Tensor) -> Uses:
        """The uses of a value so far, shared by all of them."""
        found = self._uses.setdefault(id(value), Uses(value))
        assert found.value is value  # it is kept, so that no other gets its id
        return found

    def give(self, name: str, value: Tensor, relevance: Tensor) -> Tensor | None:
        """Book relevance that arrives at `value`, which holds the entries of leaves of this name, moved, as theirs.

        Returns:
            What was booked, (batch,); None where no leaf has this name.
        """
        leaves = [leaf for leaf in self.leaves if leaf.name == name]
        if not leaves:
            return None
        own = [leaf for leaf in leaves if leaf.value is value]
        moved = (
            [relevance]
            if own
            else torch.autograd.grad(value, [leaf.value for leaf in leaves], relevance, retain_graph=True, allow_unused=True)
        )
        total = torch.zeros(self.batch, dtype=torch.float64, device=value.device)
        for leaf, r in zip(own or leaves, moved, strict=True):
            if r is not None:
                leaf.given = r if leaf.given is None else leaf.given + r
                total += leaf.part(r).reshape(self.batch, -1).sum(1, dtype=torch.float64)
        return total

    def keep(self, name: str, y: Tensor) -> Tensor:
        """Book the relevance of every entry of `y` under a name, as it passes; it goes on through the value returned."""
        value = y.detach()
        shape, dtype, device = value.shape, _real(value.dtype), value.device
        self.expect(name, lambda: torch.zeros(shape, dtype=dtype, device=device))
        if not y.requires_grad:
            return y
        alias = y.view_as(y)
        alias.register_hook(lambda c: self.book(name, _entries(value, c)))
        return alias

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

    def clear(self) -> None:
        """Forget what was booked, not where: the next backward pass through the same graph begins."""
        self._parts.clear()
        for leaf in self.leaves:
            leaf.given = None
        for uses in self._uses.values():
            uses.sent.clear()

    def parts(self) -> dict[str, Tensor]:
        """Every part booked or announced: as announced first, then the rest."""
        names = [*self._shapes, *(n for n in self._parts if n not in self._shapes)]
        return {n: self._parts[n] if n in self._parts else self._shapes[n]() for n in names}  # type: ignore[misc]

    def close(self) -> None:
        """Let go of every value: hooks hold the ledger, and a cycle through autograd is never freed."""
        for held in (self.inputs, self.leaves, self.constants, self._uses):
            held.clear()


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
        weight: whether the value is held constant wherever it is used, instead of owning relevance itself.
        source: the input whose entries the node's activation holds, only moved; "" where it holds others.
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
    weight: bool = False
    source: str = ""
    memo: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, ledger: Ledger, *args: Any, **kwargs: Any) -> Any:
        """The node's value, with the rule's local derivative behind it."""
        at = At(self, ledger)
        if not (self.measured and ledger.complete):
            return at.settle(self.rule(at, *args, **kwargs))
        args = at.weigh_inputs(args)
        y = at.weigh_output(at.settle(self.rule(at, *args, **kwargs)))
        at.unweighed.clear()  # hooks hold the place, and must hold no tensor of their graph
        return y


class At:
    """What a rule sees of its place in the graph."""

    __slots__ = ("ledger", "site", "unweighed")

    def __init__(self, site: Site, ledger: Ledger) -> None:
        """Bind a site to a running pass."""
        self.site, self.ledger = site, ledger
        self.unweighed: dict[int, Tensor] = {}  # id of an argument -> the value it stands for, where it is weighed

    @property
    def op(self) -> Callable[..., Any]:
        """The operator whose value the rule must return."""
        return self.site.op

    @property
    def biases(self) -> str:
        """Who gets what biases own: "parts", "absorb", "distribute" or "zero"."""
        return self.ledger.biases

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
        given_away = self.biases == "zero" and name.startswith("bias:")
        if constant is None or not (self.ledger.complete or given_away) or not y.requires_grad:
            return
        if not isinstance(constant, Tensor):
            if constant == 0:
                return
            constant = torch.tensor(constant, dtype=y.dtype, device=y.device)
        k = constant.detach()
        shape = k.shape
        if channel is not None:
            k = k.reshape(-1, *[1] * ((y.ndim - 1 - channel) if channel >= 0 else -1 - channel))
        if given_away:
            self.without(y, k)
            return
        ledger, axis, batch = self.ledger, axis or self.site.axis, self.ledger.batch
        wide = k.reshape((1,) * (y.ndim - k.ndim) + tuple(k.shape))
        # does the constant differ from sample to sample? then it is split as y is
        own = batch > 1 and axis is not None and wide.shape[axis.dim] == y.shape[axis.dim] > 1
        k = per_sample(wide, axis, batch) if own else wide.unsqueeze(0)
        if own:
            shape = _trim(k.shape[1:], len(shape))
        # y itself in this closure would be a cycle through autograd's hooks, which nothing frees
        dtype, device = _real(y.dtype), y.device
        ledger.expect(name, lambda: torch.zeros(batch, *shape, dtype=dtype, device=device))
        wider = torch.promote_types(y.dtype, ledger.dtype)  # the program's own precision, around a float32 island in it
        masks = not cmath.isfinite(k.sum().item())  # an infinite entry, or one sum too large: the mask harms nothing

        def hook(c: Tensor) -> None:
            ratio = per_sample(c, axis, batch).to(wider)
            dims = [d for d in range(1, ratio.ndim) if k.shape[d] == 1 and ratio.shape[d] != 1]
            ratio = ratio.sum(dims, keepdim=True) if dims else ratio
            part = _times(k, ratio)
            if masks:  # no relevance arrives where an infinite fill hides something, and inf * 0 must not be NaN
                part = part.masked_fill(ratio == 0, 0)
            part = part.reshape(batch, *shape)
            ledger.book(name, part)
            if self.site.measured:
                self._lost(-part.reshape(batch, -1).sum(1))

        ledger.watch(y, hook)

    def without(self, y: Tensor, constant: Tensor) -> None:
        """Let all relevance of `y` go to what stands beside this summand. Where that is 0 it is lost."""
        with torch.no_grad():
            rest = y - constant
            ratio = (y / rest).masked_fill_(rest == 0, 0)
        if y.requires_grad:
            y.register_hook(lambda c: c * ratio)

    def stand_in(self, x: Tensor, value: Tensor) -> Tensor:
        """A constant in place of `x`, of its shape, whose relevance value * c is that of `x`.

        It is booked with the input that `x` is. Elsewhere it becomes R / x, and what falls on zeros is lost.
        """
        mine = self.unweighed.get(id(x), x)

        def give(relevance: Tensor) -> bool:
            booked = self.ledger.give(self.site.source, mine, relevance)
            if booked is not None and self.site.measured:
                self._lost(-booked)
            return booked is not None

        if not self.site.source:
            warnings.warn(
                f"the rule of {self.site.name} is for a layer that sees the input: what it gives to zeros here is lost",
                UserWarning,
                stacklevel=2,
            )
        stand_in: Tensor = _StandIn.apply(x, value.expand_as(x), give)
        return stand_in

    def constant_name(self, position: int) -> str:
        """The part that the constant at an argument position is booked under."""
        origins = self.site.origins
        known = origins[position] if 0 <= position < len(origins) else ""
        return known or f"constant:{self.site.path or self.site.name}"

    def settle(self, y: Any) -> Any:
        """A floating value that no derivative leads through (a step, a product of held values) is a constant leaf."""
        if self.site.weight:
            return y
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
            self.unweighed[id(alias)] = value
            uses = self.ledger.uses(value)

            def hook(c: Tensor | None) -> None:
                if c is not None:
                    amount = self._dot(x, c, axis)
                    self._lost(-amount)
                    uses.sent.append(amount)

            def together(c: Tensor) -> None:
                if uses.count > 1:  # the ratios of several uses meet here, and in a narrow dtype their sum is rounded
                    self._lost(sum(uses.sent, -self._dot(x, c, axis)))

            alias.register_hook(hook)
            uses.count += 1
            if uses.count == 1 and torch.promote_types(x.dtype, self.ledger.dtype) != x.dtype:
                value.register_hook(together)
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


class _StandIn(torch.autograd.Function):
    """A value in place of x; its relevance is given to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, give: Callable[[Tensor], bool]) -> Tensor:
        ctx.give = give
        ctx.save_for_backward(x, value)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        x, value = ctx.saved_tensors
        relevance = value * c
        if ctx.give(relevance):
            return torch.zeros_like(x), None, None
        return (relevance / x).masked_fill_(x == 0, 0), None, None


def _entries(value: Tensor, c: Tensor | None) -> Tensor:
    """The relevance of every entry, value * c."""
    if c is None:
        return torch.zeros(value.shape, dtype=_real(value.dtype), device=value.device)
    found = _times(value, c)
    # a mask of -inf hides, and has no relevance
    return found if value.isfinite().all() else found.masked_fill(c == 0, 0)


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
