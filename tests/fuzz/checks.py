"""What must hold of every program. A check raises AssertionError with the numbers, or a refusal of the library."""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
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

__all__ = ["CHECKS", "Subject", "depth"]

RULES = (*TWINS, "EpsilonPlus", "gamma-vit", "deep-taylor", "dynamiclrp")
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

CHECKS: dict[str, Callable[[Subject], None]] = {}
"""By name. Each is given a `Subject`."""


class Subject:
    """A program with what several checks need of it, made when it is asked for."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.model, self.inputs = program.model(), program.draw()
        self.wide = program.dtype == "float64"
        self.tolerance = 1e-9 if self.wide else 1e-4
        self.refused: list[str] = []
        self._explained: dict[str, Any] = {}

    @cached_property
    def value(self) -> Tensor:
        with torch.no_grad():
            return self.model(*self.inputs)

    @cached_property
    def recorded(self) -> tw.core.program.Program:
        return tw.capture(self.model, *self.inputs)

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


def check(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
    CHECKS[function.__name__] = function
    return function


def everything(output: Tensor) -> Tensor:
    """A number for each sample, to which every entry contributes in its own measure."""
    flat = output.flatten(1)
    return (flat * (torch.arange(flat.shape[1], dtype=flat.dtype) + 1).cos()).sum(1)  # no matrix product, which rules know


def near(ours: Tensor, theirs: Tensor, tolerance: float, what: str, scale: float = 0.0) -> None:
    scale = max(scale, theirs.abs().max().item(), 1e-3)
    apart = (ours - theirs).abs().max().item()
    assert apart <= tolerance * scale, f"{what}: {apart:.2g} apart, at a size of {scale:.2g}"


# -- capture -----------------------------------------------------------------------------------------------------------


@check
def recording(subject: Subject) -> None:
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


# -- relevance ---------------------------------------------------------------------------------------------------------


@check
def relevance_closes(subject: Subject) -> None:
    """Whole = inputs + biases + constants + losses, these at rules that may lose; float32 says what float64 does."""
    for rules in RULES:
        why = subject.explained(rules)
        if why is None:
            continue
        if rules == "dynamiclrp" and cancels(subject.recorded, list(subject.inputs)):
            continue  # R of a sum that is exactly 0 goes to both summands, divided by next to nothing: all digits are lost
        near(why.whole, chosen(subject), subject.tolerance, f"{rules}: the whole is another number")
        sizes = sum(part.abs().reshape(len(part), -1).sum(1) for part in why.parts.values())
        gap = (why.whole - why.total()).abs()
        assert (gap <= subject.tolerance * (why.whole.abs() + sizes)).all(), (
            f"{rules}: does not add up, {gap.tolist()} of {why.whole.tolist()}"
        )
        if rules in TWINS:
            lossy = {op_name(n) for n in subject.recorded.nodes if rules_of(subject.recorded, rules).get(n.name) in LOSSY}
            lost = [n for n, part in why.parts.items() if n.startswith("rule:") and part.abs().max() > 0]
            assert all(name.removeprefix("rule:").partition("@")[0] in lossy for name in lost), (
                f"{rules}: {lost} lose, of {lossy} that may"
            )


@check
def narrow_is_wide(subject: Subject) -> None:
    """The relevance in float32 is that in float64, up to rounding."""
    if subject.wide or subject.program.seed % 4:  # a recording more
        return
    model = copy.deepcopy(subject.model).double()
    inputs = [x.double() if x.is_floating_point() else x for x in subject.inputs]
    for rules in ("attnlrp", "zero", "gamma"):
        narrow = subject.explained(rules)
        wide = subject.unless_refused(lambda: tw.explain(model, *inputs, rules=rules, target=subject.target))
        if narrow is not None and wide is not None:
            size = max(part.abs().max().item() for part in wide.parts.values())
            for name, part in wide.parts.items():
                near(narrow.parts[name].double(), part, 1e-2, f"{rules}: {name}", size)


@check
def relevance_is_its_twin(subject: Subject) -> None:
    """Input by input, and the sums over constants and losses, as a walk by definitions says, of a sample by itself."""
    if not subject.wide:
        return
    sample = 1
    alone = [x[sample : sample + 1] for x in subject.inputs]
    program = tw.capture(subject.model, *alone)
    tolerance = 1e-4 if subject.ops & DIFFERENCES else 1e-7
    for rules, twin in TWINS.items():
        if (twin.splits and "batch_norm" in subject.ops) or (why := subject.explained(rules)) is None:
            continue
        start = subject.target if callable(subject.target) else lambda y: y[:, subject.target]
        if (found := walk(program, alone, start, rules)) is None:
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


@check
def relevance_is_gradient_times_input(subject: Subject) -> None:
    """Where every operation is linear between kinks, by autograd through the model itself."""
    degree_one = {*MOVES, *SUMS, *WINNERS, *HOMOGENEOUS, "add", "sub", "rsub", "cat", "stack", "linear", "conv1d", "conv2d", "sym_size",
                  "conv_transpose1d", "conv_transpose2d", "batch_norm", "addmm", "max", "min", "diff", "lerp", "embedding"}  # fmt: skip
    if not {op_name(n) for n in subject.recorded.nodes if info(n).active} <= degree_one:
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


def chosen(subject: Subject) -> Tensor:
    return subject.value[:, subject.target] if isinstance(subject.target, int) else subject.target(subject.value)


# -- jets --------------------------------------------------------------------------------------------------------------

ORDER = 3


@check
def jets_are_nested_derivatives(subject: Subject) -> None:
    """Coefficients along a parabola through the input, by forward derivatives of forward derivatives, or by a polynomial fit."""
    if not subject.wide or all(not x.is_floating_point() for x in subject.inputs):
        return
    model, bends = subject.model, _bends(subject.inputs)
    found = subject.unless_refused(lambda: tw.jet(model, subject.inputs, bends))
    if found is None:
        return

    def along(t: Tensor) -> Tensor:
        return model(*(x + t * b[0] + t * t * b[1] if b else x for x, b in zip(subject.inputs, bends, strict=True)))

    near(found[0], subject.value, 1e-12, "value of the jet")
    with torch.no_grad():
        wanted, tolerance = _derivatives(along, nested=not subject.ops & FITTED)
    size = 0.0
    for k, (ours, theirs) in enumerate(zip(found[1], wanted, strict=True), start=1):
        size = max(size, theirs.abs().max().item())
        near(ours, theirs, tolerance, f"coefficient {k} of the jet", size)


FITTED = {*WRONG, "prod", "scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "lstm_cell", "linalg_vector_norm", "var", "std", "cdist",
          "_euclidean_dist", "cosine_similarity", "group_norm", "rms_norm"}  # fmt: skip
"""Operators through which nested `torch.func.jvp` is wrong, or refused."""


def _bends(inputs: tuple[Tensor, ...]) -> list[list[Tensor]]:
    """Coefficients of a parabola for every input that is no index."""
    return [[0.2 * (3 * x).sin(), 0.1 * (5 * x).cos(), 0 * x] if x.is_floating_point() else [] for x in inputs]


def _derivatives(along: Callable[[Tensor], Tensor], *, nested: bool) -> tuple[list[Tensor], float]:
    """Coefficients of orders 1 to 3, and how right they are."""
    if nested:
        try:
            return _nested(along), 1e-8
        except (NotImplementedError, RuntimeError):  # torch has no forward derivative of a derivative of something in it
            pass
    return _fitted(along), 1e-3


def _nested(along: Callable[[Tensor], Tensor]) -> list[Tensor]:
    zero, one, found = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64), []
    derivative = along
    for k in range(1, ORDER + 1):
        derivative = _slope(derivative, one)
        found.append(derivative(zero) / math.factorial(k))
    return found


def _slope(f: Callable[[Tensor], Tensor], one: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.func.jvp(f, (t,), (one,))[1]


def _fitted(along: Callable[[Tensor], Tensor], reach: float = 0.004, points: int = 7) -> list[Tensor]:
    """The polynomial through Chebyshev's points, so near that no kink lies between."""
    places = torch.cos((torch.arange(points, dtype=torch.float64) + 0.5) * math.pi / points)
    values = torch.stack([along(reach * t) for t in places])
    powers = places[:, None] ** torch.arange(points)
    coefficients = torch.linalg.solve(powers, values.flatten(1)).reshape(points, *values.shape[1:])
    return [coefficients[k] / reach**k for k in range(1, ORDER + 1)]


@check
def expansion_converges(subject: Subject) -> None:
    """The series of order 6 is the function at a small step, and `order_k` what it is by a jet."""
    if not subject.wide or not subject.inputs[0].is_floating_point():
        return
    direction, at = 0.2 * (3 * subject.inputs[0]).sin(), 0.01
    series = subject.unless_refused(lambda: tw.expand(subject.model, *subject.inputs, direction, order=6, at=at))
    if series is None:
        return
    with torch.no_grad():
        moved = subject.model(subject.inputs[0] + at * direction, *subject.inputs[1:])
    near(series.whole, moved, 1e-12, "the whole of the expansion")
    if series.kink_radius > 2 * at:
        near(series.total(), moved, 1e-9, "the sum of the expansion")


# -- compression -------------------------------------------------------------------------------------------------------


@check
def compression_keeps_all_at_full_budget(subject: Subject) -> None:
    """Nothing is taken away where nothing need be, by each method in turn."""
    if not any(isinstance(m, nn.Linear | nn.Conv2d) for m in subject.model.modules()):
        return
    names = list(METHODS)
    method = names[subject.program.seed % len(names)]
    data = [subject.program.draw(4, seed=10 + i) for i in range(8)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            small = tw.compress(subject.model, 1.0, data=data, method=method, progress=False)
        except ValueError as problem:
            if "nothing in this model can be compressed" in str(problem):
                return
            raise
    with torch.no_grad():
        near(small.model(*subject.inputs), subject.value, 1e-8 if subject.wide else 1e-3, f"{method} at full budget")


# -- files -------------------------------------------------------------------------------------------------------------


@check
def files_keep_everything(subject: Subject) -> None:
    """An explanation and an expansion, saved and loaded, are the same to the bit."""
    found: list[Decomposition | None] = [subject.explained("default")]
    if subject.inputs[0].is_floating_point():
        found.append(
            subject.unless_refused(lambda: tw.expand(subject.model, *subject.inputs, subject.inputs[0], order=1, at=0.01))
        )
    with tempfile.TemporaryDirectory() as folder:
        for d in found:
            if d is None:
                continue
            again = type(d).load(d.save(Path(folder) / "one"))
            assert type(again) is type(d), "another class came back"
            for f in fields(d):
                assert same(getattr(d, f.name), getattr(again, f.name)), f"{type(d).__name__}.{f.name} came back otherwise"


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
