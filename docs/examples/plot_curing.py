"""
A weight in its own columns and rows
====================================

CUR writes a matrix with some of its own columns and rows and a small matrix that links them. They are true entries of the weight,
so that a term has a name: column 17. What does that cost, beside the best matrix of the same rank?
"""

# %%
# A perceptron with residual blocks, trained on digits. In one of its weights a number matters as much as it is large, times how
# large its input is: which inputs are kept?

import matplotlib.pyplot as plt
import torch

import termwise as tw
from termwise.testing.trained_mlp import digits_residual_mlp
from termwise.weights import angular_distance, cur, curing, heal

subject = digits_residual_mlp()
model, seen, held = subject.model, subject.seen, subject.inputs
weight = model.stem.weight.double()
found = cur(weight, rank=16, importance=weight.abs() * seen.square().mean(0).sqrt())
print(found.summary())
print(f"in the spectral norm {torch.linalg.matrix_norm(found.remainder, 2):.2f}, not above {found.bound():.2f}")
print("pixels kept:", sorted(found.columns.tolist()))

# %%
# CURing replaces blocks that turn their input least, and trains the links afterwards. The model given stays as it was.

far = angular_distance(model, [seen])
print({block: round(angle, 3) for block, angle in far.items()})
small = curing(model, 4, data=seen, rank=16, layers=["*.up"])
healed = heal(small, model, data=seen, at=list(far))
print(small.summary())
print(f"healed: output changed by {healed.measured:.1%}")

# %%
# The same layers for the same budget, by every rank under one allocator: size against the change of the output.

budgets = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for method in ("svd", "cur", "aware", "auto"):
    runs = [tw.compress(model, budget, data=seen, method=method, progress=False) for budget in budgets]
    axes[0].semilogy([run.kept for run in runs], [run.measured for run in runs], "o-", label=method)
    if method == "cur":
        mended = [heal(run, model, data=seen, at=list(far)) for run in runs]
        axes[0].semilogy([run.kept for run in mended], [run.measured for run in mended], "o--", label="cur, healed")
axes[0].set(xlabel="numbers kept, share", ylabel="change of the output", title="true columns and rows cost accuracy")
axes[0].legend()
image = torch.zeros(64)
image[found.columns] = 1
axes[1].imshow(held[:50].mean(0).reshape(8, 8), cmap="gray_r")
axes[1].scatter(found.columns % 8, found.columns // 8, color="tab:red", label="kept pixels")
axes[1].set(title="columns are inputs", xticks=[], yticks=[])
axes[1].legend(loc="lower right")
plt.show()
