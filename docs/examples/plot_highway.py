"""
A gradient by the blocks that it came through
=============================================

In a residual network the gradient at the bottom is a sum over paths: those that go through none of the blocks, through one,
through two. Highway backpropagation collects them an order at a time, each from one backward pass through all blocks at once. How
many orders does a gradient need?
"""

# %%
# Twenty-four blocks. The parts are the orders, the whole is the gradient by autograd, the remainder is what longer paths bring.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from termwise.optimizers import HighwayBackward, highway_gradients, highway_recurrent


class Tower(nn.Module):
    def __init__(self, blocks: int, strength: float, width: int = 16) -> None:
        super().__init__()
        self.layers, self.strength = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks)), strength
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=width**-0.5)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            z = z + self.strength * torch.tanh(layer(z))
        return z


torch.manual_seed(0)
batch = torch.randn(8, 16, dtype=torch.float64), torch.randn(8, 16, dtype=torch.float64)
found = {s: highway_gradients(Tower(24, s).double().eval(), F.mse_loss, batch, iterations=24) for s in (0.1, 0.3, 1.0)}
for strength, gradient in found.items():
    print(f"strength {strength}: {gradient.check().summary()}; cosine after 3: {gradient.cosines()[3]:.3f}")

# %%
# All of them end at the gradient, exactly. Weak blocks are nearly there after two iterations; strong ones are not, and training
# with few iterations would follow another direction. Through time, a GRU's update gate is the highway: with it, paths that leave
# the gate once or twice are enough; without it (a gate of zeros) the same iterations are backpropagation truncated to K steps.

cell, x = nn.GRUCell(2, 16).double(), torch.randn(50, 8, 2, dtype=torch.float64)
with torch.no_grad():
    cell.bias_ih[16:32] += 2  # it remembers
last = nn.Linear(16, 1).double()
early = x[:10, :, :1].sum(0)


def recall(states: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(last(states[-1]), y)


through_time = {
    "its own gate": highway_recurrent(cell, recall, (x, early), 12),
    "no gate: truncated": highway_recurrent(cell, recall, (x, early), 12, gate=lambda x, h: torch.zeros_like(h)),
}

figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
for strength, gradient in found.items():
    axes[0].plot(gradient.cosines()[:13], "o-", markersize=3, label=f"strength {strength}")
axes[0].set(xlabel="iterations", ylabel="cosine with the gradient", title="24 residual blocks")
for label, gradient in through_time.items():
    axes[1].plot(gradient.cosines(), "o-", markersize=3, label=label)
axes[1].set(xlabel="iterations", title="a GRU of 50 steps")


# %%
# ``HighwayBackward`` is called in a model's place and fills ``.grad``. Sixteen pre-norm blocks on digits, same batches for all.


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z + self.down(F.relu(self.up(self.norm(z))))


digits = load_digits()
pixels, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)


def losses(iterations: int | None, steps: int = 120) -> torch.Tensor:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 32), *(Block(32) for _ in range(16)), nn.LayerNorm(32), nn.Linear(32, 10)).eval()
    answer = model if iterations is None else HighwayBackward(model, iterations)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    found = []
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (64,))
        optimizer.zero_grad()
        loss = F.cross_entropy(answer(pixels[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found).unfold(0, 10, 1).mean(1)


for iterations in (None, 3, 1, 0):
    curve = losses(iterations)
    axes[2].semilogy(curve, label="backpropagation" if iterations is None else f"K = {iterations}")
    print(f"{iterations}: {curve[-1]:.3f}")
axes[2].set(xlabel="steps", title="training loss, 16 blocks on digits")
for axis in axes:
    axis.legend()
plt.show()

# %%
# Backpropagation takes sixteen steps through blocks, one after the other; three iterations take four, with all side by side.
# Which of the two is faster depends on how much a machine can do side by side.
