"""What must hold of every program. A check raises AssertionError with the numbers, or a refusal of the library.

It yields a pair for whatever it could have judged: what that is, and why it was not judged, or "".
"""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from tests.fuzz.programs import CLASSES, Program
from tests.fuzz.twin import TWINS, cancels, walk
from torch import Tensor, nn

import termwise as tw
from termwise.core.composite import Composite
from termwise.core.decomposition import Decomposition
from termwise.core.program import info, op_name
from termwise.functions.nested import WRONG
from termwise.predictions.rules import LOSSY, rules_of
from termwise.predictions.rules.linear import HOMOGENEOUS, MOVES, SUMS, WINNERS
from termwise.weights.methods import METHODS

__all__ = ["CHECKS", "FLOORS", "Subject", "depth"]

REFUSED = "refused by name"
RULES = (*TWINS, "EpsilonPlus", "gamma-vit", "deep-taylor", "dynamiclrp")
ROUNDING = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
DIFFERENCES = {
    "var",
    "std",
    "linalg_vector_norm",
    "norm",
    "cdist",
    "_euclidean_dist",
    "_cdist_forward",
    "hypot",
    "maximum",
    "minimum",
}
"""Operators whose slow definition takes differences: it is right to six digits or so."""

DEGREE_ONE = {*MOVES, *SUMS, *WINNERS, *HOMOGENEOUS, "add", "sub", "rsub", "cat", "stack", "linear", "conv1d", "conv2d", "sym_size",
              "conv_transpose1d", "conv_transpose2d", "batch_norm", "addmm", "max", "min", "diff", "lerp", "embedding"}  # fmt: skip
"""Operators that are linear between kinks, but for a constant."""

CHECKS: dict[str, Callable[[Subject], Iterator[tuple[str, str]]]] = {}
"""By name. Each is given a `Subject`."""
FLOORS: dict[str, float] = {}
"""The share of programs in which each thing that a check judges is judged, at least."""


class Subject:
    """A program with what several checks need of it, made when it is asked for."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.model, self.inputs = program.model(), program.draw()
        self.wide = program.dtype == "float64"
        self.tolerance = 1e-9 if self.wide else 1e-4
        self.refused: list[str] = []
        self.verdicts: list[tuple[str, str, str]] = []
        self._explained: dict[str, Any] = {}

    @cached_property
    def value(self) -> Tensor:
        with torch.no_grad():
            return self.model(*self.inputs)

    @cached_property
    def widened(self) -> Subject:
        """The same, weights and inputs, in float64."""
        wide = Subject(self.program)
        wide.model = copy.deepcopy(self.model).double()
        wide.inputs = tuple(x.double() if x.is_floating_point() else x for x in self.inputs)
        return wide

    @cached_property
    def recorded(self) -> tw.core.program.Program:
        return tw.capture(self.model, *self.inputs)

    @cached_property
    def jet(self) -> tuple[Tensor, list[Tensor]] | None:
        """Coefficients along a parabola; None where there are none to judge, and `jetless` says why."""
        self.jetless = "float32" if not self.wide else "no floating input"
        if not self.wide or not any(x.is_floating_point() for x in self.inputs):
            return None
        self.jetless = REFUSED
        return self.unless_refused(lambda: tw.jet(self.model, self.inputs, _bends(self.inputs)))

    @property
    def ops(self) -> set[str]:
        """The operators of the recording, within patterns too."""
        found: set[str] = set()
        stack = [self.recorded.graph]
        while stack:
            for node in stack.pop().nodes:
                if isinstance(node.target, Composite):
                    stack.append(node.target.graph)
                elif isinstance(node.target, torch._ops.OpOverload):
                    found.add(op_name(node))
        return found

    @cached_property
    def target(self) -> Any:
        """A class, or where there are none a number made of everything."""
        return 1 if self.value.shape[1:] == (CLASSES,) else everything

    def explained(self, rules: str) -> Any | None:
        """An explanation, or None where these rules refuse the program by name."""
        if rules not in self._explained:
            self._explained[rules] = self.unless_refused(
                lambda: tw.explain(self.model, *self.inputs, rules=rules, target=self.target)
            )
        return self._explained[rules]

    def unless_refused(self, call: Callable[[], Any]) -> Any | None:
        """What the call returns, or None where it says that there is no rule for an operation."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return call()
        except ValueError as problem:
            if "relevance form" in str(problem):  # documented: recurrent layers in `dynamiclrp`
                return None
            if any(text in str(problem) for text in ("no rule for", "no jet rule for", "hold constant")):
                self.refused.append(str(problem).partition(" (")[0].partition(":")[0])
                return None
            raise


def check(floor: float) -> Any:
    def named(function: Callable[[Subject], Iterator[tuple[str, str]]]) -> Any:
        CHECKS[function.__name__], FLOORS[function.__name__] = function, floor
        return function

    return named


def everything(output: Tensor) -> Tensor:
    """A number for each sample, to which every entry contributes in its own measure."""
    flat = output.flatten(1)
    return (flat * (torch.arange(flat.shape[1], dtype=flat.dtype) + 1).cos()).sum(1)  # no matrix product, which rules know


def near(ours: Tensor, theirs: Tensor, tolerance: float, what: str, scale: float = 0.0) -> None:
    scale = max(scale, theirs.abs().max().item(), 1e-3)
    apart = (ours - theirs).abs().max().item()
    assert apart <= tolerance * scale, f"{what}: {apart:.2g} apart, at a size of {scale:.2g}"


# -- capture -----------------------------------------------------------------------------------------------------------


@check(floor=1)
def recording(subject: Subject) -> Iterator[tuple[str, str]]:
    """The recording is the model, to the bit, at its own batch size and at others."""
    assert torch.equal(subject.recorded(*subject.inputs), subject.value), "the recording computes something else"
    for batch in (1, 5):
        inputs = subject.program.draw(batch, seed=batch)
        again = tw.capture(subject.model, *inputs)
        if all(0 in axes for axes in subject.recorded.dynamic.values()):
            assert again.graph is subject.recorded.graph, f"recorded anew for a batch of {batch}"
        with torch.no_grad():
            assert torch.equal(again(*inputs), subject.model(*inputs)), (
                f"the recording computes something else in a batch of {batch}"
            )
    yield "", ""


# -- relevance ---------------------------------------------------------------------------------------------------------


@check(floor=0.5)
def relevance_closes(subject: Subject) -> Iterator[tuple[str, str]]:
    """Whole = inputs + biases + constants + losses, these at rules that may lose; float32 says what float64 does."""
    for rules in RULES:
        why = subject.explained(rules)
        if why is None:
            yield rules, REFUSED
            continue
        if rules in ("dynamiclrp", "deep-taylor") and cancels(subject.recorded, list(subject.inputs)):
            yield rules, "a sum is 0, or next to it"
            continue  # these give R to a sum that is 0, where it goes to both summands, divided by next to nothing: without digits
        near(why.whole, chosen(subject), subject.tolerance, f"{rules}: the whole is another number")
        gap, size = _gap(why)
        allowed = subject.tolerance * size
        if (
            not subject.wide and (gap > allowed).any()
        ):  # many digits are lost in some sums: as many as in float64, where it closes
            gap64, size64 = _gap(subject.widened.explained(rules))
            assert (gap64 <= 1e-9 * size64).all(), (
                f"{rules}: does not add up in float64 either, {gap64.tolist()} of {size64.tolist()}"
            )
            allowed = 100 * ROUNDING * gap64.max()
        assert (gap <= allowed).all(), f"{rules}: does not add up, {gap.tolist()} of {why.whole.tolist()}"
        if rules in TWINS:
            lossy = {op_name(n) for n in subject.recorded.nodes if rules_of(subject.recorded, rules).get(n.name) in LOSSY}
            lost = [n for n, part in why.parts.items() if n.startswith("rule:") and part.abs().max() > 0]
            assert all(name.removeprefix("rule:").partition("@")[0] in lossy for name in lost), (
                f"{rules}: {lost} lose, of {lossy} that may"
            )
        yield rules, ""


@check(floor=0.04)
def narrow_is_wide(subject: Subject) -> Iterator[tuple[str, str]]:
    """The relevance in float32 is that in float64, up to rounding."""
    if subject.wide or subject.program.seed % 4:  # a recording more
        yield "", "float64" if subject.wide else "three of four"
        return
    for rules in ("attnlrp", "zero", "gamma"):
        narrow, wide = subject.explained(rules), subject.widened.explained(rules)
        if narrow is None or wide is None:
            yield rules, REFUSED
            continue
        size = max(part.abs().max().item() for part in wide.parts.values())
        for name, part in wide.parts.items():
            near(narrow.parts[name].double(), part, 1e-2, f"{rules}: {name}", size)
        yield rules, ""


@check(floor=0.4)
def relevance_is_its_twin(subject: Subject) -> Iterator[tuple[str, str]]:
    """Input by input, and the sums over constants and losses, as a walk by definitions says, of a sample by itself."""
    if not subject.wide:
        yield "", "float32"
        return
    sample = 1
    alone = [x[sample : sample + 1] for x in subject.inputs]
    program = tw.capture(subject.model, *alone)
    tolerance = 1e-4 if subject.ops & DIFFERENCES else 1e-7
    for rules, twin in TWINS.items():
        if twin.splits and "batch_norm" in subject.ops:
            yield rules, "batch norm is folded"
            continue
        if (why := subject.explained(rules)) is None:
            yield rules, REFUSED
            continue
        start = subject.target if callable(subject.target) else lambda y: y[:, subject.target]
        if (found := walk(program, alone, start, rules)) is None:
            yield rules, "equal numbers leave 0"
            continue
        size = sum(part[sample].abs().sum().item() for part in why.inputs.values()) + abs(why.whole[sample].item())
        for name, ours in why.inputs.items():
            theirs = found.inputs.get(name, torch.zeros(1))
            near(ours[sample], theirs[0], tolerance, f"{rules}: relevance of {name}", size)
        sums = {True: 0.0, False: 0.0}
        for name, part in why.parts.items():
            if not name.startswith("input:"):
                sums[name.startswith("rule:")] += part[sample].sum().item()
        for ours, theirs, what in ((sums[False], found.constants, "constants"), (sums[True], found.lost, "losses")):
            near(torch.tensor(ours), torch.tensor(theirs), tolerance, f"{rules}: {what} {ours} for {theirs}", size)
        yield rules, ""


@check(floor=0.03)
def relevance_is_gradient_times_input(subject: Subject) -> Iterator[tuple[str, str]]:
    """Where every operation is linear between kinks, by autograd through the model itself: of the first lines that are so."""
    if subject.program.family != "piecewise linear":
        yield "", "another family"
        return
    program, lines = subject.program, list(subject.program.lines.items())
    for k in (6, 4, 2, 1):
        subject = Subject(program.cut(dict(lines[:k])))
        if {op_name(n) for n in subject.recorded.nodes if info(n).active} <= DEGREE_ONE:
            break
    else:
        yield "", "not of degree one"
        return
    why = subject.explained("zero")
    leaves = [x.clone().requires_grad_() for x in subject.inputs if x.is_floating_point()]
    moving = iter(leaves)
    output = subject.model(*(next(moving) if x.is_floating_point() else x for x in subject.inputs))
    whole = output[:, subject.target] if isinstance(subject.target, int) else subject.target(output)
    slopes = torch.autograd.grad(whole.sum(), leaves) if leaves else ()
    names = [name for name in subject.program.inputs if not name.startswith("ids")]
    for name, x, slope in zip(names, leaves, slopes, strict=True):
        near(why.inputs[name], (x * slope).detach(), 10 * subject.tolerance, f"relevance of {name}", why.whole.abs().max().item())
    yield ("", "") if leaves else ("", "no floating input")


def _gap(why: Any) -> tuple[Tensor, Tensor]:
    """What is missing of the whole of each sample, and the size of all that was added."""
    sizes = sum(part.abs().reshape(len(part), -1).sum(1) for part in why.parts.values())
    return (why.whole - why.total()).abs(), why.whole.abs() + sizes


def chosen(subject: Subject) -> Tensor:
    return subject.value[:, subject.target] if isinstance(subject.target, int) else subject.target(subject.value)


# -- jets --------------------------------------------------------------------------------------------------------------

ORDER, NESTED = 6, 3
"""The highest coefficient of a jet that is judged, and the highest by nested derivatives, whose price grows exponentially."""


def along(subject: Subject, t: Tensor) -> Tensor:
    """The program on a parabola through its inputs."""
    curves = zip(subject.inputs, _bends(subject.inputs), strict=True)
    return subject.model(*(x + t * b[0] + t * t * b[1] if b else x for x, b in curves))


@check(floor=0.08)
def jets_are_nested_derivatives(subject: Subject) -> Iterator[tuple[str, str]]:
    """Coefficients along a parabola through the input, by forward derivatives of forward derivatives."""
    if (found := subject.jet) is None:
        yield "", subject.jetless
        return
    near(found[0], subject.value, 1e-12, "value of the jet")
    yield "order 0", ""
    if subject.ops & FITTED:
        yield f"order 1 to {NESTED}", "wrong or refused in torch, as known"
        return
    with torch.no_grad():
        nested = _nested(partial(along, subject))
    size = 0.0
    for k, (ours, theirs) in enumerate(zip(found[1], nested, strict=False), start=1):
        size = max(size, theirs.abs().max().item())
        near(ours, theirs, 1e-8, f"coefficient {k} of the jet", size)
    yield f"order 1 to {NESTED}", "" if nested else "no forward derivative of a derivative"


@check(floor=0.25)
def jets_are_fitted(subject: Subject) -> Iterator[tuple[str, str]]:
    """The same coefficients, and higher ones, by a polynomial fit."""
    if (found := subject.jet) is None:
        yield "", subject.jetless
        return
    with torch.no_grad():
        fitted = _fitted(partial(along, subject))
    size = subject.value.abs().max().item()
    for k, (ours, (theirs, error)) in enumerate(zip(found[1], fitted, strict=True), start=1):
        own = theirs.abs().max().item()
        size = max(size, own)
        if error > max(1e-2 * own, 1e-8 * size):
            yield f"order {k}", "the fit does not tell it, or one below"
            return  # what is larger than all below it would pass for their size
        apart = (ours - theirs).abs().max().item()
        assert apart <= error + 1e-8 * size, f"coefficient {k} of the jet: {apart:.2g} apart, at a size of {own:.2g}"
        yield f"order {k}", ""


FITTED = {*WRONG, "prod", "scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "lstm_cell", "linalg_vector_norm", "var", "std", "cdist",
          "_euclidean_dist", "cosine_similarity", "group_norm", "rms_norm"}  # fmt: skip
"""Operators through which nested `torch.func.jvp` is wrong, or refused."""


def _bends(inputs: tuple[Tensor, ...]) -> list[list[Tensor]]:
    """Coefficients of a parabola for every input that is no index."""
    return [[0.2 * (3 * x).sin(), 0.1 * (5 * x).cos(), *(ORDER - 2) * [0 * x]] if x.is_floating_point() else [] for x in inputs]


def _nested(along: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Coefficients of orders 1 to `NESTED`; none where torch has no forward derivative of a derivative of something in it."""
    zero, one, found = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64), []
    derivative = along
    for k in range(1, NESTED + 1):
        derivative = _slope(derivative, one)
        try:
            found.append(derivative(zero) / math.factorial(k))
        except (NotImplementedError, RuntimeError):
            return []
    return found


def _slope(f: Callable[[Tensor], Tensor], one: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.func.jvp(f, (t,), (one,))[1]


POINTS, REACHES = 20, [2.0**-k for k in range(-2, 9)]


def _fitted(along: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, float]]:
    r"""Coefficients of orders 1 to 6 and how wrong they may be, by Chebyshev's series at the reach that tells an order best.

        f(r t) = sum_n c_n T_n(t);      f_k = sum_n c_n [t^k] T_n / r^k,  wrong by  10 max |c_n| sum_n |[t^k] T_n| / r^k

    with the maximum over the last n, where nothing but rounding is left if there is no kink and no pole within reach.
    """
    angles = (torch.arange(POINTS, dtype=torch.float64) + 0.5) * math.pi / POINTS
    transform = 2 / POINTS * (torch.arange(POINTS)[:, None] * angles).cos()
    transform[0] /= 2
    powers = torch.zeros(POINTS, POINTS, dtype=torch.float64)  # row n: T_n by powers of t
    powers[0, 0] = powers[1, 1] = 1
    for n in range(2, POINTS):
        powers[n, 1:] = 2 * powers[n - 1, :-1]
        powers[n] -= powers[n - 2]
    found: list[tuple[Tensor, float]] = [(torch.zeros(()), math.inf)] * ORDER
    for reach in REACHES:
        values = torch.stack([along(reach * t) for t in angles.cos()])
        if not values.isfinite().all():
            continue
        series, rounding = torch.tensordot(transform, values, dims=1), 1e-15 * values.abs().max().item()
        left = max(series[-4:].abs().max().item(), rounding)
        for k in range(1, ORDER + 1):
            error = 10 * left * powers[:, k].abs().sum().item() / reach**k
            if error < found[k - 1][1]:
                found[k - 1] = torch.tensordot(powers[:, k], series, dims=1) / reach**k, error
        if left < 3 * rounding:  # nearer by there is but the same, divided by less
            break
    return found


@check(floor=0.3)
def expansion_converges(subject: Subject) -> Iterator[tuple[str, str]]:
    """The series of order 6 is the function at a small step, and `order_k` what it is by a jet."""
    if not subject.wide or not subject.inputs[0].is_floating_point():
        yield "", "float32" if not subject.wide else "the first input is ids"
        return
    x, *others = subject.inputs
    direction, at = 0.2 * (3 * x).sin(), 0.01
    series = subject.unless_refused(lambda: tw.expand(subject.model, *subject.inputs, direction, order=ORDER, at=at))
    if series is None:
        yield "", REFUSED
        return
    with torch.no_grad():
        moved = subject.model(x + at * direction, *others)
    near(series.whole, moved, 1e-12, "the whole of the expansion")
    line = [[direction, *(ORDER - 1) * [0 * x]], *([] for _ in others)]
    for k, c in enumerate(tw.jet(subject.model, subject.inputs, line)[1], start=1):
        near(series.coefficients[k], c, 1e-9, f"coefficient {k} of the expansion")
        near(series.parts[f"order_{k}"] / at**k, c, 1e-9, f"order_{k} of the expansion")
    yield "order_k", ""
    if series.kink_radius > 2 * at:
        last = series.parts[f"order_{ORDER}"].abs().max().item()  # the next one is smaller where the series converges
        near(series.total(), moved, 1e-9 + last, "the sum of the expansion")
    yield "sum", "" if series.kink_radius > 2 * at else "a kink is near"


# -- compression -------------------------------------------------------------------------------------------------------


@check(floor=0.8)
def compression_keeps_all_at_full_budget(subject: Subject) -> Iterator[tuple[str, str]]:
    """Nothing is taken away where nothing need be, by each method in turn."""
    if not any(isinstance(m, nn.Linear | nn.Conv2d) for m in subject.model.modules()):
        yield "", "no such layer"
        return
    names = list(METHODS)
    method = names[subject.program.seed % len(names)]
    data = [subject.program.draw(4, seed=10 + i) for i in range(8)]
    with torch.no_grad():
        if not all(subject.model(*batch).isfinite().all() for batch in data):  # a root of other numbers
            yield "", "no answer to other data"
            return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            small = tw.compress(subject.model, 1.0, data=data, method=method, progress=False)
        except ValueError as problem:
            if "nothing in this model can be compressed" in str(problem):
                yield "", "nothing to compress"
                return
            raise
    with torch.no_grad():
        near(small.model(*subject.inputs), subject.value, 1e-8 if subject.wide else 1e-3, f"{method} at full budget")
    yield "", ""


# -- files -------------------------------------------------------------------------------------------------------------


@check(floor=0.6)
def files_keep_everything(subject: Subject) -> Iterator[tuple[str, str]]:
    """An explanation and an expansion, saved and loaded, are the same to the bit."""
    found: dict[str, Decomposition | None] = {"explanation": subject.explained("default")}
    if subject.inputs[0].is_floating_point():
        found["expansion"] = subject.unless_refused(
            lambda: tw.expand(subject.model, *subject.inputs, subject.inputs[0], order=1, at=0.01)
        )
    else:
        yield "expansion", "the first input is ids"
    with tempfile.TemporaryDirectory() as folder:
        for what, d in found.items():
            if d is None:
                yield what, REFUSED
                continue
            again = type(d).load(d.save(Path(folder) / "one"))
            assert type(again) is type(d), "another class came back"
            for f in fields(d):
                assert same(getattr(d, f.name), getattr(again, f.name)), f"{type(d).__name__}.{f.name} came back otherwise"
            yield what, ""


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):  # which JSON has one of
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def depth(subject: Subject) -> int:
    """Operations on the longest way through the recording."""
    depths: Counter[Any] = Counter()
    for node in subject.recorded.nodes:
        if info(node).active:
            depths[node] = 1 + max((depths[a] for a in node.all_input_nodes), default=0)
    return max(depths.values(), default=0)
