"""
Rank-one terms that do not fight
================================

A kernel can be written with few rank-one terms, and least squares will find them; but it likes terms that are larger than the
kernel and cancel. Such a layer computes the same and cannot be trained. A correction finds other terms with the same error.
"""

# %%
# The third convolution of a small network on handwritten digits, twelve terms. The correction may use 2 % more error.

import matplotlib.pyplot as plt

import termwise as tw
from termwise.testing.trained_cnn import digits_cnn
from termwise.weights import cp, decompose_conv, epc

trained = digits_cnn()
conv = trained.model[4]
found = cp(conv.weight, rank=12)
stable = epc(found)
print(found.summary(), stable.summary(), sep="\n")
print(f"sensitivity {found.sensitivity:.0f} -> {stable.sensitivity:.0f}")

# %%
# How large each term is beside the kernel. Right: what more error buys, on the way from the fit's own.

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
size = float(conv.weight.norm())
for offset, (terms, label) in enumerate(((found, "least squares"), (stable, "corrected"))):
    heights = terms.intensities.detach().sort(descending=True).values / size
    left.bar([r + 0.4 * offset for r in range(12)], heights, width=0.4, label=label)
left.axhline(1, color="0.6", linewidth=0.8)
left.set(xlabel="term", ylabel="intensity over |W|", title="terms of one kernel")
left.legend()
slacks = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
right.loglog(slacks, [epc(found, slack=slack, sweeps=100).sensitivity / found.sensitivity for slack in slacks], "o-")
right.set(xlabel="additional error, relative", ylabel="sensitivity left", title="a little error buys much")
plt.show()

# %%
# The layer becomes three of torch's own.

print(decompose_conv(conv, "cp-epc", rank=12))

# %%
# Whole networks, nothing retrained: size against the change of the output on digits held out.

fig, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
budgets = (0.15, 0.3, 0.6)
for method in ("svd", "cp", "tucker", "auto"):
    points = [tw.compress(trained.model, b, data=trained.inputs, method=method, progress=False) for b in budgets]
    axis.semilogy([p.kept for p in points], [p.measured for p in points], "o-", label=method)
axis.set(xlabel="share of the numbers kept", ylabel="|f' - f| / |f|, held out", title="size against change of the output")
axis.legend()
plt.show()
