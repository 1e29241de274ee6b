"""
Baselines: gradients, paths, noise, GradCAM, occlusion
======================================================

The maps that everybody knows, in the contract of all the others: parts, a whole, and how far the sum is from it.
"""

# %%
# What each of them takes apart differs. Gradient x input takes apart the answer, and misses by what is not linear.
# Integrated gradients take apart the difference to a baseline, and miss by their steps. SmoothGrad and occlusion are terms of
# nothing, and their remainder says so. GradCAM takes apart the last map, which here only a mean and a linear layer follow: near.
# Relevance over depth takes apart the answer against what else it might have been, and adds up.

import matplotlib.pyplot as plt

import termwise as tw
from termwise.predictions import gradcam, gradient_x_input, integrated_gradients, occlusion, smoothgrad

subject = tw.zoo.load("mobilenet-v2")
photo = subject.prepare(tw.zoo.photo("cat"))
found = {
    "gradient x input": gradient_x_input(subject.model, photo),
    "integrated gradients": integrated_gradients(subject.model, photo, steps=20),
    "SmoothGrad": smoothgrad(subject.model, photo, n=10),
    "GradCAM": gradcam(subject.model, photo),
    "occlusion": occlusion(subject.model, photo, patch=16),
    "relevance, over depth": tw.predictions.over_depth(subject.model, photo),
}
for method, why in found.items():
    print(f"{method:22s} explains {why.whole.item():6.2f}, misses it by {why.error():.0e}")

# %%
# Red spoke for the class, blue against it.

figure, axes = plt.subplots(2, 3, figsize=(9, 6.2))
for axis, (method, why) in zip(axes.flat, found.items(), strict=True):
    heat = why.heatmap()
    limit = heat.abs().quantile(0.995).item() or 1.0
    axis.imshow(heat, cmap="seismic", vmin=-limit, vmax=limit)
    axis.set_title(method, fontsize=10)
    axis.axis("off")
plt.tight_layout()
