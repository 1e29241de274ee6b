"""
The worst layer decides
=======================

ALDS writes each layer as groups of channels of low rank and spends a budget so that the largest relative error of any layer is as
small as can be. What groups are worth, and what it is worth to choose ranks by layer, is measured here on a small network.
"""

# %%
# A network of three convolutions on handwritten digits, and half of its parameters. One table, the worst layers first: their
# errors are alike, since a layer better than the worst would be spending too much.

import matplotlib.pyplot as plt

import termwise as tw
from termwise.testing.trained_cnn import digits_cnn
from termwise.weights import Method, allocate, group_errors

trained = digits_cnn()
small = tw.weights.alds(trained.model, 0.5, data=trained.inputs, progress=False)
small.show()

# %%
# With the error itself in place of its bound, layers are cut in groups. Their parts add up to the layer's weight.

exact = tw.weights.alds(trained.model, 0.5, data=trained.inputs, bound="exact", search="exact", progress=False)
print([row.choice for row in exact.layers])
name, weight = next(iter(exact.parts.items()))
print(name, list(weight.parts), bool((sum(weight.parts.values()) + weight.remainder - weight.whole).abs().max() < 1e-6))

# %%
# Left: what a layer's truncation leaves, and the two bounds, for four groups. Right: size against the change of the output, for
# ALDS, for the same share of every layer's rank, and for the two methods of the house that look at data.

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
matrix = trained.model[4].weight.flatten(1)
for bound in ("paper", "sharp", "exact"):
    left.plot(group_errors(matrix, 4, bound), label=f"4 groups, {bound}")
left.plot(group_errors(matrix, 1), "k:", label="1 group")
left.set(xlabel="rank of each group", ylabel="|W - W'| / |W|", title="a layer and its bounds")
left.legend()

svd = tw.weights.METHODS["svd"]
uniform = Method(svd.fit, svd.ladder, lambda ladders, curves, budget: allocate(curves, budget, method="uniform"), data=False)
budgets = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
for label, method in (("uniform ranks", uniform), ("alds", "alds"), ("aware", "aware"), ("auto", "auto")):
    points = [tw.compress(trained.model, b, data=trained.inputs, method=method, progress=False) for b in budgets]
    right.semilogy([p.kept for p in points], [p.measured for p in points], "o-", label=label)
right.set(xlabel="share of the numbers kept", ylabel="|f' - f| / |f|, held out", title="size against change of the output")
right.legend()
plt.show()
