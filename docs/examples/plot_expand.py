"""
A network around a point, order by order
========================================

What does a step in the input do to first order, to second, to k-th, and how much is left? The coefficients come from one run of
jets; the remainder is measured by a forward pass at the other end.
"""

# %%
# A sentence and a real transformer. Its ids are looked up in an embedding, so the step lies there.

import matplotlib.pyplot as plt
import torch

import termwise as tw

subject = tw.zoo.load("minilm-sentiment")
subject.model.double()
tokens = subject.prepare("A wonderful film that nobody should miss.")["input_ids"]
generator = torch.Generator().manual_seed(0)
step = torch.randn(*tokens.shape, 384, dtype=torch.float64, generator=generator)
step = step / step.norm()
found = tw.expand(subject.model, tokens, step, order=12)
print(found.summary())
for name, term in found.parts.items():
    print(f"{name:9s} {term[0, 1].item():+.3e}")

# %%
# How far does it reach? The remainder by the length of the step, for several orders. It falls with the order up to the radius of
# convergence, beyond which a higher order is worse: the singularities of softmax and layer norm lie off the real axis.

lengths = torch.linspace(0.1, 4, 25).tolist()
truth = [tw.expand(subject.model, tokens, step, order=0, at=t).whole for t in lengths]
figure, axis = plt.subplots(figsize=(7, 3.6))
for order in (1, 2, 4, 8, 12):
    few = tw.expand(subject.model, tokens, step, order=order)
    axis.semilogy(lengths, [(few.evaluate(t) - y).norm() for t, y in zip(lengths, truth, strict=True)], label=f"order {order}")
axis.axvline(found.radius.value, color="black", linestyle=":", label="estimated radius")
axis.set(xlabel="length of the step", ylabel="remainder")
axis.legend(fontsize=8)
plt.tight_layout()

# %%
# A network of ReLUs is made of linear pieces: order one is exact, until the first unit changes its piece.

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3)).double().eval()
x, h = torch.randn(1, 4, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
edge = tw.expand(model, x, h, order=1).kink_radius
for t in (0.99 * edge, 1.5 * edge):
    print(tw.expand(model, x, h, order=1, at=t).summary())

# %%
# Differential operators come from the same run: a Laplacian carries one value, one slope per variable, and one sum.

smooth = torch.nn.Sequential(torch.nn.Linear(4, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1)).double().eval()
print(f"Laplacian {tw.functions.laplacian(smooth, x).item():+.4f}")
