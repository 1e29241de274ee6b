"""
A map that adds up, and is faithful
===================================

Relevance that has reached the pixels of a deep network is sharp and noisy; what has reached a late feature map is reliable
and coarse. Each is a whole decomposition of the same answer, and so is their mean.
"""

# %%
# A photograph, and MobileNetV2. ``depths`` are the values that everything passes through; the map is their mean, in which a
# depth counts the more, the less its terms fight each other.

import matplotlib.pyplot as plt

import termwise as tw
from termwise.predictions import gradcam, over_depth, perturbation_curves

subject = tw.zoo.load("mobilenet-v2")
photo = subject.prepare(tw.zoo.photo("cat"))
target = int(subject.model(photo).argmax())
why = over_depth(subject.model, photo, target=target, classes=subject.classes).check()
print(why.label(), why.summary())

# %%
# The whole is not the logit but what sets the class apart, the logit less the mean of all logits weighted by their
# probabilities: what all classes share cannot tell them apart.

maps = {
    "over depth": why.inputs["x"],
    "pixels": tw.explain(subject.model, photo, target=target).inputs["x"],
    "GradCAM": gradcam(subject.model, photo, target=target).inputs["x"],
}
figure, axes = plt.subplots(1, 4, figsize=(11, 3))
axes[0].imshow(subject.picture(photo))
axes[0].set_title("what it saw")
for axis, (name, relevance) in zip(axes[1:], maps.items(), strict=True):
    curves = perturbation_curves(subject.model, photo, relevance, target, baseline="blur", patch=16, steps=8)
    heat = relevance[0].sum(0)
    limit = float(heat.abs().quantile(0.995))
    axis.imshow(heat, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set_title(f"{name}\nABPC {curves.abpc.mean:.2f}")
for axis in axes:
    axis.axis("off")
plt.tight_layout()

# %%
# ABPC is the area between two curves of the class's probability: patches turn blurred, the least relevant first and the most
# relevant first. One photograph proves nothing: ``benchmarks/relevance_peers.py`` measures many, with intervals, beside other
# packages.
