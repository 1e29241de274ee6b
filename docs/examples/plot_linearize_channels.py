"""
Which non-linearities a network needs
=====================================

Every channel of a trained network gets a price, and a slope by which it can become linear. What pays stays: a core network. How
deep it is, the average path length says.
"""

# %%
# Digits at random places of a larger field, which no linear map reads well, and a small CNN that does.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import termwise as tw
from termwise.functions import average_path_length, linearity_scores

torch.manual_seed(0)
found = load_digits()
fields = torch.zeros(len(found.target), 1, 10, 10)
for field, picture, (top, left) in zip(fields, found.images, torch.randint(3, (len(fields), 2)).tolist(), strict=True):
    field[0, top : top + 8, left : left + 8] = torch.tensor(picture) / 16
labels = torch.tensor(found.target)
train, held = (fields[360:], labels[360:]), (fields[:360], labels[:360])

maps = [m for k in range(4) for m in (nn.Conv2d(8 if k else 1, 8, 3, padding=1), nn.ReLU())]
model = nn.Sequential(*maps[:4], nn.AvgPool2d(2), *maps[4:], nn.Flatten(), nn.Linear(200, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(10):
    for rows in torch.randperm(len(train[0])).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(train[0][rows]), train[1][rows]).backward()
        optimizer.step()
model.eval()


def accuracy(net: nn.Module) -> float:
    return float((net(held[0]).argmax(1) == held[1]).float().mean())


# %%
# Before: some channels are nearly lines on these data. After: under a price, units become linear one by one.

for name, scores in linearity_scores(model, held[0]).items():
    print(f"{name:3}{scores.summary()}")
sparse = tw.linearize_channels(model, train, omega=0.03, keep=0.5, epochs=10, lr=3e-3, progress=False)
print(sparse)
for net, title in ((model, "before"), (sparse.model, "after")):
    print(f"{title:8}accuracy {accuracy(net):.3f}, average path length {average_path_length(net, held[0]):.2f}")

# %%
# The core network: by layer, the channels that are active within those that there are.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
total = [a.channels for a in sparse.model.layers]
left = [int(on.sum()) for on in sparse.model.active.values()]
axes[0].bar(range(4), total, bottom=[-n / 2 for n in total], color="0.88", label="linear")
axes[0].bar(range(4), left, bottom=[-n / 2 for n in left], label="active")
axes[0].set(xlabel="layer", ylabel="channels", title=f"core network: {sparse.share:.0%} of the units", yticks=[])
axes[0].legend()
axes[1].plot(sparse.history["share"], "o-", label="units active")
axes[1].plot(sparse.history["loss"], "o-", label="loss of the task")
axes[1].set(xlabel="epoch", title="under a price")
axes[1].legend()
plt.show()

# %%
# `sparse.plot()` draws both, and `sparse.to_html("core.html")` makes a page of them. A stretch that is linear altogether can be
# merged into one matrix by `collapse`.
