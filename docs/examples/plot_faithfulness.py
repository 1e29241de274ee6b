"""
Is the map right?
=================

Two maps of the same network both add up, or neither needs to. Which one is right about the network? Take away what each names
first, and watch. A small network learns handwritten digits here, in a few seconds.
"""

# %%
# Data and model: 8 x 8 digits of scikit-learn, two convolutions.

import io

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import termwise as tw
from termwise.predictions import deletion, infidelity, perturbation_curves, pixel_flipping, randomisation

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
y = torch.tensor(digits.target)
mean = x[:1400].mean(0, keepdim=True)
layers = [torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU()]
model = torch.nn.Sequential(*layers, torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(512, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(60):
    batch = torch.randint(1400, (128,))
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
    optimizer.step()
model.eval()
test = x[1400:1500]
print(f"accuracy {(model(test).argmax(1) == y[1400:1500]).float().mean():.2f}")

# %%
# One map, and its curves: the most relevant pixels first (MoRF), and the least relevant first (LeRF). The area between them is
# ABPC; a random map has none. What is taken away turns black.

relevance = tw.explain(model, test, rules="zero").attributions()
curves = perturbation_curves(model, test, relevance, baseline="zeros", patch=1, steps=16)
print(curves.abpc)
print(curves.comprehensiveness, "less", curves.sufficiency, sep="\n")
plt.figure(figsize=(6.4, 3.8))
plt.imshow(plt.imread(io.BytesIO(curves.figure(repr(curves.abpc)))))
plt.axis("off")
plt.tight_layout()

# %%
# Against another map, pair by pair: the interval of the difference is much narrower than either interval.

other = tw.predictions.smoothgrad(model, test).attributions()
theirs = perturbation_curves(model, test, other, baseline="zeros", patch=1, steps=16)
print("SmoothGrad:", theirs.abpc)
print(curves.abpc - theirs.abpc)

# %%
# The ranking depends on the fill-in, so look at several. This map is measured from black: a black pixel has no relevance. The
# mean picture paints black pixels grey, which is evidence of another kind, and there the order of the two methods turns round:
# the interval of the paired difference is above 0 for black and for blur, below 0 for the mean.

fill_ins = {"zeros": "zeros", "mean": mean[0], "blur": "blur"}
ours, others = (pixel_flipping(model, test, r, fill_ins=fill_ins) for r in (relevance, other))
for name in fill_ins:
    low, high = (ours[name].abpc - others[name].abpc).interval()
    means = f"{ours[name].abpc.mean:.2f}, SmoothGrad {others[name].abpc.mean:.2f}"
    print(f"{name:6} {means}: difference {low:.2f} to {high:.2f}")
    assert low > 0 if name != "mean" else high < 0  # or the sentence above is wrong here

# %%
# One answer beside random orders.

one = test[:1]
curve = deletion(model, one, relevance[:1], baseline="zeros", patch=1, random_orders=20)
plt.figure(figsize=(6, 3.4))
plt.plot(curve.fractions, curve.random_scores[0].T, color="grey", alpha=0.3)
plt.plot(curve.fractions, curve.scores[0], color="tab:red", linewidth=2)
plt.xlabel("share of the pixels replaced")
plt.ylabel("probability")

# %%
# Two more questions. Does the map predict what a small change of the input does? And does it change when the network forgets
# what it learned, from the last layer down?

gradient = tw.predictions.smoothgrad(model, test, kind="signed", noise=0.0).attributions()
print("the gradient:", infidelity(model, test, gradient))
print("all zeros:   ", infidelity(model, test, torch.zeros_like(test)))
answers = model(test).argmax(1)
check = randomisation(model, lambda m: tw.explain(m, test, target=answers, rules="zero"))
for layer in check.layers:
    print(check.after(layer))
