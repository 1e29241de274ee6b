"""
Expand: how does the answer move?
=================================

**You have** a trained model and a point at which it works. **You get** what happens around that point as a sum over orders:
where it stands, its slope, its curvature and so on, how far such a sum reaches, and the remainder that it leaves. This page
reads a model of how diabetes progresses in a year.

.. image:: /_static/verb-expand.svg
   :class: drawing
   :alt: A curve, its tangent, its parabola, and the gap that is left
"""

# %%
# I have a model
# --------------
#
# 442 patients, ten features in units of their spread, and a network that was trained on three quarters of them.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes

import termwise as tw

data = load_diabetes()
names = data.feature_names
torch.manual_seed(0)
x = torch.tensor(data.data) / torch.tensor(data.data).std(0)
y = torch.tensor(data.target, dtype=torch.float64)
mean, spread = y[:330].mean(), y[:330].std()

model = torch.nn.Sequential(torch.nn.Linear(10, 24), torch.nn.Tanh(), torch.nn.Linear(24, 1)).double()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=2e-3)
for _ in range(300):
    optimizer.zero_grad()
    ((model(x[:330]).squeeze(1) - (y[:330] - mean) / spread) ** 2).mean().backward()
    optimizer.step()
model.eval()
with torch.no_grad():
    left = (model(x[330:]).squeeze(1) * spread + mean - y[330:]).square().mean() / y[330:].var()
print(f"explains {1 - left.item():.0%} of the variance of patients it never saw")

# %%
# Ask
# ---
#
# One patient, and a step: a body mass index one spread higher. The parts are orders of that step.

patient = x[330:331]
step = torch.zeros_like(patient)
step[0, names.index("bmi")] = 1.0
found = tw.expand(model, patient, step, order=6)
print(found.summary())
for name, part in found.parts.items():
    print(f"{name}  {part.item() * spread.item():+9.3f} points")
print(f"remainder {found.remainder.item() * spread.item():+8.1e} points")

# %%
# Read it from the top: `order_0` is the patient's own prediction (above or below the average patient), `order_1` what a linear
# model would add for the step, `order_2` by how much that is wrong to second order. What the orders leave, the remainder, was
# measured by running the model at the other end of the step. It is no estimate.

lengths = torch.linspace(-4, 4, 81)
with torch.no_grad():
    truth = torch.stack([model(patient + t * step).squeeze() for t in lengths.tolist()])
figure, (curve, error) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
curve.plot(lengths, truth * spread + mean, color="black", linewidth=3, alpha=0.3, label="the model")
for order in (1, 2, 4, 6):
    few = tw.expand(model, patient, step, order=order)
    value = few.evaluate(lengths.double()).reshape(-1)
    curve.plot(lengths, value * spread + mean, label=f"order {order}", linewidth=1)
    error.semilogy(lengths, (value - truth).abs() * spread, label=f"order {order}")
curve.set(xlabel="bmi, in spreads from this patient", ylabel="progression", ylim=(0, 400))
error.set(xlabel="bmi, in spreads from this patient", ylabel="remainder", ylim=(1e-6, 1e3))
for axis in (curve, error):
    for side in (-1, 1):
        axis.axvline(side * found.radius.value, color="grey", linestyle=":")
curve.legend(fontsize=8)

# %%
# How far it reaches
# ------------------
#
# The dotted lines are the radius, estimated from the coefficients. Inside, a higher order is better; outside it is worse,
# whatever the order. `tanh` has singularities off the real axis, which is why a smooth curve has a series that ends.

print("radius", found.radius)
print(tw.expand(model, patient, 6 * step, order=6).summary())

# %%
# Which features bend, which only tilt
# ------------------------------------
#
# The same for every feature and all held-out patients, in one call each: how large order one is, and how large what is above
# it.

slopes, bends = [], []
for i in range(10):
    along = torch.zeros_like(x[330:])
    along[:, i] = 1.0
    terms = tw.expand(model, x[330:], along, order=4)
    slopes.append(terms.parts["order_1"].abs().mean() * spread)
    bends.append(sum(terms.parts[f"order_{k}"] for k in (2, 3, 4)).abs().mean() * spread)
plt.figure(figsize=(7, 3), layout="constrained")
places = torch.arange(10)
plt.bar(places - 0.2, slopes, 0.4, label="slope (order 1)")
plt.bar(places + 0.2, bends, 0.4, label="bending (orders 2 to 4)")
plt.xticks(places, names)
plt.ylabel("points, for one spread")
plt.legend()

# %%
# Two at once
# -----------
#
# Do two features add their effects, or do they need each other? Their mixed derivative says, from jets along three directions.

i, j = names.index("bmi"), names.index("bp")
orders = [int(k in (i, j)) for k in range(10)]
mixed = tw.functions.partial(model, x[330:], orders)
print(
    f"bmi with bp: {mixed.mean().item() * spread.item():+.2f} points on average, {mixed.std().item() * spread.item():.2f} spread"
)

# %%
# What can go wrong
# -----------------
#
# **Kinks.** A network of ReLUs is made of linear pieces. The series is exact up to the first one and says nothing beyond, and
# you are told where it ends and at which operation.

torch.manual_seed(0)
pieces = torch.nn.Sequential(torch.nn.Linear(10, 24), torch.nn.ReLU(), torch.nn.Linear(24, 1)).double().eval()
print(tw.expand(pieces, patient, step, order=2).summary())

# %%
# **High orders in float32.** Coefficients lose digits near the radius; take a float64 model beyond order six or so.
#
# **A slope is no cause.** An expansion says what the *model* does, and nothing of what a patient's body would.
#
# What I do with the result
# -------------------------
#
# The polynomial stands in for the model on the line, at the cost of a few additions; it is saved with its error.

print(found.evaluate(torch.tensor([0.0, 0.5, 1.0])).reshape(-1) * spread + mean)
print(f"predicted remainder at the end of the step: {found.predicted_remainder.item() * spread.item():.1e}, measured above")
print(tw.cite(found))

# %%
# .. code-block:: console
#
#     termwise expand --help
#
# **Next**: :doc:`/functions` has what else can be expanded: paths through residual branches, weights, frequencies.
# :doc:`/gallery/plot_expand` does this in the embedding of a transformer.
