"""Python functions made into programs: the same values, the right derivatives, nothing computed twice."""

from functools import reduce

import pytest
import torch
from torch import Tensor

from termwise.functions.higher_order import (
    Arrow,
    Left,
    ListT,
    Numbers,
    Prod,
    Real,
    Right,
    Sum,
    apply,
    case,
    differentiable,
    differentiate,
    each,
    embed,
    evaluate,
    fold,
    gradient,
    if_positive,
    left,
    lift,
    meaning,
    reals,
    right,
    typecheck,
)

REAL = Real()


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def slope(term, at: Tensor) -> Tensor:
    return evaluate(differentiate(term), (at, torch.ones_like(at)))[1]


def test_arithmetic():
    @differentiable(REAL, REAL)
    def program(x, y):
        return (2 - x) / (1 + y * y) + 3 / x - (-y) * x + (x - 1) * 0.5

    def direct(x: Tensor, y: Tensor) -> Tensor:
        return (2 - x) / (1 + y * y) + 3 / x + y * x + (x - 1) * 0.5

    assert typecheck(program) == Arrow(REAL, Arrow(REAL, REAL))
    x, y, dx, dy = map(number, (0.7, -1.2, 0.3, 0.9))
    value, tangent = evaluate(differentiate(program), (x, dx), (y, dy))
    whole, truth = torch.func.jvp(direct, (x, y), (dx, dy))
    torch.testing.assert_close(value, whole)
    torch.testing.assert_close(tangent, truth)


def test_closures_tuples_and_reduce():
    @differentiable(reals(2))
    def program(p):
        w, x = p
        layers = [lambda h, b=b: apply("tanh", w * h + b) for b in (0.1, -0.3, 0.5)]
        pair = (reduce(lambda h, layer: layer(h), layers, x), w)
        return pair[0] * pair[1]

    def direct(w: Tensor, x: Tensor) -> Tensor:
        return reduce(lambda h, b: torch.tanh(w * h + b), (0.1, -0.3, 0.5), x) * w

    at, along = (number(0.8), number(-0.4)), (number(0.2), number(1.1))
    _, truth = torch.func.jvp(direct, at, along)
    torch.testing.assert_close(evaluate(differentiate(program), lift(reals(2), at, along))[1], truth)
    found = gradient(program, at)
    torch.testing.assert_close(found.gradient, torch.func.grad(lambda p: direct(*p))(at))


def test_what_is_used_twice_is_computed_once():
    @differentiable(REAL)
    def program(x):
        return reduce(lambda h, _: h * h + h, range(20), x)

    numbers = Numbers()
    meaning(program, numbers, number(0.1))
    assert numbers.count == 40
    assert str(program).startswith("(fun x0: real. let x1 = mul(x0, x0) in let x2 = add(x1, x0) in ")


def test_a_fold_keeps_the_order_of_a_list_of_any_length():
    @differentiable(ListT(REAL))
    def program(items):
        return fold(lambda state, item: apply("sin", state * 2 - item), 1, items)

    for values in ([], [0.3], [0.3, -0.8, 0.5]):
        items = [number(v).requires_grad_() for v in values]
        truth = reduce(lambda state, item: torch.sin(state * 2 - item), items, number(1))
        found = gradient(program, [i.detach() for i in items])
        torch.testing.assert_close(found.value, truth.detach())
        if items:
            torch.testing.assert_close(found.gradient, list(torch.autograd.grad(truth, items)))


def test_each_keeps_length_and_order():
    @differentiable(ListT(REAL), REAL)
    def program(items, x):
        return each(lambda item: (item * x, 1), items)

    assert typecheck(program) == Arrow(ListT(REAL), Arrow(REAL, ListT(reals(2))))
    found = evaluate(program, [number(1), number(2), number(3)], number(2))
    assert [(a.item(), b.item()) for a, b in found] == [(2, 1), (4, 1), (6, 1)]
    moved = evaluate(differentiate(program), lift(ListT(REAL), [number(1), number(2)]), (number(2), number(1)))
    assert [a[1].item() for a, _ in moved] == [1, 2]
    assert evaluate(program, [], number(2)) == []


def test_long_programs_nest_nothing():
    @differentiable(REAL)
    def network(x):
        return reduce(lambda h, _: apply("sin", h) + x, range(1000), x)

    @differentiable(Prod((ListT(REAL), REAL)))
    def folded(given):
        items, x = given
        return fold(lambda h, item: apply("sin", h) + item, x, items)

    x = number(0.3)
    assert typecheck(differentiate(network)) == Arrow(reals(2), reals(2))
    assert len(str(network)) > 1000
    value = x.clone().requires_grad_()
    truth = reduce(lambda h, _: h.sin() + value, range(1000), value)
    truth.backward()
    torch.testing.assert_close(gradient(network, x).gradient, value.grad)
    torch.testing.assert_close(slope(network, x), value.grad)
    found = gradient(folded, ([x] * 1000, x))
    torch.testing.assert_close(sum(found.gradient[0]) + found.gradient[1], value.grad)


def test_functions_as_arguments_and_programs_inside_programs():
    @differentiable(Arrow(REAL, REAL), REAL)
    def twice(f, x):
        return f(f(x))

    @differentiable(REAL)
    def program(x):
        return embed(twice)(lambda h: apply("exp", h * x))(x)

    x = number(0.4)
    _, truth = torch.func.jvp(lambda x: torch.exp(torch.exp(x * x) * x), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(slope(program, x), truth)


def test_cases():
    either = Sum(REAL, reals(2))

    @differentiable(either)
    def program(e):
        return case(e, lambda x: x * x, lambda p: apply("sin", p[0]) * p[1])

    assert evaluate(program, Left(number(3))).item() == 9
    value, tangent = evaluate(
        differentiate(program), lift(either, Right((number(0.0), number(2))), Right((number(1), number(0))))
    )
    assert (value.item(), tangent.item()) == (0, 2)

    @differentiable(REAL)
    def made(x):
        return if_positive(x, lambda: left(x * 2, Prod()), lambda: right((), REAL))

    assert typecheck(made) == Arrow(REAL, Sum(REAL, Prod()))
    assert evaluate(made, number(2)) == Left(number(4))
    assert evaluate(made, number(-2)) == Right(())


BAD = [
    (ListT(REAL), lambda items: reduce(lambda a, b: a + b, items), r"its length is not known .* use fold"),
    (REAL, lambda x: x if x else -x, "branches by `case` and `if_positive`"),
    (REAL, lambda x: x(x), "a symbol of type real is no function"),
    (REAL, lambda x: "x", "'x' is no value of the calculus"),
    (REAL, lambda x: True, "True is no value of the calculus"),
    (REAL, lambda x: lambda y: x, "a program that returns a function takes one argument more instead"),
    (REAL, lambda x: (1, x)[2:] or len(x), "the length of a symbol of type real is not known"),
    (reals(2), lambda p: p + 1, r"of type \(real x real\) stands where real is wanted"),
    (REAL, lambda x: case(x, lambda a: a, lambda b: b), "case takes a symbol of a sum"),
    (REAL, lambda x: fold(lambda s, i: s, 0, [x]), "over a Python list functools.reduce does it"),
]


@pytest.mark.parametrize(("type", "function", "message"), BAD, ids=[m for *_, m in BAD])
def test_what_cannot_be_a_program(type, function, message):
    with pytest.raises(TypeError, match=message):
        differentiable(type)(function)


def test_a_symbol_stays_in_the_function_it_was_made_in():
    kept = []
    differentiable(REAL)(lambda x: kept.append(x * x) or x)
    with pytest.raises(TypeError, match="is bound nowhere"):
        differentiable(REAL)(lambda x: kept[0] + x)
    with pytest.raises(TypeError, match="computed outside of the function"):
        kept[0] + 1
