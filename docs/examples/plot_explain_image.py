"""
A photograph
============

Why does MobileNetV2 see a palace? Its answer, one number, is taken apart into what every pixel and every bias added to it.
"""

# %%
# A subject of the zoo is a real model together with what it takes and what its answers are called.
# We compute in float64, so that the remainder shows what the method loses and not what rounding does.

import matplotlib.pyplot as plt

import termwise as tw
from termwise.report.heatmap import overlay, relevance_map

subject = tw.zoo.load("mobilenet-v2")
subject.model.double()
photo = subject.prepare(tw.zoo.photo("china"))
why = tw.explain(subject.model, photo, classes=subject.classes)
print(why.label(), f"{why.whole.item():.3f}")

# %%
# The map, and the map over the picture. Warm pixels raised the answer, cool ones lowered it.

seen, heat = subject.picture(photo), why.heatmap()
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for axis, image, title in zip(
    axes, (seen, relevance_map(heat), overlay(seen, heat)), ("what the model saw", "relevance", "summed nearby"), strict=True
):
    axis.imshow(image)
    axis.set_title(title)
    axis.set_axis_off()

# %%
# The honest line: how far it is from adding up, who carries how much, and how much the terms fight.

print(why.summary())

# %%
# Most of the answer stands in the biases, which no picture of the input shows. The largest parts are:

for part, value in why.top(5):
    print(f"{value:+8.3f}  {part}")

# %%
# With LRP-0, which on this kind of network is gradient x input, the same answer adds up as well, and its terms cancel each
# other a great deal more. Adding up is bookkeeping: it cannot tell the two maps apart. Deleting pixels can; the page
# that ``make demo`` writes has the curves.

for rules in ("default", "zero"):
    print(f"{rules:8}", tw.explain(subject.model, photo, classes=subject.classes, rules=rules).summary())
