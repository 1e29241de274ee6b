"""
Rules side by side
==================

The same answer about the same photograph, taken apart by several composites. All add up; they differ in where relevance
goes, what is lost on the way, and how much the terms fight.
"""

# %%
# Composites are plain mappings from where to which rule. zennit's users know these by name. Print one:

import matplotlib.pyplot as plt

import termwise as tw
from termwise.predictions.rules import EpsilonGammaBox, EpsilonPlus, depth, gamma
from termwise.report.heatmap import relevance_map

for where, rule in EpsilonPlus.items():
    print(f"{where!r:62} {rule!r}")

# %%
# Change one, or write one: here gamma falls with depth. z-box wants to know how dark and how bright a pixel can be, which a
# subject of the zoo knows.

subject = tw.zoo.load("mobilenet-v2")
photo = subject.prepare(tw.zoo.photo("china"))
rules = {
    "zero": "zero",
    "default": "default",
    "gamma by depth": {depth(0, 0.5, "conv*"): gamma(0.5), depth(0.5, 1, "conv*"): gamma(0.1)},
    "EpsilonPlus": "EpsilonPlus",
    "EpsilonPlusFlat": "EpsilonPlusFlat",
    "EpsilonAlpha2Beta1": "EpsilonAlpha2Beta1",
    "EpsilonGammaBox": EpsilonGammaBox(*subject.preparation.box),
    "GuidedBackprop": "GuidedBackprop",
}
found = {name: tw.explain(subject.model, photo, classes=subject.classes, rules=r) for name, r in rules.items()}

figure, axes = plt.subplots(2, 4, figsize=(9, 5), layout="constrained")
for axis, (name, why) in zip(axes.flat, found.items(), strict=True):
    axis.imshow(relevance_map(why.heatmap()))
    axis.set_title(name, fontsize=9)
    axis.set_axis_off()

# %%
# What the pictures do not show. "rules" is what was lost at operations whose rule does not conserve; with GuidedBackprop
# that is far more than the answer, because it is no decomposition.

for name, why in found.items():
    shares = ", ".join(f"{group} {100 * share.item():.0f} %" for group, share in why.shares().items())
    print(f"{name:20} adds up to {why.error():.0e} ({shares}), cancellation {why.cancellation():.3g}x")

# %%
# What biases own can go to the inputs of their operation instead. Where none of these contributes (channels that ReLU6 has
# silenced all over a patch) there is nobody to give to, and the bias's share is lost: under "rules".

for biases in ("parts", "distribute", "zero"):
    why = tw.explain(subject.model, photo, rules="EpsilonPlusFlat", biases=biases)
    print(f"{biases:10}", ", ".join(f"{group} {100 * share.item():.0f} %" for group, share in why.shares().items()))
