"""Higher-order AD of higher-order functions (paper 49): correctness, structure, higher orders, perturbations, reverse mode."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from termwise.core.claims import claim

from ..higher_order import (
    App,
    Arrow,
    Const,
    Lam,
    ListT,
    Numbers,
    Op,
    Prod,
    Proj,
    Real,
    Sum,
    Term,
    Tuple,
    Type,
    Var,
    alpha_equal,
    coefficient,
    derivative_type,
    differentiate,
    evaluate,
    free,
    gradient,
    higher_order,
    lift,
    meaning,
    multi_indices,
    random_program,
    random_term,
    reals,
    reverse,
    substitute,
    typecheck,
)
from ..jet import jet
from .wrong_derivatives import capturing, exp, functions_as_constants, shifted, slope_of

REAL, TWO = Real(), reals(2)
KEY = "higher-order-ad"


def _points(seed: int, count: int) -> list[Tensor]:
    return list(torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def _program(seed: int, inputs: int = 2) -> Term:
    """Random, and of its inputs."""
    rng = random.Random(seed)
    while not free((found := random_program(rng, inputs, rng.randint(3, 6))).body):  # type: ignore[attr-defined]
        pass
    return found


def _off(found: Tensor, truth: Tensor) -> float:
    return (abs(found - truth) / (1 + abs(truth))).item()


@claim(
    KEY,
    statement="forward mode as a structure-preserving map gives the derivative of every program real^n -> real, whatever "
    "functions of functions, variants and folds it goes through",
    published="theorem: D is correct at first-order types, and the one structure-preserving map with these operations",
    exact=True,
    note="300 random well-typed programs against torch.func.jvp; control: the map, what functions close over held constant",
)
def forward_is_the_derivative() -> tuple[str, bool]:
    worst, of_functions, moving, control = 0.0, 0, 0, 0
    for seed in range(300):
        program, (a, b, v, w) = _program(seed), _points(seed, 4)
        at = lift(TWO, (a, b), (v, w))
        _, truth = torch.func.jvp(lambda a, b, p=program: evaluate(p, (a, b)), (a, b), (v, w))
        of_functions += higher_order(program)
        moving += bool(truth != 0)
        worst = max(worst, _off(evaluate(differentiate(program), at)[1], truth))
        control += _off(evaluate(functions_as_constants(differentiate(program)), at)[1], truth) > 1e-6
    measured = (
        f"off by {worst:.0e}; {of_functions} of 300 have functions of functions, cases or folds inside, {moving} derivatives are "
    )
    return measured + f"not 0; control wrong in {control}", worst < 1e-9 and min(of_functions, moving) >= 200 and control >= 30


@claim(
    KEY,
    statement="D preserves types, D(t) : D(type of t), and commutes with substitution, D(t[s/x]) = D(t)[D(s)/x]; "
    "as maps of functions D(g . f) = D(g) . D(f)",
    published="D is a functor that preserves products, sums, function spaces and inductive types",
    exact=True,
    note="300 random open terms; D(g . f) at types with functions, on functions that move; control: substitution that captures",
)
def the_map_preserves_structure() -> tuple[str, bool]:
    types = commutes = captured = 0
    worst = 0.0
    for seed in range(300):
        rng = random.Random(seed)
        of = rng.choice([REAL, Arrow(REAL, REAL), ListT(REAL), Sum(REAL, TWO)])
        names: dict[str, Type] = {"x": REAL, "y": REAL, "p": Arrow(REAL, REAL)}
        wanted = rng.choice([REAL, Arrow(REAL, REAL), Prod((REAL, ListT(Arrow(REAL, REAL))))])
        t, s = random_term(rng, wanted, {**names, "f": of}, 5), random_term(rng, of, names, 3)
        moved = {name: derivative_type(type) for name, type in {**names, "f": of}.items()}
        types += typecheck(differentiate(t, 1, 1), moved) == derivative_type(wanted)
        right = substitute(differentiate(t), "f", differentiate(s))
        commutes += alpha_equal(differentiate(substitute(t, "f", s)), right)
        captured += not alpha_equal(differentiate(capturing(t, "f", s)), right)
        worst = max(worst, _functor(rng))
    measured = (
        f"types {types} of 300, substitution {commutes} of 300 (capturing: {captured} wrong), composition off by {worst:.0e}"
    )
    return measured, types == commutes == 300 and worst < 1e-9 and captured >= 10


def _functor(rng: random.Random) -> float:
    """How far D(g . f) is from D(g) . D(f), f and g between functions, on t -> (x -> k(t, x)); and from the truth in t."""
    function = Arrow(REAL, REAL)
    middle = rng.choice([function, Prod((REAL, function)), ListT(REAL), Sum(REAL, function)])
    f = Lam("f", function, random_term(rng, middle, {"f": function}, 4))
    g = Lam("g", middle, random_term(rng, REAL, {"g": middle}, 4))
    k = Lam("t", REAL, Lam("x", REAL, random_term(rng, REAL, {"t": REAL, "x": REAL}, 3)))
    both = Lam("f", function, App(g, App(f, Var("f"))))
    t, one = torch.tensor(0.4, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    curve = evaluate(differentiate(k), (t, one))
    whole = evaluate(differentiate(both), curve)[1]
    steps = evaluate(differentiate(g), evaluate(differentiate(f), curve))[1]
    _, truth = torch.func.jvp(lambda t: evaluate(both, evaluate(k, t)), (t,), (one,))
    return max(_off(whole, steps), _off(whole, truth))


@claim(
    KEY,
    statement="over Taylor blocks the same map gives all partial derivatives to order 4 along two directions",
    published="the analysis extends to higher derivatives by Taylor approximations",
    exact=True,
    note="12 random programs against nested torch.func.jvp (right here: no fused norms), and tw.jet along curves; control: mixed "
    "coefficients left at 0",
)
def blocks_hold_all_partial_derivatives() -> tuple[str, bool]:
    worst, by_jets, control = 0.0, 0.0, 0
    for seed in range(12):
        program, at, v, w = _program(seed), _points(seed, 2), _points(seed + 1, 2), _points(seed + 2, 2)
        found = evaluate(differentiate(program, 2, 4), lift(TWO, at, v, w, order=4))

        def along(t: Tensor, u: Tensor) -> Tensor:
            return evaluate(program, tuple(a + t * b + u * c for a, b, c in zip(at, v, w, strict=True)))

        truth = {alpha: _nested(along, alpha) for alpha in multi_indices(2, 4)}
        worst = max(worst, *(_off(coefficient(REAL, found, alpha, 4), t) for alpha, t in truth.items()))
        control += max(_off(0 * t, t) for alpha, t in truth.items() if all(alpha)) > 1e-6
        curves = [_points(seed + 3, 5), _points(seed + 4, 5)]
        value, series = jet(lambda a, b, p=program: evaluate(p, (a, b)) + 0 * a, [c[0] for c in curves], [c[1:] for c in curves])
        ours = evaluate(differentiate(program, 1, 4), tuple(map(tuple, curves)))
        by_jets = max(by_jets, *(_off(a, b) for a, b in zip(ours, [value, *series], strict=True)))
    measured = f"15 partials of 12 programs off by {worst:.0e}, jets by {by_jets:.0e}; without mixed ones {control} are wrong"
    return measured, worst < 1e-8 and by_jets < 1e-8 and control >= 4


def _nested(f: Callable[..., Tensor], alpha: tuple[int, ...]) -> Tensor:
    for i, times in enumerate(alpha):
        unit = tuple(torch.tensor(float(i == j)).double() for j in range(len(alpha)))
        for _ in range(times):
            f = (lambda g, unit: lambda *t: torch.func.jvp(g, t, unit)[1])(f, unit)
    return f(*torch.zeros(len(alpha)).double()) / math.prod(map(math.factorial, alpha))


@claim(
    KEY,
    statement="derivatives inside derivatives are not confused, nor at function type: d/dx x (d/dy (x + y)) = 1, the "
    "derivative of x -> (f -> f(x + .)) at 0 applied twice to f is f''",
    published="(the known failure of tagless dual numbers; the map has no tags)",
    exact=True,
    note="control: dual numbers of one kind, which give 2 and 0",
)
def perturbations_are_not_confused() -> tuple[str, bool]:
    x, y, f = Var("x"), Var("y"), Var("f")
    plus = Lam("x", REAL, Lam("y", REAL, Op("add", (x, y))))
    slope = Proj(App(App(differentiate(plus), Tuple((x, Const(0)))), Tuple((Const(1), Const(1)))), 1)
    nested = Lam("x", REAL, Op("mul", (x, slope)))
    shift = Lam("x", REAL, Lam("f", Arrow(REAL, REAL), Lam("y", REAL, App(f, Op("add", (x, y))))))

    def hat(term: Term) -> Term:
        at = App(App(differentiate(shift), Tuple((Const(0), Const(1)))), differentiate(term))
        return Lam("y", REAL, Proj(App(at, Tuple((y, Const(0)))), 1))

    t = torch.tensor(0.7, dtype=torch.float64)
    first = evaluate(differentiate(nested), (t, torch.ones_like(t)))[1].item()
    second = evaluate(hat(hat(Lam("x", REAL, Op("exp", (x,))))), t).item()
    wrong = slope_of(lambda x: x * slope_of(lambda y: x + y)(1.0))(0.7)
    wronger = shifted(shifted(exp))(0.7)
    measured = f"{first:g} and {second / math.exp(0.7):.12g} e^x; tagless dual numbers {wrong:g} and {wronger:g} e^x"
    return measured, first == 1 and abs(second - math.exp(0.7)) < 1e-12 and (wrong, wronger) == (2, 0)


@claim(
    KEY,
    statement="the reverse twin is the transpose of the forward map, and by a tape costs 5 evaluations at most, for any n",
    published="(ours: the same map with backpropagators for reals; cheap gradients on a tape: Griewank & Walther)",
    exact=True,
    note="60 random programs of 3 inputs; operations counted on one of n = 4, 16, 64; control: forward mode, n passes",
)
def reverse_is_the_transpose() -> tuple[str, bool]:
    worst = 0.0
    for seed in range(60):
        program, at = _program(seed, 3), tuple(_points(seed, 3))
        forward = [evaluate(differentiate(program), lift(reals(3), at, e))[1] for e in torch.eye(3).double()]
        twin, taped = evaluate(reverse(program), at)[1], gradient(program, at).gradient
        worst = max(worst, *(max(_off(b, a), _off(c, a)) for a, b, c in zip(forward, twin, taped, strict=True)))
    costs, passes = [], []
    for n in (4, 16, 64):
        body: Term = Proj(Var("x"), 0)
        for i in range(1, n):
            body = Op("tanh", (Op("add", (Op("mul", (body, Proj(Var("x"), i))), Op("sigmoid", (Proj(Var("x"), i),)))),))
        program, at, once, along = Lam("x", reals(n), body), tuple(_points(n, n)), Numbers(), Numbers()
        meaning(program, once, at)
        meaning(differentiate(program), along, lift(reals(n), at, at))
        costs.append(gradient(program, at).count / once.count)
        passes.append(n * along.count / once.count)
    measured = (
        f"off by {worst:.0e}; {', '.join(f'{c:.1f}' for c in costs)} evaluations, forward {', '.join(f'{p:.0f}' for p in passes)}"
    )
    return measured, worst < 1e-9 and max(costs) <= 5 < 64 < passes[-1]
