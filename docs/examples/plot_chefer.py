"""
Which digit did it look at?
===========================

A small vision transformer says which digits a pair holds. Asked for one of the two, where does its attention lie? Chefer's
method weighs every attention layer by gradient and relevance and multiplies the layers; attention rollout multiplies the
layers as they are.
"""

# %%
# The subject is trained here, in a quarter of a minute, on pairs of scikit-learn's handwritten digits.

import matplotlib.pyplot as plt

import termwise as tw
from termwise.predictions import attention_rollout, gradient_rollout
from termwise.testing.trained import two_digits_vit

subject = two_digits_vit()
pair, (left, right) = subject.inputs[:1], subject.labels[0].tolist()
print(f"a {left} and a {right}; pairs read right: {subject.accuracy:.0%}")

# %%
# One map for each of the two digits. Rollout never sees the question, and gives one map for both.

figure, axes = plt.subplots(2, 4, figsize=(9, 2.6), layout="constrained")
for row, digit in zip(axes, (left, right), strict=True):
    why = tw.chefer(subject.model, pair, target=digit).check()
    maps = {
        f"asked for {digit}": pair[0, 0],
        "chefer": why.heatmap(),
        "gradient rollout": gradient_rollout(subject.model, pair, target=digit).heatmap(),
        "attention rollout": attention_rollout(subject.model, pair, target=digit).heatmap(),
    }
    for axis, (title, image) in zip(row, maps.items(), strict=True):
        axis.imshow(image, cmap="gray" if title.startswith("asked") else "magma")
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()

# %%
# The map is an index of tokens and adds up to nothing. What adds up is the relevance behind it, which starts as 1 at the
# answer and arrives at pixels, positions and the class token; what z+ loses where no contribution is positive is booked there.

print(why.summary())
for part, value in why.top(4):
    print(f"{value:+.3f}  {part}")

# %%
# Every attention layer can be looked at: relu(gradient * relevance), one map per head.

for path, layer in why.attention_relevance.items():
    print(f"{path}: heads x queries x keys = {tuple(layer.shape[1:])}, sum {layer.sum():.3f}")
