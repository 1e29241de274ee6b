"""
Zeros where they matter least
=============================

How many weights can each layer lose? Prune one layer at a time, run the whole model, let dynamic programming spend the budget.
That works as far as distortions of single layers add up, which is a question with an answer.
"""

# %%
# A perceptron of four layers on digits. Every layer has a curve: zeros in it alone, and what they do to the output.

import matplotlib.pyplot as plt
import torch

from termwise.testing.trained_mlp import digits_mlp
from termwise.weights import Masks, distortion_curves, joint_distortion, prune

subject = digits_mlp()
model, held, labels = subject.model, subject.inputs, subject.labels
curves = distortion_curves(model, list(subject.seen[:512].split(128)), grid=51)
figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
for name, ladder in curves.items():
    axes[0].semilogy(1 - ladder.params / ladder.layer.size, ladder.errors + 1e-6, label=f"{name} {ladder.layer.shape}")
axes[0].set(xlabel="zeros in this layer alone", ylabel="|f - f~|², mean over samples", title="curves")
axes[0].legend()

# %%
# Masks for a sparsity of the whole, and the distortion that they make together, by layer. The remainder is the interaction.

shares = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
masks = {share: prune(model, share, curves) for share in shares}
joint = {share: joint_distortion(model, found, held) for share, found in masks.items()}
print({name: f"{1 - mask.float().mean():.0%}" for name, mask in masks[0.7].items()})
for share, found in joint.items():
    parts = {name: round(float(part.mean()), 2) for name, part in found.parts.items()}
    print(f"{share:.0%} zeros: {float(found.whole.mean()):.2f} together, {float(found.total().mean()):.2f} as a sum of {parts}")

# %%
# Beside the largest weights of all layers together, and of each layer alike.


def largest(scores: dict[str, torch.Tensor], share: float) -> Masks:
    values = torch.cat([s.flatten() for s in scores.values()])
    least = values.sort(descending=True).values[int((1 - share) * len(values)) - 1]
    return Masks({name: s >= least for name, s in scores.items()})


weights = {name: ladder.layer.matrix.abs() for name, ladder in curves.items()}
ranks = {name: w.flatten().argsort().argsort().reshape(w.shape) / w.numel() for name, w in weights.items()}
ways = {
    "joint": masks,
    "global magnitude": {share: largest(weights, share) for share in shares},
    "uniform": {share: largest(ranks, share) for share in shares},
}
for name, found in ways.items():
    with torch.no_grad():
        outputs = [found[share].apply(model)(held) for share in shares]
        changes = [float((y - model(held)).square().sum(1).mean()) for y in outputs]
    axes[1].semilogy(shares, changes, "o-", label=name)
    axes[2].plot(shares, [float((y.argmax(1) == labels).float().mean()) for y in outputs], "o-", label=name)
axes[1].semilogy(shares, [float(found.total().mean()) for found in joint.values()], "k:", label="sum of single layers")
axes[1].set(xlabel="zeros", title="change of the output, held out")
axes[2].set(xlabel="zeros", title="accuracy, held out, not trained again")
axes[1].legend()
axes[2].legend()
plt.show()

# %%
# A model with zeros is as large and as fast as before: these are measurements of what matters, and no compression.
