r"""A network around a point, order by order:  f(x + a h) = sum_k f_k a^k + remainder,  and the remainder is measured.

Source: Taylor's theorem; `jet` for the coefficients, `radius` for how far they reach, `kinks` for where they end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from termwise.core.arguments import number, whole_number
from termwise.core.capture import Call, arguments, capture
from termwise.core.decomposition import Decomposition
from termwise.core.interpret import interpret
from termwise.core.pictures import Line, Lines, Picture, Steps
from termwise.core.program import Program, info
from termwise.core.series import series

from .jet import Run
from .jet_rules import Jet
from .radius import Radius, radius
from .taylor import Taylor

__all__ = ["Expansion", "expand"]

Direction = Tensor | Sequence[Any] | Mapping[str, Tensor]


@dataclass(frozen=True, repr=False)
class Expansion(Decomposition):
    """The terms of a Taylor series: `whole` = f(x + at h), parts `order_0` ... `order_K` = f_k at^k, each of its shape.

    Attributes:
        series: (*S, K + 2), the coefficients f_0 ... f_(K+1) along the last axis; the last one only predicts the remainder.
        at: where along the direction the terms are taken.
        kink_radius: smallest |t| towards `at` at which a unit changes its branch; inf when none is seen to before 2 |at|.
        kink: the operation that does.
        blind: operations whose branches were not watched (windows of max-pooling, sorting, steps).
    """

    series: Tensor
    at: float
    kink_radius: float = math.inf
    kink: str = ""
    blind: tuple[str, ...] = ()

    @property
    def order(self) -> int:
        """K."""
        return self.series.shape[-1] - 2

    @property
    def coefficients(self) -> Tensor:
        """(K + 1, *S): f_k, normalised, f_k = (1/k!) d^k/dt^k f(x + t h)."""
        return self.series[..., :-1].movedim(-1, 0)

    @property
    def radius(self) -> Radius:
        """How far the series reaches, estimated from its coefficients (of their norms, where there are several outputs).

        nan below order 2: it takes four coefficients.
        """
        return radius(self.series.movedim(-1, 0)) if self.order >= 2 else Radius(math.nan, math.nan, math.nan, rough=True)

    @property
    def predicted_remainder(self) -> Tensor:
        """|f_(K+1) at^(K+1)| / (1 - |at| / radius), shape S, from one order more; inf beyond the radius or a kink.

        In an odd or even series every other coefficient is 0: the last one, shrunk by |at| / radius, is the least that is left.
        """
        last, first = (self.series[..., k].abs() * abs(self.at) ** (self.order + 2 + k) for k in (-2, -1))
        reach = abs(self.at) / self.radius.value
        reach = 0.0 if math.isnan(reach) else reach
        if reach >= 1 or abs(self.at) > self.kink_radius:
            return torch.full_like(first, math.inf)
        return torch.maximum(first, last * reach) / (1 - reach)

    def evaluate(self, t: float | Tensor) -> Tensor:
        """The polynomial sum_(k <= K) f_k t^k.

        Args:
            t: a number, or any tensor of them.

        Returns:
            (*T, *S).
        """
        t = torch.as_tensor(t, dtype=self.series.dtype, device=self.series.device)
        powers = t.unsqueeze(-1) ** torch.arange(self.order + 1, device=self.series.device)
        return torch.tensordot(powers, self.coefficients, dims=1)

    def diverges(self) -> bool:
        """Whether `at` lies beyond the radius or beyond a kink: then more orders make it no better."""
        return abs(self.at) > self.kink_radius or (self.order >= 3 and abs(self.at) > self.radius.value)

    def summary(self) -> str:
        """One line: the remainder, and whether the series reaches as far as it was asked."""
        text = f"order {self.order} at {self.at:g}: adds up to {self.error():.1e}"
        blind = f"; not watched: the branches of {self.blind[0]}" if self.blind else ""
        if abs(self.at) > self.kink_radius:
            return f"{text}; BEYOND A KINK at {self.kink_radius:.3g} ({self.kink}): no order makes it better"
        if self.order < 2:
            return text + blind
        text += f", radius {self.radius}"
        return (f"{text}: BEYOND IT, the partial sum is no approximation" if self.diverges() else text) + blind

    _along = "t"

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The sizes of the terms and what each order leaves over; and the polynomial of every order along the line.

        Raises:
            ValueError: when there is no such sample.
        """
        terms = series(self, sample, title="Terms by order", x="order")
        one = self[sample] if self.by_sample else self
        return [replace(terms, note=one._reach()), one._polynomials()]

    def _reach(self) -> str:
        """How far the series reaches, in words."""
        if abs(self.at) > self.kink_radius:
            return (
                f"A unit changes its branch at |{self._along}| = {self.kink_radius:.3g} ({self.kink}), before {abs(self.at):g}: "
                "no order makes the sum better."
            )
        if self.order < 2 or math.isnan(self.radius.value):
            return "Too few orders to say how far the series reaches."
        if self.radius.value == math.inf:
            return "As far as these orders tell, the series reaches everywhere."
        beyond = " That is nearer than what was asked: more orders make it no better." if self.diverges() else ""
        return f"The series reaches to about |{self._along}| = {self.radius}, estimated from its coefficients.{beyond}"

    def _polynomials(self) -> Steps:
        """Of the largest output, from 0 to a little beyond `at`; the model itself is known at both of these."""
        whole = self.whole.detach().flatten()
        j = int(whole.abs().argmax())
        which = f"output {j}, the largest of {len(whole)}" if len(whole) > 1 else "the output"
        t = torch.linspace(0, 1.25 * self.at, 41, dtype=torch.float64)
        f = self.coefficients.detach().reshape(self.order + 1, -1)[:, j].cpu()
        f, value = ((v.real if v.is_complex() else v).double() for v in (f, whole[j].cpu()))
        known = Line("the model", [0.0, self.at], [float(f[0]), float(value)], role="whole", markers=True)
        y = f"{which}, its real part" if self.whole.is_complex() else which
        found: list[Picture] = []
        for k in range(self.order + 1):
            curve = (t.unsqueeze(1) ** torch.arange(k + 1) * f[: k + 1]).sum(1)
            left = float(value - (self.at ** torch.arange(k + 1) * f[: k + 1]).sum())
            note = f"At {self._along} = {self.at:g} the model is {float(value):.4g}, and this polynomial is {abs(left):.2g} off."
            found.append(Lines("", [Line(f"order {k}", t.tolist(), curve.tolist()), known], x=self._along, y=y, note=note))
        return Steps("The polynomial along the line", "order", [str(k) for k in range(self.order + 1)], found)


def expand(
    model: nn.Module | Callable[..., Any],
    *args: Any,
    order: int = 4,
    at: float = 1.0,
    wrt: str = "inputs",
    kwargs: Mapping[str, Any] | None = None,
    select: Callable[[Any], Tensor] | None = None,
    ties: str = "right",
    fallback: str | None = None,
) -> Expansion:
    """Expand a model along a line, f(x + t h), or along a line of its parameters, f(x; w + t h).

        f(x + at h) = sum_(k <= order) f_k at^k + remainder

    Args:
        model: in eval mode, as `capture` takes it.
        *args: its inputs, and after them the direction h: a tensor for the first floating input, of its shape; a mapping from
            argument names to tensors for several. For ids that are looked up in an embedding the direction lies in the embedding,
            (batch, tokens, width). With wrt="parameters" a mapping from parameter names to tensors of their shapes.
        order: K, the highest order that is a part.
        at: where along the direction.
        wrt: "inputs" or "parameters".
        kwargs: keyword arguments of the model.
        select: picks the tensor to expand out of what the model returns, where it has no logits.
        ties: at the very kink of a piecewise operation the branch that follows ("right"), or torch's subgradient ("torch").
        fallback: "nested" differentiates operations without a rule by nested forward passes; see `jet`.

    Returns:
        An `Expansion`: parts order_0 ... order_K, the measured remainder, `coefficients`, `evaluate`, `radius`, `kink_radius`,
        `predicted_remainder`, `plot`.

    Raises:
        ValueError: for a negative order, at = 0, a direction of the wrong shape (both are shown), an operation without a rule
            (named, with its place), non-finite inputs.
        TypeError: for integer inputs that no embedding looks up.

    Cost: one run over order + 2 coefficients and one forward pass, O(order^2) in element-wise operations; memory that of
        order + 2 forward passes. Give a float64 model for more than six orders or so: coefficients lose digits near the radius.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double().eval()
        >>> x, h = torch.randn(2, 3, dtype=torch.float64), 0.1 * torch.randn(2, 3, dtype=torch.float64)
        >>> tw.expand(model, x, h, order=8).error() < 1e-6
        True

    Source: Taylor; Griewank & Walther ch. 13.
    """
    if len(args) + len(kwargs or {}) < 2 or not isinstance(args[-1], (Tensor, Mapping)):
        raise ValueError("give the model's inputs, and after them the direction: a tensor, or a mapping from names to tensors")
    *inputs, direction = args
    order, step = whole_number("order", order, 0), number(at)
    if not step or not math.isfinite(step):
        raise ValueError(f"at says how far to go along the direction, and is finite and not 0; got {at!r}")
    at = step
    if wrt not in ("inputs", "parameters"):
        raise ValueError(f"wrt is 'inputs' or 'parameters', got {wrt!r}")
    model, positional, keywords = arguments(model, inputs, kwargs)
    program = capture(model, *positional, kwargs=keywords, select=select)
    tensors = program.tensors(*positional, kwargs=keywords)
    backwards = at < 0  # then the run goes along -h: at a kink the side is taken that the step leads to
    curve = _Line(program, tensors, direction, wrt, -1.0 if backwards else 1.0)
    if any(not tensor.numel() for tensor in tensors):
        raise ValueError("an input is empty: there is nothing to expand")
    with torch.no_grad():
        run = Run(Taylor(order + 1), ties=ties, fallback=fallback, horizon=2 * abs(at))
        try:
            out = curve.through(run)
        except RuntimeError as problem:
            if not isinstance(problem, torch.OutOfMemoryError):
                Call(model, positional, keywords, select).try_model()  # another dtype: the model says so too
            raise
        rows = out.rows if isinstance(out, Jet) else out.unsqueeze(0)
        run.warn()
        rows = torch.cat([rows, rows.new_zeros(order + 2 - len(rows), *rows.shape[1:])])
        whole = curve.value(abs(at))
        if backwards:
            rows[1::2].neg_()
    parts = {f"order_{k}": rows[k] * at**k for k in range(order + 1)}
    kinks = run.kinks
    return Expansion(whole, parts, rows.movedim(0, -1), float(at), kinks.radius, kinks.where, tuple(kinks.blind))


class _Line:
    """The line x + t h in the inputs, embeddings or parameters of a program."""

    def __init__(self, program: Program, tensors: list[Tensor], direction: Direction, wrt: str, sign: float) -> None:
        self.program, self.wrt, self.sign = program, wrt, sign
        self.values = program.bind(tensors)
        for name, value in self.values.items():
            if program.placeholders[name].kind == "input" and value.is_floating_point() and not bool(value.isfinite().all()):
                raise ValueError(f"the input {program.placeholders[name].name} is not finite")
        self.cuts = {n.name: n for n in program.nodes if info(n).role == "cut"} if wrt == "inputs" else {}
        lines = self._named(direction)
        self.inner = {node: h for node, h in lines.items() if node in self.cuts}  # begin to move behind a look-up
        self.outer = {node: h for node, h in lines.items() if node not in self.cuts}

    def _named(self, direction: Direction) -> dict[str, Tensor]:
        """Direction by placeholder, or by node where ids are looked up."""
        wanted = "input" if self.wrt == "inputs" else "parameter"
        known = {p.name: n for n, p in self.program.placeholders.items() if p.kind == wanted}
        if not isinstance(direction, Mapping):
            if self.wrt == "parameters":
                raise ValueError("wrt='parameters' takes a mapping from parameter names to tensors: {'head.weight': ...}")
            direction = {self._only(known): direction}  # type: ignore[dict-item]
        if not direction:
            raise ValueError("the direction names nothing to move")
        tied = self.program.parameters if self.wrt == "parameters" else {}
        found = {}
        for name, h in direction.items():
            if name not in known and name not in tied:
                raise ValueError(f"the direction names {name!r}; the {wanted}s are {', '.join(list(known)[:12])}")
            nodes = tied.get(name) or [known[name]]
            value = self.values[nodes[0]]
            if not (value.is_floating_point() or value.is_complex()):
                node, value = self._looked_up(name)
                nodes = [node]
            h = torch.as_tensor(h, device=value.device)
            if h.shape != value.shape:
                raise ValueError(f"the direction for {name} has shape {tuple(h.shape)}, and goes with {tuple(value.shape)}")
            if not bool(h.isfinite().all()):
                raise ValueError(f"the direction for {name} is not finite")
            if h.is_complex() and not value.is_complex():
                raise ValueError(f"the direction for {name} is complex, and what it goes with is real")
            found |= dict.fromkeys(nodes, h.detach().to(value.dtype) * self.sign)
        return found

    def _only(self, known: Mapping[str, str]) -> str:
        """The first floating input, or the first ids."""
        floating = [name for name, node in known.items() if self.values[node].is_floating_point()]
        return next(iter([*floating, *known]))

    def _looked_up(self, name: str) -> tuple[str, Tensor]:
        """The node that looks these ids up, and what it finds."""
        cut = next((node for node in self.cuts.values() if info(node).origin == name), None)
        if cut is None:
            raise TypeError(
                f"the input {name} holds integers and is looked up in no embedding: there is no line through integers. "
                "Give floating inputs, or wrt='parameters'"
            )

        def computed(node: fx.Node) -> Any:
            if node.op == "placeholder":
                return self.values[node.name]
            args, kwargs = fx.map_arg((node.args, node.kwargs), computed)
            return node.target(*args, **kwargs)  # type: ignore[operator]

        with torch.no_grad():
            return cut.name, computed(cut)

    def through(self, run: Run) -> Any:
        """The jet of the output."""
        given = {node: Jet(torch.stack([self.values[node], h])) for node, h in self.outer.items()}
        return run.of(self.program, {**self.values, **given}, moved=self.inner)

    def value(self, t: float) -> Tensor:
        """F at t, by the program's own operations."""
        given = {node: self.values[node] + t * h for node, h in self.outer.items()}

        def visit(node: fx.Node, args: Any, kwargs: Any) -> Any:
            value = node.target(*args, **kwargs)  # type: ignore[operator]
            return value + t * self.inner[node.name] if node.name in self.inner else value

        return interpret(self.program.graph, {**self.values, **given}, visit)  # type: ignore[no-any-return]
