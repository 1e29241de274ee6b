"""
Tasks learned apart, composed, and taken out again
==================================================

A network that reads upright digits learns to read turned ones, two digits at a time, as five modules in weight space. Their mean
is a model of all ten. A loss to second order says when that can work, and what is left is measured.
"""

# %%
# Eight hundred upright digits make w_0. Then come the tasks: turned 0 and 1, turned 2 and 3, and so on.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from termwise.functions import ITA, quadratic

digits = load_digits()
pictures, labels = torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
first, train, test = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split([800, 600, 397])
upright, turned = pictures.flatten(1), pictures.rot90(1, (1, 2)).flatten(1)

torch.manual_seed(0)
layers = [torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 10)]
model = torch.nn.Sequential(*layers)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(30):
    for i in first[torch.randperm(len(first))].split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(upright[i]), labels[i]).backward()
        optimizer.step()
model.eval()


def learn(alpha, lr):
    learner = ITA(model, "4", alpha, epochs=60, lr=lr, progress=False, generator=torch.Generator().manual_seed(0))
    for task in range(5):
        rows = train[labels[train] // 2 == task]
        found = learner.learn(turned[rows], labels[rows])
    return found


def by_task(found):
    right = found.predict(turned[test]) == labels[test]
    return [right[labels[test] // 2 == task].float().mean().item() for task in range(5)]


# %%
# Without a penalty that is task arithmetic. With it each module is held near w_0, the more so the more a weight matters there.
# Each at its own best rate, the two are as good as each other here: small steps stay near w_0 by themselves. What the penalty
# allows is long steps, and what follows is at such a rate.


def accuracy(found):
    return (found.predict(turned[test]) == labels[test]).float().mean()


free, held = learn(alpha=0, lr=3e-3), learn(alpha=300, lr=3e-3)
for name, best, far in (("without penalty", learn(alpha=0, lr=1e-4), free), ("with penalty", learn(alpha=30, lr=1e-3), held)):
    print(f"{name:16} {accuracy(best):.0%} of ten digits at its best rate, {accuracy(far):.0%} at 3e-3")

# %%
# The loss of all ten digits at the composition, taken apart: what there was, what modules do alone, in pairs, and the rest.

rows = torch.tensor([sum(held.classes, ()).index(int(c)) for c in labels[train]])
for name, found in (("without penalty", free), ("with penalty", held)):
    loss = quadratic(found.base, F.cross_entropy, turned[train], rows, found.taus)
    terms = ", ".join(f"{key} {value:+.3f}" for key, value in loss.contributions().items())
    print(f"{name:16} {loss.whole:.3f} = {terms}, left {loss.remainder:+.3f}")
    print(f"{'':16} the modules by themselves: {loss.losses.mean():.3f}; gap {loss.gap:.3f}, Omega {loss.omega:.3f}")

# %%
# A module that is left out is unlearned; a module that is left alone is specialised. At this scale both are mild: most of what
# the model knows of a digit is in w_0 and its classifier, where nothing is taken away.

kinds = {
    "composed": by_task(held),
    "unlearned": [by_task(held.unlearn(t))[t] for t in range(5)],
    "specialised": [by_task(held.specialise([t]))[t] for t in range(5)],
}
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained", width_ratios=(1.2, 1, 1))
for i, (name, values) in enumerate(kinds.items()):
    left.bar([t + 0.25 * (i - 1) for t in range(5)], values, 0.25, label=name)
left.set(xticks=range(5), xticklabels=["0, 1", "2, 3", "4, 5", "6, 7", "8, 9"], xlabel="task", ylabel="accuracy among ten digits")
left.set_title("The task's own accuracy, penalty on")
left.legend(loc="lower right")
for axis, (name, found) in zip((middle, right), (("without penalty", free), ("with penalty", held)), strict=True):
    rows = [by_task(found), *(by_task(found.unlearn(t)) for t in range(5))]
    image = axis.imshow(rows, vmin=0, vmax=1, cmap="viridis")
    axis.set(xticks=range(5), xlabel="accuracy on task", title=name)
    axis.set_yticks(range(6), ["all", *(f"without {t}" for t in range(5))])
figure.colorbar(image, ax=right)
plt.show()
