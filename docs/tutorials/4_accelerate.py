"""
Accelerate: which calls were needed?
====================================

**You have** something that calls a model again and again along a time grid: a sampler of pictures, a solver. **You get** the
same thing with fewer calls, and a report of every step: computed or forecast, and how wrong. This page draws handwritten digits
with a diffusion transformer, and then draws them with a fifth of the work.

.. image:: /_static/verb-accelerate.svg
   :class: drawing
   :alt: Steps on a line, some computed, the others forecast from these
"""

# %%
# I have a sampler
# ----------------
#
# A small diffusion transformer, trained on digits, and a pipeline as diffusers has them: a scheduler, a transformer, a loop. Of
# a real one, `StableDiffusion3Pipeline` or another, nothing below changes.

import matplotlib.pyplot as plt
import torch
from diffusers import DDIMScheduler

import termwise as tw
from termwise.testing.trained_dit import digits_dit


class Pipeline:
    def __init__(self, transformer, scheduler):
        self.transformer, self.scheduler = transformer, scheduler

    @torch.no_grad()
    def __call__(self, seed=1, num_inference_steps=50):
        x, digits = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.arange(10)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            noise = self.transformer(x, timestep=t.expand(10), class_labels=digits).sample
            x = self.scheduler.step(noise, t, x).prev_sample
        return x


def strip(axes, pictures, title):
    axes.imshow(pictures[:, 0].permute(1, 0, 2).reshape(8, 80).clamp(-1, 1), cmap="gray")
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_axis_off()


def change(pictures, truth):
    return ((pictures - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).median().item()


pipeline = Pipeline(digits_dit(), DDIMScheduler(clip_sample=False))
truth = pipeline()

# %%
# Ask
# ---
#
# Say by how much the picture may change, and call what you get in the pipeline's place.

fast = tw.accelerate(pipeline, tolerance=0.03)
pictures = fast()
print(fast.report.summary())
figure, rows = plt.subplots(2, 1, figsize=(7, 2), layout="constrained")
strip(rows[0], truth, "all 50 steps computed")
strip(rows[1], pictures, f"{fast.report.evaluations} of 50 computed: changed by {change(pictures, truth):.1%} (median)")

# %%
# Read the report. Where the model was computed, the error of a forecast from the steps before is known, and shown: it was not
# used, and it says how far forecasts reach. Where it was forecast, there is what this is expected to do to the result; these
# add up to the estimate, which the tolerance is held against. Below are the steps that were computed: many where the path
# bends.

fast.report.plot()

# %%
# How few calls are enough?
# -------------------------
#
# The estimate is one, and no bound; so measure once on your own pictures, and then trust the tolerance.

tolerances, rows = (0.003, 0.01, 0.03, 0.1), []
for tolerance in tolerances:
    one = tw.accelerate(pipeline, tolerance=tolerance)
    rows.append((change(one(), truth), one.report.estimate, one.report.evaluations))
figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
axes.loglog(tolerances, [row[0] for row in rows], "o-", label="measured change")
axes.loglog(tolerances, [row[1] for row in rows], "x--", label="estimate")
axes.loglog(tolerances, tolerances, ":", color="grey", label="tolerance")
for tolerance, (measured, _, evaluations) in zip(tolerances, rows, strict=True):
    axes.annotate(f"{evaluations} of 50", (tolerance, measured), (4, -12), textcoords="offset points", fontsize=8)
axes.set(xlabel="tolerance", ylabel="relative change of the picture")
axes.legend()

# %%
# With a budget of calls
# ----------------------
#
# "I can pay for ten." A budget takes a better solver too, since that is where most of the gain is; what remains for forecasts
# is shown beside that solver alone and beside fewer steps of the old one.

ten = tw.accelerate(pipeline, budget=10)
tuned = Pipeline(pipeline.transformer, tw.computation.tuned_solver(pipeline.scheduler))
reference = tuned(num_inference_steps=150)
drawn = {
    "150 steps": reference,
    "10 steps of DDIM": pipeline(num_inference_steps=10),
    "10 steps of DPM-Solver++(2M)": tuned(num_inference_steps=10),
    "budget=10": ten(),
}
figure, rows = plt.subplots(len(drawn), 1, figsize=(7, 3.6), layout="constrained")
for axes, (name, pictures) in zip(rows, drawn.items(), strict=True):
    strip(axes, pictures, f"{name}: off by {change(pictures, reference):.1%}")

# %%
# What can go wrong
# -----------------
#
# **The tolerance is missed.** It holds what is estimated. Above, the measured change is beside the estimate at every tolerance.
#
# **Fewer calls are not less time.** A forecast costs memory and a few additions; the report has both. For a model that is
# quicker than its own scheduler nothing is gained.
#
# **A method of a paper, as published.** Those are here by name, to be compared with:

from termwise.computation import ABCache, TaylorSeer

for method in (ABCache(order=0, interval=5, first_steps=1), TaylorSeer(order=4, form="published", interval=5, first_steps=2)):
    theirs = tw.accelerate(pipeline, method)
    print(f"{type(method).__name__:11} changed by {change(theirs(), truth):6.1%}; {theirs.report.summary()}")

# %%
# What I do with the result
# -------------------------
#
# Use it in the pipeline's place; or accelerate the model itself, whoever calls it, within a `with` block. The report is a
# table.

with tw.accelerate(pipeline.transformer, tolerance=0.03, scheduler=pipeline.scheduler) as inside:
    pipeline(seed=2)
print(inside.report.summary())
print(inside.report.to_frame().head(3)[["index", "time", "computed", "estimate"]].to_string(index=False))
print(tw.cite(theirs))

# %%
# **Next**: :doc:`/computation` says what all this is worth beside diffusers' own caches, and what layers of a language model
# can skip. :doc:`/gallery/plot_accelerate` has how errors grow on the way.
