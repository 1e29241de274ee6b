"""
A smaller model, and by how much its output changed
===================================================

`tw.compress` takes a model, a budget and some unlabelled inputs, and gives back a plain model and its account. Here a small
convolutional network on digits is made smaller by several methods at several budgets.
"""

# %%
# A network of 150,000 numbers, and a thousand pictures without their labels.

import warnings

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import termwise as tw

digits = load_digits()
pixels, labels = torch.tensor(digits.data, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(digits.target)
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(),
    nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(300):
    rows = torch.randint(1000, (64,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(pixels[rows]), labels[rows]).backward()
    optimizer.step()
model.eval()


def right(net: nn.Module) -> float:
    return (net(pixels[1400:]).argmax(1) == labels[1400:]).float().mean().item()


print(f"{right(model):.1%} right")

# %%
# A fifth of the numbers. The report has every layer, and what the output's change was expected to be and came to.

small = tw.compress(model, budget=0.2, data=pixels[:1000], progress=False)
print(small.report())
print(f"{right(small.model):.1%} right")
small.plot()

# %%
# The same budgets by methods that know less: `aware` minimises the error of each layer's own output, `asvd` scales columns by the
# size of their inputs, `svd` sees the weights alone.

warnings.simplefilter("ignore", UserWarning)  # errors of small budgets do not add up, which is said
budgets = (0.5, 0.35, 0.2, 0.1)
figure, (change, accuracy) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for method in ("auto", "aware", "asvd", "svd"):
    found = [tw.compress(model, b, data=pixels[:1000], method=method, progress=False) for b in budgets]
    change.semilogy([f.kept for f in found], [f.measured for f in found], "o-", label=method)
    accuracy.plot([f.kept for f in found], [right(f.model) for f in found], "o-", label=method)
change.set(xlabel="share of the numbers kept", ylabel="relative change of the output")
accuracy.set(xlabel="share of the numbers kept", ylabel="digits right")
accuracy.axhline(right(model), color="gray", linestyle=":")
change.legend()

# %%
# The other way round: the smallest model whose output changes by no more than 2 %.

within = tw.compress(model, 0.02, unit="error", data=pixels[:1000], progress=False)
print(within)

# %%
# It is a plain model. What is no torch class, `Pivoted`, needs torch alone, and its source is written beside the weights.

print(within.model)
