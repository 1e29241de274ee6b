"""
The idea in sixty lines
=======================

Relevance as a rewrite, again, in plain torch and from nothing: one forward pass with other local derivatives, one
backward pass by autograd. It knows four kinds of operation, which is enough for a small network with a gate and a norm.
"""

# %%
# What travels backwards is the ratio c = R / x. A leaf (input or bias) of value x and ratio c owns x * c.

import matplotlib.pyplot as plt
import torch
from torch import fx, nn

import termwise as tw


class Ratio(torch.autograd.Function):
    """y = f(x) with f(0) = 0, element by element: c_x = c f(x) / x."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(y / x)
        return y.clone()

    @staticmethod
    def backward(ctx, c):
        return c * ctx.saved_tensors[0], None


class Relevance(fx.Interpreter):
    """Runs a traced module; every value is the model's own, some derivatives are ours."""

    def leaf(self, name, value):
        self.leaves[name] = value.detach().clone().requires_grad_()
        return self.leaves[name]

    def placeholder(self, target, args, kwargs):
        return self.leaf(f"input:{target}", super().placeholder(target, args, kwargs))

    def call_module(self, target, args, kwargs):
        module, (x,) = self.fetch_attr(target), args
        if isinstance(module, nn.Linear):  # linear: torch's own vector-Jacobian product carries c
            return x @ module.weight.T + self.leaf(f"bias:{target}", module.bias.expand(len(x), -1))
        if isinstance(module, nn.LayerNorm):  # the divisor is held constant, what remains is affine
            sigma = (x.var(-1, correction=0, keepdim=True) + module.eps).sqrt().detach()
            y = (x - x.mean(-1, keepdim=True)) / sigma * module.weight
            return y + self.leaf(f"bias:{target}", module.bias.expand(len(x), -1))
        if isinstance(module, nn.GELU | nn.SiLU | nn.Tanh | nn.ReLU):
            return Ratio.apply(x, module(x).detach())
        raise ValueError(f"no rule for {module} at {target}")  # never a silent zero

    def call_function(self, target, args, kwargs):
        y = target(*args, **kwargs)
        if target is torch.mul:  # a product of two activations is of degree 2: half to each
            y.register_hook(lambda c: c / 2)
        return y  # sums need no rule


def explain(model, x, index):
    run = Relevance(fx.symbolic_trace(model))
    run.leaves = {}
    whole = run.run(x)[:, index]
    ratios = torch.autograd.grad(whole.sum(), list(run.leaves.values()))
    return whole.detach(), {n: (v * c).detach() for (n, v), c in zip(run.leaves.items(), ratios, strict=True)}


# %%
# A network with a gate, a norm and a residual connection.


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.gate, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 6)
        self.act, self.head = nn.SiLU(), nn.Linear(6, 3)

    def forward(self, x):
        h = self.norm(x)
        h = torch.mul(self.up(h), self.act(self.gate(h)))
        return self.head(torch.add(x, self.down(h)))


torch.manual_seed(0)
model, x = Gated().double().eval(), torch.randn(5, 6, dtype=torch.float64)
nn.init.normal_(model.norm.bias)  # 0 in a fresh LayerNorm, which would tell nothing
whole, parts = explain(model, x, 1)
total = sum(part.sum(1) for part in parts.values())
print(f"remainder {(whole - total).abs().max():.1e}")

# %%
# The library agrees, part by part.

why = tw.explain(model, x, target=1, rules="zero")
for name, part in parts.items():
    print(f"{name:12} differs by {(part - why.parts[name]).abs().max():.1e}")
    torch.testing.assert_close(part, why.parts[name], rtol=1e-9, atol=1e-12)

figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.barh(list(parts), [part[0].sum() for part in parts.values()], color="#5b7db1")
axis.axvline(0, color="black", linewidth=0.8)
axis.set_title(f"one output, {whole[0]:.3f}, as a sum")

# %%
# What this small version leaves out: softmax and attention, where something is lost and must be measured; functions
# with f(0) other than 0, and the value at x = 0; constants that are no biases; shared weights; models that `fx` cannot
# trace; convolutions; samples that lie on another axis than the first; half precision; and some three hundred operators.
