"""
Programs with functions as values, and their derivatives
========================================================

Differentiation can be a map of programs: it keeps every type and every way of putting programs together, and changes only what a
real is and what an operation does. Functions of functions, lists and cases come out right without being mentioned.
"""

# %%
# A program in a small typed calculus, written in Python. It takes a list of reals of any length, makes a function of each, and
# applies them one after the other, each twice: a network whose depth is not known before it runs.

import matplotlib.pyplot as plt
import torch

from termwise.functions.higher_order import (
    Arrow,
    ListT,
    Numbers,
    Prod,
    Real,
    apply,
    derivative_type,
    differentiable,
    differentiate,
    embed,
    evaluate,
    expansion,
    fold,
    gradient,
    lift,
    meaning,
    typecheck,
)


@differentiable(Arrow(Real(), Real()), Real())
def twice(f, z):
    return f(f(z))


inputs = Prod((ListT(Real()), Real()))


@differentiable(inputs)
def network(given):
    biases, x = given
    return fold(lambda h, bias: embed(twice)(lambda z: apply("tanh", 0.9 * z + 2 * bias * x))(h), x, biases)


print(network)
print("is of type", typecheck(network))
print("and its derivative of type", derivative_type(typecheck(network)))

# %%
# The derivative is such a program too, so it has a type, can be evaluated, and can be differentiated again. Over blocks of more
# coefficients the same map gives higher orders: here the output along a line, with its Taylor polynomials.

biases = [torch.tensor(b, dtype=torch.float64) for b in (0.9, -0.6, 0.7)]
still = [torch.zeros_like(b) for b in biases]
x, one = torch.tensor(0.5, dtype=torch.float64), torch.ones((), dtype=torch.float64)
value, slope = evaluate(differentiate(network), lift(inputs, (biases, x), (still, one)))
print(f"f = {value:.6f}, df/dx = {slope:.6f}")

steps = torch.linspace(-1, 1, 200, dtype=torch.float64)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
left.plot(steps, evaluate(network, (biases, x + steps)), color="black", label="the program")
for order in (1, 3, 8):
    terms = expansion(network, (biases, x), (still, one), order=order, at=0.2)
    print(terms.summary())
    left.plot(steps, terms.evaluate(steps), "--", label=f"order {order}")
left.set(xlabel="t", ylabel="f(x + t)", ylim=(-1, 1))
left.legend(fontsize=8)

# %%
# Backwards the same map carries, beside each real, what takes a cotangent back to the inputs. Written on a tape, all derivatives
# cost a few evaluations, where forwards each input costs a run of its own.

sizes = [1, 2, 4, 8, 16, 32]
costs: dict[str, list[float]] = {"forward, input by input": [], "reverse": []}
for n in sizes:
    many = [0.1 * torch.randn((), dtype=torch.float64) for _ in range(n)]
    once, along = Numbers(), Numbers()
    meaning(network, once, (many, x))
    meaning(differentiate(network), along, lift(inputs, (many, x), (many, x)))
    costs["forward, input by input"].append((n + 1) * along.count / once.count)
    costs["reverse"].append(gradient(network, (many, x)).count / once.count)
for name, cost in costs.items():
    right.loglog([n + 1 for n in sizes], cost, "o-", label=name)
right.axhline(5, color="black", linestyle=":", label="5 evaluations")
right.set(xlabel="inputs", ylabel="operations, in evaluations", xticks=[2, 5, 9, 17, 33], xticklabels=[2, 5, 9, 17, 33])
right.minorticks_off()
right.legend(fontsize=8)
plt.tight_layout()
