"""The calculus: laws of its derivative on random well-typed programs, and what is refused."""

import itertools
import math
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, currently_in_test_context, given, settings
from hypothesis import strategies as st
from torch import Tensor

from termwise.functions import Expansion, jet
from termwise.functions.claims.wrong_derivatives import functions_as_constants
from termwise.functions.higher_order import (
    OPERATIONS,
    App,
    Arrow,
    Case,
    Cons,
    Const,
    Fold,
    Inl,
    Inr,
    Lam,
    Left,
    ListT,
    Nil,
    Numbers,
    Op,
    Positive,
    Prod,
    Proj,
    Real,
    Right,
    Sum,
    Tuple,
    Var,
    alpha_equal,
    coefficient,
    derivative_type,
    differentiate,
    evaluate,
    expansion,
    free,
    gradient,
    higher_order,
    let,
    lift,
    meaning,
    multi_indices,
    random_program,
    random_term,
    reals,
    reverse,
    reverse_type,
    substitute,
    typecheck,
)
from termwise.testing import check_decomposition

REAL, TWO = Real(), reals(2)
PROGRAM = Arrow(TWO, REAL)
rngs = st.builds(random.Random, st.integers(0, 2**32))  # a seed, and not draws one by one: hypothesis prefers those near 0
programs = st.builds(random_program, rngs, st.just(2), st.integers(2, 6))
law = settings(max_examples=60, deadline=None)


def points(count: int, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> None:
    if currently_in_test_context():
        assume(bool(wanted.isfinite()) and abs(wanted) < 1e8)
    assert abs(found - wanted) <= tolerance * (1 + abs(wanted)), (found.item(), wanted.item())


def by_nesting(f, alpha: tuple[int, ...]) -> Tensor:
    """The coefficient alpha of f(t_1, ..., t_k) at 0, one jvp around another (there are no fused norms: it is right here)."""
    for i, times in enumerate(alpha):
        unit = tuple(torch.tensor(float(i == j)).double() for j in range(len(alpha)))
        for _ in range(times):
            f = (lambda g, unit: lambda *t: torch.func.jvp(g, t, unit)[1])(f, unit)
    return f(*torch.zeros(len(alpha)).double()) / math.prod(map(math.factorial, alpha))


def op(name: str, *args):
    return Op(name, args)


def fun(name: str, type, body):
    return Lam(name, type, body)


x, y, f, g, h, s = map(Var, "xyfghs")


# -- operations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_to_third_order_in_two_directions(name):
    arity = OPERATIONS[name].arity
    term = fun("x", reals(arity), Op(name, tuple(Proj(x, i) for i in range(arity))))
    at = [torch.tensor(v).double() for v in (0.7, -0.4)][:arity]
    v, w = points(arity, 1), points(arity, 2)
    found = evaluate(differentiate(term, 2, 3), lift(reals(arity), at, v, w, order=3))
    for alpha in multi_indices(2, 3):
        along = lambda t, u: OPERATIONS[name].function(*(a + t * b + u * c for a, b, c in zip(at, v, w, strict=True)))
        close(coefficient(REAL, found, alpha, 3), by_nesting(along, alpha), 1e-12)
    slopes = torch.autograd.functional.jacobian(OPERATIONS[name].function, tuple(at))
    slopes = slopes if isinstance(slopes, tuple) else (slopes,)
    for twin, taped, truth in zip(evaluate(reverse(term), tuple(at))[1], gradient(term, tuple(at)).gradient, slopes, strict=True):
        close(twin, truth, 1e-14)
        close(taped, truth, 1e-14)


# -- laws -------------------------------------------------------------------------------------------------------------


def test_the_programs_are_not_first_order():
    made = [random_program(random.Random(seed), 2, 5) for seed in range(200)]
    assert sum(map(higher_order, made)) >= 120
    assert sum("in" in free(p.body) for p in made) >= 180


@law
@given(program=programs, seed=st.integers(0, 99))
def test_forward_is_the_derivative(program, seed):
    a, b, v, w = points(4, seed)
    value, tangent = evaluate(differentiate(program), lift(TWO, (a, b), (v, w)))
    whole, truth = torch.func.jvp(lambda a, b: evaluate(program, (a, b)), (a, b), (v, w))
    close(value, whole)
    close(tangent, truth)
    far = evaluate(program, (a + 1e-30j * v, b + 1e-30j * w))  # no positive in it: analytic
    close(tangent, far.imag / 1e-30 if far.is_complex() else torch.zeros_like(tangent))


@law
@given(program=programs, directions=st.integers(1, 3), order=st.integers(0, 3))
def test_types_are_preserved(program, directions, order):
    assert typecheck(program) == PROGRAM
    assert typecheck(differentiate(program, directions, order)) == derivative_type(PROGRAM, directions, order)
    assert typecheck(reverse(program)) == Arrow(TWO, Prod((REAL, TWO)))


@law
@given(rng=rngs, depth=st.integers(1, 4))
def test_every_type_is_preserved_below_free_names(rng, depth):
    names = {"x": REAL, "f": Arrow(REAL, REAL), "p": ListT(Arrow(REAL, REAL)), "c0": Sum(REAL, TWO)}
    wanted = rng.choice([*names.values(), Arrow(Arrow(REAL, REAL), Prod((REAL, ListT(REAL)))), Prod()])
    term = random_term(rng, wanted, names, depth)
    assert typecheck(term, names) == wanted
    moved = {name: derivative_type(type) for name, type in names.items()}
    assert typecheck(differentiate(term), moved) == derivative_type(wanted)


@law
@given(rng=rngs, depth=st.integers(1, 4))
def test_substitution_commutes(rng, depth):
    of = rng.choice([REAL, Arrow(REAL, REAL), ListT(REAL)])
    names = {"x": REAL, "y": REAL, "p": Arrow(REAL, REAL)}
    term = random_term(rng, rng.choice([REAL, Arrow(REAL, REAL)]), {**names, "f": of}, depth)
    value = random_term(rng, of, names, 2)
    inside = substitute(term, "f", value)
    assert typecheck(inside, names) == typecheck(term, {**names, "f": of})
    assert alpha_equal(differentiate(inside), substitute(differentiate(term), "f", differentiate(value)))
    a, b = points(2)
    given = {"x": a, "y": b, "p": torch.sin}
    bound = {**given, "f": meaning(value, Numbers(), names=given)}
    applied = (a,) if isinstance(typecheck(inside, names), Arrow) else ()
    close(meaning(inside, Numbers(), *applied, names=given), meaning(term, Numbers(), *applied, names=bound), 1e-12)


def test_substitution_captures_nothing():
    inner = fun("y", REAL, op("add", x, y))
    assert not alpha_equal(substitute(inner, "x", y), fun("y", REAL, op("add", y, y)))
    assert alpha_equal(substitute(inner, "x", y), fun("z", REAL, op("add", y, Var("z"))))
    assert substitute(inner, "y", x) == inner
    by_case = Case(s, "x", op("add", x, y), "y", op("add", x, y))
    assert free(by_case) == {"s", "x", "y"}
    assert alpha_equal(substitute(by_case, "x", y), Case(s, "x", op("add", x, y), "z", op("add", y, Var("z"))))
    assert not alpha_equal(fun("x", REAL, fun("y", REAL, x)), fun("x", REAL, fun("y", REAL, y)))
    assert not alpha_equal(Inl(x, REAL), Inl(x, TWO))
    assert not alpha_equal(Proj(x, 0), Proj(x, 1))


def test_a_function_keeps_the_names_it_saw():
    after = let("f", Arrow(REAL, REAL), fun("y", REAL, op("sub", x, y)), let("x", REAL, Const(100), App(f, Const(1))))
    program = fun("x", REAL, after)
    assert typecheck(program) == Arrow(REAL, REAL)
    assert evaluate(program, 3).item() == 2
    assert [v.item() for v in evaluate(differentiate(program), (3, 1))] == [2, 1]


@law
@given(rng=rngs)
def test_functor_at_function_type(rng):
    """D(g . f) = D(g) . D(f), the argument a function that moves: t -> (x -> k(t, x))."""
    middle = rng.choice([Arrow(REAL, REAL), Prod((REAL, Arrow(REAL, REAL))), ListT(REAL), Sum(REAL, Arrow(REAL, REAL))])
    first = fun("f", Arrow(REAL, REAL), random_term(rng, middle, {"f": Arrow(REAL, REAL)}, 4))
    then = fun("g", middle, random_term(rng, REAL, {"g": middle}, 4))
    both = fun("f", Arrow(REAL, REAL), App(then, App(first, f)))
    k = fun("s", REAL, fun("x", REAL, random_term(rng, REAL, {"s": REAL, "x": REAL}, 3)))
    t, one = points(1)[0], torch.ones((), dtype=torch.float64)
    curve = evaluate(differentiate(k), (t, one))
    step = evaluate(differentiate(then), evaluate(differentiate(first), curve))
    whole = evaluate(differentiate(both), curve)
    truth = torch.func.jvp(lambda t: evaluate(both, evaluate(k, t)), (t,), (one,))
    for a, b, c in zip(step, whole, truth, strict=True):
        close(a, b, 1e-13)
        close(b, c)


@law
@given(rng=rngs)
def test_function_spaces_by_currying(rng):
    body = random_term(rng, REAL, {"x": REAL, "y": REAL}, 4)
    curried = fun("x", REAL, fun("y", REAL, body))
    paired = fun("s", TWO, App(App(curried, Proj(s, 0)), Proj(s, 1)))
    (a, da), (b, db) = points(2, 3), points(2, 4)
    one = evaluate(differentiate(paired), ((a, da), (b, db)))
    for found, truth in zip(evaluate(differentiate(curried), (a, da))((b, db)), one, strict=True):
        close(found, truth, 1e-13)
    # a function of functions: its derivative takes the derivative of its argument
    at = fun("f", Arrow(REAL, REAL), op("mul", App(f, op("sin", App(f, Const(0.3)))), App(f, Const(1.1))))
    found = evaluate(differentiate(at), evaluate(differentiate(curried), (a, da)))
    truth = torch.func.jvp(lambda t: evaluate(at, evaluate(curried, t)), (a,), (da,))
    close(found[1], truth[1])


@law
@given(rng=rngs)
def test_products_sums_and_lists_item_by_item(rng):
    parts = [random_term(rng, REAL, {"in": TWO}, 3) for _ in range(3)]
    at = lift(TWO, points(2, 5), points(2, 6))
    single = [evaluate(differentiate(fun("in", TWO, part)), at) for part in parts]
    together = evaluate(differentiate(fun("in", TWO, Tuple(tuple(parts)))), at)
    listed = evaluate(differentiate(fun("in", TWO, Cons(parts[0], Cons(parts[1], Cons(parts[2], Nil(REAL)))))), at)
    left = evaluate(differentiate(fun("in", TWO, Inl(parts[0], TWO))), at)
    right = evaluate(differentiate(fun("in", TWO, Inr(parts[0], TWO))), at)
    assert together == tuple(single)
    assert listed == single  # of its own length, not of another
    assert (left, right) == (Left(single[0]), Right(single[0]))


@law
@given(rng=rngs, seed=st.integers(0, 99))
def test_chain_rule_from_vector_to_vector(rng, seed):
    inner = fun("in", TWO, random_term(rng, TWO, {"in": TWO}, 4))
    outer = fun("in", TWO, random_term(rng, TWO, {"in": TWO}, 4))
    both = fun("in", TWO, App(outer, App(inner, Var("in"))))

    def jacobian(term, at):
        columns = [coefficient(TWO, evaluate(differentiate(term), lift(TWO, at, e)), (1,)) for e in torch.eye(2).double()]
        return torch.stack([torch.stack(c) for c in columns], 1)

    at = points(2, seed)
    product = jacobian(outer, evaluate(inner, tuple(at))) @ jacobian(inner, at)
    assume(bool(product.isfinite().all()) and product.abs().max() < 1e6)
    torch.testing.assert_close(jacobian(both, at), product, rtol=1e-10, atol=1e-10)


@settings(law, max_examples=6)
@given(program=st.builds(random_program, rngs, st.just(2), st.integers(2, 4)))
def test_order_four_in_two_directions(program):
    at, v, w = points(2, 1), points(2, 2), points(2, 3)
    found = evaluate(differentiate(program, 2, 4), lift(TWO, at, v, w, order=4))
    along = lambda t, u: evaluate(program, tuple(a + t * b + u * c for a, b, c in zip(at, v, w, strict=True)))
    for alpha in multi_indices(2, 4):
        close(coefficient(REAL, found, alpha, 4), by_nesting(along, alpha), 1e-8)


@settings(law, max_examples=20)
@given(program=programs)
def test_blocks_are_derivatives_of_derivatives(program):
    """D_(2,2) holds what D(D) does: the macro goes over what it returns."""
    a, b, v, w, p, q = points(6, 7)
    zero = torch.zeros_like(a)
    twice = differentiate(differentiate(program))
    assert typecheck(twice) == derivative_type(derivative_type(PROGRAM))
    (value, first), (second, mixed) = evaluate(twice, (((a, v), (p, zero)), ((b, w), (q, zero))))
    block = evaluate(differentiate(program, 2, 2), lift(TWO, (a, b), (v, w), (p, q), order=2))
    found = {alpha: coefficient(REAL, block, alpha, 2) for alpha in multi_indices(2, 2)}
    for one, other in ((value, (0, 0)), (first, (1, 0)), (second, (0, 1)), (mixed, (1, 1))):
        close(one, found[other])


@settings(law, max_examples=8)
@given(program=programs)
def test_agrees_with_the_jet_interpreter(program):
    order = 4
    curves = [points(order + 1, 11), points(order + 1, 12)]
    value, series = jet(lambda a, b: evaluate(program, (a, b)) + 0 * a, [c[0] for c in curves], [c[1:] for c in curves])
    found = evaluate(differentiate(program, 1, order), tuple(map(tuple, curves)))
    for ours, truth in zip(found, [value, *series], strict=True):
        close(ours, truth, 1e-10)


@settings(law, max_examples=30)
@given(rng=rngs)
def test_reverse_is_the_transpose_of_forward(rng):
    program, at = random_program(rng, 3, 4), tuple(points(3, 8))
    forward = [evaluate(differentiate(program), lift(reals(3), at, e))[1] for e in torch.eye(3).double()]
    value, twin = evaluate(reverse(program), at)
    taped = gradient(program, at)
    close(value, evaluate(program, at), 1e-15)
    once = Numbers()
    meaning(program, once, at)
    assert taped.count <= 5 * once.count
    for a, b, c in zip(forward, twin, taped.gradient, strict=True):
        close(b, a)
        close(c, a)


def test_forward_over_reverse_is_the_hessian():
    program = fun("x", TWO, op("mul", op("sin", op("mul", Proj(x, 0), Proj(x, 1))), op("exp", Proj(x, 0))))
    at = points(2, 9)
    rows = [
        coefficient(Prod((REAL, TWO)), evaluate(differentiate(reverse(program)), lift(TWO, at, e)), (1,))[1]
        for e in torch.eye(2).double()
    ]
    truth = torch.func.hessian(lambda v: torch.sin(v[0] * v[1]) * torch.exp(v[0]))(torch.stack(at))
    torch.testing.assert_close(torch.stack([torch.stack(r) for r in rows]), truth, rtol=1e-12, atol=1e-12)
    assert str(reverse_type(Arrow(REAL, REAL), 2)) == "((real x (real -> (real x real))) -> (real x (real -> (real x real))))"


def test_reverse_costs_five_evaluations_and_forward_one_per_input():
    def cost(n: int) -> tuple[float, float]:
        total = Proj(x, 0)
        for i in range(1, n):
            total = op("tanh", op("add", op("mul", total, Proj(x, i)), op("sigmoid", Proj(x, i))))
        program, at = fun("x", reals(n), total), tuple(points(n))
        once, along = Numbers(), Numbers()
        meaning(program, once, at)
        meaning(differentiate(program), along, lift(reals(n), at, at))
        return gradient(program, at).count / once.count, n * along.count / once.count

    ratios = [cost(n) for n in (4, 16, 64)]
    assert all(reverse <= 5 for reverse, _ in ratios)
    assert ratios[2][1] > 64 * 2


# -- what the sheet of the method warns of ----------------------------------------------------------------------------


def layers(*biases: float):
    """A list of functions that share a weight, folded to their composition."""
    made = Nil(Arrow(REAL, REAL))
    for bias in reversed(biases):
        made = Cons(fun("h", REAL, op("tanh", op("add", op("mul", x, h), Const(bias)))), made)
    step = fun("g", Arrow(REAL, REAL), fun("f", Arrow(REAL, REAL), fun("s", REAL, App(g, App(f, s)))))
    return fun("x", REAL, App(Fold(step, fun("s", REAL, s), made), op("sin", x)))


def test_a_list_of_functions_is_no_constant():
    program = layers(0.1, -0.4, 0.7)
    w, one = torch.tensor(0.8).double(), torch.ones(()).double()

    def net(w: Tensor, seen: Tensor) -> Tensor:
        value = w.sin()
        for bias in (0.1, -0.4, 0.7):
            value = torch.tanh(seen * value + bias)
        return value

    _, truth = torch.func.jvp(lambda w: net(w, w), (w,), (one,))
    _, constant = torch.func.jvp(lambda w: net(w, w.detach()), (w,), (one,))
    value, found = evaluate(differentiate(program), (w, one))
    close(value, net(w, w), 1e-15)
    close(found, truth, 1e-13)
    _, wrong = evaluate(functions_as_constants(differentiate(program)), (w, one))
    close(wrong, constant, 1e-13)
    assert abs(wrong - truth) > 0.1


def derivative(term):
    """d/dy of a closed program of x and y, as a program of x and y: what surrounds it stands still."""
    inner = App(App(differentiate(term), Tuple((x, Const(0)))), Tuple((y, Const(1))))
    return fun("x", REAL, fun("y", REAL, Proj(inner, 1)))


def test_perturbations_are_not_confused():
    inner = derivative(fun("x", REAL, fun("y", REAL, op("add", x, y))))
    program = fun("x", REAL, op("mul", x, App(App(inner, x), Const(1))))
    assert [v.item() for v in evaluate(differentiate(program), (torch.tensor(3.0), torch.tensor(1.0)))] == [3, 1]
    # without tags, and values that know nothing of each other, the inner derivative takes the outer's
    dual = lambda v, t: SimpleNamespace(v=v, t=t)
    naive = lambda f: lambda at: f(dual(at, 1.0)).t
    inside = lambda u: naive(lambda y: dual(u.v + y.v, u.t + y.t))(1.0)
    assert naive(lambda u: dual(u.v * inside(u), u.t * inside(u)))(3.0) == 2


def test_a_derivative_at_function_type_can_be_taken_twice():
    shift = fun("x", REAL, fun("f", Arrow(REAL, REAL), fun("y", REAL, App(f, op("add", x, y)))))

    def hat(term):  # the derivative of x -> (f -> f(x + .)) at 0, applied to f: f'
        moved = App(App(App(differentiate(shift), Tuple((Const(0), Const(1)))), differentiate(term)), Tuple((y, Const(0))))
        return fun("y", REAL, Proj(moved, 1))

    cube = fun("x", REAL, op("mul", x, op("mul", x, x)))
    at = torch.tensor(2.0)
    assert typecheck(hat(hat(cube))) == Arrow(REAL, REAL)
    assert [evaluate(t, at).item() for t in (cube, hat(cube), hat(hat(cube)), hat(hat(hat(cube))))] == [8, 12, 12, 6]


def test_only_the_branch_taken_is_evaluated():
    above, below = op("sqrt", x), op("exp", op("sin", op("mul", x, x)))
    program = fun("x", REAL, Case(Positive(x), "s", above, "s", below))
    value, one = torch.tensor(-0.5).double(), torch.ones(()).double()
    found = evaluate(differentiate(program), (value, one))
    close(found[1], torch.func.jvp(lambda x: x.square().sin().exp(), (value,), (one,))[1], 1e-14)
    both = value.clone().requires_grad_()
    torch.where(both > 0, both.sqrt(), both.square().sin().exp()).backward()
    assert both.grad.isnan()
    alone, cases = Numbers(), Numbers()
    meaning(differentiate(fun("x", REAL, below)), alone, (value, one))
    meaning(differentiate(program), cases, (value, one))
    assert alone.count == cases.count
    assert gradient(program, value).gradient == found[1]


def test_positive_has_a_kink():
    program = fun("x", REAL, Case(Positive(x), "s", x, "s", op("neg", x)))
    with pytest.raises(ValueError, match="at 0, where it is undefined"):
        evaluate(differentiate(program), lift(REAL, torch.tensor(0.0), torch.tensor(1.0)))
    with pytest.raises(ValueError, match="over entries of both signs"):
        evaluate(program, torch.tensor([1.0, -1.0]))
    assert evaluate(program, torch.tensor([-1.0, -2.0])).tolist() == [1, 2]


# -- expansions -------------------------------------------------------------------------------------------------------


def test_an_expansion_of_a_program():
    program = layers(0.2, 0.5)
    a, step = points(1, 1)[0], torch.tensor(0.05).double()
    found = expansion(program, a, step, order=8)
    assert isinstance(found, Expansion)
    assert found.error() < 1e-9
    assert expansion(program, a, step, order=2).error() > 1e-6
    assert found.predicted_remainder < 1e-9
    half = expansion(program, a, step, order=8, at=0.5)
    assert half.error() < 1e-9
    close(half.whole, evaluate(program, a + 0.5 * step), 1e-15)
    close(half.parts["order_3"], found.parts["order_3"] / 8, 1e-15)
    truth = [by_nesting(lambda t: evaluate(program, a + step * t), (k,)) for k in range(5)]
    torch.testing.assert_close(found.coefficients[:5], torch.stack(truth), rtol=1e-10, atol=1e-12)


def test_the_contract_of_an_expansion():
    program = fun("x", TWO, op("mul", App(layers(0.3, 0.1), Proj(x, 0)), op("exp", op("mul", Proj(x, 1), Proj(x, 0)))))
    direction = (torch.tensor(0.3).double(), torch.tensor(-0.5).double())

    def method(at: Tensor) -> Expansion:
        first, second = at.unbind(1)
        return expansion(program, (first, second), tuple(d.expand_as(first) for d in direction), order=3)

    batch = torch.stack(points(8, 4)).reshape(4, 2)
    assert check_decomposition(method, exact=False, inputs=(batch,)).order == 3


# -- what is refused --------------------------------------------------------------------------------------------------

WRONG = [
    (Var("z"), "z is bound nowhere: known here are no names"),
    (op("sin", Tuple()), r"in sin\(\(\)\): \(\) is of type 1, wanted is real"),
    (op("add", Const(1)), r"add takes 2 arguments, got 1"),
    (op("tahn", Const(1)), r"no operation 'tahn': did you mean 'tanh'\?"),
    (Proj(Tuple((Const(1),)), 1), r"takes item 1 of \(1\), which is of type \(real\)"),
    (App(Const(2), Const(3)), r"applies 2, which is of type real and no function"),
    (fun("f", Arrow(TWO, REAL), App(f, Const(3))), r"in \(f 3\): 3 is of type real, wanted is \(real x real\)"),
    (App(fun("x", TWO, Proj(x, 0)), Const(3)), r"in let x = 3 in ...: 3 is of type real, wanted is \(real x real\)"),
    (Case(Const(1), "x", x, "x", x), "by cases of 1, which is of type real and no sum"),
    (Case(Inl(Const(1), TWO), "x", x, "x", x), r"in \(case inl 1 .*: x is of type \(real x real\), wanted is real"),
    (Cons(Tuple(), Nil(REAL)), r"\[\] is of type list\(real\), wanted is list\(1\)"),
    (Fold(fun("x", REAL, x), Const(0), Nil(REAL)), r"wanted is \(real -> \(real -> real\)\)"),
    (Fold(x, Const(0), Const(1)), "folds 1, which is of type real and no list"),
    (Positive(Tuple()), "wanted is real"),
]


@pytest.mark.parametrize(("term", "message"), WRONG, ids=[str(t) for t, _ in WRONG])
def test_a_term_without_a_type(term, message):
    with pytest.raises((TypeError, ValueError), match=message):
        typecheck(term)


def test_bad_calls():
    square, one = fun("x", REAL, op("mul", x, x)), torch.ones(())
    with pytest.raises(ValueError, match="1 direction or more and an order of 0 or more, got 0 and 1"):
        differentiate(square, 0)
    with pytest.raises(ValueError, match="got 1 and -1"):
        derivative_type(REAL, 1, -1)
    with pytest.raises(TypeError, match=r"programs real\^n -> real; this one is of type \(real -> real\)"):
        reverse(square)
    with pytest.raises(TypeError, match="gradients are of programs from values to a real"):
        gradient(fun("x", REAL, Tuple((x,))), one)
    with pytest.raises(TypeError, match="z is bound nowhere"):
        evaluate(Var("z"))
    with pytest.raises(TypeError, match=r"reals are floating tensors, this one is of torch.int64: convert it with .double()"):
        evaluate(square, torch.tensor(3))
    assert evaluate(square, 3).item() == 9
    assert gradient(square, 3).gradient.item() == 6
    with pytest.raises(ValueError, match="is a function, and moves as a program does"):
        lift(Arrow(REAL, REAL), torch.sin)
    with pytest.raises(ValueError, match=r"differ in length: \[2, 1\]"):
        lift(ListT(REAL), [one, one], [one])
    with pytest.raises(ValueError, match="on different sides of a sum"):
        lift(Sum(REAL, REAL), Left(one), Right(one))
    with pytest.raises(ValueError, match=r"blocks of order 1 in 1 directions have no coefficient \(2,\)"):
        coefficient(REAL, (one, one), (2,))
    with pytest.raises(ValueError, match="order is 0 or more and at is not 0, got -1"):
        expansion(square, one, one, order=-1)
    with pytest.raises(ValueError, match=r"expand a program from values to a real; this one is of type \(real x real\)"):
        expansion(Tuple((Const(1), Const(2))), one, one)


def test_the_indices_of_a_block():
    for k, r in itertools.product((1, 2, 3), (0, 1, 2, 4)):
        found = multi_indices(k, r)
        assert len(found) == math.comb(r + k, k) == len(set(found))
        assert list(map(sum, found)) == sorted(map(sum, found))
    assert multi_indices(2, 1) == ((0, 0), (1, 0), (0, 1))  # the value, then its tangents in the order they are given
