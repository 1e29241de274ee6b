"""
Which rank for which layer: three rules
=======================================

WeLore, LoRD and ROM make layers low-rank with nearly the same terms. They differ in who gets how many: one threshold on all
singular values, one rank for all layers of a type, or the last blocks alone.
"""

# %%
# A residual network of eight blocks that reads digits, and what it was trained on, without labels.

import matplotlib.pyplot as plt

import termwise as tw
from termwise.testing.trained_mlp import digits_residual_mlp
from termwise.weights import choose, domain_report, lord, low_rank_split, rom, type_sweep, welore

trained = digits_residual_mlp(0)
model, data = trained.model, list(trained.seen.split(120))
ends = ["stem", "head"]

# %%
# **WeLore** looks at no data. Normalised to [0, 1], the singular values of some matrices fall off early; with fewer than half of
# their ranks left they are low-rank components. Half of the ranks gone is not half of the parameters.

split = low_rank_split(model, 0.5)
small = welore(model, 0.5, data=data)
print(f"threshold {split.threshold:.3f}: {len(split.low_rank)} of {len(split.ranks)} layers are of low rank")
print(f"{split.rank_reduction:.1%} of the ranks removed, {small.kept:.1%} of the parameters kept")

# %%
# **LoRD** asks the model: what does it cost if all layers of one type, and no others, have this rank?

sweep = type_sweep(model, data, ratios=[0.6, 0.45, 0.3, 0.2], keep=ends)
print(sweep.to_string(index=False))
ratios = choose(sweep, max_increase=0.03)
small = lord(model, ratios, data=data, keep=ends)
print(ratios, f"{small.kept:.0%} of the parameters")

# %%
# Both types together cost more than each alone, and digits by a quarter turn, which it was not calibrated on, suffer more.

turned = trained.inputs.unflatten(1, (8, 8)).rot90(1, (1, 2)).flatten(1)
print(domain_report(model, small.model, {"digits": trained.inputs, "turned": turned}).to_string(index=False))

# %%
# **ROM** goes through the layers in order, and fits each to what it reads by then. The last blocks are made smaller, and the
# first are left as they are. Fitted to what the layer put out *originally*, it corrects errors of the layers before it.

for target in ("compressed", "original"):
    small = rom(model, 0.7, data=data, target=target, keep=ends)
    print(f"{target:12}{len(small.parts)} layers replaced, output changed by {small.measured:.2%}")

# %%
# The same budgets for all. None of the three rules knows what an error does to the output; `auto` measures that.

budgets = (0.9, 0.7, 0.5, 0.35)
figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
for method in ("svd", "welore", "welore-aware", "lord", "rom", "auto"):
    found = [tw.compress(model, b, data=data, method=method, keep=ends, progress=False) for b in budgets]
    axes.semilogy([f.kept for f in found], [f.measured for f in found], "o-", label=method)
found = [rom(model, b, data=data, target="original", keep=ends) for b in budgets]
axes.semilogy([f.kept for f in found], [f.measured for f in found], "o--", label="rom, original")
axes.set(xlabel="share of the parameters kept", ylabel="change of the output, held out")
axes.legend(ncols=2)
plt.show()
