"""
The paths of a residual network
===============================

A residual network is said to be an ensemble of many shallow ones: paths through none of its branches, through one, through two.
In powers of the branches' strength that is a series, and whether it converges is a question with an answer. Over subsets of
branches it is a sum, and exact.
"""

# %%
# Eight branches without normalisation. At strength 1 the partial sums run away from the network, and the summary says so.

import matplotlib.pyplot as plt
import torch

import termwise as tw
from termwise.functions import scale_residuals, subset_expansion


class Block(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(width, 2 * width), torch.nn.Linear(2 * width, width)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z + 3 * self.down(torch.tanh(2 * self.up(z)))


torch.manual_seed(0)
model = torch.nn.Sequential(*(Block(16) for _ in range(8))).double().eval()
x = torch.randn(1, 16, dtype=torch.float64)
e = tw.residual_expansion(model, x, order=12)
print(e.summary())

# %%
# With its branches at 1/8 it is another matter. The paths of order 1 go through one branch each, all of them fed by the input.

weak = tw.residual_expansion(model, x, order=12, scale=1 / 8)
print(weak.summary())
for name, part in weak.paths(1).check().parts.items():
    print(f"{name:8}{part.norm():.3f}")

# %%
# The sum over subsets is exact for both, whatever the branches are: m_S is what the branches in S make together, and no fewer.

full = subset_expansion(model, x).check()
tamed = subset_expansion(scale_residuals(model, x, rule="1/n"), x).check()
print(full.summary())

figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for expansion, label in ((e, "strength 1"), (weak, "strength 1/8")):
    left, sizes = expansion.whole, []
    for part in expansion.parts.values():
        left = left - part
        sizes.append(float(left.norm() / expansion.whole.norm()))
    axes[0].semilogy(sizes, "o-", label=label)
axes[0].axhline(1, color="0.7", linewidth=0.8)
axes[0].set(xlabel="order in the strength", ylabel="what is left", title="a series that may diverge")
axes[0].legend()
for expansion, label in ((full, "strength 1"), (tamed, "strength 1/8")):
    axes[1].semilogy([float(part.sum(-1).norm()) for part in expansion.parts.values()], "o-", label=label)
axes[1].set(xlabel="branches in the subset", ylabel="sum of the terms of that size", title="a sum that is exact")
axes[1].legend()
plt.show()

# %%
# A branch's share of the exact sum, terms of subsets divided evenly among their members, is its Shapley value.

for name, share in full.by_branch().items():
    print(f"{name:8}{share.norm():.3f}")
