"""
A model of your own
===================

Any module will do. Here a small one learns something whose right explanation is known, and is then asked for it.
"""

# %%
# The data: eight features, of which the answer depends on three, ``y = 2 x0 - x1 + x2 x3``. Feature 7 is noise.

import matplotlib.pyplot as plt
import torch

import termwise as tw

torch.manual_seed(0)
x = torch.randn(512, 8, dtype=torch.float64)
y = 2 * x[:, 0] - x[:, 1] + x[:, 2] * x[:, 3]

model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 1)).double()
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
for _ in range(400):
    optimizer.zero_grad()
    loss = (model(x).squeeze(1) - y).square().mean()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.4f}")

# %%
# Three lines: evaluation mode, explain, check. ``check`` raises where the parts do not make the whole, for any sample.
# ``why[0]`` is the first sample alone. Over all of them cancellation is that of the worst one, an answer close to 0.

model.eval()
why = tw.explain(model, x, target=0).check()
print(why[0].summary())
print(f"worst of {len(why)} samples: adds up to {why.error():.0e}, cancellation {why.cancellation():.0f}x")

# %%
# Relevance per feature, over all samples. The two features of the linear terms rise and fall as they should.

relevance = why.inputs["input"]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
axes[0].bar(range(8), relevance.abs().mean(0))
axes[0].set(xlabel="feature", ylabel="mean |relevance|", title="what the answers are made of")
axes[1].scatter(x[:, 0], relevance[:, 0], s=6, label="feature 0")
axes[1].scatter(x[:, 7], relevance[:, 7], s=6, label="feature 7, noise")
axes[1].set(xlabel="value", ylabel="relevance", title="sample by sample")
axes[1].legend()

# %%
# How much the inputs and each layer's biases add to an answer, on average and by size:

for module, value in why.by_module().items():
    print(f"{module:8} {value.abs().mean().item():.4f}")
