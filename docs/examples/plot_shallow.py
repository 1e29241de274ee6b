"""
A deep network made shallow
===========================

Dropping all paths through two branches or more leaves a residual network with its branches side by side: one broad layer. What
that costs with the same weights is one question, and what the broad layer learns by itself is another.
"""

# %%
# Eight residual blocks of two layers. Side by side they are one layer of eight times the width.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import termwise as tw

digits = load_digits()
pixels, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)


class Block(torch.nn.Module):
    def __init__(self, width: int, n: int) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(width, width), torch.nn.Linear(width, width)
        self.down.weight.data /= n**0.5  # n of them are added

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z + self.down(torch.relu(self.up(z)))


torch.manual_seed(0)
deep = torch.nn.Sequential(torch.nn.Linear(64, 24), *(Block(24, 8) for _ in range(8)), torch.nn.Linear(24, 10)).eval()
flat = tw.shallow(deep, pixels[:2])
print(f"{flat.fused} branches in one wide layer: {flat.merged()(pixels[:2]).shape}")

# %%
# Substitution: the same weights, before and after the deep network was trained. Trained branches rely on each other, and the
# paths through several of them are most of the answer.


def train(model: torch.nn.Module, steps: int = 300) -> list[float]:
    generator, losses = torch.Generator().manual_seed(0), []
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(1400, (64,), generator=generator)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(pixels[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def right(model: torch.nn.Module) -> float:
    return (model(pixels[1400:]).argmax(1) == labels[1400:]).float().mean().item()


fresh, held = tw.shallow(deep, pixels[:2]), pixels[1400:1500]
before = flat.truncation(held)
deep_losses = train(deep)
substituted = tw.shallow(deep, pixels[:2])
after = substituted.truncation(held)
print("error by order, fresh:  ", {k: f"{v:.2f}" for k, v in before.items()})
print("error by order, trained:", {k: f"{v:.2f}" for k, v in after.items()})
print(substituted.decompose(held))

# %%
# Architecture: the broad layer trained by itself reaches the same loss.

flat_losses = train(fresh)
print(
    f"right: deep {right(deep):.3f}, its weights side by side {right(substituted):.3f}, trained side by side {right(fresh):.3f}"
)

figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for losses, label in ((deep_losses, "deep"), (flat_losses, "side by side")):
    axes[0].semilogy(torch.tensor(losses).unfold(0, 15, 5).mean(1), label=label)
axes[0].set(xlabel="steps / 5", ylabel="training loss", title="trained from the start")
axes[0].legend()
for k, (found, label) in enumerate(((before, "fresh"), (after, "trained"))):
    axes[1].bar([order + 0.3 * k for order in found], found.values(), 0.28, label=label)
axes[1].set(xlabel="orders kept", ylabel="error of the worst sample", title="the same weights")
axes[1].legend()
plt.show()
