"""
Stages, down to rounding
========================

A network that is trained as far as it goes leaves something small that oscillates fast. Scaled up, and given to a second network
whose first layer oscillates as fast, it is an easy target again. Each stage is a part of the sum, and what is left is measured.
"""

# %%
# A smooth function, three networks of two hidden layers each, one after the other.

import matplotlib.pyplot as plt
import torch

import termwise as tw


def f(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(2 * x + 1) + 0.2 * torch.exp(1.3 * x)


x = torch.linspace(-1, 1, 600, dtype=torch.float64)
model = tw.MultiStage(stages=3, iterations=350).fit(x, f(x))
for n, record in enumerate(model.history):
    print(f"stage {n}: eps {record.eps:.1e}, f_d {record.f_d}, leaves {record.left:.1e}")

# %%
# On points that it has not seen, stage by stage. The magnitudes fall by orders; each stage is as hard as the first was.

held = torch.linspace(-1, 1, 4001, dtype=torch.float64)
d = model.decompose(held, f(held))
print(f"{len(d.parts)} parts, largest remainder {d.remainder.abs().max():.1e}")

figure, axes = plt.subplots(2, 2, figsize=(10, 5), layout="constrained")
left = d.whole
for axis, name in zip(axes.flat, ["", *d.parts], strict=True):
    if name:
        left = left - d.parts[name]
    axis.plot(held, left, linewidth=0.8)
    axis.set_title(f"left after {name}: RMS {left.square().mean().sqrt():.1e}" if name else "the function", fontsize=10)
plt.show()

# %%
# An equation is solved in the same way: u'' = u + u^3 + g with a known solution. Derivatives are Taylor jets through the stages.

ends, points = torch.tensor([-1.0, 1.0], dtype=torch.float64), torch.linspace(-1, 1, 100, dtype=torch.float64)


def residual(x: torch.Tensor, u: tw.functions.Derivatives) -> torch.Tensor:
    x, v = x[:, 0], f(x[:, 0])
    second = -4 * torch.sin(2 * x + 1) + 0.2 * 1.69 * torch.exp(1.3 * x)
    return u[2] - u[0] - u[0] ** 3 - (second - v - v**3)


solver = tw.functions.MultiStagePINN(residual, 2, [(ends, 0, f(ends))], stages=2, hidden=(16, 16), iterations=120).fit(points)
found = solver.decompose(held, f(held))
print(f"error of the first stage {(f(held) - found.parts['stage_0']).abs().max():.1e}, of both {found.remainder.abs().max():.1e}")
