"""
Training a network that is linear in its weights
================================================

A tangent model keeps a trained network's weights and learns a direction v to move them in, to first order. A convex loss is
then convex in v, models that were trained apart can be averaged exactly, and what one of them learned can be taken out again.
"""

# %%
# A vision transformer that was trained on handwritten digits is to read them turned by a quarter. Five shards of the turned
# digits are trained apart, each with its own v.

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

import termwise as tw
from termwise.testing.trained import digits_vit

trained = digits_vit()
model = trained.model
turned = trained.inputs.rot90(1, (2, 3))
x, y, held_x, held_y = turned[:250], trained.labels[:250], turned[250:], trained.labels[250:]


def accuracy(model):
    with torch.no_grad():
        return (model(held_x).argmax(1) == held_y).float().mean().item()


def fit(x, y, steps=60):
    linear = tw.tangent(model, ["blocks.2.*", "blocks.3.*", "norm.*", "head.*"])
    optimizer = torch.optim.Adam(linear.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(linear(x), y).backward()
        optimizer.step()
    return linear


shards = [fit(x[i::5], y[i::5]) for i in range(5)]
composed = shards[0].compose(shards)
print(f"before {accuracy(model):.0%}, one shard {accuracy(shards[0]):.0%}, the five composed {accuracy(composed):.0%}")

# %%
# The composition is the mean of the outputs, and without a shard it is the mean of the others: nothing of it stays behind.

without = composed.forget(2)
with torch.no_grad():
    others = sum(shard(held_x) for i, shard in enumerate(shards) if i != 2) / 4
    print(f"largest difference {(without(held_x) - others).abs().max():.1e}, of logits up to {others.abs().max():.0f}")

# %%
# How linear is the network itself? Its output at the moved weights is the old one, what each group of weights adds to first
# order, and the curvature, which is measured. Here the step is a long one, and the curvature is no small part.

found = composed.decompose(held_x)
print(found)
for name, part in found.parts.items():
    print(f"{name:20s} {part.norm() / found.whole.norm():.2f} of the whole")

# %%
# Along a segment from one shard's v to another's the loss of the tangent model is convex. That of the network need not be.

axis_t = torch.linspace(-1.5, 2.5, 33).tolist()
losses = {"tangent model": [], "the network at those weights": []}
with torch.no_grad():
    for t in axis_t:
        d = shards[0].compose(shards[:2], [1 - t, t]).decompose(held_x)
        losses["tangent model"].append(F.cross_entropy(d.total(), held_y).item())
        losses["the network at those weights"].append(F.cross_entropy(d.whole, held_y).item())
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for name, values in losses.items():
    left.plot(axis_t, values, label=name)
left.set(xlabel="from the first shard (0) to the second (1)", ylabel="cross-entropy", title="Along a segment")
left.legend()
steps = torch.logspace(-2, 0.5, 12).tolist()
sizes = [composed.compose([composed], [t]).decompose(held_x).remainder.norm().item() for t in steps]
right.loglog(steps, sizes, "o-", label="curvature")
right.loglog(steps, [sizes[0] * (t / steps[0]) ** 2 for t in steps], ":", color="black", label="slope 2")
right.set(xlabel="length of the step, in v", ylabel="norm over the pictures", title="What the tangent leaves out")
right.legend()
